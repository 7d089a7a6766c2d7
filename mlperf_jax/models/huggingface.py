"""Weights in files of Hugging Face `transformers`: parameters as readers, checks of what fits, folders.

Nothing here needs a whole model in memory: sources may be slices that read from disk when indexed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from mlperf_jax.errors import UserError
from mlperf_jax.models.importing import some

# what NumPy holds, with ml_dtypes' bfloat16
_FORMATS = frozenset("BOOL U8 I8 U16 I16 F16 BF16 U32 I32 F32 U64 I64 F64".split())
_SOME = 8  # names listed per fault
_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Leaf:
    """One of our arrays, one layer of it, and where it stands in a file.

    Attributes:
        path: ours.
        name: theirs, with {layer} in a stack.
        shape: of one layer, ours.
        transposed: whether theirs has the axes swapped.
        axis: ours, along which theirs may hold more.
        start: where ours begins there.
        whole: length of theirs there; None for the same.
        offset: what theirs is larger by.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    transposed: bool = False
    axis: int = -1
    start: int = 0
    whole: int | None = None
    offset: float = 0.0

    @property
    def stacked(self) -> bool:
        return "{layer}" in self.name

    @property
    def file_shape(self) -> tuple[int, ...]:
        shape = list(self.shape)
        if self.whole:
            shape[self.axis] = self.whole
        return tuple(shape[::-1] if self.transposed else shape)

    def names(self, layers: int) -> list[str]:
        return [self.name.format(layer=i) for i in range(layers)] if self.stacked else [self.name]

    def region(self, index: tuple[slice, ...]) -> tuple[slice, ...]:
        """Slices of ours as slices of theirs."""
        parts = list(index)
        if self.start:
            part = parts[self.axis]
            parts[self.axis] = slice(part.start + self.start, part.stop + self.start)
        return tuple(parts[::-1] if self.transposed else parts)


class Reader:
    """One parameter array as a function of index slices; nothing is read before it is called.

    >>> leaf = Leaf("embed/embedding", "wte.weight", (3, 2), axis=0)
    >>> Reader(leaf, {leaf.name: np.arange(6.0).reshape(3, 2)}, 1)((slice(1, 2), slice(2)))
    array([[2., 3.]])
    """

    def __init__(self, leaf: Leaf, tensors: Mapping[str, Any], layers: int):
        self.shape = (layers, *leaf.shape) if leaf.stacked else leaf.shape
        self._leaf = leaf
        self._tensors = tensors
        self._names = leaf.names(layers)

    def __call__(self, index: tuple[slice, ...]) -> np.ndarray:
        """The part of the array that the slices (steps of 1) select, in the source's dtype."""
        spans = [part.indices(size)[:2] for part, size in zip(index, self.shape, strict=True)]
        parts = tuple(slice(*span) for span in spans)
        if not self._leaf.stacked:
            return self._one(self._names[0], parts)
        layers = [self._one(name, parts[1:]) for name in self._names[parts[0]]]
        return np.stack(layers)

    def _one(self, name: str, parts: tuple[slice, ...]) -> np.ndarray:
        leaf = self._leaf
        value = np.asarray(self._tensors[name][leaf.region(parts)])
        value = value.T if leaf.transposed else value
        return (value - value.dtype.type(leaf.offset)) if leaf.offset else value


# -- in --------------------------------------------------------------------------------------------


def other_shape(name: str, leaf: Leaf, shape: tuple[int, ...]) -> str | None:
    """What is wrong with the shape of the array of this name, in words; None for nothing."""
    wanted = leaf.file_shape
    return None if shape == wanted else f"{name} has shape {shape}, not {wanted}"


def check(
    given: Mapping[str, Any],
    leaves: Collection[Leaf],
    layers: int,
    wanted: str,
    shape_fault: Callable[[str, Leaf, tuple[int, ...]], str | None] = other_shape,
) -> None:
    """Nothing, if names and shapes are those of the leaves.

    Args:
      given: name -> array or lazy slice.
      leaves: all arrays of the model.
      layers: of the model.
      wanted: what the model is called.
      shape_fault: as `other_shape`, of models that have more to say.

    Raises:
      UserError: lists what is missing, unexpected or of the wrong shape.
    """
    expected = {name: leaf for leaf in leaves for name in leaf.names(layers)}
    faults = []
    if missing := [name for name in expected if name not in given]:
        faults.append(f"{len(missing)} arrays are missing ({some(missing, _SOME)})")
    if unexpected := sorted(given.keys() - expected.keys()):
        faults.append(f"{len(unexpected)} are unexpected ({some(unexpected, _SOME)})")
    wrong = [
        fault
        for name, leaf in expected.items()
        if name in given and (fault := shape_fault(name, leaf, shape_of(given[name])))
    ]
    if wrong:
        faults.append(f"{len(wrong)} have the wrong shape ({some(wrong, _SOME)})")
    if faults:
        raise UserError(
            f"these weights do not fit {wanted}: {'; '.join(faults)}; "
            "give that model's weights, or a config that fits them"
        )


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Of an array or a lazy slice."""
    return tuple(tensor.get_shape() if hasattr(tensor, "get_shape") else tensor.shape)


class Swapped:
    """An array or lazy slice whose last two axes are exchanged; read only when indexed.

    Kernels OIHW as OIWH, which reversed is our [H, W, in, out].
    """

    def __init__(self, tensor: Any):
        shape = shape_of(tensor)
        self.shape = (*shape[:-2], *shape[:-3:-1])
        self._tensor = tensor

    def __getitem__(self, index: Any) -> np.ndarray:
        if index is not ...:
            index = (*index[:-2], *index[:-3:-1])
        return np.asarray(self._tensor[index]).swapaxes(-1, -2)


def open_folder(folder: str | Path, stem: str | None = None) -> dict[str, Any]:
    """Name -> lazy slice over a folder's safetensors files, sharded or not.

    Args:
      folder: of a model.
      stem: what the files are called, before the number of a shard: others beside them are not read. None:
        "model" if there is an index of that name, or else all files.

    Raises:
      UserError: no such folder or files, shards that the index names are missing, or a damaged index.
    """
    folder = Path(folder)
    listing = folder / f"{stem or 'model'}.safetensors.index.json"
    if listing.exists():
        names = _shards(listing)
    else:
        names = sorted(path.name for path in folder.glob(f"{stem or '*'}.safetensors"))
    if not names:
        raise UserError(
            f"{folder} holds no safetensors: download the model's {stem or '*'}.safetensors and "
            f"{listing.name} into it (models under a licence need an account that has accepted it)"
        )
    if missing := [name for name in names if not (folder / name).exists()]:
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(names)} shards: {some(missing, _SOME)}; download them"
        )
    tensors: dict[str, Any] = {}
    for name in names:
        tensors |= open_file(folder / name)
    return tensors


def _shards(listing: Path) -> list[str]:
    """The files that an index names."""
    try:
        names = sorted(set(json.loads(listing.read_text(encoding="utf-8"))["weight_map"].values()))
        if [os.path.basename(name) for name in names] == names:
            return names
        error: Exception = ValueError("it names files elsewhere")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as damage:
        error = damage
    raise UserError(
        f"{listing} is no index of safetensors, with the file of each weight: download it again"
    ) from error


def open_file(path: Path) -> dict[str, Any]:
    """Name -> lazy slice over one safetensors file.

    Raises:
      UserError: it is damaged, none, or holds numbers in a format that NumPy has not.
    """
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="numpy")
        tensors = {key: file.get_slice(key) for key in list(file.keys())}
    except SafetensorError as error:
        raise UserError(
            f"{path} cannot be read ({error}): it is truncated or no safetensors file; download it again"
        ) from error
    for key, tensor in tensors.items():
        if tensor.get_dtype() not in _FORMATS:
            raise UserError(
                f"{path} holds {key} as {tensor.get_dtype()}, which is not read: give the weights in bfloat16 or float32"
            )
    return tensors


# -- out -------------------------------------------------------------------------------------------


def exported(
    params: Mapping[str, Any], leaves: Collection[Leaf], layers: int
) -> dict[str, np.ndarray]:
    """A state dict that `transformers` loads, of a nested dict of parameters.

    Raises:
      UserError: the parameters lack an array.
    """
    tensors: dict[str, np.ndarray] = {}
    flat = flatten_dict(params, sep="/")
    for leaf in leaves:
        if leaf.path not in flat:
            raise UserError(f"export: the parameters lack {leaf.path}; give all of the model's")
        value = np.asarray(flat[leaf.path])
        whole = tuple(slice(0, size) for size in leaf.shape)
        for layer, name in enumerate(leaf.names(layers)):
            one = value[layer] if leaf.stacked else value
            one = one + one.dtype.type(leaf.offset) if leaf.offset else one
            if name not in tensors:
                tensors[name] = np.empty(leaf.file_shape, value.dtype)
            tensors[name][leaf.region(whole)] = one.T if leaf.transposed else one
    return tensors


def save_folder(
    folder: str | Path,
    tensors: Mapping[str, np.ndarray],
    *,
    stem: str = "model",
    shard_bytes: int = _SHARD_BYTES,
) -> list[Path]:
    """Writes a state dict as safetensors with the index that `transformers` reads.

    Args:
      folder: made if it is missing.
      tensors: what `to_huggingface` gave.
      stem: what the files are called.
      shard_bytes: a file's size at most, unless one array is larger.

    Returns:
      The files written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, np.ndarray]] = [{}]
    used = 0
    for name, value in tensors.items():
        if shards[-1] and used + value.nbytes > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = value
        used += value.nbytes
    names = [f"{stem}.safetensors"]
    if (total := len(shards)) > 1:
        names = [f"{stem}-{i:05}-of-{total:05}.safetensors" for i in range(1, total + 1)]
        index = {
            "metadata": {"total_size": sum(value.nbytes for value in tensors.values())},
            "weight_map": {key: name for name, shard in zip(names, shards) for key in shard},
        }
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2))
    from safetensors.numpy import save_file

    for name, shard in zip(names, shards):
        save_file(shard, folder / name, metadata={"format": "pt"})
    return [folder / name for name in names]

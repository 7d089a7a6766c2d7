"""GPT3's start checkpoint as paxml stores it: one Zarr array per weight and per Adam moment.

Arrays are read in parts through tensorstore, so that each device gets its own and no host holds the
model. The layouts are paxml's: query, key and value fused as [L, 3, D, N, H], the output projection with
the width first [L, D, N, H], the tied embedding [D, V], layers in one leading axis. Gains of norms are
offsets from 1 on both sides.
Reference: mlcommons/training, retired_benchmarks/gpt3/paxml, and the names of its public checkpoint.

L layers · D width · N heads · H head dimension · F feed-forward width · V vocabulary rows
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.models.decoder_config import DecoderConfig
from mlperf_jax.models.importing import some

_WEIGHTS = "mdl_vars.params.lm."
_STACK = "transformer.repeat.sub.x_layers_0."
_LAYERS = "blocks/layers/"
_MOMENTS = {"mu": "m", "nu": "v"}  # optax's names, paxml's

Index = tuple[slice, ...]


@dataclass(frozen=True)
class _Leaf:
    """One of our arrays and where it stands in paxml's, by default as it is.

    Attributes:
        path: ours.
        name: theirs, after the prefix that weights or a moment have.
        shape: ours.
        stored: their shape.
        region: slices of ours -> index of theirs.
        back: part of theirs, and the shape of the part of ours -> that part.
        forth: the whole of ours -> the whole of theirs, for writing.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    stored: tuple[int, ...]
    region: Callable[[Index], Index] = lambda index: index
    back: Callable[[np.ndarray, tuple[int, ...]], np.ndarray] = lambda part, _: part
    forth: Callable[[np.ndarray], np.ndarray] = lambda value: value


class Reader:
    """One array as a function of index slices; nothing is read before it is called.

    Rows of the embedding that the file lacks are zeros, as Megatron's loader pads them.
    """

    def __init__(self, leaf: _Leaf, array: Any):
        self.shape, self._leaf, self._array = leaf.shape, leaf, array

    def __call__(self, index: Index) -> np.ndarray:
        spans = tuple(
            slice(*part.indices(size)[:2]) for part, size in zip(index, self.shape, strict=True)
        )
        wanted = tuple(part.stop - part.start for part in spans)
        region = self._leaf.region(spans)
        held = tuple(
            slice(part.start, min(part.stop, size))
            for part, size in zip(region, self._array.shape, strict=True)
        )
        if any(part.stop <= part.start for part in held):
            return np.zeros(wanted, self._array.dtype.numpy_dtype)
        found = self._array[held].read().result()
        lacking = [(0, part.stop - have.stop) for part, have in zip(region, held)]
        return self._leaf.back(np.pad(found, lacking), wanted)


def start_weights(folder: str | os.PathLike, config: DecoderConfig) -> dict[str, Reader]:
    """What `core.benchmark.Start(weights=...)` takes, from a checkpoint folder.

    Args:
        folder: local or gs://, the one that holds the arrays (or their parent, with them in `state`).
        config: GPT3's; `vocab` may be above or below the file's rows, `max_positions` below.

    Raises:
        UserError: arrays are missing or have other shapes; lists them.
    """
    found = _open(folder, {leaf: _WEIGHTS + leaf.name for leaf in _leaves(config)})
    return {f"params/{leaf.path}": Reader(leaf, array) for leaf, array in found.items()}


def start_moments(folder: str | os.PathLike, config: DecoderConfig) -> dict[str, dict[str, Reader]]:
    """What `core.benchmark.Start(moments=...)` takes: Adam's first ("mu") and second ("nu") moments.

    Praxis stores them corrected for their bias already; 4,000 steps in, the correction is 1.
    """
    moments = {}
    for ours, theirs in _MOMENTS.items():
        names = {leaf: _moment_name(leaf, theirs, config.layers) for leaf in _leaves(config)}
        found = _open(folder, names)
        moments[ours] = {leaf.path: Reader(leaf, array) for leaf, array in found.items()}
    return moments


def save(
    folder: str | os.PathLike,
    params: Mapping[str, Any],
    moments: Mapping[str, Mapping[str, Any]],
    config: DecoderConfig,
    step: int,
) -> None:
    """Writes a checkpoint that `start_weights` and `start_moments` read.

    Args:
        folder: made if it is missing.
        params: path -> array.
        moments: "mu" and "nu" -> path -> array.
        config: of the model.
        step: steps done.
    """
    arrays: dict[str, list[np.ndarray]] = {}
    for leaf in _leaves(config):
        names = {_WEIGHTS + leaf.name: params}
        names |= {_moment_name(leaf, m, config.layers): moments[o] for o, m in _MOMENTS.items()}
        for name, source in names.items():
            arrays.setdefault(name, []).append(leaf.forth(np.asarray(source[leaf.path])))
    for name, parts in arrays.items():  # query, key and value make one
        _write(folder, name, np.stack(parts, 1) if len(parts) > 1 else parts[0])
    _write(folder, "step", np.asarray(step, np.int32))


def _moment_name(leaf: _Leaf, moment: str, layers: int) -> str:
    stacked = leaf.name.startswith(_STACK)
    where = f"p#{layers}#i-1_2" if stacked else "no_prefix_2"
    return f"opt_states_0.{where}.{moment}.params.lm.{leaf.name}"


# -- arrays on disk --------------------------------------------------------------------------------


def _spec(folder: str | os.PathLike, name: str) -> dict[str, Any]:
    where = os.fspath(folder).rstrip("/")
    if where.startswith("gs://"):
        bucket, _, path = where.removeprefix("gs://").partition("/")
        store = {"driver": "gcs", "bucket": bucket, "path": f"{path}/{name}/"}
    else:
        store = {"driver": "file", "path": f"{os.path.abspath(where)}/{name}/"}
    return {"driver": "zarr", "kvstore": store}


def _open(folder: str | os.PathLike, names: Mapping[_Leaf, str]) -> dict[_Leaf, Any]:
    folder = os.fspath(folder)
    if not folder.startswith("gs://") and os.path.isdir(f"{folder}/state"):
        folder = f"{folder}/state"
    import tensorstore  # slow to import, and few runs need it

    pending = {leaf: tensorstore.open(_spec(folder, name)) for leaf, name in names.items()}
    found, missing, wrong = {}, [], []
    for leaf, array in pending.items():
        try:
            found[leaf] = array.result()
        except (ValueError, KeyError):  # tensorstore's words for a missing or damaged array
            missing.append(names[leaf])
            continue
        if not _fits(leaf, tuple(found[leaf].shape)):
            wrong.append(f"{names[leaf]} has shape {tuple(found[leaf].shape)}, not {leaf.stored}")
    if missing or wrong:
        parts = [f"{len(missing)} arrays are missing or unreadable ({some(missing, 4)})"] * bool(
            missing
        )
        parts += [f"{len(wrong)} have the wrong shape ({some(wrong, 4)})"] * bool(wrong)
        raise UserError(
            f"{folder} is no start checkpoint of this GPT3: {'; '.join(parts)}; copy the reference's "
            "checkpoint_00004000 without pipeline stages, of gs://mlperf-llm-public2"
        )
    return found


def _fits(leaf: _Leaf, shape: tuple[int, ...]) -> bool:
    if leaf.path == "embed/embedding":  # files have 50,304 or 51,200 rows
        return len(shape) == 2 and shape[0] == leaf.stored[0]
    if leaf.path == "positions/embedding":  # 16,384 rows, of which the benchmark uses 2,048
        return len(shape) == 2 and shape[0] >= leaf.stored[0] and shape[1] == leaf.stored[1]
    return shape == leaf.stored


def _write(folder: str | os.PathLike, name: str, value: np.ndarray) -> None:
    import tensorstore

    dtype = {"dtype": value.dtype.str, "shape": list(value.shape), "chunks": [*value.shape] or []}
    spec = {**_spec(folder, name), "metadata": dtype, "create": True, "delete_existing": True}
    tensorstore.open(spec).result().write(value).result()


# -- the names -------------------------------------------------------------------------------------


def _leaves(config: DecoderConfig) -> list[_Leaf]:
    layers, width, hidden = config.layers, config.width, config.hidden
    if config.positions != "learned" or not config.bias or not config.tied:
        raise UserError(
            "paxml's GPT3 has learned positions, biases and a tied head; this model not"
        )
    embedding = _Leaf(
        "embed/embedding",
        "softmax.logits_ffn.linear.w",
        (config.vocab, width),
        (width, config.vocab),
        lambda index: index[::-1],
        lambda part, _: part.T,
        lambda value: value.T,
    )
    rows = config.max_positions or 0
    same = [_same("positions/embedding", "position_emb.emb_var", (rows, width))]
    for leaf in ("scale", "bias"):
        same.append(_same(f"final_norm/{leaf}", f"final_ln.{leaf}", (width,)))
        for ours, theirs in (("attention_norm", ""), ("feed_forward_norm", "ff_layer.")):
            same.append(
                _same(
                    f"{_LAYERS}{ours}/{leaf}", f"{_STACK}{theirs}layer_norm.{leaf}", (layers, width)
                )
            )
    for ours, theirs, shape in (
        ("up/kernel", "ffn_layer1.linear.w", (width, hidden)),
        ("up/bias", "ffn_layer1.bias.b", (hidden,)),
        ("down/kernel", "ffn_layer2.linear.w", (hidden, width)),
        ("down/bias", "ffn_layer2.bias.b", (width,)),
    ):
        path, name = f"{_LAYERS}feed_forward/{ours}", f"{_STACK}ff_layer.{theirs}"
        same.append(_same(path, name, (layers, *shape)))
    out = f"{_LAYERS}attention/out/bias"
    same.append(_same(out, f"{_STACK}self_attention.post.b", (layers, width)))
    return [embedding, *same, *_projections(config)]


def _same(path: str, name: str, shape: tuple[int, ...]) -> _Leaf:
    return _Leaf(path, name, shape, shape)


def _projections(config: DecoderConfig) -> list[_Leaf]:
    """Those that have heads; a part of the last axis of ours must be whole heads of theirs."""
    layers, width, heads, size = config.layers, config.width, config.heads, config.head_dim
    name = f"{_STACK}self_attention."
    leaves = []
    for part, path in enumerate(("query", "key", "value")):
        here = slice(part, part + 1)
        for ours, theirs, inputs in (("kernel", "w", (width,)), ("bias", "b", ())):
            leaves.append(
                _Leaf(
                    f"{_LAYERS}attention/{path}/{ours}",
                    f"{name}combined_qkv.{theirs}",
                    (layers, *inputs, heads * size),
                    (layers, 3, *inputs, heads, size),
                    lambda at, here=here: (at[0], here, *at[1:-1], *_heads(at[-1], size)),
                    lambda found, wanted: found.reshape(wanted),
                    lambda value: value.reshape(*value.shape[:-1], heads, size),
                )
            )
    leaves.append(
        _Leaf(
            f"{_LAYERS}attention/out/kernel",
            f"{name}post.w",
            (layers, heads * size, width),
            (layers, width, heads, size),
            lambda at: (at[0], at[2], *_heads(at[1], size)),
            lambda found, wanted: np.moveaxis(found, 1, 3).reshape(wanted),
            lambda value: np.moveaxis(value.reshape(layers, heads, size, width), 3, 1),
        )
    )
    return leaves


def _heads(part: slice, size: int) -> tuple[slice, slice]:
    """A part of N·H, as heads and the dimensions within them: whole heads, or a part of one."""
    first, last = part.start // size, (part.stop - 1) // size
    if part.start % size == 0 and part.stop % size == 0:
        return slice(first, last + 1), slice(0, size)
    if first == last:
        return slice(first, first + 1), slice(part.start - first * size, part.stop - first * size)
    raise UserError(
        f"the mesh cuts heads of {size} dimensions at {part.start} and {part.stop}: split the model over "
        "a number of devices that divides its heads"
    )

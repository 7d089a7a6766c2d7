"""Weights of `decoder.Decoder` in the names and layouts of Hugging Face `transformers`.

Models with rope take Llama's names (also with query, key and value fused as `qkv_proj`, as in the
checkpoint of llama2_70b_lora), models with learned positions GPT-2's. Llama's kernels are [out, in],
GPT-2's [in, out] with query, key and value fused; our stacks carry a layer axis in front. Nothing
here needs a whole model in memory: sources may be slices that read from disk when indexed.

L layers · I inputs · O outputs
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mlperf_jax.errors import UserError
from mlperf_jax.models import quantised
from mlperf_jax.models.decoder_config import DecoderConfig
from mlperf_jax.models.importing import some

_IGNORED = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")  # buffers of old files
_SOME = 8  # names listed per fault
_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class _Leaf:
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
        shape[self.axis] = self.whole or shape[self.axis]
        return tuple(shape[::-1] if self.transposed else shape)

    def names(self, layers: int) -> list[str]:
        return [self.name.format(layer=i) for i in range(layers)] if self.stacked else [self.name]

    def region(self, index: tuple[slice, ...]) -> tuple[slice, ...]:
        """Slices of ours as slices of theirs."""
        parts = list(index)
        parts[self.axis] = slice(
            parts[self.axis].start + self.start, parts[self.axis].stop + self.start
        )
        return tuple(parts[::-1] if self.transposed else parts)


class Reader:
    """One parameter array as a function of index slices; nothing is read before it is called.

    >>> config = DecoderConfig(
    ...     layers=1, width=2, heads=1, kv_heads=1, head_dim=2, hidden=2, vocab=3, tied=True)
    >>> leaf = next(leaf for leaf in _leaves(config) if leaf.path == "embed/embedding")
    >>> Reader(leaf, {leaf.name: np.arange(6.0).reshape(3, 2)}, config)((slice(1, 2), slice(2)))
    array([[2., 3.]])
    """

    def __init__(self, leaf: _Leaf, tensors: Mapping[str, Any], config: DecoderConfig):
        self.shape = (config.layers, *leaf.shape) if leaf.stacked else leaf.shape
        self._leaf = leaf
        self._tensors = tensors
        self._names = leaf.names(config.layers)

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


def readers(
    tensors: Mapping[str, Any], config: DecoderConfig, *, cut_vocab: bool = False
) -> dict[str, Reader]:
    """Path -> reader of every base parameter; checked by names and shapes, nothing is read.

    Kernels that the config keeps in 8 bits are quantised part by part as they are read.

    Args:
      tensors: name -> array or lazy slice (`safe_open(...).get_slice(name)`, see `open_folder`).
      config: of the model to fill.
      cut_vocab: take the first `config.vocab` rows of a larger embedding and head.

    Raises:
      UserError: lists what is missing, unexpected or of the wrong shape, wrong head counts as such.
    """
    bare = "wte.weight" in tensors  # GPT2Model rather than GPT2LMHeadModel
    fused = "model.layers.0.self_attn.qkv_proj.weight" in tensors
    leaves = list(_leaves(config, fused=fused, prefix="" if bare else "transformer."))
    _check(tensors, config, leaves, cut_vocab)
    found = {leaf.path: Reader(leaf, tensors, config) for leaf in leaves}
    return quantised.quantised_readers(found) if config.quantised else found


def from_huggingface(
    tensors: Mapping[str, Any], config: DecoderConfig, *, cut_vocab: bool = False
) -> dict[str, Any]:
    """All base parameters as a nested dict of NumPy arrays, in the dtypes of the source or 8 bits.

    For models that fit one host; `start_weights` streams larger ones. Arguments and faults as in
    `readers`. Adapters are not part of a checkpoint: `config.lora` keeps its fresh ones.
    """
    params = {
        path: np.ascontiguousarray(reader((slice(None),) * len(reader.shape)))
        for path, reader in readers(tensors, config, cut_vocab=cut_vocab).items()
    }
    return unflatten_dict(params, sep="/")


def start_weights(
    tensors: Mapping[str, Any], config: DecoderConfig, *, cut_vocab: bool = False
) -> dict[str, Reader]:
    """What `core.benchmark.Start(weights=...)` takes: each device reads its own part.

    Paths begin with "params/", with adapters (whose base is frozen) with "frozen/". Arguments and
    faults as in `readers`.
    """
    part = "frozen" if config.lora is not None else "params"
    found = readers(tensors, config, cut_vocab=cut_vocab)
    return {f"{part}/{path}": reader for path, reader in found.items()}


def open_folder(folder: str | Path) -> dict[str, Any]:
    """Name -> lazy slice over a folder's safetensors files, sharded or not.

    Raises:
      UserError: no such folder or files, or shards that the index names are missing.
    """
    folder = Path(folder)
    listing = folder / "model.safetensors.index.json"
    if listing.exists():
        names = sorted(set(json.loads(listing.read_text())["weight_map"].values()))
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        raise UserError(
            f"{folder} holds no safetensors: download the model's *.safetensors and "
            "model.safetensors.index.json into it (models under a licence need an account that has "
            "accepted it)"
        )
    if missing := [name for name in names if not (folder / name).exists()]:
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(names)} shards: {some(missing, _SOME)}; download them"
        )
    tensors: dict[str, Any] = {}
    for name in names:
        try:
            file = _safetensors().safe_open(folder / name, framework="numpy")
            keys = list(file.keys())
            tensors |= {key: file.get_slice(key) for key in keys}
        except _safetensors().SafetensorError as error:
            raise UserError(
                f"{folder / name} cannot be read ({error}): it is truncated or no safetensors file; "
                "download it again"
            ) from error
    return tensors


# -- out -------------------------------------------------------------------------------------------


def to_huggingface(params: Mapping[str, Any], config: DecoderConfig) -> dict[str, np.ndarray]:
    """The inverse of `from_huggingface`: a state dict that `transformers` loads strictly.

    Args:
      params: base parameters; adapters have to be merged before.
      config: of the model.

    Raises:
      UserError: the parameters hold adapters or lack an array.
    """
    tensors: dict[str, np.ndarray] = {}
    if "qkv_lora" in params["blocks"]["layers"]["attention"]:
        raise UserError("export: these parameters hold adapters; merge them first (lora.merge)")
    if quantised.SCALE in params["blocks"]["layers"]["attention"]["query"]:
        raise UserError(
            "export: these parameters are in 8 bits; dequantise them first (quantised.dequantised)"
        )
    flat = flatten_dict(params, sep="/")
    for leaf in _leaves(config):
        if leaf.path not in flat:
            raise UserError(f"export: the parameters lack {leaf.path}; give all of the model's")
        value = np.asarray(flat[leaf.path])
        whole = tuple(slice(0, size) for size in leaf.shape)
        for layer, name in enumerate(leaf.names(config.layers)):
            one = value[layer] if leaf.stacked else value
            one = one + one.dtype.type(leaf.offset) if leaf.offset else one
            if name not in tensors:
                tensors[name] = np.empty(leaf.file_shape, value.dtype)
            tensors[name][leaf.region(whole)] = one.T if leaf.transposed else one
    return tensors


def save_folder(
    folder: str | Path, tensors: Mapping[str, np.ndarray], *, shard_bytes: int = _SHARD_BYTES
) -> list[Path]:
    """Writes a state dict as safetensors with the index that `transformers` reads.

    Args:
      folder: made if it is missing.
      tensors: what `to_huggingface` gave.
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
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        index = {
            "metadata": {"total_size": sum(value.nbytes for value in tensors.values())},
            "weight_map": {key: name for name, shard in zip(names, shards) for key in shard},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    from safetensors.numpy import save_file

    _safetensors()
    for name, shard in zip(names, shards):
        save_file(shard, folder / name, metadata={"format": "pt"})
    return [folder / name for name in names]


# -- the names -------------------------------------------------------------------------------------


def _leaves(
    config: DecoderConfig, *, fused: bool = False, prefix: str = "transformer."
) -> Iterator[_Leaf]:
    if config.positions == "rope":
        if config.feed_forward != "swiglu" or config.norm != "rms" or config.bias:
            raise UserError(
                "decoder: weights of transformers are read as Llama (rope, rms, swiglu, no bias) or "
                "GPT-2 (learned positions, layer norm, gelu, biases); this config is neither"
            )
        return _llama(config, fused)
    return _gpt2(config, prefix)


def _llama(config: DecoderConfig, fused: bool) -> Iterator[_Leaf]:
    width, queries, shared = config.width, config.query_width, config.kv_width
    layer, ours = "model.layers.{layer}", "blocks/layers"
    yield _Leaf("embed/embedding", "model.embed_tokens.weight", (config.vocab, width), axis=0)
    start = 0
    for path, name, size in (("query", "q", queries), ("key", "k", shared), ("value", "v", shared)):
        yield _Leaf(
            f"{ours}/attention/{path}/kernel",
            f"{layer}.self_attn.{'qkv' if fused else name}_proj.weight",
            (width, size),
            transposed=True,
            start=start if fused else 0,
            whole=queries + 2 * shared if fused else None,
        )
        start += size
    for path, name, shape in (
        ("attention/out", "self_attn.o_proj", (queries, width)),
        ("feed_forward/gate", "mlp.gate_proj", (width, config.hidden)),
        ("feed_forward/up", "mlp.up_proj", (width, config.hidden)),
        ("feed_forward/down", "mlp.down_proj", (config.hidden, width)),
    ):
        yield _Leaf(f"{ours}/{path}/kernel", f"{layer}.{name}.weight", shape, transposed=True)
    for path, name in (
        (f"{ours}/attention_norm", f"{layer}.input_layernorm"),
        (f"{ours}/feed_forward_norm", f"{layer}.post_attention_layernorm"),
        ("final_norm", "model.norm"),
    ):
        yield _Leaf(f"{path}/scale", f"{name}.weight", (width,))
    if not config.tied:
        yield _Leaf("head/kernel", "lm_head.weight", (width, config.vocab), transposed=True)


def _gpt2(config: DecoderConfig, prefix: str) -> Iterator[_Leaf]:
    width, size = config.width, config.query_width
    if config.kv_heads != config.heads or config.feed_forward != "gelu" or not config.bias:
        raise UserError(
            "decoder: GPT-2's weights have as many key/value heads as heads, gelu and biases; this "
            "config does not"
        )
    layer, ours = prefix + "h.{layer}", "blocks/layers"
    yield _Leaf("embed/embedding", f"{prefix}wte.weight", (config.vocab, width), axis=0)
    rows = config.max_positions or 0
    yield _Leaf("positions/embedding", f"{prefix}wpe.weight", (rows, width))
    for i, path in enumerate(("query", "key", "value")):
        for leaf, name, shape in (("kernel", "weight", (width, size)), ("bias", "bias", (size,))):
            yield _Leaf(
                f"{ours}/attention/{path}/{leaf}",
                f"{layer}.attn.c_attn.{name}",
                shape,
                start=i * size,
                whole=3 * size,
            )
    for path, name, shape in (
        ("attention/out", "attn.c_proj", (size, width)),
        ("feed_forward/up", "mlp.c_fc", (width, config.hidden)),
        ("feed_forward/down", "mlp.c_proj", (config.hidden, width)),
    ):
        yield _Leaf(f"{ours}/{path}/kernel", f"{layer}.{name}.weight", shape)
        yield _Leaf(f"{ours}/{path}/bias", f"{layer}.{name}.bias", shape[1:])
    offset = 1.0 if config.norm == "layer_offset" else 0.0
    for path, name in (
        (f"{ours}/attention_norm", f"{layer}.ln_1"),
        (f"{ours}/feed_forward_norm", f"{layer}.ln_2"),
        ("final_norm", f"{prefix}ln_f"),
    ):
        yield _Leaf(f"{path}/scale", f"{name}.weight", (width,), offset=offset)
        yield _Leaf(f"{path}/bias", f"{name}.bias", (width,))
    if not config.tied:
        yield _Leaf("head/kernel", "lm_head.weight", (width, config.vocab), transposed=True)


# -- checks ----------------------------------------------------------------------------------------


def _check(
    tensors: Mapping[str, Any], config: DecoderConfig, leaves: list[_Leaf], cut_vocab: bool
) -> None:
    expected = {name: leaf for leaf in leaves for name in leaf.names(config.layers)}
    given = {name for name in tensors if not name.endswith(_IGNORED)}
    if config.tied:
        given -= {"lm_head.weight"}
    faults = []
    if missing := [name for name in expected if name not in given]:
        faults.append(f"{len(missing)} arrays are missing ({some(missing, _SOME)})")
    if unexpected := sorted(given - set(expected)):
        faults.append(f"{len(unexpected)} are unexpected ({some(unexpected, _SOME)})")
    wrong = [
        fault
        for name, leaf in expected.items()
        if name in given and (fault := _shape_fault(name, leaf, tensors[name], config, cut_vocab))
    ]
    if wrong:
        faults.append(f"{len(wrong)} have the wrong shape ({some(wrong, _SOME)})")
    if faults:
        raise UserError(
            f"these weights do not fit a decoder of {config.layers} layers, width {config.width}, "
            f"{config.heads} heads and {config.kv_heads} key/value heads: {'; '.join(faults)}; "
            "give that model's weights, or a config that fits them"
        )


def _shape_fault(
    name: str, leaf: _Leaf, tensor: Any, config: DecoderConfig, cut_vocab: bool
) -> str | None:
    shape = tuple(tensor.get_shape() if hasattr(tensor, "get_shape") else tensor.shape)
    wanted = leaf.file_shape
    if shape == wanted:
        return None
    if leaf.path in ("embed/embedding", "head/kernel") and shape[1:] == wanted[1:]:
        if shape[0] > wanted[0]:
            if cut_vocab:
                return None
            return f"{name} has {shape[0]} vocabulary rows, not {wanted[0]}: pass cut_vocab=True to cut"
        return f"{name} has {shape[0]} vocabulary rows, not {wanted[0]}"
    heads = {"query": (config.heads, "query")}
    heads |= dict.fromkeys(("key", "value"), (config.kv_heads, "key/value"))
    part = leaf.path.split("/")[-2]
    by_heads = part in heads and leaf.whole is None and shape[1:] == wanted[1:]
    if by_heads and shape[0] % config.head_dim == 0:
        count, kind = heads[part]
        found = shape[0] // config.head_dim
        return f"{name} has {found} {kind} heads of {config.head_dim}, not {count}"
    return f"{name} has shape {shape}, not {wanted}"


def _safetensors() -> Any:
    try:
        import safetensors
    except ImportError as error:
        raise UserError(
            "reading and writing safetensors needs the package safetensors: pip install safetensors"
        ) from error
    return safetensors

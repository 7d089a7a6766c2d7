"""Weights of `decoder.Decoder` in the names and layouts of Hugging Face `transformers`.

Models with rope take Llama's names (also with query, key and value fused as `qkv_proj`, as in the
checkpoint of llama2_70b_lora), models with learned positions GPT-2's. Llama's kernels are [out, in],
GPT-2's [in, out] with query, key and value fused; our stacks carry a layer axis in front. Nothing
here needs a whole model in memory: sources may be slices that read from disk when indexed.

L layers · I inputs · O outputs
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from mlperf_jax.errors import UserError
from mlperf_jax.models import huggingface, quantised
from mlperf_jax.models.decoder_config import DecoderConfig
from mlperf_jax.models.huggingface import Leaf, Reader

_IGNORED = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")  # buffers of old files


# -- in --------------------------------------------------------------------------------------------


def readers(
    tensors: Mapping[str, Any], config: DecoderConfig, *, cut_vocab: bool = False
) -> dict[str, Reader]:
    """Path -> reader of every base parameter; checked by names and shapes, nothing is read.

    Kernels that the config keeps in 8 bits are quantised part by part as they are read.

    Args:
      tensors: name -> array or lazy slice (`safe_open(...).get_slice(name)`, see `huggingface.open_folder`).
      config: of the model to fill.
      cut_vocab: take the first `config.vocab` rows of a larger embedding and head.

    Raises:
      UserError: lists what is missing, unexpected or of the wrong shape, wrong head counts as such.
    """
    bare = "wte.weight" in tensors  # GPT2Model rather than GPT2LMHeadModel
    fused = "model.layers.0.self_attn.qkv_proj.weight" in tensors
    leaves = list(_leaves(config, fused=fused, prefix="" if bare else "transformer."))
    _check(tensors, config, leaves, cut_vocab)
    found = {leaf.path: Reader(leaf, tensors, config.layers) for leaf in leaves}
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


# -- out -------------------------------------------------------------------------------------------


def to_huggingface(params: Mapping[str, Any], config: DecoderConfig) -> dict[str, np.ndarray]:
    """The inverse of `from_huggingface`: a state dict that `transformers` loads strictly.

    Args:
      params: base parameters; adapters have to be merged before.
      config: of the model.

    Raises:
      UserError: the parameters hold adapters or lack an array.
    """
    if "qkv_lora" in params["blocks"]["layers"]["attention"]:
        raise UserError("export: these parameters hold adapters; merge them first (lora.merge)")
    if quantised.SCALE in params["blocks"]["layers"]["attention"]["query"]:
        raise UserError(
            "export: these parameters are in 8 bits; dequantise them first (quantised.dequantised)"
        )
    return huggingface.exported(params, list(_leaves(config)), config.layers)


# -- the names -------------------------------------------------------------------------------------


def _leaves(
    config: DecoderConfig, *, fused: bool = False, prefix: str = "transformer."
) -> Iterator[Leaf]:
    if config.positions == "rope":
        if config.feed_forward != "swiglu" or config.norm != "rms" or config.bias:
            raise UserError(
                "decoder: weights of transformers are read as Llama (rope, rms, swiglu, no bias) or "
                "GPT-2 (learned positions, layer norm, gelu, biases); this config is neither"
            )
        return _llama(config, fused)
    return _gpt2(config, prefix)


def _llama(config: DecoderConfig, fused: bool) -> Iterator[Leaf]:
    width, queries, shared = config.width, config.query_width, config.kv_width
    layer, ours = "model.layers.{layer}", "blocks/layers"
    yield Leaf("embed/embedding", "model.embed_tokens.weight", (config.vocab, width), axis=0)
    start = 0
    for path, name, size in (("query", "q", queries), ("key", "k", shared), ("value", "v", shared)):
        yield Leaf(
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
        yield Leaf(f"{ours}/{path}/kernel", f"{layer}.{name}.weight", shape, transposed=True)
    for path, name in (
        (f"{ours}/attention_norm", f"{layer}.input_layernorm"),
        (f"{ours}/feed_forward_norm", f"{layer}.post_attention_layernorm"),
        ("final_norm", "model.norm"),
    ):
        yield Leaf(f"{path}/scale", f"{name}.weight", (width,))
    if not config.tied:
        yield Leaf("head/kernel", "lm_head.weight", (width, config.vocab), transposed=True)


def _gpt2(config: DecoderConfig, prefix: str) -> Iterator[Leaf]:
    width, size = config.width, config.query_width
    if config.kv_heads != config.heads or config.feed_forward != "gelu" or not config.bias:
        raise UserError(
            "decoder: GPT-2's weights have as many key/value heads as heads, gelu and biases; this "
            "config does not"
        )
    layer, ours = prefix + "h.{layer}", "blocks/layers"
    yield Leaf("embed/embedding", f"{prefix}wte.weight", (config.vocab, width), axis=0)
    rows = config.max_positions or 0
    yield Leaf("positions/embedding", f"{prefix}wpe.weight", (rows, width))
    for i, path in enumerate(("query", "key", "value")):
        for leaf, name, shape in (("kernel", "weight", (width, size)), ("bias", "bias", (size,))):
            yield Leaf(
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
        yield Leaf(f"{ours}/{path}/kernel", f"{layer}.{name}.weight", shape)
        yield Leaf(f"{ours}/{path}/bias", f"{layer}.{name}.bias", shape[1:])
    offset = 1.0 if config.norm == "layer_offset" else 0.0
    for path, name in (
        (f"{ours}/attention_norm", f"{layer}.ln_1"),
        (f"{ours}/feed_forward_norm", f"{layer}.ln_2"),
        ("final_norm", f"{prefix}ln_f"),
    ):
        yield Leaf(f"{path}/scale", f"{name}.weight", (width,), offset=offset)
        yield Leaf(f"{path}/bias", f"{name}.bias", (width,))
    if not config.tied:
        yield Leaf("head/kernel", "lm_head.weight", (width, config.vocab), transposed=True)


# -- checks ----------------------------------------------------------------------------------------


def _check(
    tensors: Mapping[str, Any], config: DecoderConfig, leaves: list[Leaf], cut_vocab: bool
) -> None:
    given = {name: x for name, x in tensors.items() if not name.endswith(_IGNORED)}
    if config.tied:
        given.pop("lm_head.weight", None)
    wanted = (
        f"a decoder of {config.layers} layers, width {config.width}, {config.heads} heads and "
        f"{config.kv_heads} key/value heads"
    )

    def fault(name: str, leaf: Leaf, shape: tuple[int, ...]) -> str | None:
        return _shape_fault(name, leaf, shape, config, cut_vocab)

    huggingface.check(given, leaves, config.layers, wanted, fault)


def _shape_fault(
    name: str, leaf: Leaf, shape: tuple[int, ...], config: DecoderConfig, cut_vocab: bool
) -> str | None:
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

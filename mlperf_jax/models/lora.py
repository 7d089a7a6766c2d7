"""Low-rank adapters: the branch beside a projection, and adapters as values of their own.

Reference: mlcommons/training, llama2_70b_lora (adapters on the fused qkv_proj and on o_proj).

B batch · T tokens · I inputs · O outputs · R rank · L layers
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from mlperf_jax.errors import UserError
from mlperf_jax.models import importing, quantised
from mlperf_jax.models.decoder_config import DecoderConfig, Lora
from mlperf_jax.ops import dense
from mlperf_jax.ops.dropout import dropped

# `Benchmark.frozen` of a model with adapters: every path without a component that ends in _lora
FROZEN = (r"(?!.*_lora/).*",)

_ATTENTION = ("blocks", "layers", "attention")


class LoraBranch(nnx.Module):
    """`alpha / rank * B(A(dropout(x)))`, its outputs cut into the parts of a fused projection.

    A starts uniform in +-1 / sqrt(I) (Kaiming with a = sqrt(5), as the reference has it), B at zero,
    so that the branch adds nothing at first. Both are kept in promote_types(dtype, f32).
    """

    def __init__(
        self,
        inputs: int,
        outputs: Sequence[int],
        lora: Lora,
        dtype: jax.typing.DTypeLike,
        *,
        rngs: nnx.Rngs,
    ):
        kept, bound = jnp.promote_types(dtype, jnp.float32), 1 / math.sqrt(inputs)
        shape = (inputs, lora.rank)
        self.a = nnx.Param(jax.random.uniform(rngs.params(), shape, kept, -bound, bound))
        self.b = nnx.Param(jnp.zeros((lora.rank, sum(outputs)), kept))
        self.outputs = tuple(outputs)
        self.scale = lora.scale
        self.dropout = lora.dropout
        self.dtype = dtype

    def __call__(self, x: jax.Array, key: jax.Array | None) -> list[jax.Array]:
        """[B, T, I] -> one [B, T, O] per part, in `dtype`."""
        x = dropped(x, self.dropout, key)
        low = dense.product(x, self.a[...].astype(self.dtype))  # [B, T, R]
        # B is cut, not the result, whose outputs may be split over the mesh
        b = (self.scale * self.b[...]).astype(self.dtype)
        return [dense.product(low, p) for p in jnp.split(b, np.cumsum(self.outputs)[:-1], axis=1)]


# -- adapters as values ----------------------------------------------------------------------------


def adapters(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The adapters of a tree of parameters: path -> array, ready to be saved as safetensors or npz.

    Args:
      params: the trained parameters, or all of the model's.

    Raises:
      UserError: there are none.
    """
    flat = flatten_dict(params, sep="/")
    found = {path: np.asarray(x) for path, x in flat.items() if "_lora/" in path}
    if not found:
        raise UserError("lora: these parameters hold no adapters; make the model with config.lora")
    return found


def with_adapters(
    params: Mapping[str, Any], saved: Mapping[str, np.ndarray], config: DecoderConfig
) -> dict[str, Any]:
    """The parameters with these adapters, in place of their own if they have some.

    Args:
      params: of the model, with or without adapters.
      saved: what `adapters` gave.
      config: with its `lora`.

    Raises:
      UserError: names what is missing, unexpected or of the wrong shape.
    """
    if faults := importing.misfits(saved, adapter_shapes(config)):
        raise UserError(
            f"lora: these adapters do not fit the model: {'; '.join(faults)}; give those of a model "
            "of this size and rank"
        )
    return unflatten_dict(flatten_dict(params, sep="/") | dict(saved), sep="/")


def adapter_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every adapter array of a model.

    Raises:
      UserError: the config has no adapters.
    """
    if config.lora is None:
        raise UserError("lora: the config has no adapters; set `lora`")
    rank, qkv = config.lora.rank, config.query_width + 2 * config.kv_width
    sizes = {"qkv_lora": (config.width, qkv), "out_lora": (config.query_width, config.width)}
    return {
        "/".join((*_ATTENTION, name, leaf)): (config.layers, *shape)
        for name, (inputs, outputs) in sizes.items()
        for leaf, shape in (("a", (inputs, rank)), ("b", (rank, outputs)))
    }


def merge(params: Mapping[str, Any], config: DecoderConfig) -> dict[str, Any]:
    """The base with the adapters added into its kernels, for `config.replace(lora=None)`.

    Sums are taken in at least float32 and kept in the kernel's own dtype; an 8-bit base is
    dequantised to that of its embedding first.

    Args:
      params: base and adapters, nested; arrays of NumPy or JAX.
      config: with its `lora`.
    """
    shapes = adapter_shapes(config)
    # dequantised or not, new dicts around the same arrays
    merged = quantised.dequantised(params, params["embed"]["embedding"].dtype)
    attention = merged
    for name in _ATTENTION:
        attention = attention[name]
    if missing := sorted({path.split("/")[-2] for path in shapes} - set(attention)):
        raise UserError(f"lora: the parameters lack {', '.join(missing)}; nothing to merge")
    assert config.lora is not None
    for branch, kernels in (("qkv_lora", ("query", "key", "value")), ("out_lora", ("out",))):
        lora = attention.pop(branch)
        start = 0
        for name in kernels:
            kernel = attention[name]["kernel"]
            stop = start + kernel.shape[-1]
            part = config.lora.scale * (lora["a"] @ lora["b"][..., start:stop])  # [L, I, O]
            attention[name]["kernel"] = (kernel.astype(part.dtype) + part).astype(kernel.dtype)
            start = stop
    return merged

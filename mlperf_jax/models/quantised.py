"""Frozen matrices in eight bits, through qwix: an int8 per weight and a scale per block of weights.

A scale serves 128 inputs of one output, so that a device that holds some rows of a matrix needs no
others to quantise them, and one large weight spoils 127 others and no more. Scales are float32: 3 %
on top of the int8. Products take the matrix back in the dtype of what it is multiplied with.

... leading axes · I inputs · O outputs · S blocks of inputs
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlperf_jax.errors import UserError, optional
from mlperf_jax.ops.shard import Axes, shard

SCALE = "kernel_scale"  # the leaf beside `kernel`
_BLOCK, _LEAST = 128, 16  # inputs that share a scale: as a rule, and at least


def block_size(inputs: int) -> int:
    """How many inputs share a scale: 128, or what it has in common with the number of inputs.

    >>> block_size(8192), block_size(96)
    (128, 32)

    Raises:
      UserError: fewer than 16, at which the scales would be as large as a quarter of the weights.
    """
    size = math.gcd(inputs, _BLOCK)
    if size < _LEAST:
        raise UserError(
            f"8-bit base: a matrix of {inputs} inputs has no blocks of at least {_LEAST} inputs; "
            f"choose widths that are multiples of {_LEAST}, or base_bits None"
        )
    return size


def quantise(kernel: jax.Array, block: int | None = None) -> tuple[jax.Array, jax.Array]:
    """int8 [..., I, O] and scales [..., S, O] of a matrix [..., I, O], in at least float32.

    Symmetric: the largest weight of a block becomes 127 or -128, half a step (1 / 255) off.

    Args:
      kernel: the matrix, or some whole blocks of its rows.
      block: inputs that share a scale; None for the `block_size` of I.
    """
    wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    last = kernel.ndim - 1
    found = _qwix().quantize(
        wide,
        jnp.int8,
        channelwise_axes=(*range(last - 1), last),
        tiled_axes={last - 1: block or block_size(kernel.shape[-2])},
    )
    return found.qvalue, found.scale


def dequantise(kernel: jax.Array, scale: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The matrix [..., I, O] of what `quantise` gave."""
    return _qwix().dequantize(_qwix().QArray(kernel, scale)).astype(dtype)


class QuantisedLinear(nnx.Module):
    """`nnx.Linear` whose kernel is int8 and gets no gradient; leaves kernel, kernel_scale, bias."""

    def __init__(self, linear: nnx.Linear, gathered: tuple[Axes, Axes]):
        """Quantises a layer.

        Args:
          linear: whose kernel and bias are taken over.
          gathered: how the kernel [I, O] lies on the mesh when it is multiplied. It is gathered as
            int8, which is half of what would travel in bfloat16.
        """
        kernel, scale = quantise(linear.kernel[...])
        self.kernel = nnx.Param(kernel)
        self.kernel_scale = nnx.Param(scale)
        self.bias = linear.bias
        self.gathered = gathered
        self.dtype = linear.dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., I] -> [..., O] in the layer's dtype."""
        x = x.astype(self.dtype)
        y: Any = _product(x, self.kernel[...], self.kernel_scale[...], self.gathered)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _product(
    x: jax.Array, kernel: jax.Array, scale: jax.Array, gathered: tuple[Axes, Axes]
) -> jax.Array:
    return x @ _whole(kernel, scale, gathered, x.dtype)


def _forward(
    x: jax.Array, kernel: jax.Array, scale: jax.Array, gathered: tuple[Axes, Axes]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x, kernel, scale, gathered), (kernel, scale)


def _backward(
    gathered: tuple[Axes, Axes], saved: tuple[jax.Array, jax.Array], slope: jax.Array
) -> tuple[jax.Array, None, None]:
    # dequantised again: kept from the forward pass the matrices of all layers would be as large as
    # a base in the compute dtype
    return slope @ _whole(*saved, gathered, slope.dtype).T, None, None


_product.defvjp(_forward, _backward)


def _whole(
    kernel: jax.Array, scale: jax.Array, gathered: tuple[Axes, Axes], dtype: jax.typing.DTypeLike
) -> jax.Array:
    rows, columns = gathered
    kernel = shard(kernel, rows, columns)
    ways = _ways(rows)  # few blocks are not split over many devices
    scale = shard(scale, rows if scale.shape[0] % ways == 0 else None, columns)
    return dequantise(kernel, scale, dtype)


def _ways(axes: Axes) -> int:
    names = (axes,) if isinstance(axes, str) else axes or ()
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes.get(name, 1) for name in names)


# -- trees and checkpoints -------------------------------------------------------------------------


def dequantised(params: Mapping[str, Any], dtype: jax.typing.DTypeLike) -> dict[str, Any]:
    """The parameters with every 8-bit kernel as a matrix of `dtype`; all else as it is."""
    found: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            found[name] = dequantised(value, dtype)
        elif name != SCALE:
            found[name] = value
    if SCALE in params:
        found["kernel"] = _by_layer(params["kernel"], params[SCALE], dtype)
    return found


def _by_layer(kernel: Any, scale: Any, dtype: jax.typing.DTypeLike) -> jax.Array:
    if kernel.ndim == 2:
        return dequantise(jnp.asarray(kernel), jnp.asarray(scale), dtype)
    # one layer at a time: in float32 all of them at once would be the largest array by far
    return jnp.stack([_by_layer(*layer, dtype) for layer in zip(kernel, scale)])


class QuantisedReader:
    """The int8 or the scales of stacked matrices [L, I, O] as a function of index slices.

    It reads, quantises and forgets a layer at a time, and of that only the blocks asked for.
    """

    def __init__(self, reader: Any, *, scales: bool):
        """Wraps a reader.

        Args:
          reader: of the matrices: a function of index slices with their `shape`.
          scales: whether the scales are wanted, or the int8.
        """
        layers, inputs, outputs = reader.shape
        self._block, self._reader, self._scales = block_size(inputs), reader, scales
        self.shape = (layers, inputs // self._block if scales else inputs, outputs)

    def __call__(self, index: tuple[slice, ...]) -> np.ndarray:
        """The part that the slices (steps of 1) select, int8 or float32."""
        spans = [part.indices(size)[:2] for part, size in zip(index, self.shape, strict=True)]
        (first, last), (start, stop), outputs = spans
        unit = 1 if self._scales else self._block
        begin, end = start // unit, -(-stop // unit)  # whole blocks
        rows = slice(begin * self._block, end * self._block)
        parts = []
        for layer in range(first, last):
            matrix = self._reader((slice(layer, layer + 1), rows, slice(*outputs)))[0]
            both = _quantise(jnp.asarray(matrix), self._block)
            part = np.asarray(both[1] if self._scales else both[0])
            parts.append(part[start - begin * unit : stop - begin * unit])
        return np.stack(parts)


_quantise = jax.jit(quantise, static_argnums=1)


def quantised_readers(readers: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
    """Path -> reader, those of the layers' kernels replaced by readers of int8 and of scales.

    Embedding and head stay: every token reads one, and the loss the other, in full precision.
    """
    found: dict[str, Any] = {}
    for path, reader in readers.items():
        if path.startswith("blocks/layers/") and path.endswith("/kernel"):
            found[path] = QuantisedReader(reader, scales=False)
            found[path.removesuffix("kernel") + SCALE] = QuantisedReader(reader, scales=True)
        else:
            found[path] = reader
    return found


def _qwix() -> Any:
    return optional("qwix", "quantised", "an 8-bit base")

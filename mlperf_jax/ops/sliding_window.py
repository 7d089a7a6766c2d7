"""Sliding windows over volumes of any size, in one program: half overlapping, blended by a Gaussian.

A volume comes padded to a fixed shape with its number of windows along each axis; loops of as many turns
visit these windows and no others, so one compiled program serves every size and padding costs no
forward pass. Sums are kept for one layer of windows only: when a layer is done its first half is final,
is handed on and forgotten.

D, H, W sides of the padded volume · S side of a window · P stride, S / 2 · C channels · K classes
Reference: retired_benchmarks/unet3d/pytorch, runtime/inference.py, sliding_window_inference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from mlperf_jax.ops.shard import free_axes, row_axes

Forward = Callable[[jax.Array], jax.Array]
Consume = Callable[[Any, jax.Array, jax.Array], Any]


def axis_weights(side: int) -> np.ndarray:
    """The blending weight along one axis, float64 [S]; a window's map is the product of three.

    The reference takes the cube root of a product of Gaussians of sigma S / 8 and scales it to a
    maximum of 1: along an axis, exp(-x^2 / (6 sigma^2)).

    >>> weights = axis_weights(128)
    >>> float(weights[63]), f"{weights[0] ** 3:.2e}"     # the centre, and a corner of the map
    (1.0, '3.80e-04')
    """
    from_centre = np.arange(side) - (side - 1) / 2
    weights = np.exp(-(from_centre**2) / (6 * (side / 8) ** 2))
    return weights / weights.max()


def over_volume(
    forward: Forward,
    image: jax.Array,
    windows: jax.Array,
    side: int,
    consume: Consume,
    carry: Any,
) -> Any:
    """Runs every window of one volume and hands the blended logits to `consume`, P planes at a time.

    Args:
      forward: [1, S, S, S, C] -> [1, S, S, S, K].
      image: [D, H, W, C]; its sides are multiples of P. Windows begin at 0, P, 2 P, ...
      windows: int [3], how many along each axis; with a 0 there are none, and nothing is run.
      side: S, even.
      consume: (carry, first plane, logits [P, H, W, K]) -> carry, once for each P planes that a window
        covers, from the first on. Where no window reaches, the logits are 0.
      carry: what the first `consume` gets.

    Returns:
      What the last `consume` gave.

    Raises:
      ValueError: the sides do not fit.
    """
    stride = _stride(image.shape[:3], side)
    most = [n // stride - 1 for n in image.shape[:3]]
    layers, rows, columns = jnp.clip(windows.astype(jnp.int32), 0, jnp.asarray(most, jnp.int32))
    zero = jnp.zeros((), jnp.int32)  # a plain 0 would be an int64 beside them under x64
    weights = axis_weights(side)
    reach = [
        _reach(weights, n, count)
        for n, count in zip(image.shape[:3], (layers, rows, columns), strict=True)
    ]
    shape = (1, side, side, side, image.shape[3])
    out = jax.eval_shape(forward, jax.ShapeDtypeStruct(shape, image.dtype))
    wide = jnp.promote_types(out.dtype, jnp.float32)
    blend = jnp.asarray(math.prod(np.ix_(weights, weights, weights)), wide)  # [S, S, S]
    classes = out.shape[-1]

    def add_window(layer: jax.Array, number: jax.Array, total: jax.Array) -> jax.Array:
        row, column = (number // columns) * stride, (number % columns) * stride
        patch = lax.dynamic_slice(image, (layer * stride, row, column, zero), shape[1:])
        part = jnp.moveaxis(forward(patch[None])[0].astype(wide), -1, 0) * blend
        at, size = (zero, zero, row, column), (classes, side, side, side)
        return lax.dynamic_update_slice(total, lax.dynamic_slice(total, at, size) + part, at)

    def layer_done(layer: jax.Array, state: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        total, carry = state
        turns = jnp.where(layer < layers, rows * columns, 0)  # past the last layer: its second half
        total = lax.fori_loop(0, turns, lambda i, t: add_window(layer, i, t), total)
        depth = lax.dynamic_slice_in_dim(reach[0], layer * stride, stride)
        norm = (depth[:, None, None] * reach[1][:, None] * reach[2]).astype(wide)
        done = jnp.where(norm > 0, total[:, :stride] / jnp.where(norm > 0, norm, 1), 0)
        carry = consume(carry, layer * stride, jnp.moveaxis(done, 0, -1))
        return jnp.concatenate([total[:, stride:], jnp.zeros_like(done)], axis=1), carry

    total = jnp.zeros((classes, side, *image.shape[1:3]), wide)  # classes first: 3 is no lane width
    slabs = jnp.where(jnp.minimum(rows, columns) * layers > 0, layers + 1, 0)
    return lax.fori_loop(0, slabs, layer_done, (total, carry))[1]


def each_row(function: Callable[..., Any], *arrays: jax.Array) -> Any:
    """`function` on one row after the other, every device on its own rows, at its own pace.

    Devices may take turns of different number: there is nothing in the loop that waits for others.

    Args:
      function: arrays of one row -> a tree of arrays.
      *arrays: [B, ...]; the mesh of the surrounding `jax.set_mesh` splits B.

    Returns:
      The tree, [B, ...].

    >>> each_row(lambda x: x.sum(), jnp.ones([4, 3])).tolist()
    [3.0, 3.0, 3.0, 3.0]
    """

    def local(*parts: jax.Array) -> Any:
        return lax.map(lambda row: function(*row), parts)

    free, rows = free_axes(), PartitionSpec(row_axes())
    if math.prod(free.values()) == 1:
        return local(*arrays)
    return jax.shard_map(
        local,
        in_specs=rows,
        out_specs=rows,
        axis_names=set(free),
        check_vma=False,  # a loop's count of turns varies over the mesh, its carry's type need not say
    )(*arrays)


def _stride(sides: tuple[int, ...], side: int) -> int:
    if side % 2 or any(n % (side // 2) or n < side for n in sides):
        raise ValueError(
            f"windows of side {side} overlap by half: the side must be even, and the volume's sides "
            f"{sides} multiples of {side // 2}, at least {side}"
        )
    return side // 2


def _reach(weights: np.ndarray, length: int, count: jax.Array) -> jax.Array:
    """The sum of the weights of `count` windows along one axis: [length]."""
    side = len(weights)
    placed = np.zeros((length // (side // 2) - 1, length))
    for i, row in enumerate(placed):
        row[i * side // 2 : i * side // 2 + side] = weights
    active = jnp.arange(len(placed)) < count
    return jnp.where(active[:, None], jnp.asarray(placed, jnp.result_type(float)), 0).sum(0)

"""Volumes of few channels as blocks of neighbouring voxels (space to depth), and what computes on them.

A TPU's vectors and its matrix unit are 128 channels wide whether there are so many or not: 32 channels waste three
quarters of the memory. The voxels of a 1x2x2 block, as the channels of one cell, fill it. A convolution over cells
is one with a kernel that holds the small one once for each voxel of a block, zeros beside it: the same sums with zeros
added, in another order.

Two neighbouring voxels and theirs lie in three aligned blocks of two, but in two blocks that are shifted by one
voxel: along two axes four taps of the kernel then do what takes nine. So convolutions go in pairs, onto shifted
blocks and back. Shifted blocks reach out of the volume by a voxel at both ends, which `Blocks.inside` tells.

B batch · D, H, W sides of a volume · C channels · F features · V voxels of a block · k kernel side
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mlperf_jax.ops import conv
from mlperf_jax.ops.shard import platform

_TPU_LANES = 128


@dataclass(frozen=True)
class Blocks:
    """How a volume lies in an array [B, *grid, V * C], block by block, the voxels of a block in C order.

    Attributes:
        sides: of the volume.
        size: sides of a block, 1 or 2 each.
        shifted: whether blocks begin one voxel before the volume, along the axes where they have two.
    """

    sides: tuple[int, ...]
    size: tuple[int, ...] = (1, 1, 1)
    shifted: bool = False

    @property
    def voxels(self) -> int:
        """V."""
        return math.prod(self.size)

    @property
    def before(self) -> tuple[int, ...]:
        """Voxels of the first block that lie before the volume, along each axis."""
        return tuple(int(self.shifted and size == 2) for size in self.size)

    @property
    def grid(self) -> tuple[int, ...]:
        """Blocks along each axis.

        >>> Blocks((4, 4, 4), (1, 2, 2)).grid, Blocks((4, 4, 4), (1, 2, 2), shifted=True).grid
        ((4, 2, 2), (4, 3, 3))
        """
        axes = zip(self.sides, self.before, self.size)
        return tuple(-(-(side + before) // size) for side, before, size in axes)

    def shift(self) -> Blocks:
        """The same blocks, shifted."""
        return Blocks(self.sides, self.size, shifted=True)

    def inside(self, channels: int) -> jax.Array | None:
        """Which values lie in the volume, bool [*grid, V * channels] or ones in place of axes; None: all."""
        masks = []
        for axis, (side, before, cells) in enumerate(zip(self.sides, self.before, self.grid)):
            if not before:
                continue
            at = np.arange(2 * cells) - before
            shape = [1] * 6
            shape[axis], shape[3 + axis] = cells, 2
            mask = ((at >= 0) & (at < side)).reshape(shape)
            lanes = np.broadcast_to(mask, (*shape[:3], *self.size)).reshape(*shape[:3], -1)
            masks.append(jnp.asarray(np.repeat(lanes, channels, axis=-1)))
        return functools.reduce(jnp.logical_and, masks) if masks else None


def fitting(sides: Sequence[int], channels: int) -> Blocks:
    """Blocks whose voxels have together at most as many channels as a vector of the platform is wide.

    On a TPU; elsewhere each voxel is a block of its own.

    >>> fitting((8, 8, 8), 32).size      # here
    (1, 1, 1)
    """
    room = _TPU_LANES // channels if platform() == "tpu" else 1
    size = [1, 1, 1]
    for axis in (2, 1, 0):
        if room >= 2 and sides[axis] % 2 == 0:
            size[axis], room = 2, room // 2
    return Blocks(tuple(sides), tuple(size))


# -- volumes in and out ----------------------------------------------------------------------------


def pack(x: jax.Array, blocks: Blocks) -> jax.Array:
    """[B, D, H, W, C] as [B, *grid, V C]; the blocks are not shifted."""
    if blocks.voxels == 1:
        return x
    (d, h, w), (i, j, k) = blocks.grid, blocks.size
    split = x.reshape(len(x), d, i, h, j, w, k, -1).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return split.reshape(len(x), d, h, w, -1)


def unpack(x: jax.Array, blocks: Blocks) -> jax.Array:
    """The inverse of `pack`."""
    if blocks.voxels == 1:
        return x
    split = x.reshape(len(x), *blocks.grid, *blocks.size, -1).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return split.reshape(len(x), *blocks.sides, -1)


def tile(values: jax.Array, blocks: Blocks) -> jax.Array:
    """[..., C] for each voxel of a block: [..., V C]."""
    return values if blocks.voxels == 1 else jnp.tile(values, blocks.voxels)


# -- convolutions ----------------------------------------------------------------------------------


def conv3d(
    x: jax.Array,
    kernel: jax.Array,
    before: Blocks,
    after: Blocks,
    *,
    stride: int = 1,
    parts: int = 1,
) -> jax.Array:
    """Convolves as `conv.conv3d`, from blocks to blocks.

    Args:
      x: [B, *before.grid, V C]; zero outside of the volume. The result is in its dtype.
      kernel: [k, k, k, C, F], k odd, in its own dtype.
      before, after: how x and the result lie; `after.sides` are what the stride leaves. Where blocks of x have two
        voxels, so have those of the result, or the stride is 2.
      stride: along all axes.
      parts: x is so many arrays of C / parts channels, put one behind another as they are.

    Returns:
      [B, *after.grid, V' F]. What lies outside of the volume means nothing.
    """
    if before.voxels == after.voxels == 1:
        return conv.conv3d(x, kernel.astype(x.dtype), stride=stride)
    size, features = kernel.shape[0], kernel.shape[-1]
    axes = [_convolved(before, after, axis, size, stride) for axis in range(3)]
    split = kernel.reshape(size, size, size, parts, -1, features)
    wide = jnp.einsum(
        "abcpxf,aliu,bmjv,cnkw->lmnpijkxuvwf",
        split,
        *(jnp.asarray(axis.places, kernel.dtype) for axis in axes),
        precision=lax.Precision.HIGHEST,
    )
    taps = wide.shape[:3]
    return lax.conv_general_dilated(
        x,
        wide.reshape(*taps, x.shape[-1], -1).astype(x.dtype),
        [axis.stride for axis in axes],
        [axis.padding for axis in axes],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )


class _Axis(NamedTuple):
    """Along one axis: places[kernel position, tap, voxel in, voxel out], 1 or 0; stride and padding over blocks."""

    places: np.ndarray
    stride: int
    padding: tuple[int, int]


def _convolved(before: Blocks, after: Blocks, axis: int, size: int, stride: int) -> _Axis:
    ins, outs = before.size[axis], after.size[axis]
    first_in, first_out = before.before[axis], after.before[axis]
    # voxel `out` of block 0 needs, at each position of the kernel, one voxel of a block
    at = {
        (position, out): divmod(stride * (out - first_out) + position - size // 2 + first_in, ins)
        for position in range(size)
        for out in range(outs)
    }
    nearest, furthest = (end(block for block, _ in at.values()) for end in (min, max))
    places = np.zeros((size, furthest - nearest + 1, ins, outs), np.float32)
    for (position, out), (block, voxel) in at.items():
        places[position, block - nearest, voxel, out] = 1
    step = stride * outs // ins
    last = step * (after.grid[axis] - 1) + furthest
    return _Axis(places, step, (-nearest, last - (before.grid[axis] - 1)))


def double3d(x: jax.Array, kernel: jax.Array, before: Blocks, after: Blocks) -> jax.Array:
    """Doubles the sides as `conv.double3d`, from blocks to blocks, neither of them shifted.

    Args:
      x: [B, *before.grid, V C]; the result is in its dtype.
      kernel: [2, 2, 2, C, F], in its own dtype.
      before, after: how x and the result lie; `after.sides` are twice those before.

    Returns:
      [B, *after.grid, V' F].
    """
    if before.voxels == after.voxels == 1:
        return conv.double3d(x, kernel.astype(x.dtype))
    places = [_doubled(*sizes) for sizes in zip(before.size, after.size)]
    wide = jnp.einsum(
        "abcxf,ailu,bjmv,cknw->ijkxlmnuvwf",
        kernel,
        *(jnp.asarray(axis, kernel.dtype) for axis in places),
        precision=lax.Precision.HIGHEST,
    )
    times = wide.shape[4:7]
    y = x @ wide.reshape(x.shape[-1], -1).astype(x.dtype)
    y = y.reshape(len(x), *before.grid, *times, -1).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return y.reshape(len(x), *after.grid, -1)


def _doubled(ins: int, outs: int) -> np.ndarray:
    """places[kernel position, voxel in, block out, voxel out] along one axis, 1 or 0."""
    places = np.zeros((2, ins, 2 * ins // outs, outs), np.float32)
    for position in range(2):
        for voxel in range(ins):
            places[position, voxel, *divmod(2 * voxel + position, outs)] = 1
    return places


def pointwise(kernel: jax.Array, blocks: Blocks) -> jax.Array:
    """A kernel [C, F] that sees each voxel alone, for blocks: [V C, V F]."""
    if blocks.voxels == 1:
        return kernel
    same = jnp.eye(blocks.voxels, dtype=kernel.dtype)
    wide = same[:, None, :, None] * kernel[None, :, None, :]
    return wide.reshape(blocks.voxels * kernel.shape[0], -1)

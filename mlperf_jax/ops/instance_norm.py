"""Instance normalisation: every row and channel by its own mean and variance.

B batch · C channels · ... spatial axes
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from mlperf_jax.ops.space_to_depth import Blocks, tile


class InstanceNorm(nnx.Module):
    """Normalises each row and channel over its spatial axes, in training and evaluation alike.

    Biased variance, no running statistics, as torch's InstanceNorm3d(affine=True). The statistics are
    in `promote_types(x.dtype, f32)`: sums over 128^3 voxels are lost in bfloat16.

    >>> norm = InstanceNorm(8, rngs=nnx.Rngs(0))
    >>> norm(jnp.ones([2, 4, 4, 4, 8])).shape
    (2, 4, 4, 4, 8)
    """

    def __init__(
        self,
        features: int,
        *,
        epsilon: float = 1e-5,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Makes parameters `scale` and `bias` [C], 1 and 0 at first.

        Args:
          features: number of channels C, the last axis of the input.
          epsilon: added to the variance.
          dtype: of the output. Parameters are kept in at least float32.
          rngs: unused; every layer takes it.
        """
        kept = jnp.promote_types(dtype, jnp.float32)
        self.scale = nnx.Param(jnp.ones((features,), kept))
        self.bias = nnx.Param(jnp.zeros((features,), kept))
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x: jax.Array, blocks: Blocks | None = None) -> jax.Array:
        """Normalises x.

        Args:
          x: [B, ..., C], or [B, *grid, V C] with `blocks`.
          blocks: how a volume lies in x.

        Returns:
          The same shape, in `dtype`; zero outside of the volume.
        """
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if blocks is None or blocks.voxels == 1:
            mean, var = moments(wide)  # [B, 1, ..., C]
            gain = self.scale[...] * lax.rsqrt(var + self.epsilon)
            return ((wide - mean) * gain + self.bias[...]).astype(self.dtype)
        inside = blocks.inside(len(self.scale[...]))
        mean, var = _block_moments(wide, blocks, inside)
        gain = tile(self.scale[...] * lax.rsqrt(var + self.epsilon), blocks)
        y = (wide - tile(mean, blocks)) * gain + tile(self.bias[...], blocks)
        return (y if inside is None else jnp.where(inside, y, 0)).astype(self.dtype)


def _block_moments(
    x: jax.Array, blocks: Blocks, inside: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """As `moments`, of [B, *grid, V C] over the volume: [B, 1, ..., C] each."""
    spatial = tuple(range(1, x.ndim - 1))

    def summed(values: jax.Array) -> jax.Array:
        """[B, 1, ..., C]."""
        sums = values.sum(spatial, keepdims=True)
        return sums.reshape(*sums.shape[:-1], blocks.voxels, -1).sum(-2)

    def kept(values: jax.Array) -> jax.Array:
        return values if inside is None else jnp.where(inside, values, 0)

    plane = blocks.size[0] * math.prod(blocks.sides[1:])
    pilot = lax.stop_gradient(summed(_middle(kept(x))) / plane)
    shifted, count = kept(x - tile(pilot, blocks)), math.prod(blocks.sides)
    mean = summed(shifted) / count
    return pilot + mean, jnp.maximum(summed(shifted * shifted) / count - mean * mean, 0)


def _middle(x: jax.Array) -> jax.Array:
    """The middle plane across the first spatial axis."""
    return lax.slice_in_dim(x, x.shape[1] // 2, x.shape[1] // 2 + 1, axis=1)


def moments(x: jax.Array, *, shift: bool = True) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over the spatial axes, in one pass over x.

    Mean of squares less square of mean cancels where a patch is nearly constant, as one full of air
    is: so both are taken of x less the mean of its middle plane, which is read besides (1 / 128 of a
    patch) and changes neither result nor gradient.

    Args:
      x: [B, ..., C]; of one spatial axis or none, values are taken less their mean.
      shift: False where the values have too few digits themselves for any to be lost; it saves reading them
        once more.

    Returns:
      Mean and variance, [B, 1, ..., C].
    """
    spatial = tuple(range(1, x.ndim - 1))
    if not shift:
        mean = x.mean(spatial, keepdims=True)
        return mean, jnp.maximum(jnp.square(x).mean(spatial, keepdims=True) - mean * mean, 0)
    if len(spatial) < 2:
        mean = x.mean(spatial, keepdims=True)
        return mean, jnp.square(x - mean).mean(spatial, keepdims=True)
    pilot = lax.stop_gradient(_middle(x).mean(spatial, keepdims=True))
    shifted = x - pilot
    mean = shifted.mean(spatial, keepdims=True)
    var = (shifted * shifted).mean(spatial, keepdims=True) - mean * mean
    return pilot + mean, jnp.maximum(var, 0)

"""Group normalisation: every row and group of neighbouring channels by its own mean and variance.

B batch · G groups · C channels · ... spatial axes
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from mlperf_jax.errors import UserError
from mlperf_jax.ops import instance_norm


class GroupNorm(nnx.Module):
    """Normalises each row over its spatial axes and the C / G channels of a group, then scales each channel.

    Biased variance, no running statistics, as torch's GroupNorm. The statistics are in
    `promote_types(x.dtype, f32)`.

    >>> norm = GroupNorm(8, 4, rngs=nnx.Rngs(0))
    >>> norm(jnp.ones([2, 4, 4, 8])).shape
    (2, 4, 4, 8)
    """

    def __init__(
        self,
        features: int,
        groups: int,
        *,
        epsilon: float = 1e-5,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Makes parameters `scale` and `bias` [C], 1 and 0 at first.

        Args:
          features: number of channels C, the last axis of the input.
          groups: G.
          epsilon: added to the variance.
          dtype: of the output. Parameters are kept in at least float32.
          rngs: unused; every layer takes it.

        Raises:
          UserError: if G does not divide C.
        """
        if features % groups:
            raise UserError(
                f"group norm: {features} channels do not split into {groups} groups; choose groups that divide them"
            )
        kept = jnp.promote_types(dtype, jnp.float32)
        self.scale = nnx.Param(jnp.ones((features,), kept))
        self.bias = nnx.Param(jnp.zeros((features,), kept))
        self.groups = groups
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(
        self, x: jax.Array, then: Callable[[jax.Array], jax.Array] | None = None
    ) -> jax.Array:
        """[B, ..., C] to the same shape, in `dtype`.

        The backward pass keeps x as it came, and nothing else of its size.

        Args:
          x: of at least two spatial axes.
          then: an elementwise function of the result, before it is rounded to `dtype`.
        """
        mean, var = moments(x, self.groups)
        gain = self.scale[...] * lax.rsqrt(var + self.epsilon)

        def finish(x, mean, gain, bias):
            y = (_wide(x) - mean) * gain + bias
            return (y if then is None else then(y)).astype(self.dtype)

        return jax.checkpoint(finish, prevent_cse=False)(x, mean, gain, self.bias[...])


def _moments(x: jax.Array, groups: int) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of each channel's group, in one pass over x.

    They follow from the channels' own moments, so that only [B, C] arrays are ever regrouped.

    Args:
      x: [B, ..., C], of at least two spatial axes.
      groups: G.

    Returns:
      Mean and variance, [B, 1, ..., C], equal within a group, in promote_types(x.dtype, f32).
    """
    mean, var = instance_norm.moments(_wide(x))
    whole = _group_mean(mean, groups)
    return whole, _group_mean(var + jnp.square(mean - whole), groups)


def _forward(x: jax.Array, groups: int):
    mean, var = _moments(x, groups)
    return (mean, var), (x, mean)


def _backward(groups: int, saved: tuple[jax.Array, jax.Array], slopes: tuple[jax.Array, jax.Array]):
    x, mean = saved
    pixels = x.size // (x.shape[0] * x.shape[-1])
    of_mean, of_var = (_group_mean(slope, groups) / pixels for slope in slopes)
    return ((of_mean + 2 * of_var * (_wide(x) - mean)).astype(x.dtype),)


moments = jax.custom_vjp(_moments, nondiff_argnums=(1,))
moments.defvjp(_forward, _backward)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _group_mean(x: jax.Array, groups: int) -> jax.Array:
    """Means [B, 1, ..., C] over the channels of each group, for each of them."""
    each = x.reshape(*x.shape[:-1], groups, -1)
    return jnp.broadcast_to(each.mean(-1, keepdims=True), each.shape).reshape(x.shape)

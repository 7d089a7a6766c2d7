"""Dropout whose mask is a function of a key and of positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_DRAWS = 1 << 16


def kept(key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """What dropout leaves: bool of this shape, true with probability 1 - rate.

    It follows from the key and an element's place in the whole array, so it is the same on every mesh
    and whenever it is drawn again. Drawing is most of what dropout costs, so 32 drawn bits decide two
    elements, whose probabilities are whole multiples of 1 / 65,536.
    """
    *rest, last = shape or (1,)
    words = jax.random.bits(key, (*rest, -(-last // 2)), jnp.uint32)
    draws = jnp.concatenate([words & 0xFFFF, words >> 16], -1)[..., :last]
    return (draws < _kept_draws(rate)).reshape(shape)


def dropped(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout: x with elements zeroed with probability `rate`, the others divided by 1 - rate.

    Args:
        x: any shape, floating.
        rate: in [0, 1).
        key: None drops nothing, as in evaluation.

    >>> float(dropped(jnp.ones(1000), 0.5, jax.random.key(0)).max())
    2.0
    """
    if key is None or rate == 0:
        return x
    return masked(x, rate, kept(key, rate, x.shape))


def masked(x: jax.Array, rate: float, keep: jax.Array) -> jax.Array:
    """x where `keep`, divided by the probability of it, 1 - rate, and 0 elsewhere."""
    return jnp.where(keep, x / (_kept_draws(rate) / _DRAWS), jnp.zeros((), x.dtype))


def _kept_draws(rate: float) -> int:
    """How many of the draws keep an element."""
    return max(1, round((1 - rate) * _DRAWS))

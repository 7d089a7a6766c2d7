"""Dropout whose mask is a function of a key and of positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def kept(key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """What dropout leaves: bool of this shape, true with probability 1 - rate.

    It follows from the key and an element's place in the whole array, so it is the same on every mesh
    and whenever it is drawn again.
    """
    return jax.random.bernoulli(key, 1 - rate, shape)


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
    """x where `keep`, divided by 1 - rate, and 0 elsewhere."""
    return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))

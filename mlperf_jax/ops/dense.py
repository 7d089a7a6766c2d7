"""Products of activations with a matrix of weights, in the form that each back end is fast at.

... leading axes, such as batch and tokens · I inputs · O outputs
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

from mlperf_jax.ops.shard import platform


def dot_general(
    x: jax.Array, kernel: jax.Array, dimension_numbers: lax.DotDimensionNumbers, **how: Any
) -> jax.Array:
    """What `lax.dot_general` gives, for layers of Flax that take it as `dot_general`.

    On a CPU the gradient of the kernel of `x [..., I] @ kernel [I, O]` is asked for as it is stored.
    JAX's own rule gives it as the transpose of [O, I], for which XLA:CPU transposes the incoming
    gradients element by element and leaves its fast matrix products: ours is 2.41 times as fast for
    2,048 x 128 by 384 on one core (`scripts/measure_notes.py`). Elsewhere, and for other products, nothing is changed.

    Args:
      x: [..., I].
      kernel: [I, O].
      dimension_numbers: as of `lax.dot_general`.
      **how: its further arguments; given any that says something, it is called as it is.

    Returns:
      [..., O].

    >>> import jax.numpy as jnp
    >>> dot_general(jnp.ones([2, 3, 4]), jnp.ones([4, 5]), (((2,), (0,)), ((), ()))).shape
    (2, 3, 5)
    """
    (contracted, _) = dimension_numbers
    plain = kernel.ndim == 2 and tuple(map(tuple, contracted)) == ((x.ndim - 1,), (0,))
    if platform() != "cpu" or not plain or any(value is not None for value in how.values()):
        return lax.dot_general(x, kernel, dimension_numbers, **how)
    return _product(x, kernel)


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., I] @ kernel [I, O] -> [..., O] by `dot_general`."""
    return dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _value(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _contracted(x, kernel, (x.ndim - 1,), (0,))


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _value(x, kernel), (x, kernel)  # a bare product, which policies of `jax.checkpoint` know


def _backward(saved: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    of_x = _contracted(slope, kernel, (x.ndim - 1,), (1,))
    # one leading axis: contracting several, XLA:CPU transposes x first
    x, slope = (y.reshape(-1, y.shape[-1]) for y in (x, slope))
    return of_x, _contracted(x, slope, (0,), (0,))


_product = jax.custom_vjp(_value)
_product.defvjp(_forward, _backward)


def _contracted(
    one: jax.Array, other: jax.Array, axes: tuple[int, ...], others: tuple[int, ...]
) -> jax.Array:
    return lax.dot_general(one, other, ((axes, others), ((), ())))

"""LAMB as MLPerf has it for `bert`. It is not `optax.lamb`.

Reference: retired_benchmarks/bert (TF1, LAMB optimizer). Per tensor w with gradient g, t counting updates
from 1:

    m <- b1 m + (1 - b1) g and v <- b2 v + (1 - b2) g^2
    u = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + wd w
    w <- w - lr trust u, with trust = |w| / |u|, and 1 if either is 0

`optax.lamb` takes a trust ratio of norms and biases too, and one of a whole stack of layers. Norms and
biases are skipped: no decay, trust 1, which is Adam. Gradients come clipped: the benchmark's `clip_norm`
(1 by rule) clips the global norm ahead of any optimizer, once, after accumulation and reduction.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mlperf_jax.optimizers import tree as trees


class LambState(NamedTuple):
    """Updates done (int32 scalar), and both moments in the parameters' dtypes or float32 if wider."""

    count: jax.typing.ArrayLike  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Any
    nu: Any


def lamb(
    learning_rate: float | Callable[[Any], Any],
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    *,
    skip: Any = None,
) -> optax.GradientTransformation:
    """Returns MLPerf's LAMB; its updates are to be added to the parameters.

    Norms are taken in float32 or wider, and per layer for leaves under a component `layers`.

    Args:
        learning_rate: a number, or a schedule of the optimizer's own count (0 at the first update).
        b1, b2: decay of the moments.
        eps: added outside of the root, after the bias correction; 1e-6 in all reference points.
        weight_decay: wd.
        skip: what takes no decay and no trust ratio, as of `lars`. None means norms and biases by
            name, the reference's list.

    Example:
        >>> optimizer = lamb(4.25e-4)   # batch 448 of bert
        >>> state = optimizer.init({"fc": {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}})
    """

    def init(params: Any) -> LambState:
        mu, nu = (jax.tree.map(_moment, params) for _ in range(2))
        return LambState(jnp.zeros((), jnp.int32), mu, nu)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, LambState]:
        if params is None:
            raise ValueError("lamb needs the parameters: call update(gradients, state, params)")
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        count = jnp.asarray(optax.safe_increment(state.count))

        def moved(moment: jax.Array, gradient: jax.Array, beta: float, power: int) -> jax.Array:
            return beta * moment + (1 - beta) * gradient.astype(moment.dtype) ** power

        mu = jax.tree.map(lambda m, g: moved(m, g, b1, 1), state.mu, updates)
        nu = jax.tree.map(lambda v, g: moved(v, g, b2, 2), state.nu, updates)

        def step(path: str, m: Any, v: Any, weight: jax.Array, skipped: bool) -> jax.Array:
            m, v = m / _correction(b1, count, m.dtype), v / _correction(b2, count, v.dtype)
            adam, wide = m / (jnp.sqrt(v) + eps), weight.astype(m.dtype)
            lr = jnp.asarray(rate, m.dtype)
            if skipped:
                return (-lr * adam).astype(weight.dtype)
            direction = adam + weight_decay * wide
            axes = tuple(range(int(trees.stack_of(path) is not None), weight.ndim))
            return (-lr * trust_ratio(wide, direction, axes) * direction).astype(weight.dtype)

        mask = trees.resolve_mask(trees.norms_and_biases if skip is None else skip, params)
        return trees.map_with_path(step, mu, nu, params, mask), LambState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def trust_ratio(weight: jax.Array, direction: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns |w| / |u| with norms over `axes` (kept), 1 where a norm is 0."""
    norms = (jnp.sqrt(jnp.sum(x * x, axis=axes, keepdims=True)) for x in (weight, direction))
    weight_norm, step_norm = norms
    both = (weight_norm > 0) & (step_norm > 0)
    # The inner `where` keeps x/0 out of the branch that is not taken.
    return jnp.where(both, weight_norm / jnp.where(both, step_norm, 1), 1)


def _moment(leaf: Any) -> jax.Array:
    return jnp.zeros_like(leaf, jnp.promote_types(leaf.dtype, jnp.float32))


def _correction(beta: float, count: jax.Array, dtype: Any) -> jax.Array:
    """1 - beta^t; as a difference in float32 it would be off by 5e-5 for 0.999 and t = 1."""
    log = math.log(beta) if beta else -math.inf
    return -jnp.expm1(count.astype(dtype) * log)

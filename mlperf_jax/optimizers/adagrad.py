"""Adagrad as torch.optim.Adagrad computes it, which DLRM-DCNv2's rules fix.

    a <- a + g^2;   w <- w - lr g / (sqrt(a) + eps)

optax.adagrad puts eps under the root, and leaves weights with an accumulator of 0 where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class AdagradState(NamedTuple):
    """Updates done (int32 scalar), and the sums of squared gradients."""

    count: jax.typing.ArrayLike  # pyright: ignore[reportIncompatibleMethodOverride]
    accumulator: Any


def adagrad(
    learning_rate: float | Callable[[Any], Any], epsilon: float = 1e-8, initial: float = 0.0
) -> optax.GradientTransformation:
    """Returns Adagrad; its updates are to be added to the parameters.

    Args:
        learning_rate: a number, or a schedule of the optimizer's own count (0 at the first update).
        epsilon: added to the root.
        initial: what the sums begin with.

    Example:
        >>> tx = adagrad(0.1)
        >>> updates, _ = tx.update({"w": 4.0}, tx.init({"w": jnp.zeros(())}))
        >>> round(float(updates["w"]), 6)
        -0.1
    """

    def init(params: Any) -> AdagradState:
        sums = jax.tree.map(lambda p: jnp.full_like(p, initial), params)
        return AdagradState(jnp.zeros((), jnp.int32), sums)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AdagradState]:
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        sums = jax.tree.map(
            lambda a, g: a + jnp.square(jnp.asarray(g, a.dtype)), state.accumulator, updates
        )
        steps = jax.tree.map(
            lambda a, g: (
                -jnp.asarray(rate, a.dtype) * jnp.asarray(g, a.dtype) / (jnp.sqrt(a) + epsilon)
            ),
            sums,
            updates,
        )
        return steps, AdagradState(optax.safe_increment(state.count), sums)

    return optax.GradientTransformation(init, update)

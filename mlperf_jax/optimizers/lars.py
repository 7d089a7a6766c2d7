"""LARS as MLPerf has it. It is not `optax.lars`.

Reference: retired_benchmarks/resnet-tf2 (LARS optimizer), training_rules for `resnet`. Per tensor w
with gradient g:

    trust = eta |w| / (|g| + wd |w| + eps), and 1 if |w| or |g| is 0
    v <- m v - lr trust (g + wd w)
    w <- w + v

`optax.lars` divides by |g + wd w| instead. Norms and biases are skipped: no decay, trust 1, the full
learning rate in the same momentum.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mlperf_jax.optimizers import tree as trees
from mlperf_jax.optimizers.momentum import MomentumOrder, apply_momentum, check_momentum_order


class LarsState(NamedTuple):
    """Updates done (int32 scalar), and the momentum buffers in the parameters' dtypes."""

    count: jax.typing.ArrayLike  # pyright: ignore[reportIncompatibleMethodOverride]
    momentum: Any


def lars(
    learning_rate: float | Callable[[Any], Any],
    weight_decay: float = 0.0,
    *,
    skip: Any = None,
    momentum: float = 0.9,
    eta: float = 0.001,
    eps: float = 0.0,
    momentum_order: MomentumOrder = "lr_inside",
) -> optax.GradientTransformation:
    """Returns MLPerf's LARS; its updates are to be added to the parameters.

    Norms are taken in float32 or wider, and per layer for leaves under a component `layers`. There is
    no Nesterov form: the rules have none.

    Args:
        learning_rate: a number, or a schedule of the optimizer's own count (0 at the first update).
        weight_decay: wd; closed division: 1e-4 times a power of 2.
        skip: what takes no decay and no trust ratio: a `Paths`, a callable of the parameters or a
            tree of booleans. None means norms and biases by name, the reference's list.
        momentum: m.
        eta: trust coefficient, 0.001 in all submissions and not logged.
        eps: added to the denominator. The rules want it logged as 0.
        momentum_order: "lr_inside" keeps steps already scaled by the rate in the buffer (TF2
            reference), "lr_outside" scales when applying (NVIDIA's order: its buffer is rescaled by
            lr_t / lr_{t-1} each step, which is the same thing). Take that of the recipe you follow.

    Raises:
        UserError: `momentum_order` is neither of the two.

    Example:
        >>> params = {"fc": {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}}
        >>> tree = trees.ParamTree.from_params(params)
        >>> optimizer = lars(10.5, 5e-5, skip=tree.norms | tree.biases)
    """
    check_momentum_order(momentum_order)

    def init(params: Any) -> LarsState:
        return LarsState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, LarsState]:
        if params is None:
            raise ValueError("lars needs the parameters: call update(gradients, state, params)")
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate

        def scaled(path: str, gradient: jax.Array, weight: jax.Array, skipped: bool) -> jax.Array:
            dtype = jnp.promote_types(weight.dtype, jnp.float32)
            gradient, weight = gradient.astype(dtype), weight.astype(dtype)
            if skipped:
                return gradient
            axes = tuple(range(int(trees.stack_of(path) is not None), weight.ndim))
            trust = trust_ratio(weight, gradient, axes, weight_decay, eta, eps)
            return trust * (gradient + weight_decay * weight)

        steps = trees.map_with_path(
            scaled,
            updates,
            params,
            trees.resolve_mask(trees.norms_and_biases if skip is None else skip, params),
        )
        new_updates, buffers = apply_momentum(
            steps, state.momentum, rate, momentum, momentum_order, nesterov=False
        )
        return new_updates, LarsState(optax.safe_increment(state.count), buffers)

    return optax.GradientTransformation(init, update)


def trust_ratio(
    weight: jax.Array,
    gradient: jax.Array,
    axes: tuple[int, ...],
    weight_decay: float,
    eta: float,
    eps: float,
) -> jax.Array:
    """Returns eta |w| / (|g| + wd |w| + eps) with norms over `axes` (kept), 1 where a norm is 0."""
    weight_norm = jnp.sqrt(jnp.sum(weight * weight, axis=axes, keepdims=True))
    gradient_norm = jnp.sqrt(jnp.sum(gradient * gradient, axis=axes, keepdims=True))
    denominator = gradient_norm + weight_decay * weight_norm + eps
    both = (weight_norm > 0) & (gradient_norm > 0)
    # The inner `where` keeps 0/0 out of the branch that is not taken (eps is 0 by rule).
    return jnp.where(both, eta * weight_norm / jnp.where(both, denominator, 1), 1)

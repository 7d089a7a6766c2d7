"""Momentum SGD in the forms of the references, with their L2 terms.

With g the gradient plus its L2 term, m the momentum and v the buffer:

    Keras, "lr_inside":   v <- m v - lr g;   w <- w + v          (resnet TF2)
    torch, "lr_outside":  v <- m v + g;      w <- w - lr v       (ssd, maskrcnn)
    torch with Nesterov:  v <- m v + g;      w <- w - lr (g + m v)   (unet3d)

While the rate is constant the first two are the same; when it changes, the Keras form lets past steps
keep their old rate.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mlperf_jax.optimizers import tree as trees
from mlperf_jax.optimizers.momentum import MomentumOrder, apply_momentum, check_momentum_order


class SgdState(NamedTuple):
    """Updates done (int32 scalar), and the momentum buffers; () when there is no momentum."""

    count: jax.typing.ArrayLike  # pyright: ignore[reportIncompatibleMethodOverride]
    momentum: Any


def sgd(
    learning_rate: float | Callable[[Any], Any],
    momentum: float = 0.9,
    *,
    momentum_order: MomentumOrder = "lr_inside",
    nesterov: bool = False,
    weight_decay: float = 0.0,
    l2_factor: float = 1,
    skip: Any = False,
) -> optax.GradientTransformation:
    """Returns SGD with momentum; its updates are to be added to the parameters.

    Args:
        learning_rate: a number, or a schedule of the optimizer's own count (0 at the first update).
        momentum: m; 0 keeps no buffer.
        momentum_order: "lr_inside" (Keras) or "lr_outside" (torch).
        nesterov: whether to look ahead by one momentum step.
        weight_decay: wd of the L2 term in the loss.
        l2_factor: gradient of that term over wd w. 1 for wd sum(w^2) / 2 (TF1, torch), 2 for
            wd sum(w^2) (TF2): the same logged value means twice the decay there.
        skip: what is not decayed: a `Paths`, a callable of the parameters or a tree of booleans. By
            default nothing, as in torch. TF2's resnet leaves out variables with 'bn' in their name,
            and decays the dense bias: `skip=tree.norms`.

    Raises:
        UserError: `momentum_order` is neither of the two.

    Example:
        >>> optimizer = sgd(0.8, 0.9, momentum_order="lr_outside", nesterov=True)   # unet3d
    """
    check_momentum_order(momentum_order)

    def init(params: Any) -> SgdState:
        buffers = optax.tree.zeros_like(params) if momentum else ()
        return SgdState(jnp.zeros((), jnp.int32), buffers)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, SgdState]:
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        if weight_decay and params is None:
            raise ValueError("sgd with weight_decay needs the parameters: update(g, state, params)")
        count = optax.safe_increment(state.count)
        like = updates if params is None else params

        def decayed(gradient: jax.Array, weight: jax.Array, skipped: bool) -> jax.Array:
            dtype = jnp.promote_types(weight.dtype, jnp.float32)
            gradient = gradient.astype(dtype)
            if not weight_decay or skipped:
                return gradient
            return gradient + l2_factor * weight_decay * weight.astype(dtype)

        steps = jax.tree.map(decayed, updates, like, trees.resolve_mask(skip, like))
        if not momentum:
            plain = jax.tree.map(
                lambda step, old: (-jnp.asarray(rate, step.dtype) * step).astype(old.dtype),
                steps,
                like,
            )
            return plain, SgdState(count, ())
        new_updates, buffers = apply_momentum(
            steps, state.momentum, rate, momentum, momentum_order, nesterov
        )
        return new_updates, SgdState(count, buffers)

    return optax.GradientTransformation(init, update)

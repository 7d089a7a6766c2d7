"""The weights at which a schedule-free optimizer is to be evaluated, wherever optax has wrapped it.

`optax.contrib.schedule_free` and its like train y, from which gradients come, and keep z; what is good
is their average x, which follows from both. Which leaves have a z, and where, the optimizer's state says.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import ScheduleFreeState, schedule_free_eval_params

from mlperf_jax.errors import UserError
from mlperf_jax.optimizers import tree as trees
from mlperf_jax.optimizers.per_layer import PerLayerState

# Wrappers that hand on what the wrapped one gives, or nothing: the field that holds its state.
_WRAPPERS = {
    optax.ApplyIfFiniteState: "inner_state",
    optax.ConditionallyMaskState: "inner_state",
    optax.ConditionallyTransformState: "inner_state",
    optax.InjectHyperparamsState: "inner_state",
    optax.InjectStatefulHyperparamsState: "inner_state",
    optax.MaskedState: "inner_state",
    optax.MultiStepsState: "inner_opt_state",
}


def evaluated(opt: Any, params: Any) -> Callable[[Any, Any], Any] | None:
    """`(opt, params) -> params to evaluate` of an optimizer with schedule-free parts, else None.

    A leaf that no schedule-free part updates stays as it is.

    Args:
        opt: the optimizer's state, or its shapes.
        params: a nested dict, or its shapes.

    Raises:
        UserError: such a part is there, and the weights to evaluate cannot be told from the state.

    Example:
        >>> params = {"kernel": jnp.ones(2)}
        >>> opt = optax.contrib.schedule_free_sgd(0.1).init(params)
        >>> evaluated(opt, params)(opt, {"kernel": 2 * params["kernel"]})
        {'kernel': Array([2.1111112, 2.1111112], dtype=float32)}
        >>> evaluated(optax.sgd(0.1).init(params), params)
    """
    shapes = {path: leaf.shape for path, leaf in trees.flatten_paths(params).items()}
    parts = _parts(opt)
    for part in parts:
        for path, leaf in trees.flatten_paths(part.z).items():
            if shapes.get(path) != leaf.shape:
                raise UserError(
                    "the optimizer's schedule-free part does not keep the shapes of the parameters, as within "
                    "optax.flatten, so that its evaluation weights cannot be told: take that wrapper away"
                )
    return _evaluated if parts else None


def _evaluated(opt: Any, params: Any) -> Any:
    weights = trees.flatten_paths(params)
    for part in _parts(opt):
        for path, z in trees.flatten_paths(part.z).items():
            weights[path] = _average(part, z, weights[path])
    return trees.unflatten(weights, like=params)


def _average(part: ScheduleFreeState, z: jax.Array, y: jax.Array) -> jax.Array:
    b1 = jnp.asarray(part.b1)  # under `per_layer` one for each layer
    b1 = jnp.expand_dims(b1, range(b1.ndim, y.ndim))
    return schedule_free_eval_params(part._replace(b1=b1, z=z), y).astype(y.dtype)


def _parts(opt: Any) -> list[ScheduleFreeState]:
    """The schedule-free states within an optimizer's, no two of which update one leaf."""
    if not _is_there(opt):
        return []
    if isinstance(opt, ScheduleFreeState):
        if _is_there(opt.base_optimizer_state):
            raise UserError(
                "the optimizer has one schedule-free part within another, and a leaf is averaged once: take one "
                "of them away"
            )
        return [opt]
    if isinstance(opt, OrderedDict) or type(opt) is tuple:  # of a chain
        *before, last = opt.values() if isinstance(opt, OrderedDict) else opt
        if _is_there(before):
            raise UserError(
                "in the optimizer a transformation follows a schedule-free part and may change its updates, so "
                "that its evaluation weights cannot be told: put the schedule-free part at the end of its chain"
            )
        return _parts(last)
    return [part for inner in _wrapped(opt) for part in _parts(inner)]


def _wrapped(opt: Any) -> Sequence[Any]:
    """The states within that of a wrapper, of which no two update one leaf."""
    if isinstance(opt, PerLayerState):
        return [opt.plain, *opt.stacks.values()]
    if isinstance(opt, optax.PartitionState):
        return list(opt.inner_states.values())
    field = _WRAPPERS.get(type(opt))
    if field is None:
        raise UserError(
            f"the optimizer has a schedule-free part within {type(opt).__name__}, from which its evaluation "
            "weights cannot be told: take it out of there, or give the optimizer an eval_params(opt_state, "
            "params) of its own"
        )
    return [getattr(opt, field)]


def _is_there(opt: Any) -> bool:
    def is_part(node: Any) -> bool:
        return isinstance(node, ScheduleFreeState)

    return any(map(is_part, jax.tree.leaves(opt, is_leaf=is_part)))

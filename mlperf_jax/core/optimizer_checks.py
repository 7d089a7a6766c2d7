"""What a traced optimizer must give so that a step can train with it; what does not is refused in one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from mlperf_jax.core import jaxprs, python_file
from mlperf_jax.core.terms import differences
from mlperf_jax.errors import UserError
from mlperf_jax.optimizers import tree as trees

State = dict[str, Any]
_RATES = ("learning_rate", "step_size")


def numbers(tx: Any) -> None:
    """Nothing, if optax's own functions hold a learning rate that is a number."""
    for function in python_file.functions_inside(tx):
        for name, value in python_file.closed_over(function).items():
            if name not in _RATES or not (function.__module__ or "").startswith("optax."):
                continue
            if isinstance(value, str):
                raise UserError(f"{name} of the optimizer is text: give a number")
            if isinstance(value, float) and not np.isfinite(value):
                raise UserError(f"{name} of the optimizer is {value}: give a number")


def updates(params: State, found: Any) -> None:
    """Nothing, if every parameter has its update."""
    wanted, given = trees.flatten_paths(params), _leaves(found)
    for path, leaf in wanted.items():
        if path not in given:
            raise UserError(
                f"the optimizer gives no update of {path}: give zeros (optax.set_to_zero) for what "
                "must not change"
            )
        update = given[path]
        fits = update.shape == leaf.shape and jnp.issubdtype(update.dtype, jnp.floating)
        if not fits:
            raise UserError(
                f"the optimizer's update of {path} is {_shape(update)} and the parameter {_shape(leaf)}: it "
                "must be floating-point numbers of the parameter's shape"
            )
    if odd := sorted(given.keys() - wanted.keys()):
        raise UserError(f"the optimizer gives an update of {odd[0]}, which the model lacks")
    if jax.tree.structure(found) != jax.tree.structure(params):
        raise UserError(
            "the optimizer gives its updates in other containers than the gradients: give nested dicts, as "
            "jax.tree.map leaves them"
        )


def state(before: Any, after: Any) -> None:
    """Nothing, if an update leaves the state as `init` made it."""
    old, new = _leaves(before), _leaves(after)
    for path, now, once in differences(new, old):
        raise UserError(
            f"the optimizer's state changes from step to step: {path or 'it'} is {once} after init and {now} "
            "after update, and must stay as init made it"
        )
    for path, leaf in old.items():
        if str(leaf.dtype) in ("int4", "uint4", "int2", "uint2"):
            raise UserError(
                f"the optimizer's state keeps {path} in {leaf.dtype}, which arrays of a step cannot be: pack two "
                "into a uint8"
            )
    try:
        same = jax.tree.structure(before) == jax.tree.structure(after)
    except ValueError:  # some containers compare arrays
        same = False
    if not same:
        raise UserError(
            "the optimizer's state changes from step to step: update must return the structure that init made"
        )


def programs(init: core.ClosedJaxpr, update: core.ClosedJaxpr, made: Any) -> None:
    """Nothing, if they can run in a step and compute with numbers; `made` is the shape of what `init` gives."""
    for program in (init, update):
        if names := jaxprs.callbacks(program):
            raise UserError(
                f"the optimizer calls Python while a step runs ({', '.join(names)}), which no accelerator waits "
                "for: compute it with jax.numpy"
            )
        _check_foreign(program)
    if any(np.isnan(value) for value in _terms(update)):
        raise UserError(
            "the optimizer computes with nan: look at its learning rate and its settings"
        )
    leaves = jax.tree_util.tree_leaves_with_path(made)
    for (path, _), var in zip(leaves, init.jaxpr.outvars, strict=True):
        name = trees.join_path(path)
        if "hyperparams/" in name and isinstance(var, core.Literal):  # optax's inject_hyperparams
            rate = name.endswith("/learning_rate")
            if np.isnan(var.val) or (rate and np.isinf(var.val)):
                setting = name.rpartition("/")[2]
                raise UserError(f"{setting} of the optimizer is {var.val}: give a number")


def _check_foreign(program: core.ClosedJaxpr) -> None:
    """Nothing, if what not every device knows is compiled for this one."""
    names = jaxprs.foreign(program)
    if not names:
        return
    try:
        jax.jit(core.jaxpr_as_fun(program)).lower(*program.in_avals).compile()
    except Exception as error:
        raise UserError(
            f"the optimizer cannot be compiled here ({python_file.in_one_line(error)}): leave out its "
            f"{' and '.join(names)}"
        ) from error


def _terms(program: core.ClosedJaxpr) -> Iterator[Any]:
    """Numbers of the program itself that are multiplied or added."""
    for equation in jaxprs.equations(program):
        if equation.primitive.name in ("mul", "div", "add", "sub"):
            literals = [var.val for var in equation.invars if isinstance(var, core.Literal)]
            yield from (x for x in literals if np.result_type(x).kind == "f" and np.size(x) == 1)


def _leaves(tree: Any) -> Mapping[str, Any]:
    """Arrays by path; of a tree with a None, what stands beside it."""
    if hasattr(tree, "shape"):
        return {"": tree}
    return trees.flatten_paths(tree)


def _shape(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def kind(result: Any) -> str:
    """What stands where a pair must, as a word."""
    return f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__

"""A user's optimizer, traced on a benchmark's parameters before anything runs: what it is, and whether it can train.

One trace finds what cannot be traced, and updates or states of other shapes; equal repeated ones show that
an update depends on its arguments alone. The program itself is what the optimizer is told apart by.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.extend import core

from mlperf_jax.core import jaxprs, optimizer_checks, optimizer_stacks, python_file
from mlperf_jax.core.optimizer_stacks import Lineage
from mlperf_jax.errors import UserError
from mlperf_jax.optimizers import tree as trees

State = dict[str, Any]
REPEATS = 3
# what an update may ask for beside gradients, state and parameters, as optax names it
EXTRAS = ("value", "grad", "value_fn", "grad_fn", "obj_fn")
# how Python and optax's line searches say which argument they do not take
_UNEXPECTED = re.compile(r"unexpected keyword argument (.*)|not consumed by `value_fn`: (.*?)\]")


@dataclass(frozen=True)
class Traced:
    """An optimizer that was traced and can train.

    Attributes:
        program: sixteen hex digits of what it computes on these parameters.
        extras: which of `EXTRAS` its update takes.
        calls: how often a traced update calls a function of the loss; 0 of one that never does.
        notes: sentences to be said before the run begins.
    """

    program: str
    extras: tuple[str, ...]
    calls: int = 0
    notes: tuple[str, ...] = ()

    def given(
        self, value: jax.Array, grads: State, loss: Callable[..., jax.Array]
    ) -> dict[str, Any]:
        """The extra arguments of an update: the loss, its gradients, and the loss as a function."""
        return _given(self.extras, value, grads, loss)

    def evaluations(self, opt: Any) -> jax.Array | int:
        """How often the last update evaluated the loss, by the optimizer's state after it.

        Line searches count their own; what others call is counted as it was traced, branches not taken too.
        """
        counted = [
            leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(opt)
            if trees.join_path(path).endswith("num_linesearch_steps")
        ]
        return sum(leaf.sum() for leaf in counted) if counted else self.calls


def _given(
    extras: Sequence[str], value: jax.Array, grads: State, loss: Callable[..., jax.Array]
) -> dict[str, Any]:
    functions = {"value_fn": loss, "obj_fn": loss, "grad_fn": jax.grad(loss)}
    known = {"value": value, "grad": grads, **functions}
    return {name: known[name] for name in extras}


def trace(tx: Any, params: State, tree: trees.ParamTree, *, told: bool = False) -> Traced:
    """Traces `init` and `update` three times; nothing is allocated.

    Args:
        tx: an optax transformation, or an object with its two functions.
        params: shapes and dtypes of the trained parameters.
        tree: their description.
        told: whether it was made by a function that was given the tree, and knows which are stacks.

    Raises:
        UserError: one fails; updates or state have other shapes or types than they must; a callback, a
            constant that is not a number; or two traces differ.
    """
    optimizer_checks.numbers(tx)
    found = _Trial(tx, params)
    # after the first trace, as some of optax's schedules settle their numbers when they are called
    held = python_file.contents(tx)
    optimizer_checks.updates(params, found.updates)
    optimizer_checks.state(found.state, found.new_state)
    optimizer_checks.programs(found.init, found.update, found.state)
    program = jaxprs.fingerprint(*found.programs)
    for _ in range(REPEATS - 1):
        again = _Trial(tx, params, found.extras)
        if jaxprs.fingerprint(*again.programs) != program or python_file.contents(tx) != held:
            raise UserError(
                "the optimizer is another one each time it is traced: an update must follow from its "
                "arguments, so keep counters, random numbers and arrays in the state that init returns"
            )
    notes = (*_stacks(tx, found, tree, told), *_between_syncs(found))
    return Traced(program, found.extras, found.calls, notes)


class _Trial:
    """One trace.

    Attributes:
        init, update: the programs.
        state, updates, new_state: shapes of what they give.
        extras: what the update takes.
        calls: of functions of the loss.
    """

    def __init__(self, tx: Any, params: State, extras: tuple[str, ...] | None = None) -> None:
        self.params, self.calls = params, 0
        self.init, self.state = _traced("init", tx.init, params)
        self.extras = accepted(tx.update) if extras is None else extras
        self._trace_with_fewer(tx)
        own = getattr(tx, "eval_params", None)
        self.programs = [self.init, self.update]
        if own is not None:
            self.programs.append(_traced("eval_params", own, self.state, params)[0])

    def _trace_with_fewer(self, tx: Any) -> None:
        while True:
            try:
                self._trace_update(tx)
                return
            except _Unexpected as error:
                # of those inside a chain, which are called with all that the chain is
                self.extras = tuple(name for name in self.extras if name not in error.names)

    def _trace_update(self, tx: Any) -> None:
        self.calls = 0

        def update(clipped: State, state: Any, params: State, value: Any, grads: State) -> Any:
            given = _given(self.extras, value, grads, self._loss(params))
            return tx.update(clipped, state, params, **given)

        value = jax.ShapeDtypeStruct((), jax.tree.leaves(self.params)[0].dtype)
        arguments = (self.params, self.state, self.params, value, self.params)
        self.update, result = _traced("update", update, *arguments, extras=self.extras)
        if not isinstance(result, tuple) or len(result) != 2:
            raise UserError(
                f"update of the optimizer gives {optimizer_checks.kind(result)}: it must give the updates and its new state"
            )
        self.updates, self.new_state = result

    def _loss(self, params: State) -> Callable[..., jax.Array]:
        """A stand-in of the loss, which traces at once; the real one is traced with the step."""

        def value(given: State, *_: Any) -> jax.Array:
            self.calls += 1
            check_whole(given, params)
            # factors that no loss of the user's own has, so that it is not taken for theirs
            return (
                sum(0.6180339 * jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(given)) + 0.5772156
            )  # pyright: ignore[reportReturnType]

        return value


def libraries() -> dict[str, str]:
    """Versions of what decides the program of one and the same optimizer."""
    return {name: importlib.metadata.version(name) for name in ("jax", "optax")}


def accepted(update: Callable[..., Any]) -> tuple[str, ...]:
    """Which of `EXTRAS` a function takes by name."""
    try:
        parameters = inspect.signature(update).parameters.values()
    except (TypeError, ValueError):
        return ()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return EXTRAS
    names = {each.name for each in parameters if each.kind is not each.POSITIONAL_ONLY}
    return tuple(name for name in EXTRAS if name in names)


def check_whole(given: Any, params: State) -> None:
    """Nothing, if a function of the loss is asked of all parameters."""
    if jax.tree.structure(given) != jax.tree.structure(params):
        raise UserError(
            "the optimizer asks for the loss at other parameters than the model's: one that calls value_fn, "
            "grad_fn or obj_fn must see all of them, so leave out masks and per_layer"
        )


class _Unexpected(Exception):
    """An update was given what it does not take."""

    def __init__(self, names: set[str]) -> None:
        super().__init__(*names)
        self.names = names


def _traced(
    what: str, function: Callable[..., Any], *arguments: Any, extras: Sequence[str] = ()
) -> tuple[core.ClosedJaxpr, Any]:
    try:
        program, result = jax.make_jaxpr(function, return_shape=True)(*arguments)
        if any(isinstance(value, jaxprs.Tracer) for value in program.consts):
            raise UserError(
                f"{what} of the optimizer uses arrays of an earlier step: {_IN_THE_STATE}"
            )
        return program, result
    except UserError:
        raise
    except Exception as error:
        refused = _UNEXPECTED.search(str(error)) if isinstance(error, TypeError) else None
        if refused and (names := {*re.findall(r"'(\w+)'", refused[0])} & {*extras}):
            raise _Unexpected(names) from error
        raise UserError(
            f"{what} of the optimizer fails on this benchmark's parameters "
            f"({python_file.in_one_line(error)}){_way_out(error)}"
        ) from error


def _way_out(error: Exception) -> str:
    text = f"{type(error).__name__} {error}"
    for sign, advice in _ADVICE.items():
        if re.search(sign, text):
            return f": {advice}"
    return ": mend it, or try it alone with jax.make_jaxpr"


_IN_THE_STATE = "keep them in the state that init returns, not in the object or a global"
_ADVICE = {
    "LookaheadParams|attribute '(fast|slow)'": (
        "parameters stay plain arrays here, so average them with ema_decay or "
        "optax.contrib.schedule_free instead"
    ),
    "per_example|batch dimension": (
        "gradients here are means over the batch, so per-example ones cannot be had: clip with "
        "optax.clip_by_global_norm"
    ),
    "Tracer(Bool|Integer|Array)?Conversion|Concretization": (
        "values are not known while a step is traced, so use jnp.where, jax.lax.cond and arrays"
    ),
    "UnexpectedTracer": _IN_THE_STATE,
}


# -- stacks of layers ------------------------------------------------------------------------------


def _stacks(tx: Any, found: _Trial, tree: trees.ParamTree, told: bool) -> list[str]:
    """What is to be said of stacks that the optimizer does not see as layers."""
    layers = {leaf.path: leaf.layers for leaf in tree.leaves if leaf.stacked and leaf.layers > 1}
    if not layers:
        return []
    try:
        mixed, done = _read(found, layers)
    except (IndexError, KeyError, ValueError):  # operations of which nothing is known here
        return []
    asks = not (mixed or told or _knows_stacks(tx))
    one = _one_layer(tx, found, layers) if asks else None
    named = mixed or [path for path in layers if one is not None and one[path] != done[path]]
    if not named:
        return []
    more = f" and {len(named) - 1} more" if len(named) > 1 else ""
    what = "for one tensor" if mixed else "by its number of axes"
    return [
        f"note: the optimizer takes {layers[named[0]]} layers stacked in one array {what} ({named[0]}{more}): "
        "wrap it in mlperf_jax.optimizers.per_layer, or tell it which axes count (tree.matrices for muon, "
        "masks of the ParamTree)"
    ]


def _read(found: _Trial, layers: Mapping[str, int]) -> Any:
    """What `optimizer_stacks.mixing` gives of a trace; without layers nothing has a layer axis."""
    paths = list(trees.flatten_paths(found.params))

    def lineage(path: str, leaf: Any) -> Lineage:
        own = [p for p in paths if path == p or path.endswith(f"/{p}")]
        if not own:
            return Lineage()
        longest = max(own, key=len)
        stacked = leaf.shape[:1] == (layers.get(longest),)
        return Lineage(frozenset([longest]), 0 if stacked else None)

    def lineages(part: Any) -> list[Lineage]:
        leaves = jax.tree_util.tree_leaves_with_path(part)
        return [lineage(trees.join_path(path), leaf) for path, leaf in leaves]

    grads = lineages(found.params)
    inputs = [*grads, *lineages(found.state), *grads, Lineage(), *grads]
    sizes = {path: leaf.size for path, leaf in trees.flatten_paths(found.params).items()}
    return optimizer_stacks.mixing(found.update, inputs, paths, sizes)


def _one_layer(tx: Any, found: _Trial, layers: Mapping[str, int]) -> Any:
    """What is done to each parameter where a stack has one layer and no axis for it; None if that fails."""
    single = trees.map_with_path(
        lambda path, leaf: (
            jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) if path in layers else leaf
        ),
        found.params,
    )
    try:
        return _read(_Trial(tx, single, found.extras), {})[1]
    except Exception:  # it was told of the axes, so it knows them
        return None


def _knows_stacks(tx: Any) -> bool:
    """Whether a transformation of ours that looks for layer axes is in it."""
    ours = {f"{trees.__package__}.{name}" for name in ("lamb", "lars", "per_layer")}
    return any(function.__module__ in ours for function in python_file.functions_inside(tx))


def _between_syncs(found: _Trial) -> list[str]:
    """What is to be said of optax's sam where it trains adversarial weights in steps of their own."""
    states = jax.tree.leaves(found.state, is_leaf=lambda s: isinstance(s, optax.contrib.SAMState))
    if any(isinstance(s, optax.contrib.SAMState) and s.cache is not None for s in states):
        return [
            "note: sam takes a step of its own to its adversarial weights, and an evaluation after such a step is "
            "of those: give it opaque_mode=True, which takes both at once"
        ]
    return []

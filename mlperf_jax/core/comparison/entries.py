"""What competes: an optimizer as a text or an object, its label, and which of its settings may be searched."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import optax

from mlperf_jax.core import mesh as meshes, preflight, python_file, state as states, step
from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.core.comparison.space import Interval, Space
from mlperf_jax.core.judges import judges_of
from mlperf_jax.core.levers import NONE, Levers, split, without
from mlperf_jax.core.optimizer_argument import OptimizerText, is_transformation
from mlperf_jax.errors import UserError

RECIPE = "recipe"  # the benchmark's own optimizer, with its own settings
RATE = "learning_rate"
# names of what is searched where nothing is said; of a recipe's fields the first that it has
RATES = (RATE, "base_lr", "reference_lr", "lr", "rate")

Setting = Mapping[str, float]


@dataclass(frozen=True)
class Tunable:
    """A function that makes an optimizer, with the settings that `compare(tune=…)` may search.

    Attributes:
        make: a function of the `ParamTree` and of these settings, by name.
        settings: a number, or (low, high) where it is searched.

    Example:
        Tunable(lambda tree, rate, beta: my_optimizer(rate, beta), {"rate": (1e-3, 1.0), "beta": 0.9})
    """

    make: Callable[..., Any]
    settings: Mapping[str, float | tuple[float, float]]


@dataclass(frozen=True)
class Entry:
    """One that competes.

    Attributes:
        label: what it is called by.
        given: a text as `--optimizer` takes it, "recipe", or an object.
        fixed: settings that are not searched, as texts of a text, else as values.
        space: those that are, if anything is.
        make: makes the optimizer from all settings; None of the benchmark's own, whose settings are fields.
        levers: what it does beside its optimizer.
    """

    label: str
    given: Any
    fixed: Mapping[str, Any] = field(default_factory=dict)
    space: Space = field(default_factory=dict)
    make: Callable[[Mapping[str, Any]], Any] | None = None
    levers: Levers = NONE

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return re.sub(r"[^\w.+=-]", "_", self.label)

    def of(self, benchmark: Benchmark, setting: Setting) -> tuple[Benchmark, Any]:
        """What is trained with a setting, and the optimizer that a run is given for it."""
        levers = benchmark.levers.joined(self.levers.without("transform"))
        benchmark = benchmark.replace(levers=levers)
        if self.make is None:
            return benchmark.replace(**self.fixed, **setting), None
        return benchmark, self.make({**self.fixed, **setting})

    def described(self, setting: Setting) -> str:
        """The optimizer in words, with a setting, and its levers."""
        levers = f"+{self.levers}" if self.levers else ""
        if self.make is not None:
            made = self.make({**self.fixed, **setting})
            if isinstance(made, str):
                return made + levers
        more = ",".join(f"{name}={value}" for name, value in {**self.fixed, **setting}.items())
        told = without(self.label) + levers
        return f"{told} ({more})" if more else told


def entries_of(
    benchmark: Benchmark, optimizers: Sequence[Any] | Mapping[str, Any], *, tuned: bool
) -> list[Entry]:
    """The entries that a user means, each with a label of its own.

    Args:
        benchmark: what they are compared on.
        optimizers: texts, functions, objects, `Tunable`; or these, or pairs of one and its levers, by label. "recipe", or
            the name of the benchmark's own optimizer without a learning rate, is the benchmark's own.
        tuned: whether settings are searched: a text without a range then gets one around its learning rate.

    Raises:
        UserError: there are fewer than two, two of one label, one that says nothing of what may be searched, or a
            range where nothing is.
    """
    pairs = (
        list(optimizers.items())
        if isinstance(optimizers, Mapping)
        else [(_label(one), one) for one in optimizers]
    )
    found = [_entry(benchmark, str(label), one, tuned) for label, one in pairs]
    if len(found) < 2:
        raise UserError(
            "a comparison needs two optimizers or more: name another, such as recipe, the benchmark's own"
        )
    folders = [entry.folder.lower() for entry in found]
    for number, entry in enumerate(found):
        if entry.folder.lower() in folders[:number]:
            raise UserError(
                f"{entry.label!r} is there twice: leave one out, or give each a label, as in label={entry.label}"
            )
    for entry in found:
        if tuned and not entry.space:
            raise UserError(
                f"{entry.label} has nothing to search, and each entry gets the same number of trials: give a range, "
                f"as in {_example(entry)}, or leave --tune out"
            )
        if entry.space and not tuned:
            name, interval = next(iter(entry.space.items()))
            raise UserError(
                f"{entry.label} has a range for {name} ({interval.low:g}..{interval.high:g}) and nothing is searched: "
                "say how many settings are tried (--tune N), or give one value"
            )
    return found


def _label(given: Any) -> str:
    if isinstance(given, str):
        label, equals, rest = without(given).partition("=")
        if not equals or ":" in label:
            return given
        if not re.fullmatch(r"[\w.-]+", label):
            raise UserError(
                f"{label!r} is no label: write letters, digits, dots, dashes and underscores before the ="
            )
        return label if rest else given
    if isinstance(given, Tunable):
        given = given.make
    name = getattr(given, "__name__", "")
    if is_transformation(given) or not name or "<" in name:
        raise UserError(
            f"{given!r} has no name: give the optimizers by label, as in optimizers={{'mine': …, 'sgd': 'sgd:0.5'}}"
        )
    return name


def _entry(benchmark: Benchmark, label: str, given: Any, tuned: bool) -> Entry:
    levers = NONE
    try:
        if isinstance(given, tuple) and len(given) == 2 and not is_transformation(given):
            if isinstance(given[0], Levers):
                raise UserError("of a pair the optimizer is first, and its levers second")
            given, levers = given[0], Levers.of(given[1])
        if isinstance(given, str):
            given, more = split(given)
            levers = levers.joined(more)
    except UserError as error:
        raise UserError(f"{label}: {error}") from error
    entry = _plain_entry(benchmark, label, given, tuned)
    return dataclasses.replace(entry, levers=levers)


def _plain_entry(benchmark: Benchmark, label: str, given: Any, tuned: bool) -> Entry:
    """An entry that does nothing beside its optimizer."""
    if isinstance(given, Tunable):
        return _of_tunable(label, given)
    if not isinstance(given, str):
        if given is None:
            raise UserError(
                f"{label} is None: give an optimizer, or 'recipe' for the benchmark's own"
            )
        return Entry(label, given, make=lambda _, given=given: given)
    text = given.partition("=")[2] if given.startswith(f"{label}=") else given
    if not label or not text:
        raise UserError(f"{given!r} names no optimizer: write one such as adamw:1e-3, or recipe")
    parts = OptimizerText.of(text)
    own = str(benchmark.optimizer_log().get("opt_name", ""))
    if parts.name == RECIPE or (parts.name.lower() == own.lower() and not parts.value):
        return _of_recipe(benchmark, label, parts, tuned)
    return _of_text(label, text, parts, tuned)


def _of_tunable(label: str, given: Tunable) -> Entry:
    fixed, space = {}, {}
    for name, value in given.settings.items():
        if isinstance(value, tuple | list):
            space[name] = Interval.of(name, "..".join(map(str, value)))
        else:
            fixed[name] = value
    make = given.make
    return Entry(label, make, fixed, space, lambda values: functools.partial(make, **values))


def _of_text(label: str, text: str, parts: OptimizerText, tuned: bool) -> Entry:
    given = {} if parts.in_file else {RATE: parts.value}
    fixed, space = _divided({**given, **parts.settings})
    if tuned and not space:
        space = _around(parts)
        fixed = {name: value for name, value in fixed.items() if name not in space}

    def make(values: Mapping[str, Any]) -> str:
        values = dict(values)
        value = parts.value if parts.in_file else str(values.pop(RATE))
        settings = {name: str(values[name]) for name in values}
        return str(OptimizerText(parts.name, value, settings))

    return Entry(label, text, fixed, space, make)


def _around(parts: OptimizerText) -> Space:
    """A decade to either side of the learning rate that a text gives, or that a function has by default."""
    if not parts.in_file:
        given = {RATE: parts.value}
    else:
        made = python_file.load(f"{parts.name}:{parts.value}", "optimizer", "make")
        if is_transformation(made) or not callable(made):
            return {}
        defaults = inspect.signature(made).parameters.values()
        given = {each.name: each.default for each in defaults} | dict(parts.settings)
    for name in RATES:
        try:
            rate = float(given[name])
        except (KeyError, TypeError, ValueError):
            continue
        if 0 < rate < float("inf"):
            return {name: Interval.around(rate)}
    return {}


def _of_recipe(benchmark: Benchmark, label: str, parts: OptimizerText, tuned: bool) -> Entry:
    """The benchmark's own optimizer, some of whose fields may be others, or searched."""
    settings = dict(parts.settings)
    if parts.value:  # "recipe:base_lr=1..5": the first setting stands behind the colon
        name, equals, value = parts.value.partition("=")
        if not (name.isidentifier() and equals and value):
            raise UserError(
                f"{parts.value!r} is no setting of the recipe: write {RECIPE}:FIELD=VALUE"
            )
        settings = {name: value, **settings}
    fixed, space = _divided(settings)
    if tuned and not space:
        names = {each.name for each in dataclasses.fields(benchmark)}
        rate = next((name for name in RATES if name in names and name not in fixed), None)
        value = getattr(benchmark, rate) if rate else None
        space = {rate: Interval.around(value)} if rate and value else {}
    known = OptimizerText(RECIPE, "", fixed).numbers()
    for name in (*known, *space):
        if not hasattr(benchmark, name):
            raise UserError(
                f"{label}: {benchmark.name} has no field {name}, so it is no setting of its recipe"
            )
    space = {
        name: dataclasses.replace(interval, whole=isinstance(getattr(benchmark, name), int))
        for name, interval in space.items()
    }
    _check_fields(benchmark, label, known, space)
    return Entry(label, RECIPE, known, space)


def _check_fields(benchmark: Benchmark, label: str, fixed: Mapping[str, Any], space: Space) -> None:
    """Nothing, if a recipe's settings are of its optimizer alone: all else must be alike for everyone."""
    for name, values in [
        *((name, [value]) for name, value in fixed.items()),
        *((name, [interval.at(0), interval.at(1)]) for name, interval in space.items()),
    ]:
        others = [v for v in values if v != getattr(benchmark, name)]
        if not all(_alike(benchmark, benchmark.replace(**{name: value})) for value in others):
            raise UserError(
                f"{label}: {name} is no setting of the optimizer of {benchmark.name}, and what is compared differs in "
                "nothing else"
            )


def _alike(one: Benchmark, other: Benchmark) -> bool:
    """Whether two configurations differ in their optimizers alone."""
    counted = [[each.samples(step) for step in range(4)] for each in (one, other)]
    if one.log() != other.log() or one.buckets() != other.buckets() or counted[0] != counted[1]:
        return False
    # a benchmark of the user's own may say nothing of its optimizer
    return one.optimizer_log() != other.optimizer_log() or _program(one) == _program(other)


def _program(benchmark: Benchmark) -> list[str]:
    """A step in which the weights stay as they are, and a prediction."""
    given = preflight.resolve_dtype(benchmark), meshes.make_mesh("data=1")
    assembly = states.assemble(*given, optax.set_to_zero())
    judges = judges_of(benchmark, assembly.mesh)
    train, predict = step.jit_train_step(assembly), step.jit_predict_step(assembly, judges)
    with jax.set_mesh(assembly.mesh):
        return [
            *(str(train.trace(*given).jaxpr) for given in step.train_arguments(assembly)),
            *(
                str(predict.trace(*given).jaxpr)
                for given in step.predict_arguments(assembly, judges)
            ),
        ]


def _divided(settings: Mapping[str, str]) -> tuple[dict[str, str], dict[str, Interval]]:
    """Texts that are fixed, and ranges."""
    space = {name: Interval.of(name, text) for name, text in settings.items() if ".." in text}
    return {name: text for name, text in settings.items() if name not in space}, space


def _example(entry: Entry) -> str:
    if isinstance(entry.given, str):
        parts = OptimizerText.of(entry.given)
        return (
            f"{parts.name}:{parts.value},learning_rate=1e-4..1e-1"
            if parts.in_file
            else "adamw:1e-4..1e-1"
        )
    return "Tunable(make, {'learning_rate': (1e-4, 1e-1)})"

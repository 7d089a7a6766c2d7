"""`--optimizer`: a short name of an optimizer with its learning rate, or what a Python file defines."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optax

from mlperf_jax.core import python_file
from mlperf_jax.core.levers import split
from mlperf_jax.errors import UserError, did_you_mean
from mlperf_jax.optimizers.per_layer import per_layer
from mlperf_jax.optimizers.tree import ParamTree

# Short names give the learning rate, and what else optax calls by a name: "adamw:1e-3,b1=0.95".
OF_OPTAX = (
    "adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars lbfgs lion "
    "nadam nadamw noisy_sgd novograd optimistic_adam_v2 optimistic_gradient_descent polyak_sgd radam rmsprop "
    "rprop sgd sign_sgd signum sm3 yogi"
).split()
OF_CONTRIB = (
    "acprop ademamix adopt cocob dadapt_adamw dog dowg galore madgrad momo momo_adam muon prodigy "
    "schedule_free_adamw schedule_free_sgd simplified_ademamix sophia"
).split()
SHORT = tuple(sorted((*OF_OPTAX, *OF_CONTRIB)))
# these would take a stack of layers for one tensor
TENSORWISE = ("adafactor", "fromage", "galore", "lamb", "lars", "novograd", "sm3")


@dataclass(frozen=True)
class OptimizerText:
    """A text that names an optimizer, in its parts.

    Attributes:
        name: of an optimizer of optax, or a file or module.
        value: behind the colon: the learning rate, or what stands in the file; "" where there is none.
        settings: what follows it, as texts by name.

    >>> OptimizerText.of("adamw:1e-3,b1=0.95")
    OptimizerText(name='adamw', value='1e-3', settings={'b1': '0.95'})
    >>> str(OptimizerText.of("my_file.py:make,beta=0.9"))
    'my_file.py:make,beta=0.9'
    """

    name: str
    value: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str) -> OptimizerText:
        """The parts of a text.

        Raises:
            UserError: a setting is no `name=value`, or is there twice.
        """
        name, _, rest = text.rpartition(":") if ":" in text else (text, "", "")
        value, *more = rest.split(",")
        settings: dict[str, str] = {}
        for each in more:
            key, equals, given = each.partition("=")
            if not (key.isidentifier() and equals and given):
                raise UserError(
                    f"{each!r} is no setting of the optimizer {name!r}: write {name}:{value},NAME=VALUE"
                )
            if key in settings:
                raise UserError(f"{key} is given twice in {text!r}: leave one out")
            settings[key] = given
        return cls(name, value, settings)

    def __str__(self) -> str:
        more = "".join(f",{key}={given}" for key, given in self.settings.items())
        return f"{self.name}:{self.value}{more}" if self.value or more else self.name

    @property
    def in_file(self) -> bool:
        """Whether it names what a file defines."""
        return self.name.endswith(".py")

    def numbers(self) -> dict[str, bool | int | float]:
        """The settings as what they mean.

        Raises:
            UserError: one is neither a finite number nor true or false.
        """
        return {key: _number(key, given) for key, given in self.settings.items()}


def _number(key: str, text: str) -> bool | int | float:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if math.isfinite(number):
            return number
    raise UserError(f"{key}={text} of the optimizer is neither a number nor true or false")


def load_optimizer(text: str) -> Any:
    """The optimizer that a text names.

    "my_file.py:make" is the object `make` of that file: an optax transformation, or a function of the
    `ParamTree` that returns one. "adamw:1e-3" is optax's optimizer of that name with that learning rate,
    which sees each layer of a stack by itself. Settings may follow, which the function takes by name:
    "adamw:1e-3,b1=0.95", "my_file.py:make,beta=0.9".

    Raises:
        UserError: naming what is missing: the file, the name in it, the learning rate; or a setting that is none.

    >>> load_optimizer("adamw:1e-3,b1=0.95").__name__
    'adamw:1e-3,b1=0.95'
    """
    plain, levers = split(text)
    if levers:
        raise UserError(
            f"{text!r} has levers, which a run is given apart: write --optimizer {plain} --levers {levers}"
        )
    given = OptimizerText.of(text)
    name, settings = given.name, given.numbers()
    if given.in_file:
        return _with_settings(python_file.load(f"{name}:{given.value}", "optimizer", "make"), given)
    if name not in SHORT:
        raise UserError(
            f"no optimizer {name!r}{did_you_mean(name, SHORT)}; or give my_file.py:make"
        )
    rate = rate_of(text)
    if rate is None:
        raise UserError(f"optimizer {name!r} needs a learning rate: write {name}:1e-3")
    numbers = np.finfo(np.float32)
    if not float(numbers.smallest_subnormal) <= rate <= float(numbers.max):  # NaN is neither
        raise UserError(
            f"the learning rate {given.value} of {name!r} is none: give a positive number, such as {name}:1e-3"
        )
    _check_taken(_of_optax(name), given)

    def make(tree: ParamTree) -> Any:
        tx = _maker(name, tree)(rate, **settings)
        return per_layer(tx) if name in TENSORWISE else tx

    make.__name__ = make.__qualname__ = text
    return make


def _with_settings(made: Any, given: OptimizerText) -> Any:
    if not given.settings:
        return made
    if is_transformation(made) or not callable(made):
        raise UserError(
            f"{given.name}:{given.value} is no function, so it takes no {next(iter(given.settings))}: write one of "
            "the ParamTree and its settings"
        )
    _check_taken(made, given)
    return functools.partial(made, **given.numbers())


def _check_taken(function: Callable[..., Any], given: OptimizerText) -> None:
    """Nothing, if a function takes the settings by name."""
    try:
        every = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return  # written in C: it says so itself
    if any(each.kind is each.VAR_KEYWORD for each in every):
        return
    names = [
        each.name for each in every if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ][1:]
    for key in given.settings:
        if key not in names:
            raise UserError(
                f"{given.name}:{given.value} takes no {key!r}{did_you_mean(key, names)}"
            )


def is_transformation(thing: object) -> bool:
    """Whether it has the two functions of an optax transformation."""
    return hasattr(thing, "init") and callable(getattr(thing, "update", None))


def rate_of(text: str) -> float | None:
    """The learning rate behind a short name; None where there is no number."""
    try:
        return float(text.rpartition(":")[2].partition(",")[0])
    except ValueError:
        return None


def _of_optax(name: str) -> Callable[..., Any]:
    return getattr(optax.contrib if name in OF_CONTRIB else optax, name)


def _maker(name: str, tree: ParamTree) -> Callable[[float], Any]:
    """The function of optax that makes this optimizer from its learning rate."""
    maker = _of_optax(name)
    if name == "sgd":
        return functools.partial(maker, momentum=0.9)
    if name == "muon":
        return functools.partial(maker, muon_weight_dimension_numbers=tree.matrices)
    if name == "noisy_sgd":
        return functools.partial(maker, key=0)
    return maker

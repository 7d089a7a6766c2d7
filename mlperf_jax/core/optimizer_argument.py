"""`--optimizer`: a short name of an optimizer with its learning rate, or what a Python file defines."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import optax

from mlperf_jax.core import python_file
from mlperf_jax.errors import UserError, did_you_mean
from mlperf_jax.optimizers.per_layer import per_layer
from mlperf_jax.optimizers.tree import ParamTree

# Short names give one number, the learning rate: "adamw:1e-3". More needs a file.
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


def load_optimizer(text: str) -> Any:
    """The optimizer that a text names.

    "my_file.py:make" is the object `make` of that file: an optax transformation, or a function of the
    `ParamTree` that returns one. "adamw:1e-3" is optax's optimizer of that name with that learning rate,
    which sees each layer of a stack by itself.

    Raises:
        UserError: naming what is missing: the file, the name in it, or the learning rate.

    >>> load_optimizer("adamw:1e-3").__name__
    'adamw:1e-3'
    """
    name, _, rest = text.rpartition(":") if ":" in text else (text, "", "")
    if name.endswith(".py"):
        return python_file.load(text, "optimizer", "make")
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
            f"the learning rate {rest} of {name!r} is none: give a positive number, such as {name}:1e-3"
        )

    def make(tree: ParamTree) -> Any:
        tx = _maker(name, tree)(rate)
        return per_layer(tx) if name in TENSORWISE else tx

    make.__name__ = make.__qualname__ = text
    return make


def is_transformation(thing: object) -> bool:
    """Whether it has the two functions of an optax transformation."""
    return hasattr(thing, "init") and callable(getattr(thing, "update", None))


def rate_of(text: str) -> float | None:
    """The learning rate behind a short name; None where there is no number."""
    try:
        return float(text.rpartition(":")[2])
    except ValueError:
        return None


def _maker(name: str, tree: ParamTree) -> Callable[[float], Any]:
    """The function of optax that makes this optimizer from its learning rate."""
    maker = getattr(optax.contrib if name in OF_CONTRIB else optax, name)
    if name == "sgd":
        return functools.partial(maker, momentum=0.9)
    if name == "muon":
        return functools.partial(maker, muon_weight_dimension_numbers=tree.matrices)
    if name == "noisy_sgd":
        return functools.partial(maker, key=0)
    return maker

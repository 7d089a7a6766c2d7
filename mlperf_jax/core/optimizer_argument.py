"""`--optimizer`: a short name of an optax optimizer, or a function in a Python file."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optax

from mlperf_jax.core import python_file
from mlperf_jax.errors import UserError, did_you_mean
from mlperf_jax.optimizers.per_layer import per_layer

# Short names give one number, the learning rate: "adamw:1e-3". More needs a file.
SHORT = (
    "adam",
    "adamw",
    "adagrad",
    "adafactor",
    "lamb",
    "lion",
    "muon",
    "nadamw",
    "novograd",
    "rmsprop",
    "sgd",
    "sm3",
    "yogi",
)
TENSORWISE = ("adafactor", "lamb", "novograd", "sm3")  # would take a stack of layers for one tensor
DEPTH = 12  # how far the description of an optimizer object follows functions inside functions


def load_optimizer(text: str) -> Any:
    """The optimizer that a text names.

    "my_file.py:make" is the object `make` of that file: an optax transformation, or a function of the
    `ParamTree` that returns one. "adamw:1e-3" is optax's optimizer of that name with that learning rate.

    Raises:
        UserError: naming what is missing: the file, the name in it, or the learning rate.

    >>> load_optimizer("adamw:1e-3").update is not None
    True
    """
    name, colon, rest = text.rpartition(":")
    if not colon:
        name, rest = text, ""
    if name.endswith(".py"):
        return python_file.load(text, "optimizer", "make")
    if name not in SHORT:
        raise UserError(
            f"no optimizer {name!r}{did_you_mean(name, SHORT)}; or give my_file.py:make"
        )
    try:
        rate = float(rest)
    except ValueError:
        raise UserError(f"optimizer {name!r} needs a learning rate: write {name}:1e-3") from None
    if name == "muon":
        return lambda tree: optax.contrib.muon(rate, muon_weight_dimension_numbers=tree.matrices)
    maker = getattr(optax, name)
    tx = maker(rate, momentum=0.9) if name == "sgd" else maker(rate)
    return per_layer(tx) if name in TENSORWISE else tx


# -- as text, for the run's configuration ----------------------------------------------------------


def describe_optimizer(optimizer: Any) -> str | None:
    """A replaced optimizer as a text that tells it from others, alike in every process.

    A short name is the text itself, a file its source. An object is described by its functions: their
    source where it is the user's own, and the values they have closed over, learning rates among them.
    """
    if optimizer is None:
        return None
    if isinstance(optimizer, str):
        return python_file.described(optimizer)
    if callable(optimizer):
        try:
            source = inspect.getsource(optimizer).strip()
        except (TypeError, OSError):
            source = ""
        return f"{source}\n{described(optimizer, DEPTH)}".strip()
    return described(getattr(optimizer, "update", optimizer), DEPTH)


def described(value: Any, depth: int) -> str:
    """A value as a text without its address, which would differ in every process."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if depth == 0:
        return "…"
    if isinstance(value, Mapping):
        items = sorted((str(key), described(item, depth - 1)) for key, item in value.items())
        return "{" + ", ".join(f"{key}: {text}" for key, text in items) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(described(item, depth - 1) for item in value) + ")"
    if isinstance(value, np.ndarray | np.generic):
        return f"{value.dtype}{list(value.shape)} {hashlib.sha256(value.tobytes()).hexdigest()[:8]}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    if inspect.ismethod(value):
        return f"{described(value.__func__, depth)} of {described(value.__self__, depth - 1)}"
    if inspect.isfunction(value):
        return _described_function(value, depth)
    if hasattr(value, "func") and hasattr(value, "args"):  # functools.partial
        parts = (value.func, value.args, getattr(value, "keywords", {}))
        return "partial" + described(parts, depth - 1)
    name = value if isinstance(value, type) else type(value)
    inside = vars(value) if hasattr(value, "__dict__") and not isinstance(value, type) else {}
    return f"{name.__module__}.{name.__qualname__}{described(inside, depth - 1) if inside else ''}"


def _described_function(function: Callable[..., Any], depth: int) -> str:
    names = function.__code__.co_freevars
    cells = list(function.__closure__ or ())
    closed = {name: _content(cell) for name, cell in zip(names, cells, strict=True)}
    defaults = function.__defaults__ or ()
    text = f"{function.__module__}.{function.__qualname__}"
    return text + (described({**closed, "": defaults}, depth - 1) if closed or defaults else "")


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None

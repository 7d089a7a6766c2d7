"""`--transform`: a user's transforms of Grain, over one training example each, behind a benchmark's own."""

from __future__ import annotations

import hashlib
import inspect
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any

import grain
import numpy as np

from mlperf_jax.core import python_file
from mlperf_jax.core.terms import Bucket, Example, differences
from mlperf_jax.errors import UserError

Transform = grain.transforms.Map | grain.transforms.RandomMap
DEPTH = 12  # how far the description of an object follows functions inside functions


def load_transforms(given: Any) -> tuple[Transform, ...]:
    """The transforms that an option gives.

    Args:
        given: None, a `grain.transforms.Map` or `RandomMap`, a list of them, a function that makes either, or
            the name "my_file.py:make" of one of these in a file.

    Raises:
        UserError: it is something else, or not there.
    """
    if isinstance(given, str):
        given = python_file.load(given, "transform", "make")
    if isinstance(given, type) or inspect.isroutine(given):
        try:
            given = given()
        except Exception as error:
            raise UserError(
                f"{python_file.in_one_line(error)}: what makes the transform takes no arguments"
            ) from error
    listed = (
        tuple(given) if isinstance(given, list | tuple) else (given,) if given is not None else ()
    )
    for transform in listed:
        if not isinstance(transform, Transform):
            raise UserError(
                f"transform must be a grain.transforms.Map or RandomMap, or a list of them, not {transform!r}"
            )
        if isinstance(transform, grain.transforms.RandomMap) and getattr(
            transform, "batched", False
        ):
            raise UserError(
                f"{_name(transform)} is a RandomMap and batched: rows are seeded one by one, so leave "
                "batched out"
            )
    return listed


def check_transforms(transforms: Sequence[Transform], buckets: Iterable[Bucket]) -> None:
    """Nothing, if the transforms leave names, shapes and types of an example as they are.

    They are tried on zeros and ones: no record is read before the clock starts.
    """
    for bucket in buckets if transforms else ():
        leaves = {name: leaf for name, leaf in bucket.example.items() if name != "mask"}
        for name, found, wanted in differences(_tried(transforms, leaves), leaves):
            raise UserError(
                f"{' and '.join(map(_name, transforms))} makes {found} of {name!r}, and the benchmark's "
                f"example() says {wanted}: a transform may change values alone"
            )


def _tried(transforms: Sequence[Transform], leaves: Example) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    given: Any = {
        name: generator.integers(0, 2, leaf.shape).astype(leaf.dtype)[()]
        for name, leaf in leaves.items()
    }
    single = [t for t in transforms if not getattr(t, "batched", False)]
    batched = [t for t in transforms if getattr(t, "batched", False)]
    for transform in (*single, *batched):  # as the pipeline has them
        try:
            given = _applied(transform, given, generator)
        except Exception as error:
            folder = pathlib.Path(inspect.getfile(type(transform))).parent
            raise UserError(
                f"{_name(transform)} fails on an example of zeros and ones "
                f"({python_file.in_one_line(error, folder)})"
            ) from error
        if not isinstance(given, Mapping):
            raise UserError(
                f"{_name(transform)} gives {type(given).__name__}; it must give a dict of arrays as it was given"
            )
    return {name: np.asarray(value) for name, value in given.items()}


def _applied(transform: Any, given: Any, generator: np.random.Generator) -> Any:
    if isinstance(transform, grain.transforms.RandomMap):
        return transform.random_map(given, generator)
    if not getattr(transform, "batched", False):
        return transform.map(given)
    rows = transform.map({name: np.stack([value] * 2) for name, value in given.items()})
    return {name: np.asarray(value)[0] for name, value in rows.items()}


def _name(transform: Transform) -> str:
    return f"the transform {type(transform).__qualname__}"


# -- as text, for the run's configuration ----------------------------------------------------------


def describe_transforms(given: Any) -> str | None:
    """Added transforms as a text that tells them from others, alike in every process.

    A file is its text. An object is its class, the code that class stands in, its attributes, and what its
    methods take from around them.
    """
    if isinstance(given, str):
        return python_file.described(given)
    return "\n".join(map(_described, load_transforms(given))) or None


def _described(transform: Transform) -> str:
    cls = type(transform)
    slots = [name for base in cls.__mro__ for name in getattr(base, "__slots__", ())]
    own = {**getattr(transform, "__dict__", {}), **{n: getattr(transform, n, None) for n in slots}}
    methods = [m for base in cls.__mro__ for m in vars(base).values() if inspect.isfunction(m)]
    around: dict[str, Any] = {}
    for method in methods:
        generated = method.__code__.co_filename == "<string>"  # by a dataclass
        if not generated and not method.__module__.startswith("grain."):
            found = inspect.getclosurevars(method)
            around |= {**found.globals, **found.nonlocals}
    around = {n: v for n, v in around.items() if not inspect.ismodule(v) and not inspect.isclass(v)}
    where = f"{cls.__module__}.{cls.__qualname__} {python_file.code(cls)}"
    return f"{where} {described(own, DEPTH)} {described(around, DEPTH)}"


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


def _described_function(function: FunctionType, depth: int) -> str:
    closed, defaults = python_file.closed_over(function), function.__defaults__ or ()
    text = f"{function.__module__}.{function.__qualname__}"
    return text + (described({**closed, "": defaults}, depth - 1) if closed or defaults else "")

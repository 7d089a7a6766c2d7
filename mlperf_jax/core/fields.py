"""What a field may hold: said in its annotation, checked in one place, shown by `--help`.

    base_lr: Rate = 10.5
    image_size: Annotated[Count, "pixels"] = 224
    padding: Literal["same", "symmetric"] = "same"
    stages: Several[Count] = (3, 4, 6, 3)
    clip_norm: Positive | None = None
    lr_epochs: Annotated[Count, "warm-up included"] = 37

An annotation is the whole of the rule: the type, a `Range`, the unit as text, the allowed values. The unit
is one word; a text of several is no rule, but what `--help` says of the field beside it. `bool`
is no number, NaN and infinity are none either, text is not empty, and None is only what says so. What
fits becomes plain Python data, so that a configuration is JSON: a whole number is a float where a float
is wanted, a list a tuple, a NumPy scalar a number, a path its text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
import os
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from mlperf_jax.errors import UserError
from mlperf_jax.paths import path_fault

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Which numbers are allowed: from `least` to `most`, those two included, above `above`, below `below`.

    >>> str(Range(0, 1)), str(Range(0, below=1)), str(Range(above=0))
    ('from 0 to 1', 'at least 0 and below 1', 'above 0')
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, number: float) -> bool:
        return self.least <= number <= self.most and self.above < number < self.below

    def __str__(self) -> str:
        ends = [self.least, self.above, self.most, self.below]
        bounds = dict(zip(("at least", "above", "at most", "below"), ends))
        finite = {words: f"{end:,}" for words, end in bounds.items() if math.isfinite(end)}
        if finite.keys() == {"at least", "at most"}:
            return "from {} to {}".format(*finite.values())
        return " and ".join(f"{words} {end}" for words, end in finite.items())


class NotEmpty:
    """Marks a tuple that has at least one element."""


class Place:
    """Marks text that is a path: local, one that this system can look up, or remote (`gs://`).

    >>> "runs/mine" in Place(), "x" * 300 in Place()
    (True, False)
    """

    def __contains__(self, text: str) -> bool:
        return "://" in text or path_fault(text) is None

    def __str__(self) -> str:
        return "one that this system can look up"


Whole = Annotated[int, Range(0)]
Count = Annotated[int, Range(1)]
Samples = Annotated[Count, "samples"]
Rate = Annotated[float, Range(0)]
Positive = Annotated[float, Range(above=0)]
Share = Annotated[float, Range(0, 1)]
Fraction = Annotated[float, Range(0, below=1)]
Path = Annotated[str, Place()]
Several = Annotated[tuple[T, ...], NotEmpty]


# -- checking --------------------------------------------------------------------------------------


def check_fields(instance: Any) -> None:
    """Checks a dataclass against its annotations and makes its values plain data, frozen or not.

    Raises:
        UserError: a value does not fit; names the field, what it may hold, and the value.
    """
    hints = hints_of(type(instance))
    for field in dataclasses.fields(instance):
        value = check(field.name, getattr(instance, field.name), hints[field.name])
        object.__setattr__(instance, field.name, value)


def check(name: str, value: Any, hint: Any) -> Any:
    """The value as plain data, if the annotation allows it.

    >>> check("base_lr", 1, Rate)
    1.0
    """
    try:
        return _fit(value, hint)
    except (ValueError, OverflowError):
        shown = " ".join(repr(value).split())
        shown = shown if len(shown) <= 80 else f"{shown[:79]}…"
        raise UserError(f"{name} must be {allowed(hint)}, not {shown}") from None


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    """The rule of every field, by name: its annotation without what is for `--help` alone.

    A subclass that declares a field again for the sake of its default or its help may repeat the bare
    type alone: the base's range holds on.
    """
    found: dict[str, Any] = {}
    for name, hint, _ in _annotations(cls):
        if name not in found or not _is_bare(hint):
            found[name] = hint
    return found


def helps_of(cls: type) -> dict[str, str]:
    """What `--help` says of a field, by name; a base's text holds on until another is given."""
    return {name: text for name, _, text in _annotations(cls) if text}


def _annotations(cls: type) -> Iterator[tuple[str, Any, str]]:
    """Name, rule and help of every field, a base's before its subclass's."""
    for base in reversed(cls.__mro__):
        try:
            own = typing.get_type_hints(base, include_extras=True)
        except NameError as error:
            raise UserError(
                f"{base.__name__} annotates a field with {error.name}, which its file does not know: "
                "import it at the top"
            ) from None
        for name in inspect.get_annotations(base):
            hint, rules = own[name], getattr(own[name], "__metadata__", ())
            texts = [rule for rule in rules if isinstance(rule, str) and " " in rule]
            if texts:
                rules = [rule for rule in rules if rule not in texts]
                hint = Annotated[hint.__origin__, *rules] if rules else hint.__origin__
            yield name, hint, "; ".join(texts)


def _is_bare(hint: Any) -> bool:
    """Whether a hint is a type and nothing else: no range, no unit, no allowed values."""
    if typing.get_origin(hint) in (Annotated, Literal):
        return False
    return all(map(_is_bare, typing.get_args(hint)))


def _fit(value: Any, hint: Any) -> Any:
    """The value as plain data; ValueError where the hint does not allow it."""
    if getattr(value, "ndim", None) == 0:  # a scalar of NumPy or JAX
        value = value.item()
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = _fit(value, args[0])
        fits = all(value in rule for rule in args[1:] if isinstance(rule, Range | Place))
        if fits and (value or NotEmpty not in args):
            return value
    elif is_union(hint):
        for member in args:
            with contextlib.suppress(ValueError):
                return _fit(value, member)
    elif origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in args):
            return value
    elif origin is tuple and isinstance(value, list | tuple):
        kinds = args[:1] * len(value) if args[1:] == (...,) else args
        if len(value) == len(kinds):
            return tuple(map(_fit, value, kinds))
    elif hint in (int, float):
        number = isinstance(value, int | hint) and not isinstance(value, bool)
        if number and math.isfinite(value):
            return hint(value)
    elif hint is str:
        text = os.fspath(value) if isinstance(value, os.PathLike) else value
        if isinstance(text, str) and text.strip():
            return str(text)
    elif hint is Any or isinstance(value, origin or hint):
        return value
    elif hasattr(hint, "of") and isinstance(value, str | dict | None):  # it reads itself
        return hint.of(value)
    raise ValueError(value)


def is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


# -- in words --------------------------------------------------------------------------------------

_NOUNS = {  # one, several
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("some text", "texts"),
    bool: ("True or False", "bools"),
}


def allowed(hint: Any, several: bool = False) -> str:
    """What an annotation allows, in words.

    >>> allowed(Annotated[Count, "pixels"] | None)
    'a whole number of pixels, at least 1, or None'
    >>> allowed(Several[Count])
    'one or more whole numbers, each at least 1'
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    members = args if is_union(hint) else (hint,)
    if all(typing.get_origin(m) is Literal or m is types.NoneType for m in members):
        choices = [str(choice) for m in members for choice in typing.get_args(m) or (None,)]
        return " or ".join([", ".join(choices[:-1])] * (len(choices) > 1) + choices[-1:])
    if is_union(hint):
        first, *more = (allowed(member, several) for member in args)
        return (", or " if "," in first else " or ").join([first, *more])
    if origin is tuple:
        count = "any number of" if args[1:] == (...,) else len(args)
        return f"{count} {allowed(args[0], several=True)}"
    if origin is Annotated:
        noun = allowed(args[0], several)
        if any(isinstance(rule, Place) for rule in args):
            noun = "paths" if several else "a path"
        said = noun + "".join(f" of {r}" for r in args if isinstance(r, str))
        said = said.replace("any number of", "one or more") if NotEmpty in args else said
        each = ", each" if several else ","
        return said + "".join(f"{each} {rule}" for rule in args if isinstance(rule, Range | Place))
    if words := getattr(hint, "in_words", None):
        return words
    name = getattr(hint, "__name__", str(hint))
    return _NOUNS.get(hint, (f"a {name}", f"{name}s"))[several]


def limits(hint: Any) -> str:
    """The unit and the range alone, as `--help` shows them: "pixels, at least 1"; "" without any."""
    return ", ".join(dict.fromkeys(_limits(hint)))


def _limits(hint: Any) -> Iterator[str]:
    args = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        yield from _limits(args[0])
        for kind in (str, Range):
            yield from (str(rule) for rule in args if isinstance(rule, kind))
    elif typing.get_origin(hint) is not Literal:
        for member in args:
            yield from _limits(member)

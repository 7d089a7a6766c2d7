"""Command-line options, typed in words and generated from dataclass fields, with errors of one sentence.

Every word is read here, so that a wrong one is a `UserError` that names its option; argparse draws
`--help`. Only what was typed is returned: what was not is for the recipe to say.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

from mlperf_jax.core.fields import allowed, check, helps_of, hints_of, is_union, limits
from mlperf_jax.errors import UserError, did_you_mean

PROG = "mlperf-jax"
Reader = Callable[[str], Any]


@dataclasses.dataclass(frozen=True)
class Option:
    """One option, or one positional word.

    Attributes:
        name: the field's; on the command line its underscores are dashes.
        hint: the field's annotation, as `core.fields` reads it: type, range, unit, allowed values. Types
            other than those of `readable` cannot be given on the command line.
        default: only shown, in `--help`; None shows nothing, and makes a bool a switch without `--no-`.
        help: a few words.
        metavar: what stands for the value in `--help`; from the type by default, of a positional word its name.
        required: whether the command needs it; positional words say so by having no default.
    """

    name: str
    hint: Any = str
    default: Any = None
    help: str = ""
    metavar: str = ""
    required: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


# -- from dataclasses to options ---------------------------------------------------------------


def options_of(cls: type, defaults: Any = None, leave_out: Iterable[str] = ()) -> list[Option]:
    """The options that the fields of a dataclass are.

    Args:
        cls: its fields give names, and their annotations types and help.
        defaults: an instance whose values are shown; the fields' own defaults otherwise.
        leave_out: names of fields that are not for the command line.
    """
    hints, texts = hints_of(cls), helps_of(cls)
    found = []
    for field in dataclasses.fields(cls):
        if field.name in leave_out or not readable(hints[field.name]):
            continue
        own = None if field.default in (dataclasses.MISSING, False) else field.default
        default = own if defaults is None else getattr(defaults, field.name)
        found.append(Option(field.name, hints[field.name], default, texts.get(field.name, "")))
    return found


# -- reading words -----------------------------------------------------------------------------


def read_target(word: str) -> Any:
    """A quality target from "accuracy>=0.95", "FID<=90" or "pass_at_4>0.69"."""
    from mlperf_jax.core.benchmark import Target

    match = re.fullmatch(r"\s*([\w-]+)\s*(>=|<=|>)\s*(\S+)\s*", word)
    if not match:
        raise ValueError(word)
    bound, value = {">=": "at_least", "<=": "at_most", ">": "above"}[match[2]], float(match[3])
    if not math.isfinite(value):
        raise ValueError(word)
    return Target(match[1], **{bound: value})


# type -> (metavar, reader); Any is the optimizer
_KINDS: dict[Any, tuple[str, Reader]] = {
    int: ("N", int),
    float: ("X", float),
    str: ("TEXT", str),
    Any: ("TEXT", str),
    "Target": ("'NAME>=X'", read_target),
    "Levers": ("NAME=X+...", str),
}


@dataclasses.dataclass(frozen=True)
class _Kind:
    """How the words of a type are read: metavar, one word's reader, one or many, whether "none" is one."""

    metavar: str
    read: Reader
    many: bool
    optional: bool


def _kind(hint: Any) -> _Kind | None:
    """None where the values of a type cannot be written as words. Ranges are `check`'s."""
    many = optional = False
    while args := typing.get_args(hint):
        if typing.get_origin(hint) is typing.Literal:
            reader = functools.partial(_choice, args)
            return _Kind(f"{{{','.join(map(str, args))}}}", reader, many, optional)
        if typing.get_origin(hint) is Annotated:
            args = args[:1]
        elif is_union(hint):
            optional = types.NoneType in args
            args = [member for member in args if member is not types.NoneType]
        elif typing.get_origin(hint) is tuple and not many:
            many, args = True, list(dict.fromkeys(member for member in args if member is not ...))
        if len(args) != 1:
            return None
        hint = args[0]
    ours = isinstance(hint, type) and dataclasses.is_dataclass(hint)
    found = _KINDS.get(hint.__name__ if ours else hint)
    return _Kind(*found, many, optional) if found else None


def _choice(choices: Sequence[Any], word: str) -> Any:
    return next((choice for choice in choices if str(choice) == word), word)


def readable(hint: Any) -> bool:
    """Whether values of this type can be written on a command line."""
    return hint is bool or _kind(hint) is not None


def _read(name: str, hint: Any, words: Sequence[str]) -> Any:
    kind = _kind(hint)
    assert kind is not None
    values = []
    if kind.many and kind.read in (int, float):  # "1,2,3" is as good as "1 2 3"
        words = [each for word in words for each in word.split(",")]
    for word in words:
        if kind.optional and word.lower() == "none":
            return None
        try:
            values.append(kind.read(word))
        except ValueError:
            such = " such as 'accuracy>=0.95'" * (kind.read is read_target)
            raise UserError(f"{name} must be {allowed(hint)}{such}, not {word!r}") from None
    return check(name, values if kind.many else values[0], hint)


# -- the command line --------------------------------------------------------------------------


def parse(
    command: str,
    about: str,
    words: Sequence[str],
    positional: Sequence[Option],
    own: Sequence[Option] = (),
    more: Mapping[str, Sequence[Option]] = types.MappingProxyType({}),
    elsewhere: Callable[[str], str] = lambda _: "",
) -> dict[str, Any]:
    """The options that were typed, by field name; prints and exits on `--help`.

    Args:
        command: the words behind the program's name, such as "run".
        about: shown on top of `--help`; a sentence that begins small and ends without a full stop.
        words: the command line behind the command.
        positional: words in order, to be given unless they have a default; a tuple takes all that follow.
        own: the command's options.
        more: other options by the title under which `--help` shows them.
        elsewhere: says of an unknown option whose it is, if anyone's.

    Raises:
        UserError: an unknown option (with the nearest known one), a missing or unreadable value, a word
            too many or too few.
    """
    groups = {command.split()[0]: own, **more}
    known = {option.flag: option for group in groups.values() for option in group}
    both = [o for o in known.values() if o.hint is bool and o.default is not None]
    off = {o.flag.replace("--", "--no-", 1): o for o in both}  # such a switch has two names
    needed = [f"{o.flag} {_metavar(o)}" for o in known.values() if o.required]
    usage = " ".join([PROG, command, *map(_word, positional), *needed, "[options]"])
    if wants_help(words):
        print(_help(usage, f"{about[0].upper()}{about[1:]}.", positional, groups), end="")
        raise SystemExit(0)
    free, taken = split(words, known.values())
    values: dict[str, Any] = {}
    for flag, given in taken.items():
        option = known.get(flag) or off.get(flag)
        if option is None:
            hint = elsewhere(flag) or did_you_mean(flag, known)
            raise UserError(f"{command} has no option {flag}{hint}")
        switch = option.hint is bool
        if switch == bool(given):
            raise UserError(f"{option.flag} {'takes no' if switch else 'needs a'} value")
        values[option.name] = (
            flag == option.flag if switch else _read(option.flag, option.hint, given)
        )
    for option in positional:
        if not free and option.default is None:
            raise UserError(f"{command} needs {option.help}: write {usage}")
        kind = _kind(option.hint)
        taking = len(free) if kind and kind.many else 1
        values[option.name] = _read(_word(option), option.hint, free[:taking])
        free = free[taking:]
    if free:
        raise UserError(f"{free[0]!r} belongs to no option: write {usage}")
    for option in known.values():
        if option.required and option.name not in values:
            raise UserError(f"{command} needs {option.flag}, {option.help}: write {usage}")
    return values


def wants_help(words: Sequence[str]) -> bool:
    return "--help" in words or "-h" in words


def split(
    words: Sequence[str], options: Iterable[Option]
) -> tuple[list[str], dict[str, list[str]]]:
    """Words that belong to no option, and the words of each option by its flag as typed.

    An unknown option is taken to have one value.
    """
    kinds = {flag: o for o in options for flag in (o.flag, o.flag.replace("--", "--no-", 1))}
    free: list[str] = []
    taken: dict[str, list[str]] = {}
    room, flag = 0.0, ""
    for word in words:
        if re.match(r"-[^\d.]", word):
            flag, equals, value = word.partition("=")
            flag = flag.replace("_", "-")
            if flag in taken:
                raise UserError(f"{flag} is given twice")
            taken[flag] = [value] if equals else []
            option = kinds.get(flag)
            kind = _kind(option.hint) if option else None
            switch = option is not None and kind is None
            room = 0.0 if equals or switch else math.inf if kind and kind.many else 1.0
        elif room:
            taken[flag].append(word)
            room -= 1
        else:
            free.append(word)
    return free, taken


def _help(
    usage: str, about: str, positional: Sequence[Option], groups: Mapping[str, Sequence[Option]]
) -> str:
    parser = argparse.ArgumentParser(usage=usage, description=about)
    for option in positional:
        parser.add_argument(_word(option), help=_text(option))
    for title, group in groups.items():
        shown = parser.add_argument_group(f"{title} options")
        for option in group:
            if option.hint is bool:
                on = [option.flag, option.flag.replace("--", "--no-", 1)]
                flags = on[: 1 if option.default is None else 2]  # one that may be on has two names
                shown.add_argument(*flags, action="store_true", help=_text(option))
            else:
                shown.add_argument(option.flag, metavar=_metavar(option), help=_text(option))
    return parser.format_help()


def _word(option: Option) -> str:
    return option.metavar or option.name.upper()


def _metavar(option: Option) -> str:
    kind = _kind(option.hint)
    assert kind is not None
    return option.metavar or kind.metavar + " ..." * kind.many


def _text(option: Option) -> str:
    """What stands behind an option: its words, its default, and what it may hold."""
    nothing = option.default in (None, ()) or not str(option.default)
    default = "" if nothing else f"default: {_shown(option.default)}"
    notes = "; ".join(note for note in (default, limits(option.hint)) if note)
    return " ".join([option.help, f"({notes})" if notes else ""]).strip().replace("%", "%%")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(_shown(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    if dataclasses.is_dataclass(value):
        return str(value).replace(" ", "")
    return str(value)

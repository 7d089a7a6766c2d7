"""What a log can say of a replaced optimizer: its name, and the settings that its functions hold.

An optax transformation is a pair of functions; what it was made from are their closures. They are followed
through chains and wrappers to the parts, in the order in which they act. Nothing is guessed: what is no plain
number, text or function of one is left out.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import math
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import optax
import optax.contrib

from mlperf_jax.core.optimizer_argument import is_transformation, rate_of
from mlperf_jax.core.python_file import PACKAGE, closed_over
from mlperf_jax.optimizers import clipping
from mlperf_jax.results import log as logs

DEPTH = 12  # of transformations inside transformations
PARTS = 16  # that are looked at
ITEMS = 16  # of a list or a function's closure
NESTED = 4  # how deep a setting may be: a schedule joined of schedules has three levels
_PROBE = 0.0123456789  # a learning rate that no default is, to see where an optimizer keeps it
# Makers of optax that add nothing to what they hold; `masked` neither, of what some weights are spared by custom.
_THROUGH = ("chain", "named_chain", "with_extra_args_support")
_SPARING = ("add_decayed_weights", "scale_by_trust_ratio")
_UNKNOWN = object()

# Makers of optax whose settings have official keys, `opt_<maker>_…`: key -> part and setting.
_ADAM = {
    "beta_1": ("scale_by_adam", "b1"),
    "beta_2": ("scale_by_adam", "b2"),
    "epsilon": ("scale_by_adam", "eps"),
}
_DECAY = ("add_decayed_weights", "weight_decay")
_OFFICIAL = {
    "adam": _ADAM,
    "adamw": {**_ADAM, "weight_decay": _DECAY},
    "lamb": {**_ADAM, "weight_decay_rate": _DECAY},
}


@dataclass(frozen=True)
class NamedOptimizer:
    """A replaced optimizer as the log shows it.

    Attributes:
        name: the text's own ("adamw", "my.py:make"), a function's, or that of its parts.
        settings: part -> name -> value, JSON all through; of a part that holds nothing plain, {}.
        official: official key -> value, of what is known and means the same.
    """

    name: str
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    official: Mapping[str, Any] = field(default_factory=dict)

    def log(self) -> dict[str, Any]:
        """Lines of the log."""
        return {"opt_name": self.name, **self.official}


def name_optimizer(given: Any, tx: Any, *, clipped: bool = False) -> NamedOptimizer | None:
    """What is known of the optimizer that replaced the benchmark's; None where nothing did.

    Args:
        given: as the user gave it.
        tx: the transformation that came of it.
        clipped: whether the core's own clipping stands in front, which is passed over.

    >>> named = name_optimizer(optax.adamw(1e-3), optax.adamw(1e-3))
    >>> named.name, named.official["opt_base_learning_rate"]
    ('adamw', 0.001)
    """
    if given is None:
        return None
    parts = _acting(tx)
    if clipped and parts[0].module == clipping.__name__:
        parts = parts[1:]
    if len(parts) > PARTS:
        parts = [*parts[:PARTS], _Part("more", "", {}, branches=True)]
    begin, maker = _maker(parts)
    names = [part.name for part in parts[:begin]] + ([maker.name] if maker else [])
    official = _official(parts[begin:], maker) if maker else _rate(parts)
    if any(part.inner and not part.module.startswith("optax.") for part in parts):
        official = {}  # what a wrapper of the user's makes of it is not known
    if isinstance(given, str) and (rate := rate_of(given)) is not None:
        official = {"opt_base_learning_rate": rate, **official}
    name = _given_name(given) or "+".join(names)
    return NamedOptimizer(_harmless(name), _by_part(parts), official)


def _given_name(given: Any) -> str | None:
    """The name in what the user gave, None where it has none of its own."""
    if isinstance(given, str):
        name, _, rest = given.rpartition(":")
        return f"{pathlib.PurePath(name).name}:{rest}" if name.endswith(".py") else name or rest
    if is_transformation(given):
        return None
    function = _bare(given)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return None if "<lambda>" in name else name.replace("<locals>.", "")


# -- the parts -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    name: str
    module: str
    settings: dict[str, Any]
    inner: int = 0  # others that it holds
    branches: bool = False  # whether these act on different weights, or side by side

    @property
    def kind(self) -> str:
        """The name; one for all that multiplies by a learning rate, a number or a schedule."""
        return "scale" if self.name == "scale_by_learning_rate" else self.name

    @property
    def flags(self) -> dict[str, bool]:
        return {name: value for name, value in self.settings.items() if isinstance(value, bool)}


def _acting(tx: Any) -> list[_Part]:
    """The parts of a transformation, a last factor below 0 shown as the learning rate that it is made from."""
    parts = _parts(tx)
    scales = [part for part in parts if part.name in ("scale", "scale_by_schedule")]
    if parts and scales == parts[-1:] and not any(part.branches for part in parts):
        step = parts[-1].settings.get("step_size")
        if isinstance(step, float) and step < 0 and step != -1:  # that only turns the sign
            rate = {"learning_rate": -step}
            parts[-1] = _Part("scale_by_learning_rate", parts[-1].module, rate)
    return parts


def _parts(thing: Any, above: tuple[int, ...] = ()) -> list[_Part]:
    """All parts of a transformation, or of its update function; what holds others comes before them."""
    if len(above) == DEPTH or id(thing) in above:
        return []
    update = getattr(thing, "update", thing)
    name, module, held = _maker_name(update), _module(update), _held(update)
    init = getattr(thing, "init", None)
    if init is not None and _maker_name(init) == name:
        held = {**{n: v for n, v in _held(init).items() if _is_value(v)}, **held}
    inner = [one for value in held.values() for one in _transformations(value)]
    rate = held.get("step_size_fn")
    if name == "scale_by_schedule" and _maker_name(rate) == "scale_by_learning_rate":
        name, held = "scale_by_learning_rate", _held(rate)
    if "inner_factory" in held:
        name = f"inject_hyperparams({_maker_name(held['inner_factory'])})"
    parts = [part for one in inner for part in _parts(one, (*above, id(thing)))]
    spared = name == "masked" and [part.name for part in parts] in ([only] for only in _SPARING)
    optaxs = name in _THROUGH and module.startswith("optax.")
    through = spared or module.startswith(PACKAGE) or optaxs
    if inner and through:
        return parts
    branches = len(inner) > 1 or name == "masked"
    return [_Part(name, module, _settings(held, NESTED), len(inner), branches), *parts]


def _transformations(value: Any, depth: int = 3) -> list[Any]:
    """Those in what a function holds: itself, or in its tuples and dicts."""
    if is_transformation(value) or _is_update(value):
        return [value]
    if depth == 0 or not isinstance(value, Mapping | tuple | list):
        return []
    items = value.values() if isinstance(value, Mapping) else value
    return [one for item in items for one in _transformations(item, depth - 1)]


def _is_update(thing: object) -> bool:
    """Whether it is called as (updates, state, params=None)."""
    names = list(_parameters(thing).values())
    return len(names) > 1 and (
        names[1].name == "state" or (len(names) > 2 and names[2].default is None)
    )


def _parameters(thing: object) -> Mapping[str, inspect.Parameter]:
    if callable(thing) and not isinstance(thing, type):
        with contextlib.suppress(TypeError, ValueError):  # some of C have no signature
            return inspect.signature(thing).parameters
    return {}


def _bare(function: Any) -> Any:
    """A function without decorators and arguments given beforehand."""
    function = inspect.unwrap(function) if callable(function) else function
    return _bare(function.func) if isinstance(function, functools.partial) else function


def _module(function: Any) -> str:
    return getattr(_bare(function), "__module__", "")


def _maker_name(function: Any) -> str:
    """The name of the function, or class, in which this one was made."""
    function = _bare(function)
    if inspect.ismethod(function):
        return type(function.__self__).__name__
    *around, last = getattr(function, "__qualname__", type(function).__name__).split(".<locals>.")
    if "." in last:  # a class's
        return last.split(".")[-2]
    return (around[-1].split(".")[-1] if around else last).strip("<>")


def _held(function: Any) -> dict[str, Any]:
    """Name -> value of what a function has closed over, was given beforehand, or its object has."""
    function = inspect.unwrap(function) if callable(function) else function
    if isinstance(function, functools.partial):
        given = dict(zip(_parameters(function.func), function.args, strict=False))
        return {**_held(function.func), **given, **function.keywords}
    if inspect.ismethod(function):
        own = getattr(function.__self__, "__dict__", {})
        return {**_held(function.__func__), **{name.strip("_"): own[name] for name in own}}
    return closed_over(function) if inspect.isfunction(function) else {}


def _is_value(thing: Any) -> bool:
    return isinstance(thing, bool | int | float | str | np.ndarray | jax.Array | Mapping)


# -- their settings --------------------------------------------------------------------------------


def _settings(held: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """What JSON can hold of it."""
    plain = {_harmless(str(name)): _plain(value, depth) for name, value in held.items()}
    known = {name: value for name, value in plain.items() if value is not _UNKNOWN}
    return dict(itertools.islice(known.items(), ITEMS))


def _plain(value: Any, depth: int) -> Any:
    """A number, a text, a list of them, or a function by its name and settings."""
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return _harmless(value[:200])
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _plain_array(value, depth)
    if depth == 0:
        return _UNKNOWN
    if isinstance(value, Mapping):
        return _settings(value, depth - 1) or _UNKNOWN if len(value) <= ITEMS else _UNKNOWN
    if isinstance(value, tuple | list) and not is_transformation(value):
        items = [_plain(item, depth - 1) for item in value] if len(value) <= ITEMS else []
        return items if items and _UNKNOWN not in items else _UNKNOWN
    return _plain_function(value, depth)


def _plain_array(value: Any, depth: int) -> Any:
    if value.size != 1:
        return {"shape": list(value.shape)}
    try:
        return _plain(np.asarray(value).item(), depth)
    except Exception:  # being traced, or of another process
        return _UNKNOWN


def _plain_function(value: Any, depth: int) -> Any:
    """A schedule, or what else takes one argument: its name, and what it holds."""
    needed = [p for p in _parameters(value).values() if p.default is p.empty]
    if len(needed) != 1 or needed[0].kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
        return _UNKNOWN
    name, held = _maker_name(value), _settings(_held(value), depth - 1)
    if held:
        return {"function": _harmless(name), **held}
    return _UNKNOWN if "<" in getattr(value, "__qualname__", "<") else _harmless(name)


def _by_part(parts: Sequence[_Part]) -> dict[str, dict[str, Any]]:
    """Part -> settings; the second of a name has a 2 behind it."""
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        name = _harmless(part.name)
        same = sum(other.partition(" ")[0] == name for other in found)
        found[f"{name} {same + 1}" if same else name] = part.settings
    return found


def _harmless(text: str) -> str:
    """Without the words that the official readers take for a line's key."""
    for word in logs.RESERVED:
        text = text.replace(word, word.replace("_", "-"))
    return text


# -- optax's own makers ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Maker:
    """A function of optax that makes a whole optimizer, and of what."""

    name: str
    parts: tuple[_Part, ...]

    def rates(self) -> list[tuple[int, str, int]]:
        """Where its learning rate is kept: part, setting and sign."""
        return [
            (index, name, 1 if value > 0 else -1)
            for index, part in enumerate(self.parts)
            for name, value in part.settings.items()
            if isinstance(value, float) and abs(value) == _PROBE
        ]


@functools.cache
def _makers() -> tuple[_Maker, ...]:
    """All that need a learning rate alone, with and without momentum."""
    found = []
    for name, make in [*vars(optax).items(), *vars(optax.contrib).items()]:
        parameters = _parameters(make)
        needed = {p.name for p in parameters.values() if p.default is p.empty}
        whole = "learning_rate" in parameters and not name.startswith("scale_by_")
        if needed - {"learning_rate"} or not whole:
            continue
        for more in ({}, {"momentum": 0.9}) if "momentum" in parameters else ({},):
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tx = make(learning_rate=_PROBE, **more)
                found.append(_Maker(name, tuple(_acting(tx))))
    return tuple(found)


def _maker(parts: Sequence[_Part]) -> tuple[int, _Maker | None]:
    """The maker of optax that the parts from an index on are exactly those of; None, and all of them."""
    for begin in range(len(parts)):
        rest = parts[begin:]
        if any(part.branches for part in parts[:begin]):
            break
        alike = [
            maker
            for maker in _makers()
            if [part.kind for part in maker.parts] == [part.kind for part in rest]
        ]
        if len({maker.name for maker in alike}) > 1:  # adam and nadam
            flags = [part.flags for part in rest]
            alike = [maker for maker in alike if [part.flags for part in maker.parts] == flags]
        if alike:
            one = len({maker.name for maker in alike}) == 1
            return (begin, alike[0]) if one else (len(parts), None)
    return len(parts), None


def _rate(parts: Sequence[_Part]) -> dict[str, Any]:
    """The learning rate of parts that no maker of optax makes, where the last has one, optax's or ours."""
    last = parts[-1] if parts and not any(part.branches for part in parts) else None
    known = last and (last.name == "scale_by_learning_rate" or last.module.startswith(PACKAGE))
    rate = last.settings.get("learning_rate") if last and known else None
    return {"opt_base_learning_rate": rate} if isinstance(rate, int | float) else {}


def _official(parts: Sequence[_Part], maker: _Maker) -> dict[str, Any]:
    """Official key -> value, of an optimizer that optax made."""
    found: dict[str, Any] = {}
    places = maker.rates()
    kept = [(parts[index].settings.get(name), sign) for index, name, sign in places]
    rates = [sign * rate for rate, sign in kept if isinstance(rate, int | float)]
    if rates and len(rates) == len(places) and len(set(rates)) == 1:
        found["opt_base_learning_rate"] = rates[0]
    settings = {part.name: part.settings for part in parts}
    for key, (part, name) in _OFFICIAL.get(maker.name, {}).items():
        if name in settings[part]:
            found[f"opt_{maker.name}_{key}"] = settings[part][name]
    return found

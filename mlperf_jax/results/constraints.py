"""What a rule may ask of one value: a handful of kinds, and how each is said.

A constraint is a table of the data files, such as `{ at_least = 0, integer = true }`; an empty one asks
nothing. A key may have several, each for its `rounds` or `where`, of which all that apply must hold:

    equals, one_of          the value itself, exactly: so does the official checker
    above, at_least, at_most   a number, or a formula of other logged values
    integer = true
    multiple_of = x         an integer times x (to within 1e-5, as the official checker)
    power_of_two_times = x  x times 2^N, N any integer
    formula = "…"           exactly that number
    near = "…"              that number to within 1e-9
    holds = "…"             the formula of `value` and other logged values is true
    length = n              a list of n
    item_multiples          a list, whose items are one and the same whole number times those of `of`, each
                            to `within` so much
    type = "boolean", "whole" (an integer by type) or "text" (not empty)
    unset = true            None
"""

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mlperf_jax.results import formulas

NEAR = 1e-9  # of the official checker's tied learning rates

# Besides the kinds a constraint may say when it applies and what it is about.
MODIFIERS = ("rounds", "where", "optional", "written")

Constraint = Mapping[str, Any]


def broken(
    value: Any, constraints: Iterable[Constraint], names: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """The constraints that a value breaks, as (where it applies or "", what is allowed).

    Example:
        >>> broken(3e-5, [{"power_of_two_times": 1e-4}], {})
        [('', '0.0001 times a power of two')]

    Args:
        value: of the key in question.
        constraints: those of its round.
        names: other logged values, which formulas may use; a formula that lacks one is passed over,
            since the missing value is a fault of its own.
    """
    found = []
    for constraint in constraints:
        where = constraint.get("where", "")
        if where and not _true(where, {**names, "value": value}, otherwise=False):
            continue
        for kind, bound in constraint.items():
            if kind in MODIFIERS:
                continue
            try:
                bound = _number(kind, bound, names)
            except (LookupError, ArithmeticError, TypeError):
                continue
            if not _holds(kind, bound, value, names):
                found.append((where, _words(kind, bound)))
    return found


def _number(kind: str, bound: Any, names: Mapping[str, Any]) -> Any:
    """The bound, calculated where it is a formula."""
    if kind in ("above", "at_least", "at_most", "multiple_of", "formula", "near"):
        return formulas.calculate(bound, names)
    if kind == "item_multiples":
        return {**bound, "of": [formulas.calculate(item, names) for item in bound["of"]]}
    return bound


def _holds(kind: str, bound: Any, value: Any, names: Mapping[str, Any]) -> bool:
    if kind == "holds":
        return _true(bound, {**names, "value": value}, otherwise=_lacks(bound, names))
    if kind not in _KINDS:
        raise ValueError(f"the rules' data have the unknown constraint {kind!r}")
    return (kind not in _NUMBERS or _finite(value)) and _KINDS[kind][0](value, bound)


def _words(kind: str, bound: Any) -> str:
    if kind == "one_of":
        return " or ".join(repr(option) for option in bound)
    if kind == "holds":
        return f"values with {bound}"
    if kind == "type":
        return _TYPES[bound][1]
    return _KINDS[kind][1].format(bound["of"] if kind == "item_multiples" else bound)


def _is_of(value: Any, kind: str) -> bool:
    if kind not in _TYPES:
        raise ValueError(f"the rules' data have the unknown type {kind!r}")
    return _TYPES[kind][0](value)


def _equal(value: Any, option: Any) -> bool:
    value = list(value) if isinstance(value, tuple) else value
    return value == option and isinstance(value, bool) == isinstance(option, bool)


def _multiples(value: Any, bound: Mapping[str, Any]) -> bool:
    """Whether the items are the same whole number, 1 or more, times those of `of`."""
    of, within = bound["of"], bound.get("within", formulas.WHOLE)
    if not isinstance(value, list | tuple) or len(value) != len(of):
        return False
    if not all(map(_finite, [*value, *of])) or not of[0]:
        return False
    times = round(value[0] / of[0])
    pairs = zip(value, of, strict=True)
    return times >= 1 and all(abs(item - times * one) <= within for item, one in pairs)


def _true(formula: str, names: Mapping[str, Any], *, otherwise: bool) -> bool:
    """Whether a condition holds; `otherwise` where its values cannot be calculated with."""
    try:
        return bool(formulas.calculate(formula, names))
    except (LookupError, ArithmeticError, TypeError):
        return otherwise


def _lacks(formula: str, names: Mapping[str, Any]) -> bool:
    return bool(formulas.names_in(formula) - {"value"} - names.keys())


def _finite(value: Any) -> bool:
    """Whether it is a number, and neither infinite nor not-a-number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "boolean": (lambda value: isinstance(value, bool), "true or false"),
    "whole": (
        lambda value: isinstance(value, int) and not isinstance(value, bool),
        "whole numbers",
    ),
    "text": (lambda value: isinstance(value, str) and bool(value.strip()), "a text"),
}

# kind -> whether a value keeps the bound, and how that is said; these want finite numbers
_NUMBERS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "above": (operator.gt, "values above {}"),
    "at_least": (operator.ge, "values of at least {}"),
    "at_most": (operator.le, "values of at most {}"),
    "integer": (lambda value, _: float(value).is_integer(), "whole numbers"),
    "formula": (operator.eq, "{!r}"),
    "near": (lambda value, bound: abs(value - bound) < NEAR, f"{{!r}} to within {NEAR:g}"),
    "multiple_of": (lambda value, bound: formulas.whole(value / bound), "whole multiples of {}"),
    "power_of_two_times": (
        lambda value, bound: value > 0 and formulas.whole(math.log2(value / bound)),
        "{} times a power of two",
    ),
}
_KINDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    **_NUMBERS,
    "one_of": (lambda value, bound: any(_equal(value, option) for option in bound), ""),
    "equals": (_equal, "{!r}"),
    "unset": (lambda value, _: value is None, "None"),
    "length": (
        lambda value, bound: isinstance(value, list | tuple) and len(value) == bound,
        "a list of {}",
    ),
    "item_multiples": (_multiples, "a whole multiple of {}"),
    "type": (_is_of, ""),
}

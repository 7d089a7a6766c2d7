"""The small formulas of the data files: "ceil(12288 / batch)", "value * 1152 == global_batch_size * 8e-5".

Numbers, names, `+ - * / // % **`, comparisons, `and`, `or`, `not` and the functions of `FUNCTIONS`; no
attribute, index or other call, so that a data file stays data.
"""

import ast
import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

WHOLE = 1e-5  # how far from an integer a number may be, as in the official checker


def whole(x: float) -> bool:
    """Whether a number is an integer to within 1e-5."""
    return math.isfinite(x) and abs(round(x) - x) < WHOLE


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "ceil": math.ceil,
    "floor": math.floor,
    "max": max,
    "min": min,
    "round": round,
    "sqrt": math.sqrt,
    "whole": whole,
}

_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def calculate(formula: str | float, names: Mapping[str, Any]) -> Any:
    """The value of a formula; a number is its own.

    Example:
        >>> calculate("ceil(12288 / batch)", {"batch": 100})
        123

    Raises:
        LookupError: a name in it has no value.
        ValueError: it is not a formula.
        ArithmeticError, TypeError: its values cannot be calculated with.
    """
    if not isinstance(formula, str):
        return formula
    return _value(_parse(formula), names)


def names_in(formula: str | float) -> frozenset[str]:
    """The names that a formula needs."""
    if not isinstance(formula, str):
        return frozenset()
    nodes = ast.walk(_parse(formula))
    return frozenset(n.id for n in nodes if isinstance(n, ast.Name)) - FUNCTIONS.keys()


@functools.cache
def _parse(formula: str) -> ast.expr:
    try:
        return ast.parse(formula, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{formula!r} is not a formula") from error


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name):
            if name not in names:
                raise LookupError(name)
            return names[name]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(operand, names))
        case (
            ast.BinOp(left=left, op=op, right=right)
            | ast.Compare(left=left, ops=[op], comparators=[right])
        ) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, names), _value(right, names))
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_value(part, names) for part in values)
        case ast.BoolOp(op=ast.Or(), values=values):
            return any(_value(part, names) for part in values)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            return _call(FUNCTIONS[name], [_value(arg, names) for arg in args])
    raise ValueError(f"{ast.unparse(node)!r} is not part of a formula")


def _call(function: Callable[..., Any], args: list[Any]) -> Any:
    try:
        return function(*args)
    except ValueError as error:  # the root of a negative number, the ceiling of NaN
        raise ArithmeticError(str(error)) from error

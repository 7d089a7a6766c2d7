"""Programs as JAX traces them: told apart by what they compute, and looked through.

A fingerprint is of equations, constants and shapes. It is alike in every process, and says nothing of the
names of functions or of where they stand.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer as Tracer
from jax.extend import core

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
# where a function stands, how it is shown, and rules of differentiation, which an update does not use
_SILENT = ("name", "jvp_jaxpr_fun", "jvp_jaxpr_thunk", "fwd_jaxpr_thunk", "bwd", "debug_info")
_CALLBACKS = ("pure_callback", "io_callback", "debug_callback", "debug_print")


def fingerprint(*programs: core.ClosedJaxpr) -> str:
    """Sixteen hex digits that programs share which compute the same in the same order."""
    digest = hashlib.sha256()
    for program in programs:
        for word in _closed(program):
            digest.update(word.encode())
            digest.update(b"\n")
    return digest.hexdigest()[:16]


def inner(params: Mapping[str, Any]) -> Iterator[core.ClosedJaxpr | core.Jaxpr]:
    """The programs within an equation: bodies of loops, branches, called functions."""
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, core.ClosedJaxpr | core.Jaxpr):
                yield each


def equations(program: core.ClosedJaxpr | core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """All equations, those of inner programs included."""
    for equation in _plain(program).eqns:
        yield equation
        for each in inner(equation.params):
            yield from equations(each)


def callbacks(program: core.ClosedJaxpr) -> list[str]:
    """The primitives in it that call Python while a step runs."""
    return sorted({e.primitive.name for e in equations(program)} & set(_CALLBACKS))


def constants(program: core.ClosedJaxpr | core.Jaxpr) -> Iterator[Any]:
    """Every number and array that the program was made with."""
    if isinstance(program, core.ClosedJaxpr):
        yield from program.consts
    plain = _plain(program)
    yield from (var.val for var in plain.outvars if isinstance(var, core.Literal))
    for equation in plain.eqns:
        yield from (var.val for var in equation.invars if isinstance(var, core.Literal))
        for each in inner(equation.params):
            yield from constants(each)


def _plain(program: core.ClosedJaxpr | core.Jaxpr) -> core.Jaxpr:
    return program.jaxpr if isinstance(program, core.ClosedJaxpr) else program


# -- as words --------------------------------------------------------------------------------------


def _closed(program: core.ClosedJaxpr) -> Iterator[str]:
    yield from map(_constant, program.consts)
    yield from _words(program.jaxpr)


def _words(jaxpr: core.Jaxpr) -> Iterator[str]:
    numbers: dict[core.Var, int] = {}

    def named(var: Any) -> str:
        if isinstance(var, core.Literal):
            return f"{_constant(var.val)}{var.aval.str_short()}"
        return str(numbers.setdefault(var, len(numbers)))

    for var in (*jaxpr.constvars, *jaxpr.invars):
        yield f"{named(var)}:{var.aval.str_short()}"
    for equation in jaxpr.eqns:
        yield f"{equation.primitive.name} {' '.join(map(named, equation.invars))}"
        for name, value in sorted(equation.params.items()):
            if name not in _SILENT:
                yield from _value(name, value)
        yield " ".join(f"{named(var)}:{var.aval.str_short()}" for var in equation.outvars)
    yield " ".join(map(named, jaxpr.outvars))


def _value(name: str, value: Any) -> Iterator[str]:
    """An equation's parameter."""
    if isinstance(value, core.ClosedJaxpr):
        yield f"{name}("
        yield from _closed(value)
        yield ")"
    elif isinstance(value, core.Jaxpr):
        yield f"{name}("
        yield from _words(value)
        yield ")"
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _value(name, each)
    elif isinstance(value, np.ndarray | jax.Array):
        yield f"{name}={_constant(value)}"
    elif callable(value) and not isinstance(value, type):
        yield f"{name}={getattr(value, '__qualname__', type(value).__name__)}"
    else:
        yield f"{name}={_ADDRESS.sub('', repr(value))}"


def _constant(value: Any) -> str:
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    if array.size <= 1:
        return f"{array.dtype}{list(array.shape)}{array.tolist()!r}"
    content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
    return f"{array.dtype}{list(array.shape)}#{content}"

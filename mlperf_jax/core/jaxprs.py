"""Programs as JAX traces them: told apart by what they compute, and looked through.

A fingerprint is of equations, constants and shapes. It is alike in every process, and says nothing of the
names of functions or of where they stand.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer as Tracer
from jax.extend import core

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
# where a function stands, how it is shown, and rules of differentiation, which an update does not use
_SILENT = frozenset(
    "name jvp_jaxpr_fun jvp_jaxpr_thunk fwd_jaxpr_thunk bwd debug_info origin index_map_src_info".split()
)
# kernels, calls of a library's functions, moves to another memory
_FOREIGN = ("pallas_call", "ffi_call", "device_put")
_CALLBACKS = ("pure_callback", "io_callback", "debug_callback", "debug_print")


def fingerprint(*programs: core.ClosedJaxpr) -> str:
    """Sixteen hex digits that programs share which compute the same in the same order."""
    known: Known = {}
    return _digest(_closed(program, known) for program in programs)[:16]


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
    return _named(program, _CALLBACKS)


def foreign(program: core.ClosedJaxpr) -> list[str]:
    """The primitives in it that not every kind of device or process can compile."""
    return _named(program, _FOREIGN)


def _named(program: core.ClosedJaxpr, names: Iterable[str]) -> list[str]:
    return sorted({e.primitive.name for e in equations(program)} & {*names})


def _plain(program: core.ClosedJaxpr | core.Jaxpr) -> core.Jaxpr:
    return program.jaxpr if isinstance(program, core.ClosedJaxpr) else program


# -- as words --------------------------------------------------------------------------------------

# digests of inner programs, which many equations share, by identity; the program, so that it stays
Known = dict[int, tuple[str, Any]]


def _digest(words: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _closed(program: core.ClosedJaxpr | core.Jaxpr, known: Known) -> str:
    if id(program) not in known:
        consts = program.consts if isinstance(program, core.ClosedJaxpr) else ()
        words = [*map(_constant, consts), *_words(_plain(program), known)]
        known[id(program)] = (_digest(words), program)
    return known[id(program)][0]


def _words(jaxpr: core.Jaxpr, known: Known) -> Iterator[str]:
    numbers: dict[core.Var, int] = {}

    def named(var: Any) -> str:
        if isinstance(var, core.Literal):
            return f"{_constant(var.val)}{_type(var.aval)}"
        return str(numbers.setdefault(var, len(numbers)))

    for var in (*jaxpr.constvars, *jaxpr.invars):
        yield f"{named(var)}:{_type(var.aval)}"
    for equation in jaxpr.eqns:
        yield f"{equation.primitive.name} {' '.join(map(named, equation.invars))}"
        for name, value in sorted(equation.params.items()):
            if name not in _SILENT:
                yield f"{name}={_value(value, known)}"
        yield " ".join(f"{named(var)}:{_type(var.aval)}" for var in equation.outvars)
    yield " ".join(map(named, jaxpr.outvars))


@functools.cache
def _type(aval: Any) -> str:
    """Shape and dtype, as words that are kept: there are few kinds and thousands of values."""
    return aval.str_short()


def _value(value: Any, known: Known) -> str:
    """An equation's parameter."""
    if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
        return _closed(value, known)
    if isinstance(value, tuple | list):
        return f"({' '.join(_value(each, known) for each in value)})"
    if isinstance(value, np.ndarray | jax.Array):
        return _constant(value)
    if isinstance(value, set | frozenset):
        return f"{{{' '.join(sorted(_value(each, known) for each in value))}}}"
    # a kernel's grid and blocks, which have programs inside
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        told = (f"{k}={_value(v, known)}" for k, v in parts.items() if k not in _SILENT)
        return f"{type(value).__name__}({' '.join(told)})"
    if callable(value) and not isinstance(value, type):
        return getattr(value, "__qualname__", type(value).__name__)
    return _ADDRESS.sub("", repr(value))


def _constant(value: Any) -> str:
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    if array.size <= 1:
        return f"{array.dtype}{list(array.shape)}{array.tolist()!r}"
    content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
    return f"{array.dtype}{list(array.shape)}#{content}"

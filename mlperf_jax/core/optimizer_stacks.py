"""Whether an optimizer takes a stack of layers for one tensor: read from its program, nothing is run.

Every value of the program gets a lineage: of which parameters it is made element by element, where their
layer axis lies, and over whose layers it has been summed. A norm of one stack mixes its layers alone, which
is wrong; a norm of all parameters mixes all layers of all, which is meant.

Shape legend: L layers of a stack.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.extend import core

Leaves = frozenset[str]  # of parameters, by path
Count = Counter[tuple[Any, ...]]
_LOST = -1  # the layer axis was merged with others
_SHAPING = frozenset(
    "broadcast_in_dim convert_element_type copy copy_p reshape squeeze transpose".split()
)
_MATRIX = frozenset(
    "cholesky eig eigh geqrf householder_product lu qr schur svd triangular_solve".split()
)
_CUMULATIVE = frozenset("cumlogsumexp cummax cummin cumprod cumsum".split())
_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


@dataclass(frozen=True)
class Lineage:
    """Where a value comes from.

    Attributes:
        owners: the parameters that it holds element by element.
        axis: of its axes the layers', _LOST if they are merged with another, None without one.
        summed: of a value without owners, such as a norm, the parameters over whose layers it sums.
        mixed: the same of all sums that went into this value.
    """

    owners: Leaves = frozenset()
    axis: int | None = None
    summed: Leaves = frozenset()
    mixed: frozenset[Leaves] = frozenset()


_NOTHING = Lineage()


def mixing(
    program: core.ClosedJaxpr,
    inputs: Sequence[Lineage],
    updates: Sequence[str],
    sizes: Mapping[str, int],
) -> tuple[list[str], Mapping[str, Count]]:
    """The stacks that the program mixes, and by parameter what is done to its elements.

    Args:
        program: of the update.
        inputs: of its arguments.
        updates: paths of its first results, which are the updates of these parameters.
        sizes: elements of a parameter.
    """
    reader = _Reader(sizes)
    outputs = reader.read(program.jaxpr, [_NOTHING] * len(program.consts), inputs)
    pairs = zip(updates, outputs, strict=False)
    return [path for path, found in pairs if frozenset([path]) in found.mixed], reader.done


class _Reader:
    """Follows lineages through a program.

    Attributes:
        sizes: elements of a parameter.
        done: by parameter, how often each operation was done to all of its elements, with which numbers and over
            how many axes; layer axes do not count.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.done: dict[str, Count] = defaultdict(Counter)

    def read(
        self, jaxpr: core.Jaxpr, consts: Sequence[Lineage], arguments: Sequence[Lineage]
    ) -> list[Lineage]:
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

        def of(var: Any) -> Lineage:
            return _NOTHING if isinstance(var, core.Literal) else known[var]

        for equation in jaxpr.eqns:
            found = self._equation(equation, [of(var) for var in equation.invars])
            known.update(zip(equation.outvars, found, strict=True))
        return [of(var) for var in jaxpr.outvars]

    def _equation(self, equation: core.JaxprEqn, given: Sequence[Lineage]) -> Sequence[Lineage]:
        name, params = equation.primitive.name, equation.params
        if all(each == _NOTHING for each in given):
            return [_NOTHING] * len(equation.outvars)
        if name == "cond":
            branches = [self._call(branch, given[1:]) for branch in params["branches"]]
            return [_joined(each) for each in zip(*branches, strict=True)]
        if name == "while":
            first = params["cond_nconsts"]
            second = first + params["body_nconsts"]
            return self._loop(params["body_jaxpr"], given[first:second], given[second:])
        if name == "scan":
            return self._scan(equation, given)
        for key in _CALLS:
            if key in params:
                return self._call(params[key], given)
        return self._plain(equation, given)

    def _call(
        self, program: core.ClosedJaxpr | core.Jaxpr, given: Sequence[Lineage]
    ) -> list[Lineage]:
        if isinstance(program, core.Jaxpr):
            return self.read(program, [], given)
        return self.read(program.jaxpr, [_NOTHING] * len(program.consts), given)

    def _loop(
        self,
        body: core.ClosedJaxpr,
        consts: Sequence[Lineage],
        carry: Sequence[Lineage],
        pieces: Sequence[Lineage] = (),
    ) -> list[Lineage]:
        """A body that is repeated: twice tells what reaches the carry by way of another."""
        for _ in range(2):
            new = self._call(body, [*consts, *carry, *pieces])[: len(carry)]
            carry = [_joined(pair) for pair in zip(carry, new, strict=True)]
        return list(carry)

    def _scan(self, equation: core.JaxprEqn, given: Sequence[Lineage]) -> list[Lineage]:
        """Constants, the carry and what is scanned over; how many of each, JAX's versions say in other ways."""
        body = equation.params["jaxpr"]
        carried = sum(map(_same_shape, equation.outvars, body.jaxpr.outvars))
        second = sum(map(_same_shape, equation.invars, body.jaxpr.invars))
        first = second - carried
        consts, carry = given[:first], given[first:second]
        pieces = [_shifted(each, -1) for each in given[second:]]
        carry = self._loop(body, consts, [*carry], pieces)
        found = self._call(body, [*consts, *carry, *pieces])[len(carry) :]
        return [*carry, *(_shifted(each, 1) for each in found)]

    def _plain(self, equation: core.JaxprEqn, given: Sequence[Lineage]) -> list[Lineage]:
        owners = _union(each.owners for each in given)
        layered = [
            (each, var) for each, var in zip(given, equation.invars) if each.axis is not None
        ]
        moved = [_moved(equation, each.axis, var) for each, var in layered]
        mixed = _union(each.mixed for each in given)
        summed = _union(each.summed for each in given)
        new = {each.owners for (each, _), (_, mixes) in zip(layered, moved, strict=True) if mixes}
        axes = {axis for axis, _ in moved if axis is not None}
        if len(axes) > 1:  # each layer meets each other
            new.add(owners)
        axis = axes.pop() if len(axes) == 1 else (_LOST if axes else None)
        self._note(equation, owners, layered)
        found = []
        for var in equation.outvars:
            if not owners or _shape(var) == ():
                found.append(Lineage(summed=summed | _union(new), mixed=mixed))
            else:
                settled = mixed | new | ({summed} if summed else set())
                fits = axis if axis is not None and axis < len(_shape(var)) else None
                found.append(Lineage(owners, fits, mixed=settled))
        return found

    def _note(
        self, equation: core.JaxprEqn, owners: Leaves, layered: Sequence[tuple[Lineage, Any]]
    ) -> None:
        name = equation.primitive.name
        if name in _SHAPING or len(owners) != 1:
            return
        axes = _reduced(equation)
        layers = {each.axis for each, _ in layered}
        (owner,) = owners
        whole = self.sizes.get(owner, 0)
        if not any(math.prod(_shape(var)) >= whole for var in equation.invars):
            return
        literals = [var.val for var in equation.invars if isinstance(var, core.Literal)]
        numbers = tuple(float(x) for x in literals if np.size(x) == 1 and np.isrealobj(x))
        self.done[owner][name, numbers, None if axes is None else len(set(axes) - layers)] += 1


def _joined(lineages: Iterable[Lineage]) -> Lineage:
    lineages = list(lineages)
    axes = {each.axis for each in lineages} - {None}
    return Lineage(
        _union(each.owners for each in lineages),
        axes.pop() if len(axes) == 1 else (_LOST if axes else None),
        _union(each.summed for each in lineages),
        _union(each.mixed for each in lineages),
    )


def _union(sets: Iterable[frozenset[Any]]) -> frozenset[Any]:
    return frozenset(itertools.chain.from_iterable(sets))


def _shifted(lineage: Lineage, by: int) -> Lineage:
    """The lineage of a slice along the first axis, or of the stack of such slices."""
    axis = lineage.axis
    if axis is None or axis == _LOST:
        return lineage
    axis = axis + by
    return dataclasses.replace(lineage, axis=None if axis < 0 else axis)


# -- what an operation does to the layer axis ------------------------------------------------------


def _shape(var: Any) -> tuple[int, ...]:
    return var.aval.shape


def _same_shape(outside: Any, inside: Any) -> bool:
    """Whether a loop's body is given a value as it is, not a slice of it."""
    return _shape(outside) == _shape(inside)


def _reduced(equation: core.JaxprEqn) -> Sequence[int] | None:
    """The axes whose elements an operation mixes, of its first operand; None of one that does not."""
    name, params = equation.primitive.name, equation.params
    if name.startswith(("reduce_", "argm")) and "axes" in params:
        return params["axes"]
    if name in _CUMULATIVE:
        return (params["axis"],)
    if name == "sort":
        return (params["dimension"],)
    if name == "top_k":
        return (params["axis"],)
    if name == "rev":
        return params["dimensions"]
    if name == "fft":
        ndim = len(_shape(equation.invars[0]))
        return range(ndim - len(params["fft_lengths"]), ndim)
    if name == "dot_general":
        return params["dimension_numbers"][0][0]
    if name in _MATRIX:
        ndim = len(_shape(equation.invars[0]))
        return (ndim - 2, ndim - 1)
    return None


def _moved(equation: core.JaxprEqn, axis: int | None, var: Any) -> tuple[int | None, bool]:
    """Where an operand's layer axis is in the result, and whether the layers were mixed."""
    name, params = equation.primitive.name, equation.params
    reduces = _reduced(equation) is not None
    if axis is None or axis == _LOST:
        return axis, reduces and axis == _LOST
    if name == "dot_general":
        return _multiplied(equation, axis, var)
    axes = _reduced(equation)
    if axes is not None:
        if axis in axes:
            return (None if name.startswith(("reduce_", "argm")) else axis), True
        if name.startswith(("reduce_", "argm")):
            return axis - sum(each < axis for each in axes), False
        return axis, False
    if name == "broadcast_in_dim":
        return params["broadcast_dimensions"][axis], False
    if name == "transpose":
        return list(params["permutation"]).index(axis), False
    if name == "squeeze":
        return axis - sum(each < axis for each in params["dimensions"]), False
    if name == "reshape":
        return _reshaped(_shape(var), _shape(equation.outvars[0]), axis), False
    if name == "concatenate":
        return (_LOST if params["dimension"] == axis else axis), False
    shape, own = _shape(equation.outvars[0]), _shape(var)
    kept = len(shape) == len(own) and shape[axis] == own[axis]
    return (axis if kept else None), False


def _multiplied(equation: core.JaxprEqn, axis: int, var: Any) -> tuple[int | None, bool]:
    contracted, batched = equation.params["dimension_numbers"]
    side = 0 if var is equation.invars[0] else 1
    if axis in contracted[side]:
        return None, True
    if axis in batched[side]:
        return list(batched[side]).index(axis), False
    free = [
        [a for a in range(len(_shape(each))) if a not in contracted[s] and a not in batched[s]]
        for s, each in enumerate(equation.invars)
    ]
    before = len(batched[0]) + (len(free[0]) if side else 0)
    return before + free[side].index(axis), False


def _reshaped(old: Sequence[int], new: Sequence[int], axis: int) -> int:
    before = math.prod(old[:axis])
    for index, size in enumerate(new):
        if size == old[axis] and math.prod(new[:index]) == before:
            return index
    return _LOST

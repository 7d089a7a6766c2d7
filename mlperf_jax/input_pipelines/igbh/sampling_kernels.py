"""The loops of neighbour sampling, compiled: draw edges, number the nodes that they lead to, and group these.

They stand in one file because a cached kernel is compiled anew only when its own file changes. Loops are cut so that
the memory accesses of each do not wait for one another, which is most of what sampling costs.

Shape legend: m nodes to expand, e edges drawn from them, E edges of a relation, N nodes of a type, C slots of a table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mlperf_jax.input_pipelines.igbh import compiler

numba = compiler.numba()

_U = np.uint64
_GOLDEN = _U(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio
_MIX_1, _MIX_2 = _U(0xBF58476D1CE4E5B9), _U(0x94D049BB133111EB)
_LOW = _U(0xFFFFFFFF)
_U27, _U30, _U31, _U32 = (_U(n) for n in (27, 30, 31, 32))
_FIRST_SLOTS = 1 << 14
_AHEAD = 64  # slots that are fetched together: samples come 1.4 times as fast as one by one
_NUMBER = (1 << 32) - 1
_MOST = 1 << 32  # in-edges of a node: a draw is a product of 32-bit halves


def _compiled(function: Callable) -> Any:
    """Compiled at its first call, without the interpreter's lock, and kept on disk where a folder can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # what numba raises when neither this folder nor the user's cache can be
        return numba.njit(nogil=True)(function)


@_compiled
def _mixed(z):
    """The finaliser of splitmix64: each bit of a number decides all others."""
    z = (z ^ (z >> _U30)) * _MIX_1
    z = (z ^ (z >> _U27)) * _MIX_2
    return z ^ (z >> _U31)


@_compiled
def stream(seed, batch, hop, relation):
    """What `draw` begins its random bits at, uint64, from four uint64."""
    key = _mixed(_U(seed) + _GOLDEN)
    key = _mixed(key + _U(batch) + _GOLDEN)
    key = _mixed(key + _U(hop) + _GOLDEN)
    return _mixed(key + _U(relation) + _GOLDEN)


@_compiled
def draw(indptr, indices, sources, frontier, first, fanout, stream):
    """Draws up to `fanout` in-edges of each node, without replacement and all of them if there are no more.

    A node's draws are a subset by Floyd's method: draw j is uniform in the first d - fanout + j + 1 of its d edges, and
    the last of those where that one is taken. Its random bits are splitmix64's, begun at a hash of (stream, node).

    Args:
        indptr: int64 [N + 1].
        indices: int32 or int64 [E].
        sources: nodes of the source type; an id is below it.
        frontier: int32 [m], the nodes to expand.
        first: local number of the first of them; the others follow.
        fanout: edges of each at most.
        stream: uint64, of (seed, batch, hop, relation).

    Returns:
        Source ids int32 [e], local numbers of the destinations int32 [e] in ascending order, and the place in the
        frontier of a node whose edges are not in the arrays or come from no node, -1 when there is none.
    """
    m, edges = len(frontier), len(indices)
    starts, degrees = np.empty(m, np.int64), np.empty(m, np.int64)
    total = 0
    for i in range(m):
        start = indptr[frontier[i]]
        degree = indptr[frontier[i] + 1] - start
        if start < 0 or degree < 0 or degree >= _MOST or start + degree > edges:
            return np.empty(0, np.int32), np.empty(0, np.int32), i
        starts[i], degrees[i] = start, degree
        total += min(degree, fanout)

    picks, targets = np.empty(total, np.int64), np.empty(total, np.int32)
    e = 0
    for i in range(m):
        start, degree = starts[i], degrees[i]
        if degree <= fanout:
            for j in range(degree):
                picks[e + j] = start + j
                targets[e + j] = first + i
            e += degree
            continue
        state = _mixed(stream + _U(frontier[i]) * _GOLDEN)
        for j in range(fanout):
            top = degree - fanout + j
            state += _GOLDEN
            bits, n = _mixed(state), _U(top + 1)
            pick = start + np.int64(((bits >> _U32) * n + ((bits & _LOW) * n >> _U32)) >> _U32)
            for k in range(e, e + j):
                if picks[k] == pick:
                    pick = start + top
                    break
            picks[e + j] = pick
            targets[e + j] = first + i
        e += fanout

    found = np.empty(total, np.int32)
    wrong = -1
    for e in range(total):
        source = indices[picks[e]]
        if source < 0 or source >= sources:
            wrong = targets[e] - first
        found[e] = source
    return found, targets, wrong


# -- numbers -------------------------------------------------------------------------------------


def table() -> tuple[np.ndarray, np.ndarray]:
    """Slots and ids of a type of which no node has a number yet: see `number`."""
    return np.zeros(_FIRST_SLOTS, np.int64), np.empty(_FIRST_SLOTS // 2, np.int32)


@_compiled
def _slot(node, slots):
    """Where a node's search begins: the upper bits of a product."""
    size = _U(len(slots))  # a power of two
    return np.int64((((_U(node) * _GOLDEN) >> _U32) * size) >> _U32)


@_compiled
def _grown(slots, ids, count):
    more, room = np.zeros(4 * len(slots), np.int64), np.empty(4 * len(ids), np.int32)
    last = len(more) - 1
    for local in range(count):
        room[local] = ids[local]
        at = _slot(ids[local], more)
        while more[at]:
            at = (at + 1) & last
        more[at] = (np.int64(ids[local]) + 1) << 32 | local
    return more, room


@_compiled
def number(nodes, slots, ids, count):
    """Gives each node its local number; one that has none yet gets the next.

    The table is open addressing with linear search, at most half full; a slot holds id + 1 and the number in one word.

    Args:
        nodes: int32 [e], repeated as they may be.
        slots: int64 [C], 0 where free.
        ids: int32 [C / 2], of which the first `count` are the numbered nodes in their order.
        count: see there.

    Returns:
        Their numbers int32 [e], and slots, ids and count with the new ones.
    """
    numbers = np.empty(len(nodes), np.int32)
    begins, heads = np.empty(_AHEAD, np.int64), np.empty(_AHEAD, np.int64)
    for first in range(0, len(nodes), _AHEAD):
        stop = min(first + _AHEAD, len(nodes))
        while count + _AHEAD > len(ids):
            slots, ids = _grown(slots, ids, count)
        last = len(slots) - 1
        for e in range(first, stop):
            begins[e - first] = _slot(nodes[e], slots)
            heads[e - first] = slots[begins[e - first]]
        for e in range(first, stop):
            wanted, held = np.int64(nodes[e]) + 1, heads[e - first]
            if held >> 32 != wanted:  # another node's, or not yet taken when it was looked at
                at = begins[e - first]
                while slots[at] != 0 and slots[at] >> 32 != wanted:
                    at = (at + 1) & last
                held = slots[at]
                if held == 0:
                    held = wanted << 32 | count
                    slots[at], ids[count] = held, nodes[e]
                    count += 1
            numbers[e] = held & _NUMBER
    return numbers, slots, ids, count


@_compiled
def grouped(ids, block, bins):
    """Nodes by the bin that their block is dealt to, (id // block) % bins, in their order within each.

    Args:
        ids: int32 [m].
        block, bins: numbers.

    Returns:
        The ids in that order, int32 [m], and where each of the given ones is in it, int32 [m].
    """
    counts = np.zeros(bins + 1, np.int64)
    for i in ids:
        counts[(i // block) % bins + 1] += 1
    starts = np.cumsum(counts)
    found, place = np.empty(len(ids), np.int32), np.empty(len(ids), np.int32)
    for j in range(len(ids)):
        b = (ids[j] // block) % bins
        place[j] = starts[b]
        found[starts[b]] = ids[j]
        starts[b] += 1
    return found, place

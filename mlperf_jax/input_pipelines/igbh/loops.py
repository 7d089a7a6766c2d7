"""The loops of IGBH that go edge by edge or paper by paper, compiled by numba when they are first called.

They check no bounds but those they are there to check: `count` and `count_citations` refuse edges beyond the nodes,
and what is filled in afterwards must be the same edges.

Shape legend: n rows of a piece, N nodes at the end of a relation's edges, E entries.
"""

from __future__ import annotations

import numpy as np

from mlperf_jax.input_pipelines.igbh import compiler

numba = compiler.numba()


@numba.njit(nogil=True)
def shuffle(order: np.ndarray, first: int, words: np.ndarray) -> None:
    """Swaps place i of `order` with place i + (word mod places from i on), for i = first, first + 1, … and each word."""
    n = len(order)
    for k in range(len(words)):
        i = first + k
        j = i + np.int64(words[k] % np.uint32(n - i))
        order[i], order[j] = order[j], order[i]


@numba.njit(nogil=True)
def count(edges: np.ndarray, end: int, others: int, counts: np.ndarray) -> int:
    """Adds to `counts`, int64 [N + 1], how many edges [n, 2] end at each node.

    Args:
        edges: ids of nodes.
        end: the column of the nodes where they end, 0 or 1.
        others: how many nodes there are at the beginning.
        counts: its last entry is left alone.

    Returns:
        The first row that names a node which is not there, or -1.
    """
    nodes = len(counts) - 1
    for row in range(len(edges)):
        other, node = edges[row, 1 - end], edges[row, end]
        if other < 0 or other >= others or node < 0 or node >= nodes:
            return row
        counts[node] += 1
    return -1


@numba.njit(nogil=True)
def count_citations(edges: np.ndarray, counts: np.ndarray) -> tuple[int, int]:
    """As `count`, both directions of an edge between papers, and none of a paper's with itself.

    Returns:
        The first row that names a paper which is not there, or -1; the largest id of the edges counted, or -1.
    """
    nodes, largest = len(counts) - 1, -1
    for row in range(len(edges)):
        a, b = edges[row, 0], edges[row, 1]
        if a < 0 or a >= nodes or b < 0 or b >= nodes:
            return row, largest
        if a != b:
            counts[a] += 1
            counts[b] += 1
            largest = max(largest, a, b)
    return -1, largest


@numba.njit(nogil=True)
def counts_to_starts(counts: np.ndarray) -> int:
    """Counts [N + 1] become the sums of those before them. Returns the sum of all, E."""
    total = 0
    for node in range(len(counts)):
        counts[node], total = total, total + counts[node]
    return total


@numba.njit(nogil=True)
def fill(edges: np.ndarray, end: int, cursors: np.ndarray, indices: np.ndarray) -> None:
    """Writes where each edge begins into `indices`, int32 [E], at the cursor of the node where it ends, which moves on."""
    for row in range(len(edges)):
        node = edges[row, end]
        at = cursors[node]
        indices[at] = edges[row, 1 - end]
        cursors[node] = at + 1


@numba.njit(nogil=True)
def fill_citations(edges: np.ndarray, cursors: np.ndarray, indices: np.ndarray) -> None:
    """As `fill`, of an edge (a, b) first a at b and then b at a; none where they are one paper."""
    for row in range(len(edges)):
        a, b = edges[row, 0], edges[row, 1]
        if a != b:
            at = cursors[b]
            indices[at] = a
            cursors[b] = at + 1
            at = cursors[a]
            indices[at] = b
            cursors[a] = at + 1


@numba.njit(nogil=True)
def fill_itself(nodes: int, times: int, cursors: np.ndarray, indices: np.ndarray) -> None:
    """Writes each of the first nodes so many times at its own cursor."""
    for node in range(nodes):
        for _ in range(times):
            indices[cursors[node]] = node
            cursors[node] += 1


@numba.njit(nogil=True)
def ends_to_starts(cursors: np.ndarray) -> None:
    """Cursors [N + 1] that stand at the ends of their nodes become where the nodes start, and the end of the last."""
    for node in range(len(cursors) - 1, 0, -1):
        cursors[node] = cursors[node - 1]
    cursors[0] = 0

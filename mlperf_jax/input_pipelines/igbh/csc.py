"""In-edges by destination: for each relation, where the edges begin that end at a node, built once beside the data.

`<data>/<size>/csc/<source>__<name>__<target>` holds `indptr.npy`, int64 [N + 1], `indices.npy`, int32 [E], and
`settings.json`, what they were built from: the in-edges of node i begin at the nodes indices[indptr[i]:indptr[i + 1]],
in the order in which the edge file has them.

A reverse relation is read from the same file. `cites` joins both directions: an edge (a, b) puts a at b and then b at
a; a paper's edges with itself are dropped, and then each paper up to the largest id of the remaining edges has itself
twice, behind the others. Nothing that stands twice is removed.

Two passes over the edges, one that counts and one that fills; what is written is mapped from its files, so that memory
is the system's to take back. It is quick while an indices file (31 GB for `cites` of the full graph) fits in it.

Reference: graphlearn-for-pytorch, examples/igbh/dataset.py (the relations); torch_geometric 2.4, add_self_loops.
Shape legend: N nodes where a relation's edges end, E its entries, e edges of a file.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building
from mlperf_jax.input_pipelines.igbh.arrays import Mapped, create_npy, open_npy
from mlperf_jax.input_pipelines.igbh.graph import Graph
from mlperf_jax.input_pipelines.igbh.in_edges import InEdges
from mlperf_jax.input_pipelines.igbh.sizes import CITES, Relation

FOLDER = "csc"
_INDPTR, _INDICES = np.dtype("<i8"), np.dtype("<i4")
_CHUNK = 1 << 22  # edges handled at once
_AGAIN = "remove its folder, and build the edges again: mlperf-jax data build rgat --data-dir DIR"


def open_edges(graph: Graph) -> Mapping[Relation, InEdges]:
    """Opens the in-edges of all relations; headers, sizes and the ends of `indptr` are checked.

    Raises:
        UserError: some were not built, were built from other edges, or are cut short.
    """
    missing = [r.key for r in graph.size.relations if not _place(graph, r).exists()]
    if missing:
        raise UserError(
            f"{graph.folder / FOLDER} lacks {len(missing)} of {len(graph.size.relations)} relations, the first is "
            f"{missing[0]}: build them with mlperf-jax data build rgat --data-dir DIR"
        )
    return {relation: _open(graph, relation) for relation in graph.size.relations}


def _open(graph: Graph, relation: Relation) -> InEdges:
    place, nodes = _place(graph, relation), graph.size.nodes[relation.target]
    _check_settings(graph, relation)
    indptr = open_npy(place / "indptr.npy", (nodes + 1,), (_INDPTR,), again=_AGAIN)
    indices = open_npy(place / "indices.npy", (None,), (_INDICES,), again=_AGAIN)
    first, last = indptr.array[0], indptr.array[-1]
    if first or last != len(indices):
        raise UserError(
            f"{indptr.path} counts from {first:,} to {last:,} and there are {len(indices):,} entries: {_AGAIN}"
        )
    indices = dataclasses.replace(indices, scattered=True)
    return InEdges(relation, dataclasses.replace(indptr, scattered=True), indices)


def build(graph: Graph, say: Callable[[str], None] = print) -> Mapping[Relation, InEdges]:
    """Builds the in-edges that are not there yet, one relation after the other, and opens all.

    A relation appears when it is whole; a build that was killed loses the one it was at.

    Args:
        graph: opened.
        say: is told which relation is being built.

    Raises:
        UserError: an edge names a node that is not there (names file and edge), the disk has no room, or a relation
            was built from other edges; what is merely damaged is built again.
    """
    with building.alone(graph.folder / FOLDER, resumes=True) as folder:
        folder.mkdir(exist_ok=True)
        left = []
        for relation in graph.size.relations:
            if not _whole(graph, relation):
                left.append(relation)
        building.check_room(folder, sum(_most_bytes(graph, relation) for relation in left))
        for relation in left:
            say(f"building {relation.key}: {len(_edges(graph, relation)):,} edges")
            with building.unfinished(_place(graph, relation)) as part:
                part.mkdir()
                build_relation(graph, relation, part)
    return open_edges(graph)


def build_relation(graph: Graph, relation: Relation, part: pathlib.Path) -> None:
    """Writes the in-edges of one relation into an empty folder.

    Raises:
        UserError: an edge names a node that is not there.
    """
    from mlperf_jax.input_pipelines.igbh import loops

    edges, nodes = _edges(graph, relation), graph.size.nodes
    end = (
        1 if relation == _stored(graph, relation) else 0
    )  # the column of the nodes where edges end
    kept = create_npy(part / "indptr.npy", (nodes[relation.target] + 1,), _INDPTR)
    indptr = np.asarray(kept)
    cites, largest = relation == CITES, -1
    for first, piece in _pieces(edges):
        if cites:
            bad, found = loops.count_citations(piece, indptr)
            largest = max(largest, found)
        else:
            bad = loops.count(piece, end, nodes[relation.source], indptr)
        if bad >= 0:
            raise _beyond(graph, relation, first + bad)
    if cites:
        indptr[: largest + 1] += 2
    entries = create_npy(part / "indices.npy", (int(loops.counts_to_starts(indptr)),), _INDICES)
    indices = np.asarray(entries)
    for _, piece in _pieces(edges):
        if cites:
            loops.fill_citations(piece, indptr, indices)
        else:
            loops.fill(piece, end, indptr, indices)
    if cites:
        loops.fill_itself(largest + 1, 2, indptr, indices)
    loops.ends_to_starts(indptr)
    kept.flush()
    entries.flush()
    (part / building.SETTINGS).write_text(json.dumps(_settings(graph, relation)))


def _place(graph: Graph, relation: Relation) -> pathlib.Path:
    return graph.folder / FOLDER / relation.key


def _stored(graph: Graph, relation: Relation) -> Relation:
    """The relation itself, or the one that it is the reverse of: what has a file."""
    return next(r for r in graph.edges if relation in (r, r.reversed))


def _edges(graph: Graph, relation: Relation) -> Mapped:
    return graph.edges[_stored(graph, relation)]


def _pieces(edges: Mapped) -> Iterator[tuple[int, np.ndarray]]:
    for first in range(0, len(edges), _CHUNK):
        yield first, edges.array[first : first + _CHUNK]


def _settings(graph: Graph, relation: Relation) -> dict[str, Any]:
    nodes, edges = graph.size.nodes, _edges(graph, relation)
    ends = [nodes[relation.source], nodes[relation.target]]
    return {"edges": len(edges), "nodes": ends, "file": building.fingerprint(edges.path)}


def _whole(graph: Graph, relation: Relation) -> bool:
    """Whether a relation is there and can be opened.

    Raises:
        UserError: it was built from other edges.
    """
    try:
        _open(graph, relation)
    except _OtherEdges:
        raise
    except UserError:
        return False
    return True


class _OtherEdges(UserError):
    """A relation was built from other edges than the graph now has."""


def _check_settings(graph: Graph, relation: Relation) -> None:
    """Nothing, if what was built says that it is of these edges, and of as many nodes."""
    place, wanted = _place(graph, relation), _settings(graph, relation)
    try:
        found = json.loads((place / building.SETTINGS).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{place} is damaged ({error}): {_AGAIN}") from error
    if not isinstance(found, dict):
        raise UserError(f"{place} is damaged ({building.SETTINGS} is no object): {_AGAIN}")
    # before there were fingerprints there was none
    if {"file": wanted["file"], **found} != wanted:
        raise _OtherEdges(f"{place} was built from {found}, and the graph has {wanted}: {_AGAIN}")


def _most_bytes(graph: Graph, relation: Relation) -> int:
    """Bytes that a relation takes on the disk, at most."""
    entries, nodes = len(_edges(graph, relation)), graph.size.nodes[relation.target]
    if relation == CITES:
        entries = 2 * (entries + nodes)
    return entries * _INDICES.itemsize + (nodes + 1) * _INDPTR.itemsize


def _beyond(graph: Graph, relation: Relation, row: int) -> UserError:
    stored, edges = _stored(graph, relation), _edges(graph, relation)
    ends = zip((stored.source, stored.target), edges.array[row].tolist())
    kind, node = next((k, n) for k, n in ends if not 0 <= n < graph.size.nodes[k])
    return UserError(
        f"{edges.path}, edge {row:,}: it names {kind} {node:,}, and there are {graph.size.nodes[kind]:,} of this "
        "type, from 0 on: fetch it again"
    )

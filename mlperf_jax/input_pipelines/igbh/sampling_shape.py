"""Samples in one static shape: how large it has to be, and what becomes of a sample that is larger.

A shape is a constant of a recipe: it is measured once on some batches, as mean and six standard deviations, and written
down. Room for nodes counts all hops up to one, as only the end of a type's nodes is padded; room for edges is each
hop's own, so that the edges of the first hops are a slice of known length.
NVIDIA's submissions pad in the same way, to the mean and five to seven deviations of their warm-up's node counts.

Shape legend: B seeds, H hops, N room for nodes of a type, E room for edges of a relation, n nodes of a type in a sample,
e edges of a relation in it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.sources import Batch

NOBODY = -1  # in place of a node's number, or of a label


@dataclasses.dataclass(frozen=True)
class Shape:
    """Room for the samples of so many seeds.

    Attributes:
        nodes: type -> room before the first hop and after each, H + 1 numbers that do not fall; the last is N. Only
            the type of the seeds has room before the first hop, for B.
        edges: relation -> room after each hop, H numbers that do not fall; the last is E. The edges of hop h lie from
            edges[h - 2] (0 for the first) to edges[h - 1].

    Raises:
        UserError: for numbers that fall or differ in length, and for edges that have no room for their nodes.
    """

    nodes: Mapping[str, tuple[int, ...]]
    edges: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        hops = len(next(iter(self.nodes.values()), ())) - 1
        rows = [
            *((t, 1, c) for t, c in self.nodes.items()),
            *((r, 0, c) for r, c in self.edges.items()),
        ]
        for name, more, counts in rows:
            if len(counts) != hops + more or any(
                b < a for a, b in itertools.pairwise((0, *counts))
            ):
                raise UserError(
                    f"shape: {name} has {counts}; give {hops + more} numbers, none below the one before it"
                )
        if sum(counts[0] > 0 for counts in self.nodes.values()) != 1:
            raise UserError("shape: one type has room before the first hop, that of the seeds")
        for key, counts in self.edges.items():
            source, target = ends(key)
            for hop, (before, after) in enumerate(itertools.pairwise((0, *counts))):
                if after > before and not (self._room(target, hop) and self._room(source, hop + 1)):
                    raise UserError(
                        f"shape: {key} has room for edges of hop {hop + 1}, but {source} and {target} "
                        "have none for their nodes"
                    )

    def _room(self, node_type: str, hop: int) -> int:
        return self.nodes[node_type][hop] if node_type in self.nodes else 0

    @property
    def seed_type(self) -> str:
        """Type of the seeds."""
        return next(node_type for node_type, counts in self.nodes.items() if counts[0])

    @property
    def seeds(self) -> int:
        """B."""
        return self.nodes[self.seed_type][0]

    def times(self, factor: float, multiple: int = 8) -> Shape:
        """So many times the room, rounded up to a multiple, for the same number of seeds."""

        def more(count: float) -> int:
            return multiple * math.ceil(factor * count / multiple)

        nodes = {t: (first, *map(more, rest)) for t, (first, *rest) in self.nodes.items()}
        return Shape(nodes, {key: tuple(map(more, counts)) for key, counts in self.edges.items()})

    def share_of(self, other: Shape) -> float:
        """The largest share that one of the numbers is of the other shape's; infinity beyond what that has none of.

        >>> small = Shape({"a": (8, 40)}, {"a__to__a": (32,)})
        >>> small.share_of(small.times(2)), small.times(2).share_of(small)
        (0.5, 2.0)
        """
        pairs = [
            *((counts[1:], other.nodes[name][1:]) for name, counts in self.nodes.items()),
            *((counts, other.edges[name]) for name, counts in self.edges.items()),
        ]
        numbers = [pair for mine, theirs in pairs for pair in zip(mine, theirs, strict=True)]
        return max((a / b if b else math.inf for a, b in numbers if a), default=0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """What was drawn for some seeds; nodes and edges lie in the order of the hops that brought them.

    A local number is a node's place among the nodes of its type: the seeds come first, in their order, then what
    appeared in hop 1, and so on. Nodes that hop h brought are the destinations of hop h + 1. So the outputs of
    the seeds after H layers take all edges in layer 1, those up to hop H - 1 in layer 2, … and those of hop 1 in the
    last; and a layer that takes the edges up to hop h computes nodes[type][h - 1] nodes from nodes[type][h].

    Attributes:
        ids: type -> nodes in the graph, int32 [n], each once.
        nodes: type -> how many there are before the first hop and after each, H + 1 numbers; the last is n.
        source: relation -> local numbers of its edges' sources, int32 [e].
        target: relation -> those of their destinations, int32 [e], ascending; so the hops lie one after the other.
        edges: relation -> how many there are after each hop, H numbers; the last is e.
    """

    ids: dict[str, np.ndarray]
    nodes: dict[str, tuple[int, ...]]
    source: dict[str, np.ndarray]
    target: dict[str, np.ndarray]
    edges: dict[str, tuple[int, ...]]


def ends(key: str) -> tuple[str, str]:
    """The types that the edges of a relation come from and lead to.

    >>> ends("author__rev_written_by__paper")
    ('author', 'paper')
    """
    source, _, destination = key.split("__")
    return source, destination


def measured(samples: Iterable[Sample], deviations: float = 6.0, multiple: int = 8) -> Shape:
    """The shape that samples of equally many seeds need: mean and so many standard deviations of every count.

    Args:
        samples: at least two, of equally many seeds; only their counts are kept.
        deviations: beyond the mean; with normal counts one in a thousand million is above six.
        multiple: numbers are rounded up to one of it, but for the seeds'.

    Raises:
        UserError: for fewer than two samples, or other numbers of seeds.
    """
    counts = [(sample.nodes, sample.edges) for sample in samples]
    if len(counts) < 2:
        raise UserError(f"{len(counts)} samples tell no deviation: give at least 2, better 20")
    nodes: dict[str, tuple[int, ...]] = {}
    for node_type in counts[0][0]:
        found = np.array([c[node_type] for c, _ in counts])  # [samples, H + 1]
        if np.ptp(found[:, 0]):
            raise UserError(
                f"samples of {found[:, 0].min()} to {found[:, 0].max()} seeds: give those of one number"
            )
        room = _above(found[:, 1:], deviations, multiple)
        nodes[node_type] = tuple(np.maximum.accumulate([found[0, 0], *room]).tolist())
    edges: dict[str, tuple[int, ...]] = {}
    for key in counts[0][1]:
        found = np.diff(
            [c[key] for _, c in counts], axis=1, prepend=0
        )  # [samples, H], of each hop alone
        edges[key] = tuple(np.cumsum(_above(found, deviations, multiple)).tolist())
    return Shape(nodes, edges)


def mean_of(samples: Iterable[Sample]) -> Shape:
    """What samples of equally many seeds hold on average, to the nearest whole number."""
    counts = [(sample.nodes, sample.edges) for sample in samples]

    def mean(which: int, name: str) -> tuple[int, ...]:
        return tuple(np.mean([c[which][name] for c in counts], 0).round().astype(int).tolist())

    return Shape(
        {name: mean(0, name) for name in counts[0][0]},
        {name: mean(1, name) for name in counts[0][1]},
    )


def _above(found: np.ndarray, deviations: float, multiple: int) -> np.ndarray:
    room = np.ceil(found.mean(0) + deviations * found.std(0, ddof=1)).astype(np.int64)
    return -(-room // multiple) * multiple


class Padded(NamedTuple):
    """A sample in arrays of a static shape; as a tuple of dictionaries of arrays it is a pytree.

    The seeds are the first nodes of their type. A layer that takes the edges up to hop h, the first
    shape.edges[relation][h - 1], finds all sources among the first shape.nodes[type][h] nodes and all targets among the
    first shape.nodes[type][h - 1]: padding too, so that no index is ever outside.

    Attributes:
        seed_mask: bool [B], false where there is no seed.
        ids: type -> nodes in the graph, int32 [N], 0 where there is none.
        node_mask: type -> bool [N], false where there is none.
        source: relation -> local number of each edge's source, int32 [E], 0 where there is no edge.
        target: relation -> that of its destination, int32 [E], ascending; where there is no edge it is the last node
            that the hop could expand, or 0.
        edge_mask: relation -> bool [E], false where there is no edge.
    """

    seed_mask: np.ndarray
    ids: dict[str, np.ndarray]
    node_mask: dict[str, np.ndarray]
    source: dict[str, np.ndarray]
    target: dict[str, np.ndarray]
    edge_mask: dict[str, np.ndarray]


class Dropped(NamedTuple):
    """What a shape had no room for.

    Attributes:
        nodes: type -> how many.
        edges: relation -> how many, those of dropped nodes included.
    """

    nodes: dict[str, int]
    edges: dict[str, int]

    @property
    def total(self) -> int:
        """Of both."""
        return sum(self.nodes.values()) + sum(self.edges.values())


def pad(sample: Sample, shape: Shape) -> tuple[Padded, Dropped]:
    """Lays a sample into arrays of a shape, and says what found no room there.

    What is dropped: of the nodes that a hop brought, the last to appear; with them every edge that leads to or from
    them; and of the edges that a hop brought, the last. What is kept stays in order, and local numbers are closed
    up. A node that only a dropped node had brought stays, and counts for nothing.

    Args:
        sample: of B seeds or fewer.
        shape: of the same types, relations and hops.

    Raises:
        UserError: for a sample of more seeds, or of another graph or number of hops.
    """
    _check(sample, shape)
    ids, node_mask, kept, numbers = {}, {}, {}, {}
    for node_type, found in sample.ids.items():
        room = shape.nodes[node_type]
        kept[node_type], numbers[node_type] = _closed_up(sample.nodes[node_type], room)
        if (new := numbers[node_type]) is not None:
            found = found[new >= 0]
        ids[node_type] = np.zeros(room[-1], np.int32)
        ids[node_type][: len(found)] = found
        node_mask[node_type] = np.arange(room[-1]) < len(found)
    source, target, edge_mask = {}, {}, {}
    for key, room in shape.edges.items():
        types = ends(key)
        source[key], target[key] = np.zeros(room[-1], np.int32), np.zeros(room[-1], np.int32)
        edge_mask[key] = np.zeros(room[-1], bool)
        hops = zip(itertools.pairwise((0, *sample.edges[key])), itertools.pairwise((0, *room)))
        for hop, ((first, stop), (begin, end)) in enumerate(hops):
            pair = sample.source[key][first:stop], sample.target[key][first:stop]
            sources, targets = _renumbered(pair, [numbers[t] for t in types])
            last = begin + min(len(sources), end - begin)
            source[key][begin:last] = sources[: last - begin]
            target[key][begin:last] = targets[: last - begin]
            target[key][last:end] = max(0, kept[types[1]][hop] - 1)
            edge_mask[key][begin:last] = True
    dropped = Dropped(
        {t: counts[-1] - kept[t][-1] for t, counts in sample.nodes.items()},
        {r: counts[-1] - int(edge_mask[r].sum()) for r, counts in sample.edges.items()},
    )
    seed_mask = np.arange(shape.seeds) < sample.nodes[shape.seed_type][0]
    return Padded(seed_mask, ids, node_mask, source, target, edge_mask), dropped


def laid_out(
    padded: Padded,
    dropped: Dropped,
    labels: np.ndarray,
    bins: Mapping[str, tuple[int, int]],
    grouped: Callable[..., tuple[np.ndarray, np.ndarray]],
) -> Batch:
    """A row of a batch.

    Args:
        padded, dropped: of `pad`.
        labels: int32 [B], `NOBODY` where there is no seed.
        bins: type -> (block, bins) of types whose nodes are to be grouped.
        grouped: (ids, block, bins) -> the ids by the bin that their block is dealt to, and where each is in them.

    Returns:
        "labels" int32 [B], -1 where there is no seed (0 in rows of padding, which are zeros); "dropped", int32,
        nodes and edges that found no room; "ids/<type>" int32 [N], -1 where there is no node; of types that have bins
        these are grouped by bin, and "place/<type>" int32 [N] says where each local number's is; of each relation
        "source/<key>" and "target/<key>" int32 [E], local numbers, and "real/<key>" bool [E].
    """
    found: Batch = {"labels": labels, "dropped": np.array(dropped.total, np.int32)}
    for kind, ids in padded.ids.items():
        count = np.count_nonzero(padded.node_mask[kind])
        found[f"ids/{kind}"] = ids = np.where(padded.node_mask[kind], ids, NOBODY)
        if kind in bins:
            found[f"place/{kind}"] = place = np.arange(len(ids), dtype=np.int32)
            ids[:count], place[:count] = grouped(ids[:count], *bins[kind])
    for key in padded.source:
        found[f"source/{key}"] = padded.source[key]
        found[f"target/{key}"] = padded.target[key]
        found[f"real/{key}"] = padded.edge_mask[key]
    return found


def _check(sample: Sample, shape: Shape) -> None:
    for what, found, room in (
        ("types", sample.nodes, shape.nodes),
        ("relations", sample.edges, shape.edges),
    ):
        if set(found) != set(room):
            raise UserError(
                f"the sample has {what} {', '.join(sorted(found))}, the shape {', '.join(sorted(room))}: "
                "measure a shape of this graph"
            )
    for node_type, counts in sample.nodes.items():
        room = shape.nodes[node_type]
        if len(counts) != len(room):
            raise UserError(
                f"the sample has {len(counts) - 1} hops, the shape {len(room) - 1}: measure one with these fan-outs"
            )
        if counts[0] > room[0]:
            raise UserError(
                f"{counts[0]} {node_type} seeds in a shape for {room[0]}: measure one for as many"
            )


def _closed_up(
    counts: tuple[int, ...], room: tuple[int, ...]
) -> tuple[tuple[int, ...], np.ndarray | None]:
    """How many nodes are kept after each hop, and the new number of each, -1 for none; None where all are kept."""
    if all(count <= most for count, most in zip(counts, room, strict=True)):
        return counts, None
    new = np.full(counts[-1], -1, np.int32)
    kept = [0]
    for (first, stop), most in zip(itertools.pairwise((0, *counts)), room, strict=True):
        last = min(most, kept[-1] + stop - first)
        new[first : first + last - kept[-1]] = np.arange(kept[-1], last)
        kept.append(last)
    return tuple(kept[1:]), new


def _renumbered(
    pair: tuple[np.ndarray, np.ndarray], numbers: list[np.ndarray | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Sources and targets with their new numbers, without the edges of which an end was dropped."""
    if all(new is None for new in numbers):
        return pair
    sources, targets = (e if new is None else new[e] for e, new in zip(pair, numbers, strict=True))
    stay = (sources >= 0) & (targets >= 0)
    return (sources, targets) if stay.all() else (sources[stay], targets[stay])

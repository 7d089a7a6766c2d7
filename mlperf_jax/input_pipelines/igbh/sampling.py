"""Neighbour samples: from seeds along in-edges, hop by hop, what a heterogeneous model needs of a graph.

Each hop expands the nodes that appeared first in the hop before it: 15 in-edges of each under every relation at the
seeds, then 10, then 5, uniform and without replacement by edge (an edge that the list holds twice is two edges), and
all of them where there are no more. A node is expanded once, and all edges serve all layers.
Reference: mlcommons/training, retired_benchmarks/rgat, with the sampler of graphlearn-for-pytorch on GPUs.

A sample is a function of (seed, batch number, seeds): its random bits are a hash of seed, batch, hop, relation, node
and draw. So neither the order in which batches are asked for nor the number of threads that ask can change it. One
thread makes one sample, without the interpreter's lock; threads make several.

Nodes get their numbers by a hash table of the sample's own, of 20 to 80 bytes a distinct node, which is gone with it. A
stamp for each node of the graph would be 4 bytes for every one of 547 M, 2.2 GB in each thread, and takes 1.1 to 1.3
times as long (`scripts/bench_sampling.py --stamps`): its pages are far apart.

Shape legend: N nodes of a type, E edges of a relation, B seeds, H hops, n nodes of a type in a sample, e edges of a
relation in a sample.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.igbh import sampling_kernels as kernels
from mlperf_jax.input_pipelines.igbh.arrays import Mapped
from mlperf_jax.input_pipelines.igbh.in_edges import InEdges
from mlperf_jax.input_pipelines.igbh.sampling_shape import Sample
from mlperf_jax.input_pipelines.igbh.sizes import FANOUTS, MOST_NODES

_WORD = 2**64 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """Samples of a graph; it holds no state, and threads may share it.

    Attributes:
        nodes: type -> N.
        relations: in the order in which the nodes that they lead to are numbered.
        seed_type: type of the seeds.
        fanouts: in-edges of a node under a relation at most, from the seeds outwards: H numbers.

    Raises:
        UserError: for arrays that are not those of such a graph, and fan-outs below 1.

    >>> from mlperf_jax.input_pipelines.igbh.sizes import CITES
    >>> indptr, indices = np.array([0, 2, 3]), np.array([1, 1, 0], np.int32)
    >>> graph = Sampler({"paper": 2}, (InEdges(CITES, indptr, indices),), fanouts=(5,))
    >>> graph(np.array([1]), seed=0, batch=0).ids["paper"].tolist()
    [1, 0]
    """

    nodes: Mapping[str, int]
    relations: Sequence[InEdges]
    seed_type: str = "paper"
    fanouts: tuple[int, ...] = FANOUTS

    def __post_init__(self) -> None:
        if self.seed_type not in self.nodes:
            raise UserError(
                f"seeds are {self.seed_type} nodes; the graph has only {', '.join(self.nodes)}"
            )
        if not self.fanouts or min(self.fanouts) < 1:
            raise UserError(f"fanouts are {self.fanouts}; give one for each hop, each at least 1")
        for node_type, count in self.nodes.items():
            if not 0 <= count <= MOST_NODES:
                raise UserError(
                    f"{count:,} {node_type} nodes: a type has between 0 and {MOST_NODES:,}"
                )
        keys = [edges.relation.key for edges in self.relations]
        for edges, key in zip(self.relations, keys):
            edges.check(self.nodes)
            if keys.count(key) > 1:
                raise UserError(f"relation {key} is there twice: give each once")

    def __call__(self, seeds: np.ndarray, *, seed: int, batch: int) -> Sample:
        """The sample of some seeds.

        Args:
            seeds: int [B], different nodes of `seed_type`.
            seed: of the random numbers, which only its last 64 bits decide.
            batch: number that sets them apart from those of other batches. Where several devices have a sample
                each in a step, give each a number of its own.

        Raises:
            UserError: for seeds that are repeated or not in the graph, and, naming relation and node, for a node
                whose edges are not in the arrays or come from a node that is not in the graph.
        """
        numbers = {node_type: _Numbers() for node_type in self.nodes}
        numbers[self.seed_type].of(self._checked(seeds))
        if numbers[self.seed_type].count < len(seeds):
            values, counts = np.unique(seeds, return_counts=True)
            raise UserError(
                f"batch {batch}: seed {values[counts > 1][0]} is there twice: give each {self.seed_type} once"
            )
        nodes = {node_type: [n.count] for node_type, n in numbers.items()}
        found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {
            edges.relation.key: [] for edges in self.relations
        }
        for hop, fanout in enumerate(self.fanouts):
            for place, edges in enumerate(self.relations):
                relation = edges.relation
                begin = nodes[relation.target][hop - 1] if hop else 0
                frontier = numbers[relation.target].ids[begin : nodes[relation.target][hop]]
                words = (np.uint64(part & _WORD) for part in (seed, batch, hop, place))
                sources, targets, wrong = kernels.draw(
                    _read_only(edges.indptr),
                    _read_only(edges.indices),
                    self.nodes[relation.source],
                    frontier,
                    begin,
                    fanout,
                    np.uint64(kernels.stream(*words)),
                )
                if wrong >= 0:
                    raise UserError(self._damage(edges, int(frontier[wrong])))
                found[relation.key].append((numbers[relation.source].of(sources), targets))
            for node_type, counts in nodes.items():
                counts.append(numbers[node_type].count)
        return Sample(
            ids={node_type: n.ids[: n.count].copy() for node_type, n in numbers.items()},
            nodes={node_type: tuple(counts) for node_type, counts in nodes.items()},
            source={key: np.concatenate([s for s, _ in hops]) for key, hops in found.items()},
            target={key: np.concatenate([t for _, t in hops]) for key, hops in found.items()},
            edges={
                key: tuple(np.cumsum([len(s) for s, _ in hops]).tolist())
                for key, hops in found.items()
            },
        )

    def _checked(self, seeds: np.ndarray) -> np.ndarray:
        if seeds.ndim != 1 or seeds.dtype.kind not in "iu":
            raise UserError(
                f"seeds are {seeds.dtype} of shape {seeds.shape}; give a vector of integers"
            )
        count = self.nodes[self.seed_type]
        outside = seeds[(seeds < 0) | (seeds >= count)]
        if len(outside):
            raise UserError(
                f"seed {outside[0]} is no {self.seed_type}: there are {count:,}, from 0; is it another graph's split?"
            )
        return np.array(seeds, np.int32, order="C")

    def _damage(self, edges: InEdges, node: int) -> str:
        relation, many = edges.relation, len(edges.indices)
        begin, end = np.asarray(edges.indptr)[node : node + 2].tolist()
        if 0 <= begin <= end <= many:
            bad = f"come from a node that is none of {self.nodes[relation.source]:,} {relation.source} nodes"
        else:
            bad = f"are said to be {begin:,} to {end:,} of {many:,}"
        return (
            f"relation {relation.key}: the in-edges of {relation.target} {node} {bad}; "
            "the arrays are damaged: remove the graph's folder csc, and build it again: mlperf-jax data build rgat"
        )


class _Numbers:
    """The local numbers of a type's nodes in one sample."""

    def __init__(self) -> None:
        self._slots, self.ids = kernels.table()
        self.count = 0

    def of(self, nodes: np.ndarray) -> np.ndarray:
        """The number of each node, int32 [e]; new ones get the next, in their order."""
        numbers, self._slots, self.ids, self.count = kernels.number(
            nodes, self._slots, self.ids, self.count
        )
        return numbers


def _read_only(array: Mapped | np.ndarray) -> np.ndarray:
    """A plain view that cannot be written: memory maps and arrays are then one type to the compiler."""
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view

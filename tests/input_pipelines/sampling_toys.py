"""Small graphs to sample, and a sampler in plain Python that draws the same random numbers."""

import numpy as np

from mlperf_jax.input_pipelines.igbh.in_edges import InEdges
from mlperf_jax.input_pipelines.igbh.sampling import Sampler
from mlperf_jax.input_pipelines.igbh.sizes import Relation

NODES = {"paper": 300, "author": 200, "journal": 7, "fos": 0}
ENDS = [
    ("paper", "cites", "paper"),
    ("author", "rev_written_by", "paper"),
    ("paper", "written_by", "author"),
    ("journal", "rev_published", "paper"),
    ("paper", "published", "journal"),
    ("paper", "topic", "fos"),
]
_WORD = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def relation(lists, ends=("paper", "cites", "paper"), dtype=np.int32) -> InEdges:
    """The edges by which destination i has the in-edges lists[i]."""
    indptr = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    return InEdges(Relation(*ends), indptr, np.array([s for found in lists for s in found], dtype))


def toy(fanouts=(4, 3, 2)) -> Sampler:
    """Three types and one that is empty; degrees from 0 to 20, edges twice and more often, self loops."""
    rng = np.random.default_rng(0)
    relations = []
    for place, (source, name, destination) in enumerate(ENDS):
        degrees = rng.integers(0, 21, NODES[destination]) * rng.integers(0, 2, NODES[destination])
        lists = [rng.integers(0, NODES[source], degree).tolist() for degree in degrees]
        ends = (source, name, destination)
        relations.append(relation(lists, ends, (np.int32, np.int64)[place % 2]))
    return Sampler(NODES, relations, fanouts=fanouts)


def plain(sampler: Sampler, seeds, seed: int, batch: int) -> dict:
    """What the sample has to be: ids, nodes, source, target and edges as lists, by their definition."""
    ids = {node_type: [] for node_type in sampler.nodes}
    ids[sampler.seed_type] = list(map(int, seeds))
    nodes = {node_type: [len(found)] for node_type, found in ids.items()}
    source, target, edges = ({e.relation.key: [] for e in sampler.relations} for _ in range(3))
    for hop, fanout in enumerate(sampler.fanouts):
        for place, edge in enumerate(sampler.relations):
            begin = nodes[edge.relation.target][hop - 1] if hop else 0
            for local in range(begin, nodes[edge.relation.target][hop]):
                node = ids[edge.relation.target][local]
                first, stop = edge.indptr[node : node + 2].tolist()
                stream = _stream(seed, batch, hop, place)
                for at in _drawn(stop - first, fanout, _mixed(stream + node * _GOLDEN)):
                    found = int(edge.indices[first + at])
                    if found not in ids[edge.relation.source]:
                        ids[edge.relation.source].append(found)
                    source[edge.relation.key].append(ids[edge.relation.source].index(found))
                    target[edge.relation.key].append(local)
            edges[edge.relation.key].append(len(source[edge.relation.key]))
        for node_type, counts in nodes.items():
            counts.append(len(ids[node_type]))
    return {"ids": ids, "nodes": nodes, "source": source, "target": target, "edges": edges}


def _drawn(degree: int, fanout: int, state: int) -> list[int]:
    if degree <= fanout:
        return list(range(degree))
    found: list[int] = []
    for j in range(fanout):
        top = degree - fanout + j
        at = _mixed(state + (j + 1) * _GOLDEN) * (top + 1) >> 64
        found.append(top if at in found else at)
    return found


def _stream(*words: int) -> int:
    key = 0
    for word in words:
        key = _mixed(key + word + _GOLDEN)
    return key


def _mixed(z: int) -> int:
    z &= _WORD
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _WORD
    return z ^ z >> 31

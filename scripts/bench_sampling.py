"""Neighbour samples of a graph like IGBH: edges and seeds a processor-second, and what one padded shape costs.

    python scripts/bench_sampling.py --cores 1             # half a minute, 1 GB of memory
    python scripts/bench_sampling.py --cores 1 --stamps    # how nodes get their numbers, two ways; 3 GB
    python scripts/bench_sampling.py --shape --papers 16000000 --seeds 512    # 5 minutes, 12 GB
    python scripts/bench_sampling.py --shape --planted --seeds 32

The graph has IGBH's 11 relations, its types in the full size's proportions, and edges by power laws: cited papers,
prolific authors, popular topics. Mean degrees are guesses, as no counts are published by relation; together they
make the 5.8 G edges (before reversal) of the full size. The first samples 4,096 seeds, 512 at a time, at once, and as
many others in two threads; then it measures a shape on 24 batches and pads 24 others to it. A smaller graph is seen
whole sooner, so a seed brings fewer new nodes than of IGBH. With `--cores 1` the two threads take turns.
The second times the numbering alone, on all ids that some batches of 512 come upon, spread over as many authors as IGBH
has: by the hash table that the sampler makes for each batch, and by a stamp for each of them that is never cleared.
The last two print the room and the means that input_pipelines/igbh/rooms.py and planted.py state; the small types then
have as many nodes as in the full graph.
"""

from __future__ import annotations

import concurrent.futures
import tempfile
from collections.abc import Callable, Mapping

import measuring

# isort: split

import numba
import numpy as np

from mlperf_jax.input_pipelines.igbh import csc, planted, sampling_kernels as kernels
from mlperf_jax.input_pipelines.igbh.graph import open_graph
from mlperf_jax.input_pipelines.igbh.in_edges import InEdges
from mlperf_jax.input_pipelines.igbh.sampling import Sampler
from mlperf_jax.input_pipelines.igbh.sampling_shape import Sample, mean_of, measured, pad
from mlperf_jax.input_pipelines.igbh.sizes import SIZES, Relation

SEEDS, MANY = 512, 4096
AUTHORS = 277_220_883
# a type has so many nodes for each paper
SHARE = {
    "paper": 1.0,
    "author": 1.0292,
    "fos": 0.002647,
    "institute": 0.0001,
    "journal": 0.000182,
    "conference": 0.0000169,
}
# from, name, to, edges for each node of the first type, and how steep the popularity is at either end: an end is
# the node of rank n u^steepness, u uniform, so that the degree of rank r goes like r^(1 / steepness - 1)
EDGES = (
    ("paper", "cites", "paper", 13.4, 1.5, 3.0),
    ("paper", "written_by", "author", 3.0, 1.2, 2.0),
    ("author", "affiliated_to", "institute", 0.5, 1.0, 3.0),
    ("paper", "topic", "fos", 4.0, 1.2, 2.5),
    ("paper", "published", "journal", 0.6, 1.0, 2.0),
    ("paper", "venue", "conference", 0.1, 1.0, 2.0),
)


@numba.njit
def by_destination(sources: np.ndarray, destinations: np.ndarray, n: int):
    """Edges to CSC, in their order."""
    indptr = np.zeros(n + 1, np.int64)
    for d in destinations:
        indptr[d + 1] += 1
    indptr = np.cumsum(indptr)
    at, indices = indptr[:-1].copy(), np.empty(len(sources), np.int32)
    for s, d in zip(sources, destinations):
        indices[at[d]] = s
        at[d] += 1
    return indptr, indices


def scaled(papers: int, *, small: bool = False) -> dict[str, int]:
    """Nodes by type in the full graph's proportions; with `small` the small types have as many as there."""
    nodes = {node_type: max(2, round(papers * share)) for node_type, share in SHARE.items()}
    if small:  # samples see all of them otherwise
        nodes |= {kind: n for kind, n in SIZES["full"].nodes.items() if n < 1e6}
    return nodes


def graph(nodes: Mapping[str, int]) -> Sampler:
    """The relations between these types, up to 11; `cites` in both directions, each self loop twice, as IGBH's."""
    rng = np.random.default_rng(0)
    names = {node_type: rng.permutation(n).astype(np.int32) for node_type, n in nodes.items()}

    def end(node_type: str, count: int, steepness: float) -> np.ndarray:
        ranks = nodes[node_type] * rng.random(count, np.float32).astype(np.float64) ** steepness
        return names[node_type][ranks.astype(np.int64)]

    relations = []
    for source, name, to, degree, *steepness in EDGES:
        if not {source, to} <= set(nodes):
            continue
        relation, count = Relation(source, name, to), round(nodes[source] * degree)
        a, b = (end(t, count, s) for t, s in zip((source, to), steepness))
        if source == to:
            itself = np.arange(nodes[to], dtype=np.int32)
            a, b = np.concatenate([a, itself, b, itself]), np.concatenate([b, itself, a, itself])
        else:
            there = by_destination(b, a, nodes[source])
            relations.append(InEdges(relation.reversed, *there))
        relations.append(InEdges(relation, *by_destination(a, b, nodes[to])))
    return Sampler(nodes, relations)


def batches(sampler: Sampler, size: int, seeds: int, seed: int = 0) -> Callable[[], list[Sample]]:
    """What samples so many different seeds, `size` at a time."""
    order = np.random.default_rng([seed, 1]).permutation(sampler.nodes["paper"])[:seeds]
    parts = np.split(order, seeds // size)
    return lambda: [sampler(part, seed=seed, batch=i) for i, part in enumerate(parts)]


def edges(samples: list[Sample]) -> int:
    return sum(sum(counts[-1] for counts in sample.edges.values()) for sample in samples)


def nodes(samples: list[Sample]) -> int:
    return sum(sum(counts[-1] for counts in sample.nodes.values()) for sample in samples)


def bench(papers: int, rounds: int) -> None:
    begin = measuring.processor_seconds()
    sampler = graph(scaled(papers))
    many = sum(len(edges.indices) for edges in sampler.relations)
    print(
        f"{papers:,} papers, {many:,} edges in 11 relations; built in "
        f"{measuring.processor_seconds() - begin:.1f} processor seconds",
        flush=True,
    )
    half = MANY // 2
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        halves = [batches(sampler, SEEDS, half, seed) for seed in (3, 4)]
        sides = {
            f"{SEEDS} seeds": batches(sampler, SEEDS, MANY),
            f"{MANY:,} seeds": batches(sampler, MANY, MANY),
            f"{SEEDS} seeds, two threads": lambda: [
                s for part in pool.map(lambda work: work(), halves) for s in part
            ],
        }
        known = {name: make() for name, make in sides.items()}
        spent = measuring.in_turns(sides, rounds, 0)
    for name, values in spent.items():
        count, unique = edges(known[name]), nodes(known[name])
        rate = measuring.spread([count / v / 1e6 for v in values])
        print(
            f"  {name:28} {rate} M edges a processor-second; {measuring.spread([MANY / v for v in values])} "
            f"seeds; a seed: {count / MANY:,.0f} edges, {unique / MANY:,.0f} nodes",
            flush=True,
        )
    padding(sampler, rounds)


def padding(sampler: Sampler, rounds: int, count: int = 24) -> None:
    """How much larger one shape is than samples that it was not measured on."""
    known, others = (batches(sampler, SEEDS, SEEDS * count, seed)() for seed in (1, 2))
    shape = measured(known)
    spent = measuring.in_turns({"pad": lambda: pad(others[0], shape)}, rounds, 0.2)["pad"]
    print(f"one shape for {SEEDS} seeds, of {count} batches: mean and 6 deviations of each count")
    for what, room, found in (
        ("nodes", shape.nodes, [s.nodes for s in others]),
        ("edges", shape.edges, [s.edges for s in others]),
    ):
        whole = sum(counts[-1] for counts in room.values())
        real = np.mean([sum(counts[-1] for counts in sample.values()) for sample in found])
        print(f"  {what}: room for {whole:,}, {real:,.0f} there: {whole / real - 1:.1%} padding")
        for key, counts in sorted(room.items(), key=lambda item: -item[1][-1]):
            mean = np.mean([sample[key] for sample in found], 0)
            hops = ", ".join(f"{a:,} for {b:,.0f}" for a, b in zip(counts, mean))
            print(f"    {key:36} {counts[-1] / mean[-1] - 1:6.1%}  ({hops})")
    dropped = [pad(sample, shape)[1].total for sample in others]
    print(f"  dropped in {count} other batches: {sum(dropped)} nodes and edges")
    print(f"  padding one: {measuring.spread([v * 1e3 for v in spent])} ms", flush=True)


# -- stamps --------------------------------------------------------------------------------------


@numba.njit
def by_stamp(ids: np.ndarray, stamps: np.ndarray, numbered: np.ndarray):
    """The other way: a node's stamp is its number where the numbered node of that number is itself."""
    numbers, count = np.empty(len(ids), np.int32), 0
    for first in range(0, len(ids), 64):
        stop = min(first + 64, len(ids))
        for e in range(first, stop):
            numbers[e] = stamps[ids[e]]
        for e in range(first, stop):
            local = stamps[ids[e]]
            if local >= count or numbered[local] != ids[e]:
                local = stamps[ids[e]] = count
                numbered[count] = ids[e]
                count += 1
            numbers[e] = local
    return numbers, count


def bench_stamps(papers: int, rounds: int) -> None:
    apart = AUTHORS // papers
    found = [
        np.concatenate([s.ids[key.split("__")[0]][sources] for key, sources in s.source.items()])
        for s in batches(graph(scaled(papers)), SEEDS, 8 * SEEDS)()
    ]
    found = [np.minimum(ids, papers - 1) * np.int32(apart) for ids in found]
    stamps = np.zeros(AUTHORS, np.int32)

    def by_table() -> list[int]:
        return [kernels.number(ids, *kernels.table(), 0)[3] for ids in found]

    def by_stamps() -> list[int]:
        return [by_stamp(ids, stamps, np.empty(len(ids), np.int32))[1] for ids in found]

    unique, total = by_table(), sum(map(len, found))
    assert unique == by_stamps()
    print(f"8 batches: {total:,} ids, {sum(unique):,} different within theirs, below {AUTHORS:,}")
    spent = measuring.in_turns({"stamps": by_stamps, "hash table": by_table}, rounds, 0.3)
    measuring.report(spent, "stamps", "an id", total)


# -- shapes --------------------------------------------------------------------------------------


def print_shape(sampler: Sampler, seeds: int, count: int) -> None:
    """Room and mean of some samples, as Python."""
    count = min(count, sampler.nodes["paper"] // seeds)
    found = batches(sampler, seeds, seeds * count, seed=1)()
    for name, shape in (("ROOMS", measured(found)), ("MEANS", mean_of(found))):
        print(f"{name} = {{({seeds}, {sampler.fanouts}): Shape(")
        for counts in (shape.nodes, shape.edges):
            print("    {")
            for key, numbers in counts.items():
                print(f'        "{key}": ({", ".join(f"{n:_}" for n in numbers)}),')
            print("    },")
        print(")}")


def planted_sampler() -> Sampler:
    with tempfile.TemporaryDirectory() as folder:
        planted.write(folder)
        opened = open_graph(folder, planted.SIZE, classes=planted.COMMUNITIES)
        built = csc.build(opened, lambda text: None).values()
        edges = [InEdges(e.relation, np.array(e.indptr), np.array(e.indices)) for e in built]
    return Sampler(planted.SIZE.nodes, edges, fanouts=planted.FANOUTS)


def main() -> None:
    parser = measuring.parser(__doc__, rounds=7, seconds=None)
    parser.add_argument("--papers", type=int, default=2_000_000)
    parser.add_argument("--stamps", action="store_true", help="time the numbering alone, two ways")
    parser.add_argument("--shape", action="store_true", help="print room and means of samples")
    parser.add_argument("--planted", action="store_true", help="of the tiny run's graph")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    print(measuring.header())
    if options.shape:
        sampler = (
            planted_sampler() if options.planted else graph(scaled(options.papers, small=True))
        )
        print_shape(sampler, options.seeds, 400 if options.planted else 48)
        return
    (bench_stamps if options.stamps else bench)(options.papers, options.rounds)


if __name__ == "__main__":
    main()

"""IGBH: what the permutation of the papers and the in-edges by destination cost, in time and in memory.

    python scripts/bench_igbh.py --cores 1               # a minute, 2 GB of disk in the temporary folder
    python scripts/bench_igbh.py --cores 1 --split       # the full graph's 157,675,969 papers

A graph of random edges is written in the sizes' proportions: a tenth as many papers as there are citations. Each
relation is built once, after the edges were read once, so that they lie in the page cache; compiling is not counted.
Anonymous memory is the process's alone, and read every 5 ms; pages of mapped files are the system's to take back.
"""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator

import measuring

# isort: split

import numpy as np

from mlperf_jax.input_pipelines.igbh import csc, graph, split
from mlperf_jax.input_pipelines.igbh.sizes import CITES, CLASSES, STORED, Relation, Size

SHOWN = (CITES, STORED[1], STORED[1].reversed)


def write(folder: pathlib.Path, size: Size, edges: int) -> graph.Graph:
    """Random edges, as many for each of the relations shown; features of one number."""
    rng, place = np.random.default_rng(0), folder / size.name / "processed"
    for kind, count in size.nodes.items():
        (place / kind).mkdir(parents=True)
        np.save(place / kind / "node_feat.npy", np.zeros((count, size.width), np.float32))
    for name in ("node_label_2K.npy", "node_label_19.npy"):
        np.save(place / "paper" / name, np.zeros(size.nodes["paper"], np.float32))
    for relation in size.stored:
        shape = (edges if relation in SHOWN else 10, 2)
        ends = size.nodes[relation.source], size.nodes[relation.target]
        (place / relation.key).mkdir()
        np.save(place / relation.key / "edge_index.npy", rng.integers(0, ends, shape))
    return graph.open_graph(folder, size)


@contextlib.contextmanager
def anonymous() -> Iterator[list[int]]:
    """Fills a list with the bytes of anonymous memory at the beginning and at most."""
    found, done = [now(), 0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            found[1] = max(found[1], now())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def now() -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon:")))


def report(what: str, count: int, spent: float, clock: float, memory: list[int]) -> None:
    print(
        f"  {what:32} {spent:5.1f} s of processor time, {clock:5.1f} s by the clock, "
        f"{measuring.number(count / spent / 1e6)} M a processor second, anonymous memory at most "
        f"{memory[1] / 2**20:,.0f} MiB ({memory[0] / 2**20:,.0f} before)",
        flush=True,
    )


def bench_edges(edges: int, rounds: int) -> None:
    papers = edges // 10
    nodes = {"paper": papers, "author": papers * 3 // 2, "institute": 1000, "fos": 1000}
    size = Size("bench", nodes, dict.fromkeys(CLASSES, papers), width=1)
    small = Size("small", dict.fromkeys(nodes, 100), dict.fromkeys(CLASSES, 100), width=1)
    with tempfile.TemporaryDirectory() as folder:
        csc.build(write(pathlib.Path(folder), small, 100), lambda text: None)  # compiles
        opened = write(pathlib.Path(folder), size, edges)
        print(f"{edges:,} random edges, {papers:,} papers:")
        for _, relation in itertools.product(range(rounds), SHOWN):
            build(opened, relation)


def build(opened: graph.Graph, relation: Relation) -> None:
    """Builds one relation and reports it."""
    stored = next(e for r, e in opened.edges.items() if relation in (r, r.reversed))
    stored.array.sum()  # into the page cache
    part = pathlib.Path(tempfile.mkdtemp(dir=opened.folder))
    begun, clock = measuring.processor_seconds(), time.monotonic()
    with anonymous() as memory:
        csc.build_relation(opened, relation, part)
    spent = measuring.processor_seconds() - begun
    report(relation.key, len(stored), spent, time.monotonic() - clock, memory)
    shutil.rmtree(part)


def bench_split(rounds: int) -> None:
    split.permutation(1000)  # compiles
    for _ in range(rounds):
        begun, clock = measuring.processor_seconds(), time.monotonic()
        with anonymous() as memory:
            split.papers()
        spent = measuring.processor_seconds() - begun
        report("the split", split.LABELLED, spent, time.monotonic() - clock, memory)


def main() -> None:
    parser = measuring.parser(__doc__, rounds=1, seconds=None)
    parser.add_argument("--edges", type=int, default=40_000_000)
    parser.add_argument("--split", action="store_true")
    options = parser.parse_args()
    print(measuring.header())
    if options.split:
        bench_split(options.rounds)
    else:
        bench_edges(options.edges, options.rounds)


if __name__ == "__main__":
    main()

"""Times R-GAT's train step on a generated graph: alone, fed by the sampler, and beside PyTorch.

    python scripts/bench_rgat.py [--json FILE]                                    # of IGBH-medium's size, on a GPU
    JAX_PLATFORMS=cpu python scripts/bench_rgat.py --size small --cores 2 --rounds 3    # a small one

The graph has IGBH-medium's nodes by type and edges by power laws (bench_sampling.py), and float8 features that lie on the
device. `ours` is the step that `run` compiles, given one batch over and over; `ours, fed` the same with batches that threads
sample meanwhile, as many threads as cores, so that it tells what a run would do here. `PyTorch` is the twin of scripts/twins
on the same samples, which are laid out beforehand. `--no-twin` leaves it out; so does a machine without torch. PyG's
NeighborLoader is timed too where its compiled library (pyg-lib or torch-sparse) is installed.

The exit code is 1 when a GPU is slower than PyTorch. 23,000 seeds/s and H200 is the best rate in the logs of rounds, on the
full graph.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import os
import time
from collections.abc import Iterator
from typing import Any

# isort: split

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs room beside us

import bench_sampling
import jax
import numpy as np
import stepping

from mlperf_jax.benchmarks.rgat import RGat
from mlperf_jax.core import feed, mesh as meshes
from mlperf_jax.input_pipelines import pipeline
from mlperf_jax.input_pipelines.igbh.rows import Rows
from mlperf_jax.input_pipelines.igbh.sampling import Sampler
from mlperf_jax.input_pipelines.igbh.sampling_shape import Shape, mean_of, measured
from mlperf_jax.input_pipelines.igbh.sizes import CLASSES, SIZES, Size

PUBLISHED = 23_000
SMALL = {"heads": 2, "head_width": 16, "classes": 19, "fanouts": (4, 3, 2), "sample_seeds": 64}


@dataclasses.dataclass(frozen=True)
class Made:
    """A generated graph with the room that samples of it need."""

    size: Size
    sampler: Sampler
    shape: Shape
    mean: Shape


@functools.cache
def made(small: bool) -> Made:
    seeds, fanouts = (SMALL["sample_seeds"], SMALL["fanouts"]) if small else (512, (15, 10, 5))
    nodes = {"paper": 20_000, "author": 20_000, "institute": 20, "fos": 500}
    nodes = nodes if small else dict(SIZES["medium"].nodes)
    width = 32 if small else 1024
    size = Size("generated", nodes, dict.fromkeys(CLASSES, nodes["paper"]), width=width)
    sampler = dataclasses.replace(bench_sampling.graph(nodes), fanouts=fanouts)
    samples = bench_sampling.batches(sampler, seeds, 24 * seeds, seed=1)()
    return Made(size, sampler, measured(samples), mean_of(samples))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generated(RGat):
    """The benchmark on a generated graph."""

    small: bool = False

    @property
    def size_of_graph(self) -> Size:
        return made(self.small).size

    def shape(self) -> Shape:
        return made(self.small).shape

    @property
    def flops_per_sample(self) -> float:
        mean = made(self.small).mean
        return self.architecture().flops(mean.nodes, mean.edges) / self.sample_seeds

    def rows_of(self) -> Rows:
        papers: Any = Labelled(self.train_samples, self.classes)
        sampler = made(self.small).sampler
        return Rows(papers, sampler, self.shape(), self.batch_size, self.bins())


class Labelled:
    """All papers train, with labels that say nothing."""

    def __init__(self, count: int, classes: int):
        self.labels = np.random.default_rng(1).integers(0, classes, count).astype(np.int16)
        self.all, self.counts = np.arange(count, dtype=np.int32), (count, 0)

    def of(self, which: str) -> np.ndarray:
        return self.all


class Fed:
    """The same step, its batches sampled by threads while it runs."""

    def __init__(self, given: Generated, ours: stepping.Ours) -> None:
        mesh, rows = meshes.make_mesh("data=1"), given.rows_of()
        batches = pipeline.training(rows, plan=rows.plan()).batched(given.rows, seed=1)
        self.feed = feed.Feed(batches.stream(), given.buckets(), mesh)
        self.stepper, self.rows, self.wait = ours.stepper, ours.rows, ours.wait

    def step(self) -> Any:
        return self.stepper.step(next(self.feed))


def loader_rate(given: Generated) -> float | None:
    """Seeds a second of PyG's NeighborLoader with a worker a core, where its compiled library is there."""
    if not (importlib.util.find_spec("pyg_lib") or importlib.util.find_spec("torch_sparse")):
        return None
    import torch
    from torch_geometric.data import HeteroData
    from torch_geometric.loader import NeighborLoader

    data, found = HeteroData(), made(given.small)
    for kind, count in found.size.nodes.items():
        data[kind].num_nodes = count
    for edges in found.sampler.relations:
        indptr, indices = np.asarray(edges.indptr), np.asarray(edges.indices)
        targets = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        data[tuple(edges.relation)].edge_index = torch.from_numpy(
            np.stack([indices, targets])
        ).long()
    seeds = torch.arange(64 * given.sample_seeds) % found.size.nodes["paper"]
    loader = NeighborLoader(
        data,
        list(given.fanouts),
        input_nodes=("paper", seeds),
        batch_size=given.sample_seeds,
        shuffle=True,
        num_workers=pipeline.usable_cores(),
    )
    begin = time.perf_counter()
    for _ in loader:
        pass
    return len(seeds) / (time.perf_counter() - begin)


def sampler_rate(given: Generated) -> float:
    """Seeds a second of our pipeline with a thread a core."""
    rows = given.rows_of()
    stream = pipeline.training(rows, plan=rows.plan()).batched(given.rows, seed=2).stream()
    next(stream)
    begin = time.perf_counter()
    many = max(1, 64 // given.rows)
    for _ in range(many):
        next(stream)
    seconds = time.perf_counter() - begin
    stream.close()
    return many * given.batch_size / seconds


def benchmark(arguments: argparse.Namespace) -> Generated:
    small = arguments.size == "small"
    papers = made(small).size.nodes["paper"]
    return Generated(
        **(SMALL if small else {}),
        small=small,
        batch_size=arguments.batch,
        dtype=arguments.dtype,
        train_samples=papers,
        eval_samples=1,
    )


def sides_of(arguments: argparse.Namespace, given: Generated) -> Iterator[tuple[str, Any]]:
    rows = given.rows_of()
    batch = pipeline.training(rows, plan=rows.plan()).batched(given.rows, seed=0)[0]
    ours = stepping.Ours(given, batch)
    yield "ours", ours
    yield "ours, fed", Fed(given, ours)
    if not arguments.no_twin and importlib.util.find_spec("torch"):
        from scripts.twins.step import Twin

        compiled = jax.default_backend() == "gpu" and not arguments.eager
        yield "PyTorch", Twin(given, batch, compiled=compiled)


def main() -> None:
    parser = stepping.parser(__doc__)
    parser.add_argument("--size", choices=("medium", "small"), default="medium")
    parser.add_argument(
        "--batch", type=int, help="seeds of a step; default 2,048, of the small size 256"
    )
    arguments = stepping.given(parser)
    small = arguments.size == "small"
    arguments.batch = arguments.batch or (256 if small else 2048)
    given = benchmark(arguments)
    sides = dict(sides_of(arguments, given))
    spent = stepping.timed(sides, arguments.rounds, arguments.steps)
    found = stepping.report(given, sides, spent, "seeds", None if small else PUBLISHED)
    found["sampler"] = sampler_rate(given)
    print(
        f"  sampled by {pipeline.usable_cores()} threads: {found['sampler']:,.0f} seeds/s by the clock"
    )
    if (rate := loader_rate(given)) is not None:
        found["NeighborLoader"] = rate
        print(f"  PyG's NeighborLoader: {rate:,.0f} seeds/s")
    stepping.end(arguments, found, spent, "PyTorch")


if __name__ == "__main__":
    main()

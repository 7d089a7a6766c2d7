"""Rows of batches: a sample of some seeds each, in arrays of one shape.

A batch is the next seeds of an endless order that holds each once an epoch; the last of an epoch is short. Its rows
take so many seeds each, the first ones as many as there are. Row r of the stream is a function of the run's seed and
of r, whoever makes it.

Shape legend: B seeds of a batch, R rows of it, S seeds of a row, n nodes of a type and e edges of a relation that a
shape has room for.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping

import numpy as np

from mlperf_jax.input_pipelines.igbh import (
    graph as graphs,
    sampling_kernels as kernels,
    sampling_shape,
    split,
)
from mlperf_jax.input_pipelines.igbh.graph import Graph
from mlperf_jax.input_pipelines.igbh.sampling import Sampler
from mlperf_jax.input_pipelines.igbh.sampling_shape import NOBODY, Shape
from mlperf_jax.input_pipelines.orders import BatchPlan, Latest, Planned
from mlperf_jax.input_pipelines.shuffling import shuffled
from mlperf_jax.input_pipelines.sources import Batch

_EVALUATION = 2**63  # the sampler's seed there: no run's


# by number of labelled papers: training and evaluation share it, as the full graph's takes seconds
_SPLITS: Latest[int, tuple[np.ndarray, np.ndarray]] = Latest(split.papers)


class Papers:
    """The classes of the papers, and which of them train and validate; read when they are first asked for."""

    def __init__(self, graph: Graph):
        self._graph = graph
        self._labels: Latest[int, np.ndarray] = Latest(self._read)
        self.counts = split.sizes(graph.labelled)  # how many train, and how many validate

    def _read(self, _: int) -> np.ndarray:
        return graphs.read_labels(self._graph)

    @property
    def labels(self) -> np.ndarray:
        """int16, by paper."""
        return self._labels[0]

    def of(self, which: str) -> np.ndarray:
        """Those that train, or of the "validation", int32."""
        return _SPLITS[self._graph.labelled][which == "validation"]


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one split, by their number.

    Attributes:
        papers: the labelled ones.
        sampler: of the graph.
        shape: S and the room for what their sample holds.
        batch_size: B of training; None for the validation's, row after row.
        bins: type -> (block, bins) of types whose nodes are to be grouped.
        seed: of the run.
    """

    papers: Papers
    sampler: Sampler
    shape: Shape
    batch_size: int | None = None
    bins: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    seed: int = 0

    def for_seed(self, seed: int) -> Rows:
        return dataclasses.replace(self, seed=seed)

    @property
    def rows(self) -> int:
        """R."""
        assert self.batch_size is not None
        return -(-self.batch_size // self.shape.seeds)

    def __len__(self) -> int:
        return sys.maxsize if self.batch_size else -(-self.papers.counts[1] // self.shape.seeds)

    def ready(self) -> None:
        """Works out the split, which needs no more than how many papers have labels."""
        self.papers.of("train")

    def plan(self) -> BatchPlan:
        """Training's: rows are numbered from batch to batch; those without a seed are padding."""
        return BatchPlan((self.rows,), self._planned, per_epoch=1)

    def _planned(self, seed: int, number: int) -> Planned:
        rows = np.arange(number * self.rows, (number + 1) * self.rows)
        filled = [self._span(row)[0] < self._span(row)[1] for row in rows.tolist()]
        return [(0, np.where(filled, rows, -1))]

    def _span(self, row: int) -> tuple[int, int]:
        """First and last position of a training row in the endless order of the papers."""
        assert self.batch_size is not None
        train, _ = self.papers.counts
        number, row = divmod(row, self.rows)
        epoch, batch = divmod(number, -(-train // self.batch_size))
        first = batch * self.batch_size + row * self.shape.seeds
        last = min(first + self.shape.seeds, (batch + 1) * self.batch_size, train)
        return epoch * train + first, epoch * train + last

    def seeds(self, row: int) -> np.ndarray:
        """The papers of a row, at most S."""
        if self.batch_size is None:
            size = self.shape.seeds
            return self.papers.of("validation")[row * size : (row + 1) * size]
        first, last = self._span(row)
        places = shuffled(np.arange(first, last), self.papers.counts[0], self.seed)
        return self.papers.of("train")[places]

    def __getitem__(self, row: int) -> Batch:
        """One row, as `sampling_shape.laid_out` describes it."""
        seeds = self.seeds(row)
        word = self.seed if self.batch_size else _EVALUATION
        sample = self.sampler(seeds, seed=word, batch=row)
        padded, dropped = sampling_shape.pad(sample, self.shape)
        labels = np.full(self.shape.seeds, NOBODY, np.int32)
        labels[: len(seeds)] = self.papers.labels[seeds]
        return sampling_shape.laid_out(padded, dropped, labels, self.bins, kernels.grouped)

    def describe(self, row: int) -> str:
        return f"the sample of seeds {', '.join(map(str, self.seeds(row)[:3].tolist()))} …"

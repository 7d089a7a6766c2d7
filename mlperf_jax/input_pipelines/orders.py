"""Orders: from the number of a batch to the records in it, by counting or by a plan.

A row's position is its place in the endless stream of rows, epoch after epoch: `random_map` is seeded by
it, and an order, which Grain takes for a source of numbers, holds the record there. All of it is arithmetic
over global batches.

Why not Grain's `shuffle`: it needs no table, but walks a cycle of 65,536 numbers to find the next one below N,
which takes 3.48 times as long a row of 1,000 records as of ImageNet's 1,281,167, and 417 times of five; of many
it is quick, but neighbours in the order have correlated ranks (0.02 to 0.04; a batch of 256 holds 225.0 of a
sorted data set's 1,000 classes, 225.8 of a true permutation's). A table takes as long as 2,800 such rows, an epoch.

Shape legend: B rows of a global batch, N records.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.dealing import PADDING, Groups
from mlperf_jax.input_pipelines.sources import BatchSource, Source

_KEPT_EPOCHS = 3  # orders kept in memory: batches that are read ahead may lie in the next epoch
_SHUFFLE = 1  # sets the seeds of the order apart from others

K = TypeVar("K")
T = TypeVar("T")
Planned = Sequence[tuple[int, np.ndarray]]
LastBatch = Literal["drop", "keep", "mix"]


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """Which records go together, worked out from metadata before any is read: lengths, packing, aspects.

    Attributes:
        rows: B of each bucket shape.
        batches: (seed, epoch) -> the batches of that epoch: each the number of its bucket and its record
            ids, int [B of that bucket], -1 for padding.
        per_epoch: batches of every epoch, where they are equally many: a batch is then found without those
            before it being planned.
    """

    rows: tuple[int, ...]
    batches: Callable[[int, int], Planned]
    per_epoch: int | None = None


class CountedOrder:
    """Batches of one shape, as they follow one another.

    Args:
        n: N.
        rows: B.
        seed: of the shuffle; None leaves the records as they lie.
        last_batch, evaluation, groups: as `pipeline.Split` has them.

    Attributes:
        rows: B of each bucket shape.
        batches: how many there are.
    """

    def __init__(
        self,
        n: int,
        rows: int,
        seed: int | None,
        last_batch: LastBatch,
        evaluation: bool,
        groups: Groups | None,
    ):
        if rows < 1:
            raise UserError(f"batch_size is {rows}; it is at least 1")
        if last_batch == "drop" and rows > n:
            raise UserError(
                f"batch_size {rows} is larger than the {n} training examples; take at most {n}"
            )
        self.rows = (rows,)
        self._n, self._last, self._groups = n, last_batch, groups
        self._steps = steps_per_epoch(n, rows, last_batch)
        self.batches = self._steps if evaluation else sys.maxsize
        self._shuffled = None if seed is None else Latest(functools.partial(_permutation, n, seed))

    def __len__(self) -> int:
        """Positions, of which there is no end."""
        return sys.maxsize

    def __getitem__(self, index: int) -> int:
        """The record at a position."""
        epoch, index = divmod(index, self._n)
        return index if self._shuffled is None else int(self._shuffled[epoch][index])

    def bucket(self, number: int) -> int:
        """The bucket of a batch."""
        return 0

    def positions(self, number: int, first: int, last: int) -> np.ndarray:
        """Of rows first..last of a batch: int [last - first], -1 for padding."""
        rows = np.arange(first, last)
        if self._last == "mix":
            return number * self.rows[0] + rows
        epoch, batch = divmod(number, self._steps)
        left = self._n - batch * self.rows[0]
        if self._groups is not None and left < self.rows[0]:
            rows = self._groups.dealt(left, self.rows[0])[first:last]
        real = (rows != PADDING) & (rows < left)
        return np.where(real, epoch * self._n + batch * self.rows[0] + rows, PADDING)

    def records(self, positions: np.ndarray) -> np.ndarray:
        """The records at these positions, int [rows]; -1 for padding."""
        ids = np.where(positions == PADDING, PADDING, positions % self._n)
        if self._shuffled is not None:
            for epoch in np.unique(positions[positions != PADDING] // self._n):
                here = positions // self._n == epoch
                ids[here] = self._shuffled[int(epoch)][ids[here]]
        return ids


def steps_per_epoch(n: int, rows: int, last_batch: LastBatch) -> int:
    """Batches in one epoch: rounded up for "keep", down for "drop" and "mix"."""
    return -(-n // rows) if last_batch == "keep" else n // rows


def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, _SHUFFLE]).permutation(n)


class PlannedOrder:
    """Batches as a plan has them, with the members of `CountedOrder`; an epoch's are computed when first asked for.

    Args:
        plan: of the records of `source`.
        seed: given to it.
        evaluation: one epoch that holds every record once, not endless ones.
    """

    def __init__(self, plan: BatchPlan, source: Source | BatchSource, seed: int, evaluation: bool):
        self.rows = plan.rows
        self._per_epoch = plan.per_epoch
        self._finite = evaluation
        self._plans = Latest(functools.partial(_planned, plan, source, seed, evaluation))
        self._ends: list[int] = []  # number of batches in epochs 0..e

    @property
    def batches(self) -> int:
        return len(self._plans[0]) if self._finite else sys.maxsize

    def __len__(self) -> int:
        return sys.maxsize

    def bucket(self, number: int) -> int:
        return self._batch(number)[0]

    def positions(self, number: int, first: int, last: int) -> np.ndarray:
        ids = self._batch(number)[1][first:last]
        return np.where(ids == PADDING, PADDING, number * max(self.rows) + np.arange(first, last))

    def __getitem__(self, index: int) -> int:
        number, row = divmod(index, max(self.rows))
        return int(self._batch(number)[1][row])

    def records(self, positions: np.ndarray) -> np.ndarray:
        return np.array([p if p == PADDING else self[p] for p in positions.tolist()])

    def _batch(self, number: int) -> tuple[int, np.ndarray]:
        if self._per_epoch is not None:
            epoch, number = divmod(number, self._per_epoch)
            return self._plans[epoch][number]
        ends = self._ends
        while not ends or ends[-1] <= number:
            ends = [*ends, (ends[-1] if ends else 0) + len(self._plans[len(ends)])]
            self._ends = ends  # whichever thread comes last, a later call goes on from there
        epoch = int(np.searchsorted(ends, number, side="right"))
        return self._plans[epoch][number - (ends[epoch - 1] if epoch else 0)]


def _planned(
    plan: BatchPlan, source: Source | BatchSource, seed: int, evaluation: bool, epoch: int
) -> Planned:
    """The batches of an epoch, which fit the plan's rows and the source."""
    batches = [(int(b), np.asarray(ids, int)) for b, ids in plan.batches(seed, epoch)]
    name, n, rows = f"the plan of epoch {epoch}", len(source), plan.rows
    if not batches:
        raise UserError(f"{name} has no batch; it needs at least one")
    for number, (bucket, ids) in enumerate(batches):
        if not 0 <= bucket < len(rows):
            raise UserError(f"{name}: batch {number} is of bucket {bucket}; there are {len(rows)}")
        if ids.shape != (rows[bucket],):
            raise UserError(
                f"{name}: batch {number} has record ids of shape {ids.shape}; bucket {bucket} has "
                f"{rows[bucket]} rows, padded with {PADDING}"
            )
        least, most = int(ids.min()), int(ids.max())
        if least < PADDING or not 0 <= most < n:
            raise UserError(
                f"{name}: batch {number} has record ids {least}..{most}; allowed are 0..{n - 1}, and "
                f"{PADDING} for padding beside at least one of them"
            )
    if evaluation:
        taken = np.concatenate([ids for _, ids in batches])
        times = np.bincount(taken[taken != PADDING], minlength=n)
        for record in np.flatnonzero(times != 1)[:1].tolist():
            raise UserError(
                "the plan of an evaluation must hold every record once; it holds "
                f"{source.describe(record)} {times[record]} times, and so {(times != 1).sum():,} of {n:,} are "
                "wrong"
            )
    return batches


class Latest(Generic[K, T]):
    """`make(epoch)`, kept for the latest few epochs, for many threads; a copy begins anew."""

    def __init__(self, make: Callable[[K], T]):
        self._make = make
        self._kept: dict[K, T] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:  # locks don't travel to worker processes
        return Latest, (self._make,)

    def __getitem__(self, epoch: K) -> T:
        found = self._kept.get(epoch)
        if found is None:
            with self._lock:
                found = self._kept.get(epoch)
                if found is None:
                    found = self._kept[epoch] = self._make(epoch)
                while len(self._kept) > _KEPT_EPOCHS:
                    del self._kept[next(iter(self._kept))]
        return found

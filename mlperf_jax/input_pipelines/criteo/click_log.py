"""Samples of Criteo's files as batches: large sequential reads from memory maps, checked as they pass.

Shape legend: B rows of a global batch, N samples, k ids of a table's bag, K ids of all bags together (214).
"""

from __future__ import annotations

import bisect
import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterable, Iterator

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.criteo.files import DENSE, Part
from mlperf_jax.input_pipelines.examples import Batch

_CHUNK_ROWS = 4096  # rows a thread copies at once: their ids, 3.5 MB, stay in a core's cache
_BY_COLUMN = 6  # bags up to this size are copied id by id: NumPy's loop over short rows is slower
_AHEAD = 2  # batches being read while one is used


@dataclasses.dataclass(frozen=True)
class ClickLog:
    """Samples of some parts in their order, as batches of

    {"dense": f32 [B, 13], "ids": i32 [B, K], "label": f32 [B]}; the bags lie side by side in the order of
    the tables, and ids count from 0 in each table. It is used as `Examples` is; a batch is a function of
    its number, and of nothing else: no order depends on the seed.

    Attributes:
        parts: of the same bag sizes.
        rows: of each table; ids lie below.
        bags: bag size k of each table.
    """

    parts: tuple[Part, ...]
    rows: tuple[int, ...]
    bags: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.bags):
            raise UserError(
                f"{len(self.rows)} tables have rows and {len(self.bags)} have bag sizes"
            )

    def __len__(self) -> int:
        return sum(part.rows for part in self.parts)

    def __repr__(self) -> str:
        return f"ClickLog({len(self.parts)} parts, {len(self):,} samples)"

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches in one pass; the rest is left out, as in the reference convergence runs."""
        return len(self) // batch_size

    def batches(
        self,
        batch_size: int,
        *,
        rows: tuple[int, int] | None = None,
        seed: int = 0,
        start: int = 0,
        threads: int | None = None,
    ) -> Iterator[Batch]:
        """Yields rows lo..hi of the global batches start, start + 1, ... without end, in file order.

        Args:
            batch_size: B.
            rows: (lo, hi), the rows wanted here; all of them by default.
            seed: has no effect; the data is shuffled once and for all.
            start: number of the first batch: the step to resume at.
            threads: that copy; one per usable core by default, 0 to do without.

        Raises:
            UserError: the arguments do not fit the data (at once), or a sample is not as it must be
                (when its batch is asked for): names file, sample and feature.
        """
        where = _rows_of_batch(len(self), batch_size, rows)
        steps = self.steps_per_epoch(batch_size)
        if not steps:
            raise UserError(
                f"batch_size {batch_size} is larger than the {len(self)} training samples; take at most "
                f"{len(self)}"
            )
        if start < 0:
            raise UserError(f"start is at least 0, got {start}")
        numbers = (number % steps for number in itertools.count(start))
        return self._read(numbers, batch_size, where, threads, masked=False)

    def eval_batches(
        self, batch_size: int, *, rows: tuple[int, int] | None = None, threads: int | None = None
    ) -> Iterator[Batch]:
        """Yields rows lo..hi of ceil(N/B) batches that hold every sample once, in order.

        Each carries "mask", bool [hi - lo]: False for the padding (zeros) of the last one.
        """
        where = _rows_of_batch(len(self), batch_size, rows)
        return self._read(
            range(-(-len(self) // batch_size)), batch_size, where, threads, masked=True
        )

    def _will_read(self, first: int, last: int) -> None:
        """Starts one large read for each array: threads would ask for small pieces of many."""
        start = 0
        for part in self.parts:
            lo, hi = max(first - start, 0), min(last - start, part.rows)
            if lo < hi:
                part.will_read(lo, hi)
            start += part.rows

    def read(self, first: int, last: int, out: Batch, at: int = 0) -> None:
        """Copies samples first..last, counted over all parts, to rows at.. of a batch, and checks them."""
        scratch = np.empty(_CHUNK_ROWS * max(*self.bags, DENSE), np.uint32)
        start = 0
        for part in self.parts:
            for lo in range(max(first - start, 0), min(last - start, part.rows), _CHUNK_ROWS):
                hi = min(lo + _CHUNK_ROWS, last - start, part.rows)
                here = at + start + lo - first
                rows = slice(here, here + hi - lo)
                _copy_labels(part, lo, hi, out["label"][rows], scratch)
                _copy_dense(part, lo, hi, out["dense"][rows])
                self._copy_ids(part, lo, hi, out["ids"][rows], scratch)
            start += part.rows

    @functools.cached_property
    def limits(self) -> np.ndarray:
        """For each of the K ids, the rows of its table."""
        return np.repeat(np.asarray(self.rows, np.uint32), self.bags)

    def _copy_ids(self, part: Part, lo: int, hi: int, out: np.ndarray, scratch: np.ndarray) -> None:
        if part.together is not None:
            out[...] = part.together.view(lo, hi)
        else:
            starts = itertools.accumulate(self.bags, initial=0)
            for block, start, size in zip(part.bags, starts, self.bags):
                block.read_into(lo, hi, scratch)
                ids = scratch[: (hi - lo) * size].view(np.int32).reshape(-1, size)
                if size <= _BY_COLUMN:
                    for k in range(size):
                        out[:, start + k] = ids[:, k]
                else:
                    out[:, start : start + size] = ids
        # as unsigned numbers, negative ids are large; the maximum of each column costs least
        if (out.view(np.uint32).max(0) >= self.limits).any():
            row, column = map(int, np.argwhere(out.view(np.uint32) >= self.limits)[0])
            table = bisect.bisect_right(list(itertools.accumulate(self.bags)), column)
            raise UserError(
                f"{part.bags[table].file}, sample {lo + row}, feature cat_{table}: id {out[row, column]} is "
                f"outside 0..{self.rows[table] - 1}, the rows of its table; copy or build this file again, or "
                "give the tables it was built for"
            )

    def _read(
        self,
        numbers: Iterable[int],
        batch_size: int,
        where: tuple[int, int],
        threads: int | None,
        masked: bool,
    ) -> Iterator[Batch]:
        lo, hi = where
        threads = usable_cores() if threads is None else threads

        def empty(number: int) -> tuple[Batch, list[tuple[int, int, int]]]:
            """A batch to fill, and the pieces of work that fill it: (first, last, row)."""
            first = number * batch_size + lo
            last = max(first, min(number * batch_size + hi, len(self)))
            batch = self.empty(hi - lo, last - first)
            if masked:
                batch["mask"] = np.arange(hi - lo) < last - first
            self._will_read(first, last)
            step = _CHUNK_ROWS if threads else hi - lo
            cuts = [*range(first, last, step), last]
            return batch, [(a, b, a - first) for a, b in itertools.pairwise(cuts)]

        if not threads:
            for number in numbers:
                batch, pieces = empty(number)
                for a, b, row in pieces:
                    self.read(a, b, batch, row)
                yield batch
            return
        pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="criteo")
        ahead: collections.deque = collections.deque()
        try:
            for number in numbers:
                batch, pieces = empty(number)
                ahead.append(
                    (batch, [pool.submit(self.read, a, b, batch, r) for a, b, r in pieces])
                )
                if len(ahead) > _AHEAD:
                    yield _finished(*ahead.popleft())
            while ahead:
                yield _finished(*ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def empty(self, rows: int, real: int | None = None) -> Batch:
        """Arrays for a batch of which `real` rows will be filled, all by default; the rest is zeros."""
        make = np.empty if real in (None, rows) else np.zeros
        return {
            "dense": make((rows, DENSE), np.float32),
            "ids": make((rows, sum(self.bags)), np.int32),
            "label": make(rows, np.float32),
        }


def _finished(batch: Batch, pieces: list[concurrent.futures.Future]) -> Batch:
    for piece in pieces:
        piece.result()
    return batch


def _rows_of_batch(samples: int, batch_size: int, rows: tuple[int, int] | None) -> tuple[int, int]:
    if not samples:
        raise UserError("the click log has no samples; build or fetch it again")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it is at least 1")
    lo, hi = rows or (0, batch_size)
    if not 0 <= lo < hi <= batch_size:
        raise UserError(f"rows ({lo}, {hi}) do not lie within a batch of {batch_size}")
    return lo, hi


def usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _copy_labels(part: Part, lo: int, hi: int, out: np.ndarray, scratch: np.ndarray) -> None:
    part.labels.read_into(lo, hi, scratch)
    labels = scratch[: hi - lo]
    if labels.max() > 1:
        row = int(np.argmax(labels > 1))
        raise UserError(
            f"{part.labels.name}, sample {lo + row}: the label is {labels.view(np.int32)[row]}, expected 0 "
            "or 1; copy or build this file again"
        )
    out[...] = labels


def _copy_dense(part: Part, lo: int, hi: int, out: np.ndarray) -> None:
    part.dense.read_into(lo, hi, out.reshape(-1))
    with np.errstate(invalid="ignore", over="ignore"):
        total = out.sum()  # one pass; any NaN or infinity makes it so
    if not np.isfinite(total):
        bad = np.argwhere(~np.isfinite(out))
        if len(bad):
            row, feature = map(int, bad[0])
            raise UserError(
                f"{part.dense.name}, sample {lo + row}, dense feature {feature}: the value is "
                f"{out[row, feature]}, expected a finite number; copy or build this file again"
            )

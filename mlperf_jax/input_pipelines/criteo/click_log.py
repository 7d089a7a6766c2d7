"""Samples of Criteo's files as batches: large sequential reads from memory maps, checked as they pass.

Shape legend: B rows of a global batch, N samples, k ids of a table's bag, K ids of all bags together (214).
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Iterator

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.criteo.files import DENSE, Part
from mlperf_jax.input_pipelines.sources import Batch

_CHUNK_ROWS = 4096  # rows a thread copies at once: their ids, 3.5 MB, stay in a core's cache
_BY_COLUMN = 6  # bags up to this size are copied id by id: NumPy's loop over short rows is slower


@dataclasses.dataclass(frozen=True)
class ClickLog:
    """Samples of some parts in their order, as a source of whole batches

    {"dense": f32 [B, 13], "ids": i32 [B, K], "label": f32 [B]}; the bags lie side by side in the order of
    the tables, and ids count from 0 in each table.

    Attributes:
        parts: of the same bag sizes.
        rows: of each table; ids lie below.
        bags: bag size k of each table.
        rows_at_once: as `BatchSource` has it.
    """

    parts: tuple[Part, ...]
    rows: tuple[int, ...]
    bags: tuple[int, ...]
    rows_at_once: int = 4 * _CHUNK_ROWS

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.bags):
            raise UserError(
                f"{len(self.rows)} tables have rows and {len(self.bags)} have bag sizes"
            )

    def __len__(self) -> int:
        return sum(part.rows for part in self.parts)

    def __repr__(self) -> str:
        return f"ClickLog({len(self.parts)} parts, {len(self):,} samples)"

    def begin(self, ids: np.ndarray) -> Batch:
        """As `BatchSource.begin`; the system is asked to fetch the samples."""
        real = ids[ids >= 0]
        # one large read for each array: threads would ask for small pieces of many
        for part, first, last in self._stretches(real):
            part.will_read(first, last)
        make = np.empty if len(real) == len(ids) else np.zeros
        return {
            "dense": make((len(ids), DENSE), np.float32),
            "ids": make((len(ids), sum(self.bags)), np.int32),
            "label": make(len(ids), np.float32),
        }

    def read(self, ids: np.ndarray, out: Batch) -> None:
        """As `BatchSource.read`, and checks the samples."""
        scratch = np.empty(_CHUNK_ROWS * max(*self.bags, DENSE), np.uint32)
        at = 0
        for part, first, last in self._stretches(ids):
            for lo in range(first, last, _CHUNK_ROWS):
                hi = min(lo + _CHUNK_ROWS, last)
                rows = slice(at, at := at + hi - lo)
                _copy_labels(part, lo, hi, out["label"][rows], scratch)
                _copy_dense(part, lo, hi, out["dense"][rows])
                self._copy_ids(part, lo, hi, out["ids"][rows], scratch)

    def describe(self, index: int) -> str:
        """The file and the number of a sample."""
        ((part, first, _),) = self._stretches(np.array([index]))
        return f"{part.labels.name}, sample {first}"

    def _stretches(self, ids: np.ndarray) -> Iterator[tuple[Part, int, int]]:
        """Neighbouring samples as (part, first, last), first..last counted within the part."""
        cuts = [0, *(np.flatnonzero(np.diff(ids) != 1) + 1).tolist(), len(ids)]
        for a, b in itertools.pairwise(cuts) if len(ids) else ():
            start = 0
            for part in self.parts:
                first, last = (
                    max(int(ids[a]) - start, 0),
                    min(int(ids[b - 1]) + 1 - start, part.rows),
                )
                if first < last:
                    yield part, first, last
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

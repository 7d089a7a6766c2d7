"""Several sequences a row: which stand together in a batch, and in which row.

Batch k is B sequences, the next of an endless shuffled stream, laid into as few rows of L tokens as best fit finds,
longest first. It then has the least of the recipe's row counts that is enough. None is cut and none left out, and
none waits for a later batch. Only lengths are read.

Shape legend: N sequences of the data, B sequences of a batch, R rows of it, S sequences of a row at most, L tokens of a row.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.orders import BatchPlan, Latest, Planned
from mlperf_jax.input_pipelines.shuffling import shuffled
from mlperf_jax.input_pipelines.wikipedia.files import Examples


def masked_places(length: int, sequences: int) -> int:
    """Masked tokens that a row of so many tokens and sequences can have.

    A sequence of n tokens has at most 0.15 n + 0.5, as round(0.15 n) rounds up by a half at most, and the 1 of the
    shortest, of 5 tokens, is within it. Over a row that is 0.15 L + S / 2, and a whole number.

    >>> masked_places(512, 1), masked_places(512, 8)
    (77, 80)
    """
    return (3 * length + 10 * sequences) // 20


# -- rows ----------------------------------------------------------------------------------------


def best_fit(lengths: np.ndarray, row: int, sequences: int) -> np.ndarray:
    """The row of each sequence, int [B]: longest first, each into the fullest row that has room for it.

    Args:
        lengths: int [B], each from 1 to L.
        row: L.
        sequences: S.
    """
    order = np.argsort(-lengths.astype(np.int32), kind="stable")
    rows = np.empty(len(lengths), np.int64)
    room: list[list[int]] = [[] for _ in range(row + 1)]  # rows by the tokens left in them
    has = 0  # bit r: there are rows with r tokens left
    held: list[int] = []  # sequences of each row
    for item, length in zip(order.tolist(), lengths[order].tolist()):
        fits = has >> length
        if fits:
            left = length + (fits & -fits).bit_length() - 1
            number = room[left].pop()
            if not room[left]:
                has ^= 1 << left
        else:
            left, number = row, len(held)
            held.append(0)
        held[number] += 1
        rows[item] = number
        if left > length and held[number] < sequences:
            room[left - length].append(number)
            has |= 1 << left - length
    return rows


class Packed(NamedTuple):
    """A batch: the sequences of its rows.

    Attributes:
        bucket: which of the row counts it has.
        ids: of its sequences, row after row, int [B].
        starts: where each row begins in them, int [R + 1].
    """

    bucket: int
    ids: np.ndarray
    starts: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Packer:
    """Batches of packed rows, by seed and number.

    Attributes:
        examples: the sequences, of which only `lengths` is read.
        batch_size: B.
        rows: R of each shape of a batch, ascending.
        sequences: S.
        row: L.
    """

    examples: Examples
    batch_size: int
    rows: tuple[int, ...]
    sequences: int
    row: int

    @functools.cached_property
    def _kept(self) -> Latest[tuple[int, int], Packed]:
        return Latest(self._packed)

    def __getitem__(self, which: tuple[int, int]) -> Packed:
        """The batch of a seed and a number; of many threads the first works it out."""
        return self._kept[which]

    def _packed(self, which: tuple[int, int]) -> Packed:
        (seed, number), lengths = which, self.examples.lengths
        positions = np.arange(number * self.batch_size, (number + 1) * self.batch_size)
        ids = shuffled(positions, len(lengths), seed)
        if self.sequences == 1:
            rows = np.arange(len(ids))
        else:
            rows = best_fit(lengths[ids], self.row, self.sequences)
        needed = int(rows.max()) + 1
        bucket = int(np.searchsorted(self.rows, needed))
        if bucket == len(self.rows):
            raise UserError(
                f"batch {number} of seed {seed} needs {needed} rows of {self.row} tokens, and the largest "
                f"row count is {self.rows[-1]}: give a larger one"
            )
        starts = np.searchsorted(np.sort(rows), np.arange(self.rows[bucket] + 1))
        return Packed(bucket, ids[np.argsort(rows, kind="stable")], starts)

    def plan(self) -> BatchPlan:
        """The plan whose row numbers `row_of` takes apart; rows that hold nothing are padding."""
        return BatchPlan(self.rows, self._planned, per_epoch=1)

    def _planned(self, seed: int, number: int) -> Planned:
        packed = self[seed, number]
        rows = np.arange(self.rows[packed.bucket])
        filled = packed.starts[1:] > packed.starts[:-1]
        return [(packed.bucket, np.where(filled, number * self.rows[-1] + rows, -1))]

    def row_of(self, seed: int, row: int) -> np.ndarray:
        """The sequences of a row, int [at most S]; rows are numbered from batch to batch."""
        number, row = divmod(row, self.rows[-1])
        _, ids, starts = self[seed, number]
        return ids[starts[row] : starts[row + 1]]

"""Contiguous ids: the values of a column, numbered by first appearance.

Ids begin at 2 (the reference reserves 0 and 1), days are read in order and from top to bottom, day 23
included, and a missing value (0) is a value like any other. A column has up to 293 M different values in
4.4 G rows; 0.5 GB tell which of all 2^32 values were seen, and 2.4 GB hold the largest column's table.
Reference: torchrec v0.3.2, datasets/criteo.py, frequency threshold 0.

Shape legend: n rows of a piece, V different values of a column.
"""

from __future__ import annotations

import os
import pathlib

import numpy as np

FIRST_ID = 2
_LOW = np.uint64(0xFFFFFFFF)


class Vocabulary:
    """The different values of a column in order of first appearance, kept in a file of u32 [V].

    Args:
        path: of the file; what it holds is taken up.
        size: values of it that count; the rest, from a build that was killed, is cut off.
    """

    def __init__(self, path: str | os.PathLike, size: int):
        pathlib.Path(path).touch()
        os.truncate(path, 4 * size)
        self._file = open(path, "ab")  # noqa: SIM115
        self._seen = np.zeros(1 << 27, np.uint32)  # a bit for each value; only touched pages cost
        self.size = size
        for first in range(0, size, 1 << 22):
            count = min(1 << 22, size - first)
            self._mark(np.fromfile(path, np.uint32, count, offset=4 * first))

    def add(self, values: np.ndarray) -> None:
        """Appends those of the values, u32 [n], that are new."""
        new = values[(self._seen[values >> 5] >> (values & 31)) & 1 == 0]
        new = new[np.sort(np.unique(new, return_index=True)[1])]
        self._mark(new)
        new.tofile(self._file)
        self.size += len(new)

    def _mark(self, values: np.ndarray) -> None:
        np.bitwise_or.at(self._seen, values >> 5, np.uint32(1) << (values & 31))

    def sync(self) -> int:
        """Writes all to the disk and returns V."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self.size

    def close(self) -> None:
        self._file.close()


class Numbering:
    """Value -> id, for the values of a vocabulary's file."""

    def __init__(self, path: str | os.PathLike):
        values = np.fromfile(path, np.uint32)
        self._table = values.astype(np.uint64) << np.uint64(32)
        self._table |= np.arange(FIRST_ID, FIRST_ID + len(values), dtype=np.uint64)
        self._table.sort()

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Ids i32 [n] of values u32 [n], all of which are in the vocabulary."""
        distinct, inverse = np.unique(values, return_inverse=True)
        at = np.searchsorted(self._table, distinct.astype(np.uint64) << np.uint64(32))
        return (self._table[at] & _LOW).astype(np.int32)[inverse]


def as_float32(ids: np.ndarray) -> np.ndarray:
    """Ids i32 as they come back from float32: above 2^24 rounded to multiples of 2, 4, … 32.

    The reference shuffles the training days within one float32 matrix; its published data carries the
    rounding, day 23, which is not shuffled, does not.

    >>> as_float32(np.array([16777216, 16777217, 16777219], np.int32)).tolist()
    [16777216, 16777216, 16777220]
    """
    return ids.astype(np.float32).astype(np.int32)

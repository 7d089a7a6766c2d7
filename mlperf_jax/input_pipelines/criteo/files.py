"""Criteo's arrays on disk: what the organisers hand out, memory-mapped as it is.

Two forms are read. *Day files*: `day_d_labels.npy` (i32 [n, 1]), `day_d_dense.npy` (f32 [n, 13]) and
`day_d_sparse_multi_hot.npz`, whose members "0" .. "25" (i32 [n, k]) are stored, not compressed, so that
each is mapped at its offset in the zip file. *Records*: HugeCTR's file without a header, for each sample
one little-endian row of label (i32), 13 dense features (f32) and the ids of all bags (i32).

Opening reads headers alone.

Shape legend: n samples of a part, k ids of a table's bag, K ids of all bags together.
"""

from __future__ import annotations

import dataclasses
import itertools
import mmap
import os
import pathlib
import struct
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import records

DENSE = 13
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # of a member of a zip file
_HEAD = 1 + DENSE  # words of a record before its ids


class MappedFile:
    """A file in memory, mapped when it is first read; offsets are bytes and need no alignment."""

    def __init__(self, path: str):
        self.path = path
        self._map: mmap.mmap | None = None

    def __repr__(self) -> str:
        return self.path

    def __reduce__(self) -> Any:  # a mapping doesn't travel to worker processes
        return MappedFile, (self.path,)

    @property
    def map(self) -> mmap.mmap:
        if self._map is None:
            with open(self.path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map

    def will_read(self, start: int, stop: int) -> None:
        """Asks the system to fetch these bytes now; whoever reads them later need not wait."""
        if hasattr(mmap, "MADV_WILLNEED"):
            page = start // mmap.PAGESIZE * mmap.PAGESIZE
            self.map.madvise(mmap.MADV_WILLNEED, page, min(stop, len(self.map)) - page)


@dataclasses.dataclass(frozen=True)
class Block:
    """A matrix [rows, columns] of 4-byte words that lies in a file, row after row.

    Attributes:
        name: how messages call it.
        stride: words from one row to the next; more than `columns` for a part of a record.
    """

    file: MappedFile
    offset: int
    rows: int
    columns: int
    stride: int
    dtype: str
    name: str

    def view(self, first: int, last: int) -> np.ndarray:
        """Rows first..last, [last - first, columns], in the file's own memory and often unaligned."""
        shape, at = (last - first, self.columns), self.offset + first * self.stride * 4
        return np.ndarray(shape, self.dtype, self.file.map, at, (self.stride * 4, 4))

    def read_into(self, first: int, last: int, out: np.ndarray) -> None:
        """Copies rows first..last to `out`, aligned words [>= (last - first) * columns]."""
        count = (last - first) * self.columns
        if self.stride != self.columns:
            out[:count].reshape(-1, self.columns)[...] = self.view(first, last).view(out.dtype)
            return
        at = self.offset + first * self.columns * 4
        source = np.ndarray((count * 4,), np.uint8, self.file.map, at)
        out[:count].view(np.uint8)[...] = source

    def will_read(self, first: int, last: int) -> None:
        row = self.stride * 4
        self.file.will_read(self.offset + first * row, self.offset + last * row)


@dataclasses.dataclass(frozen=True)
class Part:
    """Samples that lie together: a day, or a file of records. Blocks have the same number of rows.

    Attributes:
        bags: ids of each table.
        together: all bags as one block, where they lie side by side: in records.
    """

    labels: Block
    dense: Block
    bags: tuple[Block, ...]
    together: Block | None = None

    @property
    def rows(self) -> int:
        return self.labels.rows

    def will_read(self, first: int, last: int) -> None:
        """Asks the system to fetch these samples now."""
        bags = self.bags if self.together is None else (self.together,)
        for block in (self.labels, self.dense, *bags):
            block.will_read(first, last)

    def head(self, rows: int) -> Part:
        """The first samples alone."""
        labels, dense, *bags = (
            dataclasses.replace(block, rows=rows) for block in (self.labels, self.dense, *self.bags)
        )
        return Part(labels, dense, tuple(bags), self.together)


def day_files(day: int) -> tuple[str, str, str]:
    """Names of the labels, the dense features and the bags of a day."""
    return f"day_{day}_labels.npy", f"day_{day}_dense.npy", f"day_{day}_sparse_multi_hot.npz"


def open_day(folder: str, day: int, bags: Sequence[int]) -> Part:
    """Opens the three files of a day.

    Args:
        bags: bag size of each table.

    Raises:
        UserError: a file is missing, cut short or of another form; names file and member.
    """
    labels, dense, sparse = (f"{folder}/{name}" for name in day_files(day))
    part = Part(open_npy(labels, "<i4", 1), open_npy(dense, "<f4", DENSE), open_npz(sparse, bags))
    for block in (part.dense, *part.bags):
        if block.rows != part.rows:
            raise UserError(
                f"{block.name} has {block.rows:,} samples and {labels} has {part.rows:,}: the files of a "
                "day must come from the same build"
            )
    return part


def open_npy(path: str, dtype: str, columns: int) -> Block:
    """Opens a `.npy` file [n, columns] of this type; [n] is taken for [n, 1]."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _array(file, size, MappedFile(path), path, dtype, columns)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from error


def open_npz(path: str, bags: Sequence[int]) -> tuple[Block, ...]:
    """Opens the members "0", "1", … of an uncompressed `.npz`, one for each bag size."""
    blocks = []
    file = MappedFile(path)
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as raw:
            members = {member.filename: member for member in archive.infolist()}
            if len(members) != len(bags):
                raise UserError(
                    f"{path} has bags of {len(members)} tables and the benchmark has {len(bags)}"
                )
            for table, size in enumerate(bags):
                blocks.append(_member(file, raw, members.get(f"{table}.npy"), table, size))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, struct.error) as error:
        raise _unreadable(path, error) from error
    return tuple(blocks)


def _member(
    file: MappedFile, raw: Any, member: zipfile.ZipInfo | None, table: int, columns: int
) -> Block:
    name = f"{file.path}, table {table}"
    if member is None:
        raise UserError(f"{file.path} has no member {table}.npy: build or fetch it again")
    if member.compress_type != zipfile.ZIP_STORED:
        raise UserError(
            f"{name} is compressed and cannot be mapped: write it with numpy.savez, not savez_compressed"
        )
    raw.seek(member.header_offset)
    fields = _LOCAL_HEADER.unpack(raw.read(_LOCAL_HEADER.size))
    if fields[0] != b"PK\x03\x04":
        raise ValueError(f"no local header of {member.filename}")
    start = member.header_offset + _LOCAL_HEADER.size + fields[-2] + fields[-1]
    raw.seek(start)
    return _array(raw, member.file_size, file, name, "<i4", columns)


def _array(raw: Any, size: int, file: MappedFile, name: str, dtype: str, columns: int) -> Block:
    """The array that begins where `raw` stands, whose header and rows are to have `size` bytes."""
    start = raw.tell()
    shape, found, order = records.npy_header(raw)
    room = size - (raw.tell() - start)
    if len(shape) == 1:
        shape = (*shape, 1)
    if found != np.dtype(dtype) or (order == "F" and min(shape) > 1):
        how = " in Fortran order" if order == "F" else ""
        raise UserError(f"{name} holds {found}{how}, expected {np.dtype(dtype)} in C order")
    if len(shape) != 2 or shape[1] != columns:
        raise UserError(
            f"{name} has shape {list(shape)}, expected [samples, {columns}]: another bag size, or another "
            "data set"
        )
    if room < shape[0] * columns * 4:
        raise UserError(
            f"{name} is cut short: {shape[0]:,} samples need {shape[0] * columns * 4:,} bytes and it has "
            f"{max(room, 0):,}; copy or build it again"
        )
    return Block(file, raw.tell(), shape[0], columns, columns, dtype, name)


def _unreadable(path: str, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} is missing; copy or build it")
    return UserError(f"{path} is damaged or cut short ({error}); copy or build it again")


def open_records(path: str, bags: Sequence[int]) -> Part:
    """Opens HugeCTR's file of records.

    Raises:
        UserError: it is missing or no whole number of records.
    """
    words = _HEAD + sum(bags)
    try:
        size = pathlib.Path(path).stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error
    rows, rest = divmod(size, 4 * words)
    if rest or not rows:
        raise UserError(
            f"{path} has {size:,} bytes, no whole number of records of {4 * words} bytes (bags of "
            f"{sum(bags)} ids): it is cut short, or of other bag sizes"
        )
    file = MappedFile(path)

    def block(at: int, columns: int, dtype: str) -> Block:
        return Block(file, 4 * at, rows, columns, words, dtype, path)

    starts = itertools.accumulate(bags, initial=_HEAD)
    tables = tuple(block(at, columns, "<i4") for at, columns in zip(starts, bags))
    together = block(_HEAD, sum(bags), "<i4")
    return Part(block(0, 1, "<i4"), block(1, DENSE, "<f4"), tables, together)

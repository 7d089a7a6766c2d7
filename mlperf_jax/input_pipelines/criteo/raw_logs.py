"""Criteo's raw logs -> arrays: tab-separated lines of a label, 13 integers and 26 hexadecimal words.

A file is read in pieces, all fields of which are parsed at once: up to eight characters of a field are one
64-bit word, and what is done to one digit is done to its neighbours too. That is 4.53 times as
fast as Python's `int` on each field (`scripts/measure_notes.py`).

Missing fields are 0. Dense features become ln(x + 3), the sum in int32, the logarithm in float32: what
torchrec did when the official data and its checksums were made (a change of June 2025 made it x + 2 - m).
Reference: pytorch/torchrec v0.3.2, datasets/criteo.py.

Shape legend: n lines of a piece.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import text
from mlperf_jax.input_pipelines.criteo.files import DENSE

SPARSE = 26
FIELDS = 1 + DENSE + SPARSE
PIECE = 1 << 18  # bytes: what is computed from them stays in a core's caches
_WORD = 8  # characters in a 64-bit word


def _bytes(value: int) -> np.uint64:
    """A word whose eight bytes have this value."""
    return np.uint64(value * 0x0101010101010101)


@dataclasses.dataclass(frozen=True)
class Lines:
    """Parsed lines: labels u8 [n], dense f32 [n, 13], words u32 [n, 26]."""

    labels: np.ndarray
    dense: np.ndarray
    words: np.ndarray


def read(path: str, piece: int = PIECE) -> Iterator[Lines]:
    """Yields the lines of a raw log, gzipped if its name ends in .gz, a piece at a time.

    Raises:
        UserError: the file is missing or damaged, or a line is not as it must be; names line and field.
    """
    number, rest = 0, b""
    with text.opened(path, lambda: number) as file:
        while data := file.read(piece):
            whole, newline, tail = data.rpartition(b"\n")
            if not newline:
                rest += data
                continue
            lines = parse(rest + whole + newline, path, number)
            rest = tail
            yield lines
            number += len(lines.labels)
    if rest:
        yield parse(rest + b"\n", path, number)


def parse(data: bytes, path: str = "text", before: int = 0) -> Lines:
    """Parses whole lines.

    Args:
        data: ends with a newline.
        path, before: file and number of lines before these, for messages.

    >>> line = b"1\\t5\\t-1" + b"\\t" * 12 + b"0000002a" + b"\\t" * 25 + b"\\n"
    >>> lines = parse(line)
    >>> int(lines.labels[0]), np.exp(lines.dense[0, :3]).round(3).tolist(), int(lines.words[0, 0])
    (1, [8.0, 2.0, 3.0], 42)
    """
    padded = np.frombuffer(b"\n" * _WORD + data + b"\n" * _WORD, np.uint8)
    starts, stops = _fields(padded, path, before)
    grid = _Fields(padded, starts, stops, path, before)
    labels = grid.decimals(slice(0, 1))[:, 0]
    grid.refuse((labels < 0) | (labels > 1), 0, "the label is 0 or 1")
    dense = grid.decimals(slice(1, 1 + DENSE))
    rule = "an integer is at least -2 (the logarithm of it plus 3 is taken) and fits 32 bits"
    grid.refuse((dense < -2) | (dense > 2**31 - 4), 1, rule)
    logarithms = np.log((dense + 3).astype(np.float32))
    return Lines(labels.astype(np.uint8), logarithms, grid.hexadecimals(slice(1 + DENSE, FIELDS)))


def _fields(padded: np.ndarray, path: str, before: int) -> tuple[np.ndarray, np.ndarray]:
    """Offsets where the fields begin and end, each [n, 40]."""
    inside = padded[_WORD:-_WORD]
    newline = inside == ord("\n")
    stops = np.flatnonzero(newline | (inside == ord("\t"))) + _WORD
    lines = np.flatnonzero(newline) + _WORD
    if len(stops) != FIELDS * len(lines) or (stops[FIELDS - 1 :: FIELDS] != lines).any():
        per_line = np.diff(np.searchsorted(stops, lines, "right"), prepend=0)
        row = int(np.argmax(per_line != FIELDS))
        raise UserError(
            f"{path}, line {before + row + 1:,} has {per_line[row]} fields, expected {FIELDS}: a label, "
            f"{DENSE} integers and {SPARSE} hexadecimal words between tabs; fetch the file again"
        )
    starts = np.concatenate([[_WORD], stops[:-1] + 1])
    return starts.reshape(-1, FIELDS), stops.reshape(-1, FIELDS)


@dataclasses.dataclass(frozen=True)
class _Fields:
    """Fields [n, 40] of a piece of text with eight bytes to spare on both sides."""

    text: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    path: str
    before: int

    def words(self, at: np.ndarray) -> np.ndarray:
        """The eight bytes from each offset, the first one lowest."""
        every = np.ndarray((len(self.text) - _WORD + 1,), "<u8", self.text, 0, (1,))
        return every[at]

    def refuse(self, bad: np.ndarray, first: int, rule: str) -> None:
        """Raises for the first field that is bad; `first` is the column that `bad` begins with."""
        if bad.any():
            row, column = map(int, np.argwhere(bad.reshape(len(bad), -1))[0])
            field = self.text[self.starts[row, first + column] : self.stops[row, first + column]]
            raise UserError(
                f"{self.path}, line {self.before + row + 1:,}, field {first + column + 1}: "
                f"{field.tobytes().decode(errors='replace')!r}: {rule}; fetch the file again"
            )

    def decimals(self, columns: slice) -> np.ndarray:
        """Integers i64 [n, c] of fields like "", "12" or "-3"."""
        starts, stops = self.starts[:, columns], self.stops[:, columns]
        negative = (self.text[starts] == ord("-")) & (stops > starts)
        digits = stops - starts - negative
        # what lies before the field's last digits is replaced by zeros
        foreign = np.uint64(2**64 - 1) >> (8 * np.minimum(digits, _WORD - 1)).astype(np.uint64)
        foreign[digits >= _WORD] = 0
        word = (self.words(stops - _WORD) & ~foreign) | (_bytes(ord("0")) & foreign)
        value = word - _bytes(ord("0"))
        bad = ((value | (value + _bytes(0x76))) & _bytes(0x80)) != 0
        bad |= negative & (digits == 0)
        long = digits > _WORD
        rule = "a whole number is expected"
        self.refuse(bad & ~long, columns.start, rule)
        # neighbours join: digits to pairs, pairs to fours, fours to eight
        for base, bits, kept in (
            (10, 8, 2**64 - 1),
            (100, 16, 0x00FF00FF00FF00FF),
            (10**4, 32, 0x0000FFFF0000FFFF),
        ):
            value = (value & np.uint64(kept)) * np.uint64(base * 2**bits + 1) >> np.uint64(bits)
        value = value.astype(np.int64)
        value[negative] *= -1
        self._one_by_one(value, long, columns.start, 10, rule)
        return value

    def hexadecimals(self, columns: slice) -> np.ndarray:
        """Numbers u32 [n, c] of fields like "" or "68fd1e64"."""
        starts = self.starts[:, columns]
        digits = self.stops[:, columns] - starts
        word = np.where(digits > 0, self.words(starts), _bytes(ord("0"))) | _bytes(0x20)
        letter = (word >> np.uint64(6)) & _bytes(1)
        nibble = (word & _bytes(0x0F)) + letter * np.uint64(9)
        shown = nibble + _bytes(ord("0")) + letter * np.uint64(ord("a") - ord("0") - 10)
        above_nine = ((nibble + _bytes(6)) >> np.uint64(4)) & _bytes(1)
        bad = ((word ^ shown) | (nibble & _bytes(0xF0)) | (above_nine ^ letter)) != 0
        odd = (digits != _WORD) & (digits > 0)
        self.refuse(bad & ~odd, columns.start, "a hexadecimal word is expected")
        rule = "up to 8 hexadecimal digits are expected"
        value = nibble
        for shift, kept in ((4, 0x00FF00FF00FF00FF), (8, 0x0000FFFF0000FFFF), (16, 0xFFFFFFFF)):
            value = (value << np.uint64(shift)) | (value >> np.uint64(2 * shift))
            value &= np.uint64(kept)
        self._one_by_one(value, odd, columns.start, 16, rule)
        return value.astype(np.uint32)

    def _one_by_one(
        self, value: np.ndarray, which: np.ndarray, first: int, base: int, rule: str
    ) -> None:
        """Parses the few fields that are longer, or hexadecimal and shorter, than a word."""
        for row, column in np.argwhere(which):
            start, stop = self.starts[row, first + column], self.stops[row, first + column]
            bad = np.zeros(which.shape, bool)
            bad[row, column] = True
            try:
                found = int(self.text[start:stop].tobytes(), base)
            except ValueError:
                self.refuse(bad, first, rule)
                raise
            limit = 1 << 62 if base == 10 else 1 << 32
            if not -limit < found < limit or (base == 16 and found < 0):
                self.refuse(bad, first, rule)
            value[row, column] = found

"""Megatron token files, `<prefix>.bin` and `<prefix>.idx`: reader and writer.

The organisers hand out C4 in this format. `.bin` holds the token ids of all documents back to back;
`.idx` says how long each document is and where it starts: magic, version, dtype code, number of
documents D and of document borders D + 1, then int32 lengths, int64 byte offsets, int64 borders. The
header has 34 bytes, so the arrays are not aligned.
Reference: Megatron-core r0.11, datasets/indexed_dataset.py.

Shape legend: D documents of a file.
"""

from __future__ import annotations

import array
import contextlib
import functools
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building, records

Ranges = Callable[[Sequence[tuple[int, int]]], list[Any]]  # (start, stop) in bytes -> those bytes
MAGIC = b"MMIDIDX\0\0"
DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
_HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, document entries
_AT_ONCE = 1 << 20  # documents whose numbers are checked together
_checked: set[tuple[Any, ...]] = set()  # indexes of this process, by `_state_of`
_UINT16_BELOW = 65_500  # ids of a tokenizer with fewer entries are written as uint16


def dtype_for(vocabulary: int) -> np.dtype:
    """Returns how ids of a tokenizer with that many entries are stored: uint16 or int32."""
    return np.dtype("<u2" if vocabulary < _UINT16_BELOW else "<i4")


# -- reading -------------------------------------------------------------------------------------


class TokenFile:
    """A pair of files, memory mapped; a gs:// pair by ranged reads, its index in memory.

    Opening reads the index, each number of which must follow from the others, and no token.

    Args:
        prefix: path without `.bin` and `.idx`.
        vocabulary: ids must lie below it; None to leave them unchecked.

    Raises:
        UserError: a file is missing, no index of this format, one with a number that cannot be, or the two do not
            fit each other.
    """

    def __init__(self, prefix: str | os.PathLike, vocabulary: int | None = None):
        self.prefix, self.vocabulary = records.local(prefix), vocabulary
        data_size, self._read = _open(self.prefix + ".bin")
        index_size, read_index = _open(self.prefix + ".idx")
        at = _HEADER.size
        (head,) = read_index([(0, min(at, index_size))])
        self.dtype, self.documents, entries = self._header(bytes(head))
        whole = at + 12 * self.documents + 8 * entries
        if index_size != whole:
            self._damaged(f"it has {index_size:,} bytes, its header (byte 0) asks for {whole:,}")
        (buffer,) = read_index([(0, whole)])
        self._lengths = np.frombuffer(buffer, "<i4", self.documents, at)
        self._starts = np.frombuffer(buffer, "<i8", self.documents, at + 4 * self.documents)
        borders = np.frombuffer(buffer, "<i8", entries, at + 12 * self.documents)
        if not self.documents or not entries:
            self._damaged("it lists no documents")
        if borders[0] != 0 or borders[-1] != self.documents:
            self._damaged(
                f"its document index (byte {at + 12 * self.documents}) runs from {borders[0]} to "
                f"{borders[-1]}, not from 0 to {self.documents}"
            )
        size = int(self._starts[-1]) + int(self._lengths[-1]) * self.dtype.itemsize
        if self._starts[0] != 0 or size != data_size:
            raise UserError(
                f"{self.prefix}.bin has {data_size:,} bytes and does not match {self.prefix}.idx, "
                f"which describes {size:,}: one of them is cut short or of another data set; copy or "
                "build both again"
            )
        self.tokens = size // self.dtype.itemsize
        if (key := _state_of(f"{self.prefix}.idx")) not in _checked:
            self._check_starts()
            self._check_borders(borders)
            _checked.add(key)

    def __reduce__(self) -> Any:  # by its path: a pickled memory map is the whole file
        return TokenFile, (self.prefix, self.vocabulary)

    def _header(self, raw: bytes) -> tuple[np.dtype, int, int]:
        if raw[: len(MAGIC)] != MAGIC:
            self._damaged(f"it begins (byte 0) with {raw[: len(MAGIC)]!r}, not with {MAGIC!r}")
        if len(raw) < _HEADER.size:
            self._damaged(f"it has {len(raw)} bytes, a header alone has {_HEADER.size}")
        _, version, code, documents, entries = _HEADER.unpack(raw)
        if version != 1:
            self._damaged(f"its version (byte 9) is {version}, only 1 is read")
        if "f" in DTYPES.get(code, "f"):
            self._damaged(f"its dtype code (byte 17) is {code}, which is no integer type")
        return np.dtype(DTYPES[code]), documents, entries

    def _damaged(self, what: str):
        raise UserError(
            f"{self.prefix}.idx is not a usable Megatron index: {what}; copy or build it again"
        )

    def _check_starts(self) -> None:
        """Each document has a length, and starts where the one before it ends."""
        after = 0  # bytes
        for begin in range(0, self.documents, _AT_ONCE):
            lengths = self._lengths[begin : begin + _AT_ONCE].astype(np.int64)
            ends = after + np.cumsum(lengths) * self.dtype.itemsize
            starts = ends - lengths * self.dtype.itemsize
            wrong = np.flatnonzero(
                (lengths < 0) | (self._starts[begin : begin + _AT_ONCE] != starts)
            )
            if len(wrong):
                number = begin + int(wrong[0])
                at = _HEADER.size + 4 * self.documents + 8 * number
                self._damaged(
                    f"document {number} has {self._lengths[number]} tokens and starts (byte {at}) at "
                    f"{self._starts[number]}, the ones before it end at {starts[wrong[0]]}"
                )
            after = int(ends[-1])

    def _check_borders(self, borders: np.ndarray) -> None:
        """They increase: by one each where every document is one sequence, as in all files of the benchmarks."""
        for begin in range(0, len(borders) - 1, _AT_ONCE):
            some = borders[begin : begin + _AT_ONCE + 1]
            steps = np.diff(some)
            single = len(borders) == self.documents + 1
            wrong = np.flatnonzero(steps != 1 if single else steps < 1)
            if len(wrong):
                number = begin + int(wrong[0])
                at = _HEADER.size + 12 * self.documents + 8 * number
                self._damaged(
                    f"its document index goes from {some[wrong[0]]} (byte {at}) to {some[wrong[0] + 1]}"
                )

    def __repr__(self) -> str:
        return f"TokenFile({self.prefix}, {self.documents:,} documents, {self.tokens:,} tokens)"

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, int32 [D]: aligned and in memory, since shuffles gather from it."""
        return self._lengths.copy()

    def starts(self, documents: np.ndarray) -> np.ndarray:
        """Returns the first token of each of some documents: int64, counted from the file's first."""
        return self._starts[documents] // self.dtype.itemsize

    def read(self, starts: Iterable[int], counts: Iterable[int]) -> np.ndarray:
        """Returns the tokens at starts[i] .. starts[i] + counts[i] - 1, one run after the other.

        Raises:
            UserError: an id outside the vocabulary; names the file, the byte and the token.
        """
        size = self.dtype.itemsize
        ranges = [(int(a), int(n)) for a, n in zip(starts, counts)]
        runs = self._read([(a * size, (a + n) * size) for a, n in ranges])
        tokens = np.concatenate([np.frombuffer(run, self.dtype) for run in runs])
        if self.vocabulary is not None:
            low, high = int(tokens.min(initial=0)), int(tokens.max(initial=0))
            if low < 0 or high >= self.vocabulary:
                at = int(np.flatnonzero((tokens < 0) | (tokens >= self.vocabulary))[0])
                place = int(np.concatenate([np.arange(a, a + n) for a, n in ranges])[at])
                raise UserError(
                    f"{self.prefix}.bin: token id {tokens[at]} at byte {place * size} (token {place}) is outside "
                    f"the vocabulary of {self.vocabulary}; the file was made with another tokenizer, or is "
                    "damaged"
                )
        return tokens

    def check(self) -> None:
        """Reads the first and last tokens.

        Raises:
            UserError: as `read`.
        """
        ends = min(self.tokens, 1 << 20)
        self.read([0, self.tokens - ends], [ends, ends])


def _state_of(path: str) -> tuple[Any, ...]:
    """What another content of a file would change; of a bucket's file nothing that is known, so it is checked anew."""
    if path.startswith("gs://"):
        return (path, object())
    found = os.stat(path)
    return (path, found.st_ino, found.st_size, found.st_mtime_ns)


def _open(path: str) -> tuple[int, Ranges]:
    """The bytes of a file: how many, and what reads ranges of them."""
    missing = UserError(f"{path} is missing; a token file is a pair of .bin and .idx of one name")
    if path.startswith("gs://"):
        files = records.gcs()
        if not files.exists(path):
            raise missing

        def fetched(ranges: Sequence[tuple[int, int]]) -> list[Any]:
            starts, stops = ([r[end] for r in ranges] for end in (0, 1))
            return files.cat_ranges([path] * len(ranges), starts, stops, on_error="raise")

        return int(files.size(path)), fetched
    try:
        size = os.path.getsize(path)
        data = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)
    except FileNotFoundError:
        raise missing from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return size, lambda ranges: [data[start:stop] for start, stop in ranges]


# -- writing -------------------------------------------------------------------------------------


class Writer:
    """Writes a pair of files; they appear under their names when it closes without an error.

    >>> with Writer(prefix, np.uint16) as writer:  # doctest: +SKIP
    ...     writer.add([1, 2, 3])
    """

    def __init__(self, prefix: str | os.PathLike, dtype: Any):
        self.prefix, self.dtype = os.fspath(prefix), np.dtype(dtype).newbyteorder("<")
        codes = [code for code, name in DTYPES.items() if np.dtype(name) == self.dtype]
        if not codes or self.dtype.kind not in "iu":
            raise UserError(f"token ids cannot be stored as {self.dtype}")
        self._code, self._lengths = codes[0], array.array("i")
        self._files = contextlib.ExitStack()

    def __enter__(self) -> Writer:
        # left in turn: the index gets its name last, and where it is, the pair is complete
        self._idx = self._files.enter_context(building.unfinished(f"{self.prefix}.idx"))
        self._files.push(self._write_index)
        part = self._files.enter_context(building.unfinished(f"{self.prefix}.bin"))
        self._bin = self._files.enter_context(open(part, "wb"))
        return self

    def __exit__(self, *error: Any) -> None:
        self._files.__exit__(*error)

    def add(self, tokens: Sequence[int] | np.ndarray) -> None:
        """Appends a document; an empty one gets no entry, as in the reference's preprocessor."""
        if len(tokens) == 0:
            return
        ids, limits = np.asarray(tokens), np.iinfo(self.dtype)
        if ids.min() < limits.min or ids.max() > limits.max:
            raise UserError(
                f"{self.prefix}: document {len(self._lengths)} has token ids {ids.min()}..{ids.max()}, "
                f"which {self.dtype.name} cannot hold"
            )
        self._bin.write(ids.astype(self.dtype).tobytes())
        self._lengths.append(len(ids))

    def append(self, other: TokenFile) -> None:
        """Appends all documents of another pair of the same element type."""
        if other.dtype != self.dtype:
            raise UserError(
                f"{other.prefix}.bin holds {other.dtype.name}, {self.prefix}.bin {self.dtype.name}; "
                "build both with one tokenizer"
            )
        with open(other.prefix + ".bin", "rb") as source:
            shutil.copyfileobj(source, self._bin, 1 << 24)
        self._lengths.frombytes(other.lengths.astype(np.dtype("=i4")).tobytes())

    def _write_index(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            return
        lengths = np.frombuffer(self._lengths, np.int32) if self._lengths else np.zeros(0, np.int32)
        n = len(lengths)
        ends = np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize
        with open(self._idx, "wb") as file:
            file.write(_HEADER.pack(MAGIC, 1, self._code, n, n + 1))
            file.write(lengths.astype("<i4").tobytes())
            file.write(np.concatenate([[0], ends])[:n].astype("<i8").tobytes())
            file.write(np.arange(n + 1, dtype="<i8").tobytes())

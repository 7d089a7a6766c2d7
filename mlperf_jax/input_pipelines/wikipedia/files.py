"""Wikipedia on disk: examples of any length one after the other, and an index that says where each begins.

A split is so many parts, each a pair: `train-00000-of-00500.bin` holds uint16, of each example its tokens, then the
masked positions, then what stood there; `.idx` is a header and, of all N examples, start, length, split, masked and
random. Lengths are read into memory, 2 bytes an example; all else is memory-mapped.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import re
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building, records
from mlperf_jax.input_pipelines.wikipedia.instances import Example

SPLITS = ("train", "validation")
_MAGIC = b"MLMPAIRS"
_HEADER = struct.Struct("<8siiqq")  # magic, longest example, vocabulary, N, words of the .bin
_COLUMNS = {"start": "<i8", "length": "<u2", "split": "<u2", "masked": "<u2", "random": "u1"}
_FIRST = 8  # examples that tell how all of them end
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.idx")


def part(folder: str | os.PathLike, split: str, number: int, parts: int) -> str:
    """The path of a part without its ending."""
    return f"{os.fspath(folder)}/{split}-{number:05d}-of-{parts:05d}"


def write(prefix: str, examples: Iterable[Example], longest: int, vocabulary: int) -> int:
    """Writes a part, whose index gets its name last: where it is, the part is complete. Returns N.

    Args:
        prefix: its path without the ending.
        examples: in order.
        longest: tokens that an example may have.
        vocabulary: its ids lie below it.
    """
    rows: list[tuple[int, ...]] = []
    with contextlib.ExitStack() as stack:
        index = stack.enter_context(building.unfinished(f"{prefix}.idx"))
        words, at = stack.enter_context(building.unfinished(f"{prefix}.bin")), 0
        with open(words, "wb") as file:
            for example in examples:
                run = np.concatenate([example.tokens, example.positions, example.ids])
                file.write(run.astype("<u2").tobytes())
                counts = len(example.tokens), example.split, len(example.ids), example.random
                rows.append((at, *counts))
                at += len(run)
        columns = np.array(rows, np.int64).reshape(-1, len(_COLUMNS)).T
        with open(index, "wb") as file:
            file.write(_HEADER.pack(_MAGIC, longest, vocabulary, len(rows), at))
            for column, kind in zip(columns, _COLUMNS.values()):
                file.write(column.astype(kind).tobytes())
    return len(rows)


class Part:
    """The examples of one part, memory-mapped; opening reads the header and the lengths.

    Attributes:
        longest: tokens that an example may have.
        vocabulary: its ids lie below it.
        lengths: tokens of each example, uint16 [N].

    Raises:
        UserError: a file is missing, cut short, or not of this kind.
    """

    def __init__(self, prefix: str):
        self.prefix = prefix
        self._words = self._mapped("bin", np.dtype("<u2"))
        raw = self._mapped("idx", np.dtype(np.uint8))
        if len(raw) < _HEADER.size or bytes(raw[:8]) != _MAGIC:
            raise UserError(f"{prefix}.idx is no index of examples: build it again")
        _, self.longest, self.vocabulary, n, words = _HEADER.unpack(bytes(raw[: _HEADER.size]))
        size = _HEADER.size + n * sum(np.dtype(kind).itemsize for kind in _COLUMNS.values())
        for ending, found, expected in (("idx", len(raw), size), ("bin", len(self._words), words)):
            if found != expected:
                raise UserError(
                    f"{prefix}.{ending} is cut short or of another index: it holds {found:,} of "
                    f"{expected:,} {'bytes' if ending == 'idx' else 'words'}, copy or build both again"
                )
        at, self._columns = _HEADER.size, {}
        for name, kind in _COLUMNS.items():
            end = at + n * np.dtype(kind).itemsize
            self._columns[name], at = raw[at:end].view(kind), end
        self.lengths = np.array(self._columns["length"])

    def _mapped(self, ending: str, kind: np.dtype) -> np.ndarray:
        path = f"{self.prefix}.{ending}"
        try:
            empty = not os.path.getsize(path)
            return np.zeros(0, kind) if empty else np.memmap(path, kind, "r").view(np.ndarray)
        except FileNotFoundError:
            raise UserError(f"{path} is missing: copy or build this part again") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): copy or build it again") from error

    def __reduce__(self) -> Any:  # by its path: a pickled memory map is the whole file
        return Part, (self.prefix,)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        start, length, split, masked, random = (
            int(self._columns[name][index]) for name in _COLUMNS
        )
        end, starts = start + length + 2 * masked, self._columns["start"]
        after = starts[index + 1] if index + 1 < len(self) else len(self._words)
        run = self._words[start:end]
        tokens, positions, ids = run[:length], run[length : length + masked], run[length + masked :]
        whole = start >= 0 and end == after and random <= 1
        if not whole or self._wrong(tokens, split, positions, ids):
            raise UserError(
                f"{self.prefix}.bin, example {index} (word {start}) is damaged: {length} tokens below "
                f"{self.vocabulary} and {masked} masked ones belong there, copy or build this part again"
            )
        return Example(tokens, split, positions, ids, random)

    def _wrong(
        self, tokens: np.ndarray, split: int, positions: np.ndarray, ids: np.ndarray
    ) -> bool:
        length, masked = len(tokens), len(positions)
        if not 1 < split < length <= self.longest or len(ids) != masked:
            return True
        ends = None if self._separator is None else {self._separator}
        return bool(
            max(tokens.max(), ids.max(initial=0)) >= self.vocabulary
            or (masked and positions[-1] >= length)
            or (positions[1:] <= positions[:-1]).any()
            or (ends and {int(tokens[split - 1]), int(tokens[-1])} != ends)
        )

    @functools.cached_property
    def _separator(self) -> int | None:
        """What both parts of an example end with, [SEP], as the first examples have it; None where they do not agree."""
        found: collections.Counter[int] = collections.Counter()
        for index in range(min(len(self), _FIRST)):
            start, length, split = (
                int(self._columns[c][index]) for c in ("start", "length", "split")
            )
            if 0 < split < length and 0 <= start <= len(self._words) - length:
                found.update(self._words[[start + split - 1, start + length - 1]].tolist())
        token, times = max(found.items(), key=lambda item: item[1], default=(None, 0))
        return token if times > 1.5 * min(len(self), _FIRST) else None


class Examples:
    """All examples of a split, part after part.

    Args:
        folder: of the parts.
        split: "train" or "validation".
        longest, vocabulary: what they were built with; more is refused.

    Raises:
        UserError: no parts, one is missing, or they were built with other numbers.
    """

    def __init__(self, folder: str, split: str, longest: int, vocabulary: int):
        self._given = folder, split, longest, vocabulary
        self.parts = [Part(prefix) for prefix in _found(folder, split)]
        for one in self.parts:
            if (one.longest, one.vocabulary) != (longest, vocabulary):
                raise UserError(
                    f"{one.prefix}.idx is of sequences up to {one.longest} and ids below {one.vocabulary}, "
                    f"not {longest} and {vocabulary}: build it again"
                )
        self._ends = np.cumsum([len(one) for one in self.parts])

    def __reduce__(self) -> Any:
        return Examples, self._given

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __repr__(self) -> str:
        return f"Examples({self._given[0]}, {self._given[1]}, {len(self):,})"

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, uint16 [N]."""
        return np.concatenate([one.lengths for one in self.parts])

    def __getitem__(self, index: int) -> Example:
        number, place = self._at(index)
        return self.parts[number][place]

    def describe(self, index: int) -> str:
        number, place = self._at(index)
        return f"{self.parts[number].prefix}.bin, example {place}"

    def _at(self, index: int) -> tuple[int, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - (int(self._ends[number - 1]) if number else 0)


def _found(folder: str, split: str) -> Sequence[str]:
    """The parts of a split, all of them, in order."""
    names = [name for name in records.listing(folder) or () if name.startswith(f"{split}-")]
    found = {(int(m[1]), int(m[2])) for name in names if (m := _PART.fullmatch(name, len(split)))}
    totals = {total for _, total in found}
    if not totals:
        raise UserError(
            f"{folder} holds no examples of {split}: build them with: mlperf-jax data build bert"
        )
    if len(totals) > 1:
        raise UserError(
            f"{folder} holds {split} twice, in {sorted(totals)} parts: remove one of them"
        )
    (total,) = totals
    for number in range(total):
        if (number, total) not in found:
            path = part(folder, split, number, total)
            raise UserError(f"{path}.idx is missing: copy or build this part again")
    return [part(folder, split, number, total) for number in range(total)]

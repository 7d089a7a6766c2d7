"""LAION's shards on disk: tars `00000.tar`, … of moments and captions, and an index that says where each sample lies.

A sample is two members of a tar: `KEY.npy`, float32 [1, 2C, S, S], the means of a latent's C channels and then the
logarithms of their variances, and `KEY.txt`, its caption. `index/00000.idx` is a header and, of all N samples of a
shard, where array and caption begin, how long caption and array's header are, and the key. Opening reads headers alone.

Shape legend: N samples of a shard, C channels of a latent, S its side.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building, records
from mlperf_jax.input_pipelines.laion import tars

NAME, INDEX = "laion", "index"
ELSEWHERE = "shards.txt"  # beside the index: the folder of the shards, where they lie in another
ARRAY, CAPTION = "npy", "txt"
IMAGES = ("jpg", "jpeg", "png", "bmp", "gif", "tiff", "ico")
_MAGIC = b"MLMLAION"
_HEADER = struct.Struct("<8sqqiiq")  # magic, N, bytes of the tar, 2C, S, bytes of the longest key
_COLUMNS = {"array": "<i8", "text": "<i8", "length": "<u4", "head": "<u2"}
_SHARD = re.compile(r"(\d{5})\.tar")
_NPY, _NPY_HEAD = b"\x93NUMPY", 10  # bytes up to and with the length of a header
_BUILD = "mlperf-jax data build stable_diffusion --data-dir"

Range = tuple[str, int, int]  # a file, first byte, and the one behind the last


class Form(NamedTuple):
    """Shape of a sample's moments, [2C, S, S]."""

    channels: int
    side: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.side, self.side

    @property
    def bytes(self) -> int:
        return 4 * self.channels * self.side**2


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"{number:05d}.tar"


# -- an index ------------------------------------------------------------------------------------


def write_index(path: str, shard: str, form: Form) -> int:
    """Writes the index of a shard, having read the headers of its members and its captions. Returns N.

    Raises:
        UserError: the shard is damaged, a member of a pair is absent or stands twice, an array is not of this form,
            or a caption is no text; names the member.
    """
    with tars.Tar(shard) as tar:
        found = tars.samples(tar, (ARRAY, CAPTION, *IMAGES))
        rows = [_row(tar, key, members, form) for key, members in found.items()]
        if not rows:
            raise UserError(f"{shard} holds no samples, KEY.npy and KEY.txt: fetch it again")
        size = tar.size
    keys = np.array([key.encode() for key in found])
    with building.unfinished(path) as part, open(part, "wb") as file:
        file.write(_HEADER.pack(_MAGIC, len(rows), size, *form, keys.itemsize))
        for kind, column in zip(_COLUMNS.values(), zip(*rows, strict=True), strict=True):
            file.write(np.array(column, kind).tobytes())
        file.write(keys.tobytes())
    return len(rows)


def _row(
    tar: tars.Tar, key: str, members: dict[str, tars.Member], form: Form
) -> tuple[int, int, int, int]:
    for ending, other in ((ARRAY, CAPTION), (CAPTION, ARRAY)):
        if ending not in members:
            images = [name for name in members if name in IMAGES]
            if images and ending == ARRAY:
                raise UserError(
                    f"{tar.path} holds images ({key}.{images[0]}), not their moments: make those from them "
                    "with the benchmark's write_moments (docs/data.md)"
                )
            raise UserError(
                f"{tar.path} holds {key}.{other} and no {key}.{ending}: fetch or make it again"
            )
    array, caption = members[ARRAY], members[CAPTION]
    head = check_header(f"{tar.path}, {array.name}", tar.read(array.at, min(array.size, 256)), form)
    if array.size != head + form.bytes:
        raise UserError(
            f"{tar.path}, {array.name} has {array.size:,} bytes and its header asks for {head + form.bytes:,}: "
            "fetch or make it again"
        )
    decoded(f"{tar.path}, {caption.name}", tar.read(caption.at, caption.size))
    return array.at, caption.at, caption.size, head


def is_current(path: str, size: int, form: Form) -> bool:
    """Whether an index is there, of a shard of so many bytes and this form."""
    try:
        with open(path, "rb") as file:
            found = _HEADER.unpack(file.read(_HEADER.size))
    except (FileNotFoundError, struct.error):
        return False
    return (found[0], *found[2:5]) == (_MAGIC, size, *form)


def check_header(where: str, begin: bytes, form: Form) -> int:
    """Bytes of a `.npy` header, if its array is one of moments; nothing is unpickled.

    Raises:
        UserError: it is not.
    """
    file = io.BytesIO(begin)
    try:
        shape, kind, order = records.npy_header(file)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where} is no array ({error}): fetch or make it again") from error
    if (shape, kind) != ((1, *form.shape), np.dtype("<f4")) or order != "C":
        how = " in Fortran order" if order != "C" else ""
        raise UserError(
            f"{where} holds {kind}{list(shape)}{how}, moments are float32{[1, *form.shape]}: take the "
            "organisers' shards of moments, or make them again"
        )
    return file.tell()


def decoded(where: str, text: bytes) -> str:
    """A caption.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is no text ({error}): fetch or make it again") from error


# -- bytes of shards -----------------------------------------------------------------------------


class Files:
    """Ranges of bytes: of files here by memory map, of files in a bucket side by side."""

    def __init__(self) -> None:
        self._maps: dict[str, np.ndarray] = {}

    def __reduce__(self) -> Any:  # maps don't travel to worker processes
        return Files, ()

    def read(self, ranges: Sequence[Range]) -> list[Any]:
        """The bytes of each range.

        Raises:
            UserError: a file is missing or cannot be read.
        """
        if ranges and ranges[0][0].startswith("gs://"):
            # a range of nothing cannot be asked for
            wanted = [one for one in ranges if one[1] < one[2]]
            paths, starts, stops = ([one[i] for one in wanted] for i in range(3))
            got = iter(records.gcs().cat_ranges(paths, starts, stops, on_error="raise"))
            return [next(got) if start < stop else b"" for _, start, stop in ranges]
        return [self._mapped(path)[start:stop] for path, start, stop in ranges]

    def _mapped(self, path: str) -> np.ndarray:
        if path not in self._maps:
            try:
                # of the subclass every slice costs more
                self._maps[path] = np.memmap(path, np.uint8, "r").view(np.ndarray)
            except (OSError, ValueError) as error:
                raise UserError(f"cannot read {path} ({error}): copy or make it again") from error
        return self._maps[path]


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard as its index has it.

    Attributes:
        path: of the tar.
        size: its bytes.
        form: of its moments.
        columns: where each sample lies, by the names of the index.
        keys: of the samples, [N].
        files: reads it.
    """

    path: str
    size: int
    form: Form
    columns: dict[str, np.ndarray]
    keys: np.ndarray
    files: Files

    @property
    def name(self) -> str:
        """Its number in five digits."""
        return os.path.basename(self.path).removesuffix(".tar")

    def __len__(self) -> int:
        return len(self.keys)

    def array(self, index: int) -> Range:
        """Where the array of a sample lies, its header too."""
        at, head = int(self.columns["array"][index]), int(self.columns["head"][index])
        return self.path, at, at + head + self.form.bytes

    def text(self, index: int) -> Range:
        """Where the caption of a sample lies."""
        at = int(self.columns["text"][index])
        return self.path, at, at + int(self.columns["length"][index])

    def member(self, index: int) -> Range:
        """The same with the header of its member before it, which says how long it is."""
        path, first, last = self.text(index)
        return path, first - tars.BLOCK, last

    def caption(self, index: int, raw: Any) -> str:
        """The caption of a sample, in the bytes of `member`.

        Raises:
            UserError: it is no text, or the member there has another length.
        """
        raw, where = bytes(raw), self.describe(index, CAPTION)
        if tars.size_of(raw[: tars.BLOCK]) != len(raw) - tars.BLOCK:
            raise UserError(
                f"{where} is not where the index has it: build the index again, with {_BUILD}"
            )
        return decoded(where, raw[tars.BLOCK :])

    def moments(self, index: int, raw: Any) -> np.ndarray:
        """The moments of a sample, f32 [2C, S, S], in the bytes of `array`.

        Raises:
            UserError: they are no array.
        """
        raw = np.frombuffer(raw, np.uint8)
        begin = raw[:_NPY_HEAD].tobytes()
        head = _NPY_HEAD + int.from_bytes(begin[8:], "little")
        if begin[:6] != _NPY or len(raw) != head + self.form.bytes:
            raise UserError(
                f"{self.describe(index)} is not where the index has it: build the index again, with {_BUILD}"
            )
        return raw[-self.form.bytes :].view("<f4").reshape(self.form.shape)

    def check_finite(self, index: int, moments: np.ndarray) -> None:
        """Nothing, unless a value of a sample's moments is NaN or infinite.

        Raises:
            UserError: one is.
        """
        # a sum in float64, which any of them makes so, in five eighths of the time of NumPy's
        if not np.isfinite(cv2.norm(moments.reshape(len(moments), -1), cv2.NORM_L1)):
            raise UserError(
                f"{self.describe(index)} holds values that are not finite: fetch or make it again"
            )

    def captions(self) -> Iterator[str]:
        """Yields the captions in order, for whoever makes embeddings of them."""
        for index in range(len(self)):
            (raw,) = self.files.read([self.member(index)])
            yield self.caption(index, raw)

    def digest(self) -> str:
        """Of the keys in their order: who it belongs to."""
        return hashlib.sha256(b"\0".join(self.keys.tolist())).hexdigest()

    def describe(self, index: int, ending: str = ARRAY) -> str:
        return f"{self.path}, {self.keys[index].decode()}.{ending}"


def _shard(path: str, size: int, raw: np.ndarray, form: Form, files: Files, index: str) -> Shard:
    """A shard by the bytes of its index."""
    again = f"remove it and build it again, with {_BUILD}"
    if len(raw) < _HEADER.size or raw[:8].tobytes() != _MAGIC:
        raise UserError(f"{index} is no index of a shard: {again}")
    _, n, stated, channels, side, width = _HEADER.unpack(raw[: _HEADER.size].tobytes())
    expected = n * (sum(np.dtype(kind).itemsize for kind in _COLUMNS.values()) + width)
    if len(raw) - _HEADER.size != expected:
        raise UserError(
            f"{index} is cut short: it holds {len(raw) - _HEADER.size:,} of {expected:,} bytes behind its "
            f"header, {again}"
        )
    if stated != size:
        raise UserError(
            f"{path} has {size:,} bytes and its index says {stated:,}: fetch the shard again if it is cut "
            f"short, or build the index again if it is another one, with {_BUILD}"
        )
    if (channels, side) != form:
        raise UserError(
            f"{index} is of moments {[channels, side, side]}, not {list(form.shape)}: {again}"
        )
    at, columns = _HEADER.size, {}
    for name, kind in {**_COLUMNS, "key": f"S{width}"}.items():
        end = at + n * np.dtype(kind).itemsize
        columns[name], at = raw[at:end].view(kind), end
    keys = columns.pop("key")
    ends = {"array": columns["head"] + np.int64(form.bytes), "text": columns["length"]}
    for name, length in ends.items():
        # members of a tar begin at whole blocks, behind a header of one
        first = columns[name]
        wrong = np.flatnonzero(
            (first < tars.BLOCK) | (first % tars.BLOCK != 0) | (first + length > size)
        )
        if len(wrong):
            raise UserError(
                f"{index} is damaged: the {name} of sample {wrong[0]} would begin at byte {first[wrong[0]]:,} of "
                f"{size:,}, {again}"
            )
    return Shard(path, size, form, columns, keys, files)


# -- all shards ----------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a data set lies: the folder of its index, and that of its shards."""

    folder: str
    shards: str


def locate(folders: Sequence[str]) -> Place | None:
    """The first of these folders that holds shards, or says where they lie; None where none does."""
    for folder in folders:
        there = records.listing(folder) or {}
        if any(map(_SHARD.fullmatch, there)):
            return Place(folder, folder)
        if ELSEWHERE in there:
            return Place(folder, records.read_text(f"{folder}/{ELSEWHERE}").strip())
    return None


def sizes(folder: str, count: int) -> dict[str, int]:
    """Bytes of each shard by its name, in order.

    Raises:
        UserError: one of them is missing, or there are more.
    """
    there = records.listing(folder) or {}
    missing = [number for number in range(count) if shard_name(number) not in there]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of {count} shards, the first is number {missing[0]} "
            f"({shard_name(missing[0])}): fetch or make them"
        )
    for found in filter(None, map(_SHARD.fullmatch, sorted(there))):
        if int(found[1]) >= count:
            raise UserError(
                f"{folder} holds {found[0]}, and {count} shards end with {shard_name(count - 1)}: take the "
                "shards of another set away"
            )
    return {shard_name(number): there[shard_name(number)] for number in range(count)}


class Samples:
    """All samples, shard after shard; nothing is read before one is asked for.

    Args:
        place: where they lie.
        count: of shards.
        form: of the moments.

    Raises:
        UserError: a shard or its index is missing, damaged, or of another form.
    """

    def __init__(self, place: Place, count: int, form: Form):
        self._given = place, count, form
        self.files, self.form = Files(), form
        found = sizes(place.shards, count)
        folder = f"{place.folder}/{INDEX}"
        names = {shard: f"{shard.removesuffix('.tar')}.idx" for shard in found}
        there = records.listing(folder) or {}
        missing = [name for name in names.values() if name not in there]
        if missing:
            raise UserError(
                f"{folder} lacks {len(missing)} of {count} indices of shards, the first is {missing[0]}: write "
                f"them with {_BUILD} (for a bucket: with a copy of the shards, and copy them there)"
            )
        paths = [f"{folder}/{name}" for name in names.values()]
        self.shards = [
            _shard(f"{place.shards}/{name}", size, raw, form, self.files, path)
            for (name, size), path, raw in zip(found.items(), paths, self._indices(paths, there))
        ]
        self._ends = np.cumsum([len(shard) for shard in self.shards])

    def _indices(self, paths: list[str], there: dict[str, int]) -> list[np.ndarray]:
        ranges = [(path, 0, there[os.path.basename(path)]) for path in paths]
        return [np.frombuffer(raw, np.uint8) for raw in self.files.read(ranges)]

    def __reduce__(self) -> Any:
        return Samples, self._given

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __repr__(self) -> str:
        return f"Samples({self._given[0].shards}, {len(self):,})"

    def at(self, ids: np.ndarray) -> list[tuple[Shard, int]]:
        """The shard of each of these samples, and its number there."""
        numbers = np.searchsorted(self._ends, ids, side="right")
        return [
            (shard := self.shards[number], index - int(self._ends[number]) + len(shard))
            for number, index in zip(numbers.tolist(), ids.tolist())
        ]

    def describe(self, index: int) -> str:
        ((shard, place),) = self.at(np.array([index]))
        return shard.describe(place)

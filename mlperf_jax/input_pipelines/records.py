"""Records: data sets that tensorflow-datasets prepared as ArrayRecord, read without TensorFlow.

A prepared data set is a folder `<name>/<version>` with `dataset_info.json` (splits and the number of
records in each shard), `features.json` and files `<name>-<split>.array_record-00000-of-00008`. The two
JSON files are read here, the shards by the array_record library, and the `tf.Example` messages by a
few lines of our own: 1.88 times as fast as tensorflow-datasets, nothing of which is imported. `writing`
writes the same.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
import os
import pathlib
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, Literal

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from mlperf_jax.errors import UserError, optional

Folder = str | os.PathLike
_BLOCK = 1 << 16  # an ArrayRecord file is a whole number of these blocks
_NPY = re.compile(
    rb"\{'descr': '([^']+)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), \}\s*"
)
_READER = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of records: its path, its bytes on disk, and how many records it should hold."""

    path: str
    size: int
    length: int

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a prepared folder says of itself: shards by split, and its features as written."""

    folder: str
    splits: dict[str, tuple[Shard, ...]]
    features: dict[str, Any]

    def shards(self, split: str) -> tuple[Shard, ...]:
        """Returns the shards of a split that holds records.

        Raises:
            UserError: there is no such split, or it is empty.
        """
        shards = self.splits.get(split, ())
        if not sum(shard.length for shard in shards):
            have = ", ".join(sorted(self.splits)) or "none"
            raise UserError(
                f"{self.folder} has no records in split {split!r} (splits: {have}); build it again"
            )
        return shards


def local(path: Folder | None) -> str:
    """Returns a path as a string, `~` expanded, refusing what cannot be read.

    Raises:
        UserError: no path, s3:// (mount it), or gs:// without the extra that lists buckets.
    """
    if path is None:
        raise UserError("no data folder is given; say where the data is with --data-dir")
    text = os.path.expanduser(os.fspath(path))
    if text.startswith("gs://"):
        gcs()
    elif "://" in text:
        scheme = text.split("://")[0]
        raise UserError(
            f"{text}: {scheme}:// paths are not read; mount the bucket (for example with mountpoint-s3 "
            "or rclone) and give the mounted folder"
        )
    return text.rstrip("/") or text


def below(folder: Folder, name: str) -> str:
    """The path of a file or folder in another.

    >>> below("gs://bucket/data/", "weights")
    'gs://bucket/data/weights'
    """
    return f"{os.fspath(folder).rstrip('/')}/{name}"


def mapped(path: Folder | None) -> str:
    """The same of a folder whose files are memory-mapped, and so lie on this machine."""
    if path is not None and os.fspath(path).startswith("gs://"):
        raise UserError(
            f"{path}: its files are memory-mapped; copy them to a local disk, or mount the bucket with gcsfuse "
            "and give the mounted folder"
        )
    return local(path)


def gcs() -> Any:
    """The file system of gs:// paths."""
    return optional("gcsfs", "gcs", "gs:// without a mount").GCSFileSystem()


def listing(folder: str) -> dict[str, int] | None:
    """Returns file name -> bytes (-1 for a folder) of a local or gs:// folder; None if there is none."""
    if folder.startswith("gs://"):
        files = gcs()
        if not files.isdir(folder):
            return None
        found = files.ls(folder, detail=True)
        return {f["name"].rstrip("/").rsplit("/", 1)[-1]: f.get("size", -1) for f in found}
    try:
        with os.scandir(folder) as entries:
            return {e.name: -1 if e.is_dir() else e.stat().st_size for e in entries}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error


def read_text(path: str) -> str:
    if path.startswith("gs://"):
        content: Any = gcs().cat_file(path)
        return content.decode()
    return pathlib.Path(path).read_text(encoding="utf-8")


def read_bytes(path: str) -> bytes:
    if path.startswith("gs://"):
        content: Any = gcs().cat_file(path)
        return content
    return pathlib.Path(path).read_bytes()


def missing_tiny(name: str, benchmark: str, data_dir: str) -> str:
    """The sentence that says how to make the small stand-in of a data set."""
    return (
        f"no {name} in {data_dir}; write it (seconds, no download) with: mlperf-jax data build {benchmark} "
        f"--tiny --data-dir {data_dir}"
    )


def npy_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype, Literal["C", "F"]]:
    """Shape, element type and order of a `.npy` array, whose first byte the file then stands at.

    NumPy parses the header as Python source, which fails now and then in threads of Python 3.11 ("AST
    constructor recursion depth mismatch").

    Raises:
        ValueError: no array of numbers in version 1.0 of the format begins here.
    """
    begin = file.read(10)
    header = _NPY.fullmatch(file.read(int.from_bytes(begin[8:], "little")))
    if begin[:8] != b"\x93NUMPY\x01\x00" or header is None:
        raise ValueError("no header of a .npy file")
    shape = tuple(int(n) for n in header[3].split(b",") if n.strip())
    try:
        kind = np.dtype(header[1].decode("latin-1"))
    except TypeError as error:
        raise ValueError(f"its header names no type of numbers: {error}") from error
    return shape, kind, "F" if header[2] == b"True" else "C"


def prepared(folder: str) -> Prepared | None:
    """Reads the index of a prepared folder, and no record; None if the folder has none.

    Raises:
        UserError: the index is damaged, not of ArrayRecord files, or a shard is missing or cut short.
    """
    files = listing(folder)
    if files is None or "dataset_info.json" not in files:
        return None
    info = read_object(folder, "dataset_info.json")
    features = read_object(folder, "features.json")
    form = info.get("fileFormat", "tfrecord")
    if form != "array_record":
        raise UserError(
            f"{folder} holds {form} files; only array_record can be read at random: prepare it with "
            "file_format=array_record, or convert it with tensorflow-datasets' convert_format"
        )
    try:
        splits = dict(_shard_names(info["name"], split) for split in info["splits"])
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise _damaged(
            folder, "dataset_info.json", f"no list of splits and shards: {error!r}"
        ) from error
    shards = {
        split: tuple(_checked_shard(folder, name, files, length) for name, length in named)
        for split, named in splits.items()
    }
    return Prepared(folder, shards, features)


def is_prepared(folder: str) -> bool:
    """Whether a prepared folder is there and its index not damaged, for builders: what is, they make again."""
    try:
        return prepared(folder) is not None
    except UserError:
        return False


def read_object(folder: str, name: str) -> dict[str, Any]:
    """The object that a JSON file of a prepared folder holds.

    Raises:
        UserError: it is missing, cannot be read, or holds no JSON or something else.
    """
    try:
        found = json.loads(read_text(f"{folder}/{name}"))
    except FileNotFoundError:
        raise _damaged(folder, name, "it is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(folder, name, error) from error
    if not isinstance(found, dict):
        raise _damaged(folder, name, f"a {type(found).__name__}, not an object")
    return found


def _damaged(folder: str, name: str, why: object) -> UserError:
    return UserError(f"{folder}: its index ({name}) is damaged ({why}); copy or build it again")


def _shard_names(dataset: str, split: dict[str, Any]) -> tuple[str, list[tuple[str, int]]]:
    """A split's name, and the file and the number of records of each shard, as an index has them."""
    name, lengths = split["name"], [int(n) for n in split["shardLengths"]]
    if min(lengths, default=0) < 0:
        raise ValueError(f"a shard of {min(lengths)} records")
    template = split.get("filepathTemplate", "")
    count = len(lengths)
    return name, [(shard_name(template, dataset, name, i, count), n) for i, n in enumerate(lengths)]


def shard_name(template: str, dataset: str, split: str, index: int, shards: int) -> str:
    """The file of a shard, by the template of an index or, where that is empty, tensorflow-datasets' usual one."""
    template = template or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    words = {
        "DATASET": dataset,
        "SPLIT": split,
        "FILEFORMAT": "array_record",
        "SHARD_INDEX": f"{index:05d}",
        "NUM_SHARDS": f"{shards:05d}",
        "SHARD_X_OF_Y": f"{index:05d}-of-{shards:05d}",
    }
    return template.format(**words)


def _checked_shard(folder: str, name: str, files: dict[str, int], length: int) -> Shard:
    size = files.get(name)
    if size is None:
        raise UserError(f"{folder}: the shard {name} is missing; copy or build it again")
    if size % _BLOCK or (length and not size):
        raise UserError(
            f"{folder}: the shard {name} is cut short ({size} bytes are not whole blocks of {_BLOCK}); "
            "copy or build it again"
        )
    return Shard(f"{folder}/{name}", size, length)


class Records:
    """Random access to the raw records of some shards; safe to use from many threads.

    Each shard is opened when its first record is asked for, and then compared with its index.
    """

    def __init__(self, shards: Sequence[Shard]):
        self.shards = tuple(shards)
        self._ends = list(itertools.accumulate(shard.length for shard in shards))
        self._readers: list[Any] = [None] * len(self.shards)
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:  # files don't travel to worker processes
        return {**self.__dict__, "_readers": [None] * len(self.shards), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __repr__(self) -> str:
        where = self.shards[0].path.rsplit("/", 1)[0] if self.shards else "no shards"
        return f"Records({where}, {len(self)} records)"

    def _at(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def describe(self, index: int) -> str:
        shard, record = self._at(index)
        return f"{self.shards[shard].name}, record {record}"

    def __getitem__(self, index: int) -> bytes:
        number, record = self._at(index)
        reader = self._readers[number] or self._open(number)
        try:
            return reader.read([record])[0]
        except (RuntimeError, ValueError, IndexError) as error:
            reason = str(error).split("; at byte")[0]
            raise UserError(
                f"{self.describe(index)}: {reason}; copy or build this shard again"
            ) from error

    def _open(self, number: int) -> Any:
        shard = self.shards[number]
        with self._lock:
            if self._readers[number] is None:
                reader = array_record_module.ArrayRecordReader(shard.path, **_READER)
                found = reader.num_records()
                if found != shard.length:
                    raise UserError(
                        f"{shard.name} is damaged: it holds {found} records, its index says {shard.length}; "
                        "copy or build it again"
                    )
                self._readers[number] = reader
            return self._readers[number]


def parse_example(message: bytes) -> dict[str, Any]:
    """Parses a serialised `tf.Example` whose features are single byte strings or integers.

    Written out by hand since it runs once per record; byte strings are views of the message, as copying
    an ImageNet file costs more than all the rest.

    Returns:
        Feature name -> memoryview or int (the first value); float and empty features are left out.

    Raises:
        ValueError: the bytes are not such a message.
    """
    found = _parsed(message, _first_value)
    return {name: value for name, value in found.items() if value is not None}


def fields(example: dict[str, Any], **kinds: type) -> list[Any]:
    """The features of these names, in their order.

    Args:
        example: as `parse_example` gives it.
        kinds: name -> memoryview for bytes, int for a number.

    Raises:
        ValueError: one of them is absent, or of the other kind.
    """
    for name, kind in kinds.items():
        if name not in example:
            raise ValueError(f"the record has no {name!r}, only {sorted(example)}")
        if not isinstance(example[name], kind):
            wanted = "a number" if kind is int else "bytes"
            raise ValueError(f"the record's {name!r} is not {wanted}")
    return [example[name] for name in kinds]


def parse_numbers(message: bytes | memoryview) -> dict[str, np.ndarray]:
    """Parses a serialised `tf.Example` whose features are packed lists of numbers, as TensorFlow writes them.

    Returns:
        Feature name -> int64 or float32, of any length.

    Raises:
        ValueError: the bytes are not such a message.
    """
    return _parsed(message, _numbers)


def _parsed(
    message: bytes | memoryview, value: Callable[[memoryview, int, int], Any]
) -> dict[str, Any]:
    """What `value` makes of each feature of a `tf.Example`, by name."""
    found: dict[str, Any] = {}
    data = memoryview(message)
    try:
        at, end = _open_field(data, 0, 0x0A) if data else (0, 0)  # Example.features
        while at < end:
            at, entry_end = _open_field(data, at, 0x0A)  # Features.feature: a map entry
            at, stop = _open_field(data, at, 0x0A)  # its key
            name = str(data[at:stop], "utf-8")
            found[name] = value(data, *_open_field(data, stop, 0x12))  # its value: a Feature
            at = entry_end
        if at != len(data):
            raise IndexError(at)
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError("the record is not a tf.Example message") from error
    return found


def _first_value(data: memoryview, at: int, end: int) -> memoryview | int | None:
    if at == end or data[at] == 0x12:  # no list, or a FloatList
        return None
    kind = data[at]
    at, end = _open_field(data, at, kind)
    if at == end:
        return None
    if kind == 0x0A:  # BytesList
        at, end = _open_field(data, at, 0x0A)
        return data[at:end]
    if kind == 0x1A:  # Int64List: packed (tag 0x0A) or one by one (tag 0x08)
        at = _open_field(data, at, 0x0A)[0] if data[at] == 0x0A else at + 1
        value = _varint(data, at)[0]
        return value - (1 << 64) if value >> 63 else value
    raise IndexError(kind)


def _numbers(data: memoryview, at: int, end: int) -> np.ndarray:
    kind = data[at] if at < end else 0
    if kind not in (0x12, 0x1A):
        raise ValueError("the record holds a feature that is no list of numbers")
    at, end = _open_field(data, at, kind)
    if at == end:
        return np.zeros(0, np.float32 if kind == 0x12 else np.int64)
    at, stop = _open_field(data, at, 0x0A)  # all in one
    if stop != end:
        raise ValueError("the record holds a list in pieces; TensorFlow packs it as one")
    raw = np.frombuffer(data[at:end], np.uint8)
    return _varints(raw) if kind == 0x1A else raw.view("<f4")


def _varints(raw: np.ndarray) -> np.ndarray:
    """The numbers of a packed list, int64."""
    ends = np.flatnonzero(raw < 128)
    if len(ends) == len(raw):
        return raw.astype(np.int64)
    if not len(ends) or ends[-1] != len(raw) - 1:
        raise ValueError("the record holds a list that ends within a number")
    starts = np.zeros_like(ends)
    starts[1:] = ends[:-1] + 1
    sizes = ends - starts
    if sizes.max() > 9:
        raise ValueError("the record holds a number of more than 64 bits")
    values = raw[starts].astype(np.int64) & 127
    for place in range(1, int(sizes.max()) + 1):
        (more,) = np.nonzero(sizes >= place)
        values[more] |= (raw[starts[more] + place].astype(np.int64) & 127) << 7 * place
    return values


def _open_field(data: memoryview, at: int, tag: int) -> tuple[int, int]:
    """Returns start and end of the length-delimited field with this tag that begins at `at`."""
    if data[at] != tag:
        raise IndexError(at)
    length, at = _varint(data, at + 1)
    if at + length > len(data):
        raise IndexError(at)
    return at, at + length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    byte = data[at]
    if byte < 128:
        return byte, at + 1
    value, shift = byte & 127, 7
    while byte > 127:
        at += 1
        byte = data[at]
        value |= (byte & 127) << shift
        shift += 7
    return value, at + 1

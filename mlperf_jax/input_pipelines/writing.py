"""Writes what `records` reads: data sets in the form of tensorflow-datasets, nothing of which is imported.

`tf.Example` messages, ArrayRecord shards, and the index that a prepared folder has: `dataset_info.json` and
`features.json`, which tensorflow-datasets reads as its own.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building

# one record a chunk and no compression: records are read one by one, and JPEGs do not shrink
_WRITER = "group_size:1,uncompressed"
_CLASSES = "tensorflow_datasets.core.features"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"

Feature = dict[str, Any]  # as features.json describes one


# -- features --------------------------------------------------------------------------------------


def image() -> Feature:
    """An encoded RGB image of any size."""
    shape = {"dimensions": ["-1", "-1", "3"]}
    return {
        "image": {"dtype": "uint8", "encodingFormat": "jpeg", "shape": shape},
        "pythonClassName": f"{_CLASSES}.image_feature.Image",
    }


def text() -> Feature:
    """Text in UTF-8."""
    return {"text": {}, "pythonClassName": f"{_CLASSES}.text_feature.Text"}


def label(classes: int) -> Feature:
    """A class, 0 .. classes - 1; `write_index` takes their names."""
    return {
        "classLabel": {"numClasses": str(classes)},
        "pythonClassName": f"{_CLASSES}.class_label_feature.ClassLabel",
    }


def integer() -> Feature:
    """One int64."""
    return {
        "tensor": {"dtype": "int64", "encoding": "none", "shape": {}},
        "pythonClassName": f"{_CLASSES}.scalar.Scalar",
    }


def array(dtype: str, *shape: int) -> Feature:
    """An array's bytes, little-endian; -1 stands for any length."""
    dimensions = [str(length) for length in shape]
    return {
        "tensor": {"dtype": dtype, "encoding": "bytes", "shape": {"dimensions": dimensions}},
        "pythonClassName": f"{_CLASSES}.tensor_feature.Tensor",
    }


# -- records ---------------------------------------------------------------------------------------


def message(features: Mapping[str, bytes | int]) -> bytes:
    """A serialised `tf.Example` whose features are single byte strings or integers.

    >>> records.parse_example(message({"label": -1}))
    {'label': -1}
    """
    entries = []
    for name, value in features.items():
        if isinstance(value, int):  # an Int64List, packed
            feature = _field(0x1A, _field(0x0A, _varint(value % (1 << 64))))
        else:  # a BytesList
            feature = _field(0x0A, _field(0x0A, value))
        entries.append(_field(0x0A, _field(0x0A, name.encode()) + _field(0x12, feature)))
    return _field(0x0A, b"".join(entries))


def _field(tag: int, body: bytes) -> bytes:
    return bytes([tag]) + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


def write_shard(path: pathlib.Path, messages: Iterable[bytes]) -> None:
    """Writes one file of records, which appears under its name when it is whole.

    Raises:
        UserError: the disk is full or may not be written.
    """
    with building.unfinished(path) as part:
        try:
            writer = array_record_module.ArrayRecordWriter(os.fspath(part), _WRITER)
            for record in messages:
                writer.write(record)
            writer.close()
        except RuntimeError as error:  # what the library makes of a full disk
            raise UserError(f"cannot write {part}: {error}") from error


def records_in(path: pathlib.Path) -> int:
    """How many records a shard holds."""
    reader = array_record_module.ArrayRecordReader(os.fspath(path), "readahead_buffer_size:0")
    return reader.num_records()


# -- the index -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """What the index says of a split.

    Attributes:
        name: such as "train".
        lengths: records of each shard.
        size: bytes of the examples, as a statement; nothing depends on it.
    """

    name: str
    lengths: Sequence[int]
    size: int


def write_index(
    folder: pathlib.Path,
    name: str,
    version: str,
    splits: Iterable[Split],
    features: Mapping[str, Feature],
) -> None:
    """Writes dataset_info.json and features.json.

    Args:
        folder: that holds the shards, named by `records.shard_name("", name, …)`.
        name: of the data set.
        version: such as "1.0.0".
        splits: in their order.
        features: name -> what this module's functions describe.
    """
    info = {
        "fileFormat": "array_record",
        "name": name,
        "splits": [
            {
                "filepathTemplate": _TEMPLATE,
                "name": split.name,
                "numBytes": str(split.size),
                "shardLengths": [str(length) for length in split.lengths],
            }
            for split in splits
        ],
        "version": version,
    }
    whole = {
        "featuresDict": {"features": dict(features)},
        "pythonClassName": f"{_CLASSES}.features_dict.FeaturesDict",
    }
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2, sort_keys=True))
    (folder / "features.json").write_text(json.dumps(whole, indent=4, sort_keys=True))

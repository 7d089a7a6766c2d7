"""Prepared folders: the index, the messages, and every way in which they can be damaged."""

import itertools
import json
import pathlib
import shutil

import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import records
from mlperf_jax.input_pipelines.imagenet import ImageNet, files

TINY = ImageNet(32, tiny=True)


@pytest.fixture
def copy(tiny_dir, tmp_path):
    """A copy of the tiny data set that a test may spoil: the folder of the version."""
    shutil.copytree(tiny_dir, tmp_path / "data")
    return tmp_path / "data" / files.TINY_NAME / files.VERSION


def shard(folder: pathlib.Path, split="train"):
    return next(folder.glob(f"*-{split}.array_record-*"))


def test_messages_parse_as_the_library_parses_them(tiny_dir):
    import tensorflow_datasets as tfds

    folder = files.locate(tiny_dir, tiny=True)
    theirs = tfds.builder_from_directory(folder).as_data_source(
        "validation", decoders={"image": tfds.decode.SkipDecoding()}
    )
    ours = records.Records(records.prepared(folder).shards("validation"))
    assert len(ours) == len(theirs) == 360
    for index in (0, 17, 359):
        mine, other = records.parse_example(ours[index]), theirs[index]
        assert {k: v if isinstance(v, int) else bytes(v) for k, v in mine.items()} == other


def test_integers_bytes_and_floats():
    # Features {a: int64 -1 unpacked, b: floats, c: empty}, by hand from the wire format.
    minus_one = b"\x08" + b"\xff" * 9 + b"\x01"
    field = lambda tag, body: bytes([tag, len(body)]) + body  # noqa: E731
    entry = lambda name, feature: field(0x0A, field(0x0A, name) + field(0x12, feature))  # noqa: E731
    body = entry(b"a", field(0x1A, minus_one)) + entry(b"b", field(0x12, b"\x0a\x04abcd"))
    message = field(0x0A, body + entry(b"c", b""))
    assert records.parse_example(message) == {"a": -1}
    assert records.parse_example(b"") == {}


@pytest.mark.parametrize(
    "damaged", [b"\x0a", b"\x0a\x7f\x0a", b"hello", b"\x0a\x03\x0a\x01\x0a\x01"]
)
def test_other_messages_are_refused(damaged):
    with pytest.raises(ValueError, match=r"not a tf\.Example"):
        records.parse_example(damaged)


def test_a_missing_shard(copy):
    shard(copy).unlink()
    with pytest.raises(UserError, match=r"the shard imagenet2012_tiny-train.*-of-00001 is missing"):
        TINY.counts(copy)


@pytest.mark.parametrize("size", [0, 100_000])
def test_a_shard_cut_short(copy, size):
    path = shard(copy, "validation")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"imagenet2012_tiny-validation.* is cut short"):
        TINY.train(copy)


def test_a_shard_cut_at_a_block(copy):
    path = shard(copy)
    path.write_bytes(path.read_bytes()[: -(1 << 16)])
    with pytest.raises(
        UserError, match=r"tiny-train\S+ is damaged: it holds 0 records, its index says 1437"
    ):
        next(TINY.train(copy).batched(4).stream(threads=2))


def test_a_damaged_record(copy):
    path = shard(copy)
    data = bytearray(path.read_bytes())
    data[100_000:100_040] = bytes(40)
    path.write_bytes(data)
    message = r"tiny-train.array_record-00000-of-00001, record \d+: Corrupted"
    with pytest.raises(UserError, match=message):
        list(itertools.islice(TINY.train(copy).batched(64).stream(threads=2), 23))


def test_damaged_indices(copy):
    index = copy / "dataset_info.json"
    info = json.loads(index.read_text())
    index.write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match=r"holds tfrecord files.*file_format=array_record"):
        TINY.counts(copy)
    index.write_text(index.read_text()[:100])
    with pytest.raises(UserError, match=r"its index .* is damaged"):
        TINY.counts(copy)
    info["splits"][1]["shardLengths"] = []
    index.write_text(json.dumps(info))
    with pytest.raises(UserError, match="no records in split 'validation'"):
        TINY.counts(copy)


def test_remote_paths(monkeypatch):
    with pytest.raises(UserError, match="--data-dir"):
        TINY.train(None)
    with pytest.raises(UserError, match=r"s3:// paths are not read; mount the bucket"):
        TINY.train("s3://bucket/imagenet")
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"mlperf-jax\[gcs\]"):
        TINY.train("gs://bucket/imagenet")

"""Prepared folders: the index, the messages, and every way in which they can be damaged."""

import io
import itertools
import json
import pathlib
import shutil

import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import records, writing
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


@pytest.mark.parametrize(
    "content",
    [b"[]", b"null", b'"text"', b"\xff\xfe{}", b'{"fileFormat": "arr', b"[" * 100_000, b""],
)
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_an_index_that_is_no_object_is_one_sentence(copy, name, content):
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"its index \({name}\) is damaged .*build it again"):
        TINY.counts(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda info: info.pop("name"),
        lambda info: info.update(splits={"train": [3]}),
        lambda info: info.update(splits=["train"]),
        lambda info: info["splits"][0].update(shardLengths=None),
        lambda info: info["splits"][0].update(shardLengths=["-3"]),
        lambda info: info["splits"][0].update(filepathTemplate="{NO_SUCH_FIELD}"),
        lambda info: info["splits"][0].update(filepathTemplate=3),
        lambda info: info["splits"][0].update(name=["train"]),
    ],
)
def test_an_index_of_another_form_is_one_sentence(copy, change):
    info = json.loads((copy / "dataset_info.json").read_text())
    change(info)
    (copy / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"its index \(dataset_info.json\) is damaged .*again"):
        TINY.counts(copy)


def test_an_index_without_its_features_is_named(copy):
    (copy / "features.json").unlink()
    with pytest.raises(UserError, match=r"\(features.json\) is damaged \(it is missing\)"):
        TINY.counts(copy)


def test_fields_of_another_kind_are_refused():
    example = records.parse_example(writing.message({"image": b"jpeg", "label": b"3"}))
    assert records.fields(example, label=memoryview, image=memoryview) == [b"3", b"jpeg"]
    with pytest.raises(ValueError, match="the record's 'label' is not a number"):
        records.fields(example, image=memoryview, label=int)
    with pytest.raises(ValueError, match="the record has no 'box', only"):
        records.fields(example, box=memoryview)


def test_a_header_that_names_no_type_is_no_header(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3, np.float32))
    raw = (tmp_path / "a.npy").read_bytes()
    with pytest.raises(ValueError, match="names no type of numbers"):
        records.npy_header(io.BytesIO(raw.replace(b"<f4", b"<q9")))

"""What is written for the reader, against tensorflow-datasets: its own messages, folders and index."""

import io
import itertools
import json
import pathlib
import shutil

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.proto import tf_example_generated_pb2 as examples

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import records, writing
from mlperf_jax.input_pipelines.imagenet import builder, files as imagenet, tiny
from mlperf_jax.input_pipelines.openimages import OpenImages, files as openimages

SPLITS = ("train", "validation")


class Digits(builder.Imagenet2012, skip_registration=True):
    """The digits, written by tensorflow-datasets."""

    name = imagenet.TINY_NAME

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=tiny.CLASSES),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        parts = tiny.digits(imagenet.COUNTS[self.name])
        return {split: itertools.starmap(self._example, part) for split, part in parts.items()}

    def _example(self, name, jpeg, label):
        return name, {"image": io.BytesIO(jpeg), "label": label, "file_name": name}


@pytest.fixture(scope="module")
def scenes_dir(tmp_path_factory) -> pathlib.Path:
    data = tmp_path_factory.mktemp("scenes")
    OpenImages(32, max_boxes=3, classes=3, tiny=True).build(data)
    return pathlib.Path(openimages.locate(data, tiny=True).folder)


def parsed(folder, split: str) -> list[dict]:
    """All messages, in their order."""
    raw = records.Records(records.prepared(str(folder)).shards(split))
    return [bytes_of(records.parse_example(raw[i])) for i in range(len(raw))]


def bytes_of(example: dict) -> dict:
    return {k: v if isinstance(v, int) else bytes(v) for k, v in example.items()}


def test_the_digits_are_those_that_tensorflow_datasets_writes_in_its_order(tiny_dir, tmp_path):
    Digits(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    theirs = tmp_path / imagenet.TINY_NAME / imagenet.VERSION
    ours = pathlib.Path(imagenet.locate(tiny_dir, tiny=True))
    for split in SPLITS:
        assert parsed(ours, split) == parsed(theirs, split)
    for name in ("features.json", "label.labels.txt"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    mine, other = (json.loads((f / "dataset_info.json").read_text()) for f in (ours, theirs))
    assert mine == {key: other[key] for key in mine}
    assert other.keys() - mine.keys() <= {"location", "moduleName"}


def test_tensorflow_datasets_reads_the_scenes(scenes_dir):
    theirs = tfds.builder_from_directory(scenes_dir)
    found = theirs.as_data_source(decoders={"image": tfds.decode.SkipDecoding()})
    for split in SPLITS:
        source = openimages.open_split(scenes_dir.parents[1], split, tiny=True)
        assert len(source) == len(found[split]) == openimages.COUNTS[openimages.TINY_NAME][split]
        for index in (0, len(source) // 2, len(source) - 1):
            scene, other = source[index], found[split][index]
            assert bytes(scene.image) == other["image"] and scene.image_id == other["image_id"]
            for name in ("boxes", "label", "crowd"):
                mine = getattr(scene, name)
                assert mine.dtype == other[name].dtype and mine.tolist() == other[name].tolist()
            assert other["file_name"] == f"scene_{index:04d}.jpg".encode()


def test_tensorflow_datasets_writes_the_same_scenes_and_the_same_index(scenes_dir, tmp_path):
    folder = tmp_path / openimages.VERSION
    shutil.copytree(scenes_dir, folder)
    theirs = tfds.builder_from_directory(folder)
    features = theirs.info.features
    serialise = example_serializer.ExampleSerializer(features.get_serialized_info())
    decoders = {"image": tfds.decode.SkipDecoding()}
    for example, mine in zip(
        theirs.as_data_source("train", decoders=decoders), parsed(folder, "train")
    ):
        encoded = features.encode_example(example | {"image": io.BytesIO(example["image"])})
        assert bytes_of(records.parse_example(serialise.serialize_example(encoded))) == mine
    written = ("dataset_info.json", "features.json")
    for name in written:
        (folder / name).unlink()
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=list(theirs.info.splits.values()),
        version=openimages.VERSION,
        check_data=False,
    )
    for name in written:
        assert (folder / name).read_bytes() == (scenes_dir / name).read_bytes()


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16_383, 16_384])
def test_messages_are_what_protobuf_reads(length):
    given = {"bytes": b"\xff" * length, "ü": length, "least": -(2**63), "most": 2**63 - 1}
    theirs = examples.Example.FromString(writing.message(given)).features.feature
    assert list(theirs["bytes"].bytes_list.value) == [given["bytes"]]
    for name in ("ü", "least", "most"):
        assert list(theirs[name].int64_list.value) == [given[name]]
    assert len(theirs) == len(given)


def test_a_shard_appears_whole_or_not_at_all(tmp_path):
    def broken():
        yield writing.message({"label": 1})
        raise UserError("the second is missing")

    with pytest.raises(UserError, match="the second is missing"):
        writing.write_shard(tmp_path / "a", broken())
    assert list(tmp_path.iterdir()) == []
    writing.write_shard(tmp_path / "a", [b"one", b"two"])
    assert writing.records_in(tmp_path / "a") == 2
    with pytest.raises(UserError, match=r"cannot write .*/incomplete\.a"):
        writing.write_shard(tmp_path / "no folder" / "a", [b"one"])

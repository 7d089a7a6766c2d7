"""Writes ImageNet as tensorflow-datasets lays it out, without TensorFlow.

Name, version, features, keys and labels are those of the stock `imagenet2012` builder, which needs
TensorFlow; so a folder written by either is read by both.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import shutil
import tarfile
from collections.abc import Iterator
from typing import Any

from mlperf_jax.errors import UserError, optional
from mlperf_jax.input_pipelines import building, images, records
from mlperf_jax.input_pipelines.imagenet import files

tfds = optional("tensorflow_datasets", "prepare", "preparing ImageNet")

TRAIN_TAR, VALIDATION_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_STOCK = "datasets/imagenet2012"  # label files inside the tensorflow-datasets package

Example = tuple[str, dict]


class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # pyright: ignore
    """ILSVRC 2012, from the official tar files or from train and val with class folders.

    Not registered: the name belongs to the stock builder, which one process may use beside this one.
    """

    name = files.NAME
    VERSION = tfds.core.Version(files.VERSION)
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"{TRAIN_TAR} and {VALIDATION_TAR} from https://image-net.org, or folders of JPEGs"
    )

    def _info(self) -> Any:
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(
                names_file=tfds.core.tfds_path(f"{_STOCK}/labels.txt")
            ),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://image-net.org/",
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator[Example]]:
        source = os.fspath(dl_manager.manual_dir)
        if os.path.exists(f"{source}/{TRAIN_TAR}"):
            return {
                "train": _train_tar(f"{source}/{TRAIN_TAR}"),
                "validation": _validation_tar(f"{source}/{VALIDATION_TAR}"),
            }
        return {split: _folders(source, split) for split in ("train", "validation")}

    def _generate_examples(self):  # abstract in the base class; the generators are made above
        raise NotImplementedError


def _example(name: str, data: bytes, label: str, where: str) -> Example:
    try:
        jpeg = as_rgb_jpeg(data)
    except ValueError as error:
        raise UserError(f"{where}, {name}: {error}") from error
    return name, {"image": io.BytesIO(jpeg), "label": label, "file_name": name}


def as_rgb_jpeg(data: bytes) -> bytes:
    """Returns a JPEG unchanged, and a PNG or CMYK file as an RGB JPEG of quality 100.

    ImageNet has one PNG and 22 CMYK files under JPEG names; the stock builder lists them by name and
    converts them in the same way.
    """
    if data[:2] == b"\xff\xd8" and images.jpeg_header(data).components != 4:
        return data
    return images.encode_jpeg(images.decode(data), 100)


def _train_tar(path: str) -> Iterator[Example]:
    """A tar of one tar per class, read as a stream."""
    with _reading(path), tarfile.open(path, "r|") as outer:
        for member in outer:
            inner = outer.extractfile(member)
            if inner is None or not member.name.endswith(".tar"):
                continue
            label = pathlib.PurePath(member.name).stem
            with tarfile.open(fileobj=inner, mode="r|") as classes:
                for name, data in _files(classes):
                    yield _example(name, data, label, f"{path}, {member.name}")


def _validation_tar(path: str) -> Iterator[Example]:
    """A flat tar; the labels, in the order of the names, come with tensorflow-datasets."""
    labels = tfds.core.tfds_path(f"{_STOCK}/validation_labels.txt").read_text().split()
    with _reading(path):
        with tarfile.open(path, "r:") as tar:
            names = sorted(member.name for member in tar.getmembers() if member.isfile())
        label_of = dict(zip(names, labels))
        with tarfile.open(path, "r|") as tar:
            for name, data in _files(tar):
                yield _example(name, data, label_of[name], path)


def _files(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in tar:
        file = tar.extractfile(member)
        if file is not None:
            yield member.name, file.read()


@contextlib.contextmanager
def _reading(path: str):
    try:
        yield
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{path} is damaged or cut short ({error}); fetch it again") from error


def _folders(source: str, split: str) -> Iterator[Example]:
    found = files.open_split(source, split)
    assert isinstance(found, files.FolderImages)
    for index, (label, name) in enumerate(found.files):
        yield _example(name, bytes(found[index].image), found.names[label], found.describe(index))


def write(folder: str, source: str) -> None:
    """Writes the data set to `<name>/<version>`; see `ImageNet.build`."""
    _check_source(source, folder)
    config = tfds.download.DownloadConfig(manual_dir=source, try_download_gcs=False)
    with building.alone(folder) as target:
        if records.is_prepared(folder):  # another process wrote it meanwhile
            return
        for leftover in target.parent.glob(f"incomplete.*_{target.name}"):
            shutil.rmtree(leftover, ignore_errors=True)
        # a folder that is there is damaged: tensorflow-datasets would take it for whole
        home, usual = target.parents[1] / "incomplete.imagenet", target.parents[1]
        if not target.exists():
            home = usual
        downloads = target.with_name("downloads")  # stays empty, but tensorflow-datasets wants one
        try:
            maker = Imagenet2012(data_dir=home, file_format="array_record")
            maker.download_and_prepare(download_config=config, download_dir=downloads)
            if home != usual:
                building.publish(home / files.NAME / files.VERSION, target)
        finally:
            shutil.rmtree(downloads, ignore_errors=True)
            if home != usual:
                shutil.rmtree(home, ignore_errors=True)


def _check_source(source: str, folder: str) -> None:
    tars = [pathlib.Path(source, name) for name in (TRAIN_TAR, VALIDATION_TAR)]
    missing = [tar.name for tar in tars if not tar.exists()]
    if len(missing) == 1:
        raise UserError(f"{source} has one of the two official tar files; {missing[0]} is missing")
    if missing:  # class folders, or the sentence that says how to get ImageNet
        for split in files.SPLITS:
            files.open_split(source, split)
        return
    # tensorflow-datasets sorts the examples through temporary files before it writes the shards
    building.check_room(folder, 2 * sum(tar.stat().st_size for tar in tars))

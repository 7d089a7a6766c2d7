"""ImageNet on disk: a prepared ArrayRecord folder or folders of JPEGs, found and opened; no image is read."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import images, records

NAME, TINY_NAME, VERSION = "imagenet2012", "imagenet2012_tiny", "5.1.0"
COUNTS = {
    NAME: {"train": 1_281_167, "validation": 50_000},
    TINY_NAME: {"train": 1437, "validation": 360},
}
SPLITS = ("train", "validation")
_LABELS = "label.labels.txt"
_EXTENSIONS = (".jpg", ".jpeg", ".png")
_FOLDERS = {"train": ("train",), "validation": ("val", "validation")}


class ImageRecord(NamedTuple):
    """An encoded image (JPEG or PNG bytes) and its label, 0 .. classes - 1."""

    image: images.Bytes
    label: int


class PreparedImages(records.Records):
    """The images of one split of a prepared folder."""

    def __init__(self, shards, classes: int):
        super().__init__(shards)
        self.classes = classes

    def __getitem__(self, index: int) -> ImageRecord:  # pyright: ignore[reportIncompatibleMethodOverride]
        example = records.parse_example(super().__getitem__(index))
        return ImageRecord(*records.fields(example, image=memoryview, label=int))


class FolderImages:
    """The images of a folder of class folders; the label is the class's place in the alphabet."""

    def __init__(self, folder: str, classes: tuple[str, ...], files: list[tuple[int, str]]):
        self.folder, self.names, self.files = folder, classes, files
        self.classes = len(classes)

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        return f"FolderImages({self.folder}, {len(self)} images)"

    def describe(self, index: int) -> str:
        label, name = self.files[index]
        return f"{self.folder}/{self.names[label]}/{name}"

    def __getitem__(self, index: int) -> ImageRecord:
        return ImageRecord(pathlib.Path(self.describe(index)).read_bytes(), self.files[index][0])


Images = PreparedImages | FolderImages


def locate(data_dir: records.Folder, tiny: bool = False) -> str:
    """The folder that is read: a prepared one, or `data_dir`.

    Raises:
        UserError: there is no data set; says how to get it.
    """
    data_dir = records.local(data_dir)
    folder = find_prepared(data_dir, tiny)
    if folder is not None:
        return folder.folder
    if tiny or not any(_split_folders(data_dir).values()):
        raise UserError(_missing(data_dir, tiny))
    return data_dir


def open_split(data_dir: records.Folder, split: str, tiny: bool = False) -> Images:
    """Opens "train" or "validation" of whatever `data_dir` holds, reading no image.

    Raises:
        UserError: no data there, an empty split, or a missing or shortened shard.
    """
    folder = find_prepared(records.local(data_dir), tiny)
    if folder is not None:
        return PreparedImages(folder.shards(split), _classes(folder))
    return _open_folders(locate(data_dir, tiny), split)


def find_prepared(data_dir: str, tiny: bool = False) -> records.Prepared | None:
    """Finds the prepared folder: `data_dir` itself or `<name>/<newest version>` in it."""
    here = records.prepared(data_dir)
    if here is not None:
        return here
    base = f"{data_dir}/{TINY_NAME if tiny else NAME}"
    versions = records.listing(base) or {}
    numbered = [v for v in versions if all(part.isdigit() for part in v.split("."))]
    for version in sorted(numbered, key=lambda v: [int(x) for x in v.split(".")], reverse=True):
        found = records.prepared(f"{base}/{version}")
        if found is not None:
            return found
    return None


def noted_classes(folder: str) -> tuple[str, ...]:
    """Names of the classes by label, as `build` and tensorflow-datasets note them in a prepared folder, if they do."""
    if _LABELS not in (records.listing(folder) or {}):
        return ()
    return tuple(records.read_text(f"{folder}/{_LABELS}").split())


def note_classes(folder: pathlib.Path, names: Sequence[str]) -> None:
    """Notes the names of the classes in a folder that is being prepared."""
    (folder / _LABELS).write_text("".join(f"{name}\n" for name in names))


def _classes(folder: records.Prepared) -> int:
    try:
        features = folder.features["featuresDict"]["features"]
        if "image" not in features:
            raise KeyError("image")
        return int(features["label"]["classLabel"]["numClasses"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder.folder}/features.json describes no image and label (missing: {error}); is this ImageNet?"
        ) from error


def _open_folders(data_dir: str, split: str) -> FolderImages:
    found = _split_folders(data_dir)
    folder = found[split]
    if folder is None:
        raise UserError(
            f"{data_dir} has no folder {' or '.join(_FOLDERS[split])}; put the {split} images there, one folder per class"
        )
    classes = _class_names(found["train"] or folder)
    strangers = sorted(set(_class_names(folder)) - set(classes))
    if strangers:
        raise UserError(
            f"{folder} has the class {strangers[0]!r}, which {found['train']} has not; both need the same class folders"
        )
    files = [
        (label, file)
        for label, name in enumerate(classes)
        for file in _images(f"{folder}/{name}", needed=split == "train")
    ]
    if not files:
        raise UserError(
            f"{folder} holds no images: expected {folder}/<class>/*.JPEG (or .jpg, .png)"
        )
    return FolderImages(folder, classes, files)


def _images(folder: str, *, needed: bool) -> list[str]:
    """The images of a class, in alphabetical order; other files are left alone.

    Raises:
        UserError: what has an image's name is none, or a class that is `needed` has no image: its folder would move
            the labels of all classes behind it.
    """
    found = records.listing(folder) or {}
    names = sorted(name for name in found if name.lower().endswith(_EXTENSIONS))
    for name in names:
        hidden, size = name.startswith("."), found[name]
        if hidden or size <= 0:
            what = "a hidden file" if hidden else "empty" if not size else "a folder"
            raise UserError(
                f"{folder}/{name} is {what} and no image, though it is named as one; take it away"
            )
    if needed and not names:
        raise UserError(
            f"{folder} holds no image, and as a class it would move the labels of those behind it; take it away, "
            "or fetch its images"
        )
    return names


def _split_folders(data_dir: str) -> dict[str, str | None]:
    if data_dir.startswith("gs://"):  # a million small objects: prepare them first
        return dict.fromkeys(_FOLDERS)
    return {
        split: next((p for n in names if os.path.isdir(p := f"{data_dir}/{n}")), None)
        for split, names in _FOLDERS.items()
    }


def _class_names(folder: str) -> tuple[str, ...]:
    entries = records.listing(folder) or {}
    return tuple(sorted(n for n, size in entries.items() if size < 0 and not n.startswith(".")))


def _missing(data_dir: str, tiny: bool) -> str:
    if tiny:
        return records.missing_tiny(f"{TINY_NAME}/{VERSION}", "resnet", data_dir)
    return (
        f"no ImageNet in {data_dir}: expected {NAME}/{VERSION} (prepared), or train and val with one folder "
        "per class; get ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from https://image-net.org "
        f"(research licence, login), put them into {data_dir} and run: "
        f"mlperf-jax data build resnet --data-dir {data_dir}"
    )

"""ImageNet (ILSVRC 2012 classification) for ResNet-50: 1,281,167 training and 50,000 validation images.

Read as `D/imagenet2012/5.1.0`, the ArrayRecord folder that tensorflow-datasets and `build` write alike,
or as it comes, `D/train/<class>/*.JPEG` and `D/val/<class>/*.JPEG` (or `validation`), classes in
alphabetical order. `build(D, tiny=True)` writes scikit-learn's digits in the same format.

Reference: mlcommons/training, retired_benchmarks/resnet-tf2, imagenet_preprocessing.py.
Shape legend: S image side.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Literal, NamedTuple

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import images, records
from mlperf_jax.input_pipelines.examples import Examples

NAME, TINY_NAME, VERSION = "imagenet2012", "imagenet2012_tiny", "5.1.0"
COUNTS = {
    NAME: {"train": 1_281_167, "validation": 50_000},
    TINY_NAME: {"train": 1437, "validation": 360},
}
_LABELS = "label.labels.txt"
_EXTENSIONS = (".jpg", ".jpeg", ".png")
_FOLDERS = {"train": ("train",), "validation": ("val", "validation")}

Normalise = Literal["reference", "imagenet_std"]


class ImageRecord(NamedTuple):
    """An encoded image (JPEG or PNG bytes) and its label, 0 .. classes - 1."""

    image: images.Bytes
    label: int


class PreparedImages(records.Records):
    """The images of one split of a prepared folder."""

    def __init__(self, shards, classes: int):
        super().__init__(shards)
        self.classes = classes

    def __getitem__(self, index: int) -> ImageRecord:
        example = records.parse_example(super().__getitem__(index))
        try:
            return ImageRecord(example["image"], example["label"])
        except KeyError as error:
            raise ValueError(f"the record has no {error}, only {sorted(example)}") from error


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


@dataclasses.dataclass(frozen=True)
class TrainImage:
    """Record -> random crop, mirrored half the time, resized, normalised: f32 [S, S, 3]."""

    size: int
    min_crop_area: float
    flip: bool
    normalise: Normalise
    classes: int

    def __call__(self, record: ImageRecord, rng: np.random.Generator) -> dict:
        def window(height: int, width: int) -> images.Window:
            return images.sample_crop(height, width, rng, min_area=self.min_crop_area)

        label = _label(record, self.classes)
        flip = bool(self.flip and rng.random() < 0.5)
        image = images.crop_flip_resize(record.image, window, flip, self.size)
        return {"image": images.normalise(image, self.normalise), "label": label}


@dataclasses.dataclass(frozen=True)
class EvalImage:
    """Record -> short side S * 256 // 224, central crop, normalised: f32 [S, S, 3]."""

    size: int
    normalise: Normalise
    classes: int

    def __call__(self, record: ImageRecord) -> dict:
        label = _label(record, self.classes)
        image = images.decode(record.image)
        image = images.resize_crop_centre(image, self.size, self.size * 256 // 224)
        return {"image": images.normalise(image, self.normalise), "label": label}


def _label(record: ImageRecord, classes: int) -> np.int32:
    if not 0 <= record.label < classes:
        raise UserError(f"label {record.label} is outside 0..{classes - 1}")
    return np.int32(record.label)


def train(
    data_dir: str | os.PathLike,
    image_size: int = 224,
    min_crop_area: float = 0.05,
    flip: bool = True,
    *,
    normalise: Normalise = "reference",
    classes: int | None = None,
    tiny: bool | None = None,
) -> Examples:
    """Training examples {"image": f32 [S, S, 3], "label": i32}, reshuffled in every epoch.

    Batches run on across epochs, as in the reference, whose stream repeats before it is batched.

    Args:
        data_dir: holds `imagenet2012/5.1.0`, or `train` and `val` with class folders; or is the former.
        image_size: S.
        min_crop_area: least share of the image that a crop may cover.
        flip: mirror half the images.
        normalise: "reference" subtracts the channel means; "imagenet_std" also divides, as
            submissions on other inputs did.
        classes: how many labels are allowed; what the data set says by default.
        tiny: take the digits (True) or ImageNet (False); by default ImageNet where it is there.

    Raises:
        UserError: no data there, an empty split, or a missing or shortened shard.
    """
    source = open_split(data_dir, "train", tiny)
    _check_normalise(normalise)
    classes = classes or source.classes
    return Examples(
        source,
        EvalImage(image_size, normalise, classes),
        TrainImage(image_size, min_crop_area, flip, normalise, classes),
        last_batch="mix",
    )


def validation(
    data_dir: str | os.PathLike,
    image_size: int = 224,
    *,
    normalise: Normalise = "reference",
    classes: int | None = None,
    tiny: bool | None = None,
) -> Examples:
    """Validation examples {"image": f32 [S, S, 3], "label": i32}, each once; arguments as `train`."""
    source = open_split(data_dir, "validation", tiny)
    _check_normalise(normalise)
    decode = EvalImage(image_size, normalise, classes or source.classes)
    return Examples(source, decode, shuffle=False, last_batch="keep")


def _check_normalise(normalise: str) -> None:
    if normalise not in ("reference", "imagenet_std"):
        raise UserError(f"normalise is {normalise!r}; it is 'reference' or 'imagenet_std'")


def locate(data_dir: str | os.PathLike, *, tiny: bool | None = None) -> str:
    """Returns the folder that `train` and `validation` read: a prepared one, or `data_dir`.

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


def open_split(
    data_dir: str | os.PathLike, split: str, tiny: bool | None = None
) -> PreparedImages | FolderImages:
    """Opens "train" or "validation" of whatever `data_dir` holds, reading no image."""
    data_dir = records.local(data_dir)
    folder = find_prepared(data_dir, tiny)
    if folder is not None:
        return PreparedImages(folder.shards(split), _classes(folder))
    if tiny:
        raise UserError(_missing(data_dir, tiny))
    return _open_folders(data_dir, split)


def counts(data_dir: str | os.PathLike, *, tiny: bool | None = None) -> dict[str, int]:
    """Returns {"train": n, "validation": n} from the index and the listing; reads no image.

    Raises:
        UserError: as `train`.
    """
    return {split: len(open_split(data_dir, split, tiny)) for split in ("train", "validation")}


def find_prepared(data_dir: str, tiny: bool | None = None) -> records.Prepared | None:
    """Finds the prepared folder: `data_dir` itself or `<name>/<newest version>` in it."""
    here = records.prepared(data_dir)
    if here is not None:
        return here
    names = (NAME, TINY_NAME) if tiny is None else (TINY_NAME,) if tiny else (NAME,)
    for name in names:
        versions = records.listing(f"{data_dir}/{name}") or {}
        numbered = [v for v in versions if all(part.isdigit() for part in v.split("."))]
        for version in sorted(numbered, key=lambda v: [int(x) for x in v.split(".")], reverse=True):
            found = records.prepared(f"{data_dir}/{name}/{version}")
            if found is not None:
                return found
    return None


def class_names(data_dir: str | os.PathLike, *, tiny: bool | None = None) -> tuple[str, ...]:
    """Names of the classes by label, as `build` and tensorflow-datasets note them, or the class folders'.

    Empty where the folder does not say; ImageNet's are WordNet ids such as "n01440764".

    Raises:
        UserError: as `train`.
    """
    source = open_split(data_dir, "validation", tiny)
    if isinstance(source, FolderImages):
        return source.names
    folder = source.shards[0].path.rpartition("/")[0]
    if _LABELS not in (records.listing(folder) or {}):
        return ()
    return tuple(records.read_text(f"{folder}/{_LABELS}").split())


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
    if found["train"] is None and found["validation"] is None:
        raise UserError(_missing(data_dir))
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
        for file in sorted(records.listing(f"{folder}/{name}") or ())
        if file.lower().endswith(_EXTENSIONS)
    ]
    if not files:
        raise UserError(
            f"{folder} holds no images: expected {folder}/<class>/*.JPEG (or .jpg, .png)"
        )
    return FolderImages(folder, classes, files)


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


def _missing(data_dir: str, tiny: bool | None = None) -> str:
    if tiny:
        return (
            f"no {TINY_NAME}/{VERSION} in {data_dir}; write it (a second, no download) with: "
            f"mlperf-jax data build resnet --tiny --data-dir {data_dir}"
        )
    return (
        f"no ImageNet in {data_dir}: expected {NAME}/{VERSION} (prepared), or train and val with one folder "
        "per class. Get ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from https://image-net.org "
        f"(research licence, login), put them into {data_dir} and run: "
        f"mlperf-jax data build resnet --data-dir {data_dir}"
    )


def build(
    data_dir: str | os.PathLike, *, tiny: bool = False, source: str | os.PathLike | None = None
) -> str:
    """Writes the prepared folder and returns its path; does nothing if it is there already.

    The folder appears under its name only when it is complete. A build that was killed leaves
    `incomplete.*`, which the next one removes before it starts over.

    Args:
        data_dir: where `imagenet2012/5.1.0` (tiny: `imagenet2012_tiny/5.1.0`) goes.
        tiny: write 1,797 digits in place of ImageNet, in about a second.
        source: folder with the two official tar files, or with train and val; `data_dir` by default.

    Raises:
        UserError: nothing to build from, or not enough room on the disk.
    """
    from mlperf_jax.input_pipelines import imagenet_builder  # imports tensorflow-datasets: 0.4 s

    data_dir = records.local(data_dir)
    name = TINY_NAME if tiny else NAME
    done = records.prepared(f"{data_dir}/{name}/{VERSION}")
    if done is not None:
        return done.folder
    return imagenet_builder.write(data_dir, tiny, records.local(source or data_dir))


def check(data_dir: str | os.PathLike, *, tiny: bool | None = None) -> list[str]:
    """Reads the index of both splits and the first and last image of every shard or class.

    Returns:
        A report, line by line; lines that begin with "problem:" need mending.

    Raises:
        UserError: there is no data set to look at, or a shard is missing or cut short.
    """
    folder = locate(data_dir, tiny=tiny)
    kind = TINY_NAME if TINY_NAME in folder else NAME
    report = [folder]
    for split, expected in COUNTS[kind].items():
        try:
            source = open_split(folder, split, tiny)
        except UserError as error:
            report.append(f"problem: {error}")
            continue
        n, groups, size = len(source), _groups(source), _bytes_on_disk(source)
        parts = f"shards, {size / 1e9:,.2f} GB on disk" if size else "class folders"
        report.append(f"{split}: {n:,} images of {source.classes} classes in {len(groups)} {parts}")
        if n != expected:
            report.append(f"problem: {split} has {n:,} images, {kind} has {expected:,}")
        looked_at = sorted({index for group in groups for index in group})
        problems = [p for p in (_problem(source, index) for index in looked_at) if p]
        report += [f"problem: {p}" for p in problems]
        report.append(f"{split}: decoded {len(looked_at)} images, {len(problems)} with problems")
    return report


def _groups(source: PreparedImages | FolderImages) -> list[tuple[int, int]]:
    """First and last index of every shard or class that holds images."""
    if isinstance(source, FolderImages):
        sizes = np.bincount([label for label, _ in source.files], minlength=source.classes)
    else:
        sizes = np.array([shard.length for shard in source.shards])
    ends = np.cumsum(sizes)
    return [(int(end - size), int(end - 1)) for end, size in zip(ends, sizes) if size]


def _bytes_on_disk(source: PreparedImages | FolderImages) -> int:
    if isinstance(source, PreparedImages):
        return sum(shard.size for shard in source.shards)
    return 0  # a million calls to stat would take longer than the rest of the check


def _problem(source: PreparedImages | FolderImages, index: int) -> str | None:
    where = source.describe(index)
    try:
        record = source[index]
        _label(record, source.classes)
        images.decode(record.image)
        complaint = images.complaint(record.image)
    except (UserError, ValueError, OSError) as error:
        return str(error) if where in str(error) else f"{where}: {error}"
    return f"{where}: {complaint}" if complaint else None

"""ImageNet (ILSVRC 2012 classification) for ResNet-50: 1,281,167 training and 50,000 validation images.

Read as `D/imagenet2012/5.1.0`, the ArrayRecord folder that tensorflow-datasets and `build` write alike,
or as it comes, `D/train/<class>/*.JPEG` and `D/val/<class>/*.JPEG` (or `validation`), classes in
alphabetical order. Tiny is handwritten digits, written in the same format.

Reference: mlcommons/training, retired_benchmarks/resnet-tf2, imagenet_preprocessing.py.
Shape legend: S image side.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import grain
import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import images, pipeline, records
from mlperf_jax.input_pipelines.imagenet import files, tiny
from mlperf_jax.input_pipelines.sources import Batch

Normalise = Literal["reference", "imagenet_std"]


@dataclasses.dataclass(frozen=True)
class TrainImage(grain.transforms.RandomMap):
    """Record -> random crop, mirrored half the time, resized, normalised: f32 [S, S, 3]."""

    size: int
    min_crop_area: float
    flip: bool
    normalise: Normalise
    classes: int

    def random_map(self, element: files.ImageRecord, rng: np.random.Generator) -> Any:
        label = _label(element, self.classes)
        window = functools.partial(images.sample_crop, rng=rng, min_area=self.min_crop_area)
        flip = bool(self.flip and rng.random() < 0.5)
        image = images.crop_flip_resize(element.image, window, flip, self.size)
        return {"image": images.normalise(image, self.normalise), "label": label}


@dataclasses.dataclass(frozen=True)
class EvalImage(grain.transforms.Map):
    """Record -> short side S * 256 // 224, central crop, normalised: f32 [S, S, 3]."""

    size: int
    normalise: Normalise
    classes: int

    def map(self, element: files.ImageRecord) -> Any:
        label = _label(element, self.classes)
        image = images.decode(element.image)
        image = images.resize_crop_centre(image, self.size, self.size * 256 // 224)
        return {"image": images.normalise(image, self.normalise), "label": label}


def _label(record: files.ImageRecord, classes: int) -> np.int32:
    if not 0 <= record.label < classes:
        raise UserError(f"label {record.label} is outside 0..{classes - 1}")
    return np.int32(record.label)


@dataclasses.dataclass(frozen=True)
class ImageNet:
    """The data set: every method takes the folder that holds `imagenet2012`, or `train` and `val`.

    Attributes:
        image_size: S.
        min_crop_area: least share of the image that a training crop may cover.
        flip: mirror half of the training images.
        normalise: "reference" subtracts the channel means; "imagenet_std" also divides, as
            submissions on other inputs did.
        classes: how many labels are allowed; what the data say by default.
        tiny: the digits in place of ImageNet.
    """

    image_size: int = 224
    min_crop_area: float = 0.05
    flip: bool = True
    normalise: Normalise = "reference"
    classes: int | None = None
    tiny: bool = False

    def __post_init__(self) -> None:
        if self.normalise not in ("reference", "imagenet_std"):
            raise UserError(f"normalise is {self.normalise!r}; it is 'reference' or 'imagenet_std'")

    def train(self, folder: records.Folder) -> pipeline.Split:
        """Training examples {"image": f32 [S, S, 3], "label": i32}, reshuffled in every epoch.

        Batches run on across epochs, as in the reference, whose stream repeats before it is batched.

        Raises:
            UserError: no data there, an empty split, or a missing or shortened shard.
        """
        source = files.open_split(folder, "train", self.tiny)
        classes = self.classes or source.classes
        augment = TrainImage(
            self.image_size, self.min_crop_area, self.flip, self.normalise, classes
        )
        return pipeline.training(source, augment, last_batch="mix")

    def validation(self, folder: records.Folder) -> pipeline.Split:
        """Validation examples {"image": f32 [S, S, 3], "label": i32}, each once; raises as `train`."""
        source = files.open_split(folder, "validation", self.tiny)
        classes = self.classes or source.classes
        return pipeline.evaluation(source, EvalImage(self.image_size, self.normalise, classes))

    def drawn(self, rows: int, example: Mapping[str, Any], rng: np.random.Generator) -> Batch:
        """{"label"}: every class as frequent as the others; see `DrawsBatches`."""
        return {"label": rng.integers(0, self.classes or 1000, rows).astype(np.int32)}

    def counts(self, folder: records.Folder) -> dict[str, int]:
        """{"train": n, "validation": n} from the index and the listing; raises as `train`."""
        return {split: len(files.open_split(folder, split, self.tiny)) for split in files.SPLITS}

    def class_names(self, folder: records.Folder) -> tuple[str, ...]:
        """WordNet ids such as "n01440764" by label; empty where nothing says them; raises as `train`."""
        source = files.open_split(folder, "validation", self.tiny)
        if isinstance(source, files.FolderImages):
            return source.names
        return files.noted_classes(source.shards[0].path.rpartition("/")[0])

    def build(self, folder: records.Folder, source: records.Folder | None = None) -> None:
        """Writes `imagenet2012/5.1.0` below the folder; does nothing if it is there already.

        It appears under its name only when it is complete. A build that was killed leaves `incomplete.*`,
        which the next one removes before it starts over.

        Args:
            folder: tiny is written there in about a second.
            source: folder with the two official tar files, or with train and val; `folder` by default.

        Raises:
            UserError: nothing to build from, not enough room on the disk, or an extra is missing.
        """
        name = files.TINY_NAME if self.tiny else files.NAME
        target = f"{records.local(folder)}/{name}/{files.VERSION}"
        if records.is_prepared(target):
            return
        if self.tiny:
            tiny.write(target)
            return
        from mlperf_jax.input_pipelines.imagenet import builder  # tensorflow-datasets, an extra

        builder.write(target, records.local(source or folder))

    def check(self, folder: records.Folder) -> list[str]:
        """Reads the index of both splits and the first and last image of every shard or class.

        Raises:
            UserError: there is no data set to look at, or a shard is missing or cut short.
        """
        found = files.locate(folder, self.tiny)
        kind = files.TINY_NAME if self.tiny else files.NAME
        report = [found]
        for split, expected in files.COUNTS[kind].items():
            try:
                source = files.open_split(found, split, self.tiny)
            except UserError as error:
                report.append(f"problem: {error}")
                continue
            if isinstance(source, files.FolderImages):  # a million calls to stat would take long
                sizes = np.bincount([label for label, _ in source.files]).tolist()
                parts = "class folders"
            else:
                sizes = [shard.length for shard in source.shards]
                size = sum(shard.size for shard in source.shards)
                parts = f"shards, {size / 1e9:,.2f} GB on disk"
            n, groups, classes = len(source), np.count_nonzero(sizes), source.classes
            report.append(f"{split}: {n:,} images of {classes} classes in {groups} {parts}")
            if n != expected:
                report.append(f"problem: {split} has {n:,} images, {kind} has {expected:,}")
            report += images.report(source, split, sizes, lambda r, n=classes: _label(r, n))
        return report

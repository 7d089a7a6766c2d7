"""Open Images V6, MLPerf's subset of 264 classes, for RetinaNet: 1,170,301 training and 24,781 validation images.

Read as `D/openimages_mlperf/1.0.0`, an ArrayRecord folder that `build` writes from the COCO-format export and
its images; both are as they were, the images not encoded again. Tiny are scenes of coloured shapes, drawn,
exported in the same form, and prepared with the same code.

Boxes are corners (x0, y0, x1, y1) in pixels of the original image throughout.

Reference: mlcommons/training, retired_benchmarks/retinanet, coco_utils.py, presets.py and transforms.
S image side · G boxes of an image, padding included
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import cv2
import grain
import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import images, pipeline, records
from mlperf_jax.input_pipelines.openimages import builder, files
from mlperf_jax.input_pipelines.sources import Batch

PADDING = -1  # the class of a place without a box
_MEAN_BOXES = 8.4  # of an image: 14.6 M in 1.74 M (Kuznetsova et al., 2020)


@dataclasses.dataclass(frozen=True)
class EvalScene(grain.transforms.Map):
    """Scene -> example, boxes as exported: {"image" f32 [S, S, 3], "size" int32 [2] (height, width),
    "boxes" f32 [G, 4], "label" int32 [G] (-1 for padding), "crowd" int32 [G], "image_id" int32}.
    """

    size: int
    max_boxes: int
    classes: int

    def map(self, element: files.Scene) -> Any:
        pixels = images.decode(element.image)
        check_boxes(element, *pixels.shape[:2])
        return self.example(element, pixels, element.boxes, element.label, element.crowd)

    def example(
        self, scene: files.Scene, pixels: np.ndarray, boxes, label, crowd
    ) -> dict[str, Any]:
        """The example of decoded pixels [H, W, 3] and the boxes to keep."""
        if len(label) > self.max_boxes:
            raise UserError(
                f"image {scene.image_id} has {len(label)} boxes and max_boxes is {self.max_boxes}: raise it"
            )
        if len(label) and not 0 <= label.min() <= label.max() < self.classes:
            odd = label[(label < 0) | (label >= self.classes)][0]
            raise UserError(
                f"image {scene.image_id} has a box of class {odd}; classes are 0..{self.classes - 1}"
            )
        return {
            "image": images.normalise(stretch(pixels, self.size), "imagenet_std"),
            "size": np.array(pixels.shape[:2], np.int32),
            "boxes": _padded(boxes, self.max_boxes, 0, np.float32),
            "label": _padded(label, self.max_boxes, PADDING, np.int32),
            "crowd": _padded(crowd, self.max_boxes, 0, np.int32),
            "image_id": np.int32(scene.image_id),
        }


@dataclasses.dataclass(frozen=True)
class TrainScene(grain.transforms.RandomMap):
    """Scene -> the same example, mirrored half the time, boxes clipped to the image and empty ones left out.

    Groups drawn as one ("crowd") are ordinary boxes here, as in the reference.
    """

    form: EvalScene
    flip: bool = True

    def random_map(self, element: files.Scene, rng: np.random.Generator) -> Any:
        pixels = images.decode(element.image)
        height, width = pixels.shape[:2]
        check_boxes(element, height, width)
        boxes = clipped(element.boxes, height, width)
        if self.flip and rng.random() < 0.5:
            pixels = cv2.flip(pixels, 1)
            boxes = mirrored(boxes, width)
        kept = files.solid(boxes)
        label, crowd = element.label[kept], element.crowd[kept]
        return self.form.example(element, pixels, boxes[kept], label, crowd)


def check_boxes(scene: files.Scene, height: int, width: int) -> None:
    """Nothing, if each box can have been drawn on an image of this size.

    Those that leave it are cut, and those that are then empty left out, as in the reference; what lies further away than
    the image is wide or high, ends before it begins or is not finite no exporter writes.

    Raises:
        UserError: one cannot.
    """
    boxes = scene.boxes
    far = np.array([width, height, width, height], np.float32)
    good = ((boxes >= -far) & (boxes <= 2 * far)).all(1)  # NaN compares false with everything
    good &= (boxes[:, 2:] >= boxes[:, :2]).all(1)
    if not good.all():
        number = int(np.argmin(good))
        raise UserError(
            f"image {scene.image_id} of {width} x {height} pixels has box {number} from "
            f"{boxes[number, :2].tolist()} to {boxes[number, 2:].tolist()}, where none can be: copy or build this "
            "shard again"
        )


def stretch(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resizes uint8 [H, W, 3] to f32 [S, S, 3], aspect not kept.

    Bilinear between the two nearest pixels, half-pixel centres, no antialiasing, as torch's
    `interpolate(align_corners=False, antialias=False)`.
    """
    images.prepare_opencv()
    return cv2.resize(pixels.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)


def clipped(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes [n, 4] cut at the edges of the image."""
    return np.clip(boxes, 0, np.array([width, height, width, height], boxes.dtype))


def mirrored(boxes: np.ndarray, width: int) -> np.ndarray:
    """Boxes [n, 4] of the image mirrored left to right: x becomes width - x.

    >>> mirrored(np.array([[1.0, 2, 4, 6]]), 10).tolist()
    [[6.0, 2.0, 9.0, 6.0]]
    """
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)


def _padded(values: np.ndarray, length: int, filler: int, dtype: Any) -> np.ndarray:
    whole = np.full((length, *values.shape[1:]), filler, dtype)
    whole[: len(values)] = values
    return whole


@dataclasses.dataclass(frozen=True)
class OpenImages:
    """The data set: every method takes the folder that holds `openimages_mlperf/1.0.0`.

    Attributes:
        image_size: S.
        max_boxes: G; an image with more is an error, never cut.
        classes: how many labels are allowed.
        flip: mirror half of the training images.
        tiny: the scenes of shapes in place of Open Images.
    """

    image_size: int
    max_boxes: int
    classes: int = 264
    flip: bool = True
    tiny: bool = False

    @property
    def _form(self) -> EvalScene:
        return EvalScene(self.image_size, self.max_boxes, self.classes)

    def train(self, folder: records.Folder) -> pipeline.Split:
        """Training examples as `TrainScene` makes them, reshuffled in every epoch, last partial batch dropped.

        Raises:
            UserError: no data there, an empty split, or a missing or shortened shard.
        """
        source = files.open_split(folder, "train", self.tiny)
        return pipeline.training(source, TrainScene(self._form, self.flip))

    def validation(self, folder: records.Folder) -> pipeline.Split:
        """Validation examples as `EvalScene` makes them, each once; raises as `train`."""
        source = files.open_split(folder, "validation", self.tiny)
        return pipeline.evaluation(source, self._form)

    def drawn(self, rows: int, example: Mapping[str, Any], rng: np.random.Generator) -> Batch:
        """All but "image": 8.4 boxes an image on average, as Open Images has, and padding; see `DrawsBatches`."""
        height, width = 768, 1024
        sizes = np.array([width, height], np.float32)
        count = np.minimum(rng.geometric(1 / _MEAN_BOXES, rows), self.max_boxes)
        there = np.arange(self.max_boxes) < count[:, None]  # [rows, G]
        ends = np.sort(rng.random((rows, self.max_boxes, 2, 2), np.float32), 2)
        ends[:, :, 1] = np.maximum(ends[:, :, 1], ends[:, :, 0] + 1 / height)
        boxes = np.clip(ends * sizes, 0, sizes).reshape(rows, self.max_boxes, 4)
        label = rng.integers(0, self.classes, there.shape, np.int32)
        return {
            "size": np.tile(np.array([height, width], np.int32), (rows, 1)),
            "boxes": np.where(there[..., None], boxes, np.float32(0)),
            "label": np.where(there, label, PADDING).astype(np.int32),
            "crowd": np.zeros(there.shape, np.int32),
            "image_id": np.arange(rows, dtype=np.int32),
        }

    def counts(self, folder: records.Folder) -> dict[str, int]:
        """{"train": n, "validation": n} from the index; reads no image; raises as `train`."""
        found = files.locate(folder, self.tiny)
        return {split: sum(s.length for s in found.shards(split)) for split in files.SPLITS}

    def maxima(self, folder: records.Folder) -> dict[str, int]:
        """{"boxes": the most in one image of either split}, as `build` noted it; raises as `train`."""
        splits = files.noted(files.locate(folder, self.tiny))["splits"].values()
        return {"boxes": max(facts["most_boxes"] for facts in splits)}

    def class_names(self, folder: records.Folder) -> tuple[str, ...]:
        """Names of the classes by label, as `build` noted them; raises as `train`."""
        return tuple(files.noted(files.locate(folder, self.tiny))["categories"])

    def build(self, folder: records.Folder, source: records.Folder | None = None) -> None:
        """Writes `openimages_mlperf/1.0.0` below the folder; does nothing if it is there already.

        A build that was killed goes on where it stopped: the shards that are whole stay.

        Args:
            folder: tiny is drawn there in about a second.
            source: folder with `train` and `validation`, each holding `data` (images) and
                `labels/openimages-mlperf.json`; `folder` by default.

        Raises:
            UserError: nothing to build from, labels that do not fit, or not enough room on the disk.
        """
        target = files.prepared_folder(records.local(folder), self.tiny)
        if records.is_prepared(target):
            return
        if self.tiny:
            builder.write_tiny(target)
            return
        where = records.local(source or folder)
        if not os.path.isdir(f"{where}/validation/labels"):
            raise UserError(files.missing(where))
        builder.write(target, where, files.CLASSES[files.NAME])

    def check(self, folder: records.Folder) -> list[str]:
        """Reads the index of both splits and the first and last image of every shard.

        Raises:
            UserError: there is no data set to look at, or a shard is missing or cut short.
        """
        found = files.locate(folder, self.tiny)
        report, kind = [found.folder], files.TINY_NAME if self.tiny else files.NAME
        classes = files.CLASSES[kind]
        for split, expected in files.COUNTS[kind].items():
            source = files.PreparedScenes(found.shards(split))
            facts, size = (
                files.noted(found)["splits"][split],
                sum(shard.size for shard in source.shards),
            )
            report.append(
                f"{split}: {len(source):,} images in {len(source.shards)} shards, {size / 1e9:,.2f} GB; "
                f"{facts['boxes']:,} boxes, at most {facts['most_boxes']} in an image, {facts['crowd']:,} "
                f"of groups, {facts['outside']:,} that leave the image, {facts['empty']:,} empty; "
                f"{facts['without']:,} images without a box"
            )
            if len(source) != expected:
                report.append(
                    f"problem: {split} has {len(source):,} images, {kind} has {expected:,}"
                )
            sizes = [shard.length for shard in source.shards]

            def examine(scene: files.Scene) -> None:
                EvalScene(8, max(1, len(scene.label)), classes).map(scene)

            report += images.report(source, split, sizes, examine)
        return report

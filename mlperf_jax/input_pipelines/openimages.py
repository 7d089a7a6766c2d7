"""Open Images V6, MLPerf's subset of 264 classes, for RetinaNet: 1,170,301 training and 24,781 validation images.

Read as `D/openimages_mlperf/1.0.0`, an ArrayRecord folder that `build` writes from the COCO-format export and
its images; both are as they were, the images not encoded again. `build(D, tiny=True)` draws scenes of
coloured shapes, exports them in the same form, and prepares them with the same code.

Boxes are corners (x0, y0, x1, y1) in pixels of the original image throughout.

Reference: mlcommons/training, retired_benchmarks/retinanet, coco_utils.py, presets.py and transforms.
S image side · G boxes of an image, padding included
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import images, records
from mlperf_jax.input_pipelines.examples import Examples

NAME, TINY_NAME, VERSION = "openimages_mlperf", "openimages_mlperf_tiny", "1.0.0"
COUNTS = {
    NAME: {"train": 1_170_301, "validation": 24_781},
    TINY_NAME: {"train": 512, "validation": 96},
}
CLASSES = {NAME: 264, TINY_NAME: 3}
PADDING = -1  # the class of a place without a box


class Scene(NamedTuple):
    """An encoded image and the boxes that people drew on it, as exported.

    Attributes:
        image: JPEG or PNG bytes.
        image_id: of the export.
        boxes: f32 [n, 4].
        label: int32 [n], 0 .. classes - 1.
        crowd: uint8 [n], 1 for a group drawn as one.
    """

    image: images.Bytes
    image_id: int
    boxes: np.ndarray
    label: np.ndarray
    crowd: np.ndarray


class PreparedScenes(records.Records):
    """The scenes of one split of a prepared folder."""

    def __getitem__(self, index: int) -> Scene:
        example = records.parse_example(super().__getitem__(index))
        try:
            boxes = np.frombuffer(example["boxes"], "<f4").reshape(-1, 4)
            label = np.frombuffer(example["label"], "<i4")
            crowd = np.frombuffer(example["crowd"], np.uint8)
            scene = Scene(example["image"], example["image_id"], boxes, label, crowd)
        except KeyError as error:
            raise ValueError(f"the record has no {error}, only {sorted(example)}") from error
        if not len(boxes) == len(label) == len(crowd):
            raise ValueError(
                f"{len(boxes)} boxes, {len(label)} labels and {len(crowd)} crowd flags"
            )
        return scene


@dataclasses.dataclass(frozen=True)
class EvalScene:
    """Scene -> example, boxes as exported: {"image" f32 [S, S, 3], "size" int32 [2] (height, width),
    "boxes" f32 [G, 4], "label" int32 [G] (-1 for padding), "crowd" int32 [G], "image_id" int32}.
    """

    size: int
    max_boxes: int
    classes: int

    def __call__(self, scene: Scene) -> dict[str, Any]:
        pixels = images.decode(scene.image)
        return self.example(scene, pixels, scene.boxes, scene.label, scene.crowd)

    def example(self, scene: Scene, pixels: np.ndarray, boxes, label, crowd) -> dict[str, Any]:
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
class TrainScene:
    """Scene -> the same example, mirrored half the time, boxes clipped to the image and empty ones left out.

    Groups drawn as one ("crowd") are ordinary boxes here, as in the reference.
    """

    form: EvalScene
    flip: bool = True

    def __call__(self, scene: Scene, rng: np.random.Generator) -> dict[str, Any]:
        pixels = images.decode(scene.image)
        height, width = pixels.shape[:2]
        boxes = clipped(scene.boxes, height, width)
        if self.flip and rng.random() < 0.5:
            pixels = cv2.flip(pixels, 1)
            boxes = mirrored(boxes, width)
        kept = solid(boxes)
        return self.form.example(scene, pixels, boxes[kept], scene.label[kept], scene.crowd[kept])


def stretch(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resizes uint8 [H, W, 3] to f32 [S, S, 3], aspect not kept.

    Bilinear between the two nearest pixels, half-pixel centres, no antialiasing, as torch's
    `interpolate(align_corners=False, antialias=False)`.
    """
    images._single_threaded()
    return cv2.resize(pixels.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)


def clipped(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes [n, 4] cut at the edges of the image."""
    return np.clip(boxes, 0, np.array([width, height, width, height], boxes.dtype))


def solid(boxes: np.ndarray) -> np.ndarray:
    """Which boxes [n, 4] have a width and a height: bool [n]."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


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


def train(
    data_dir: str | os.PathLike,
    image_size: int = 800,
    *,
    max_boxes: int,
    flip: bool = True,
    classes: int = 264,
    tiny: bool = False,
) -> Examples:
    """Training examples as `TrainScene` makes them, reshuffled in every epoch, last partial batch dropped.

    Args:
        data_dir: holds `openimages_mlperf/1.0.0` (tiny: `openimages_mlperf_tiny/1.0.0`).
        image_size: S.
        max_boxes: G; an image with more is an error, never cut.
        flip: mirror half the images.
        classes: how many labels are allowed.
        tiny: take the scenes of shapes.

    Raises:
        UserError: no data there, an empty split, or a missing or shortened shard.
    """
    form = EvalScene(image_size, max_boxes, classes)
    return Examples(open_split(data_dir, "train", tiny), form, TrainScene(form, flip))


def validation(
    data_dir: str | os.PathLike,
    image_size: int = 800,
    *,
    max_boxes: int,
    classes: int = 264,
    tiny: bool = False,
) -> Examples:
    """Validation examples as `EvalScene` makes them, each once; arguments as `train`."""
    decode = EvalScene(image_size, max_boxes, classes)
    source = open_split(data_dir, "validation", tiny)
    return Examples(source, decode, shuffle=False, last_batch="keep")


def locate(data_dir: str | os.PathLike, tiny: bool = False) -> records.Prepared:
    """The prepared folder.

    Raises:
        UserError: there is none; says how to make it.
    """
    data_dir = records.local(data_dir)
    name = TINY_NAME if tiny else NAME
    found = records.prepared(f"{data_dir}/{name}/{VERSION}")
    if found is None:
        raise UserError(_missing(data_dir, tiny))
    return found


def open_split(data_dir: str | os.PathLike, split: str, tiny: bool = False) -> PreparedScenes:
    """Opens "train" or "validation", reading no image."""
    return PreparedScenes(locate(data_dir, tiny).shards(split))


def counts(data_dir: str | os.PathLike, *, tiny: bool = False) -> dict[str, int]:
    """{"train": n, "validation": n} from the index; reads no image.

    Raises:
        UserError: as `train`.
    """
    folder = locate(data_dir, tiny)
    return {
        split: sum(shard.length for shard in folder.shards(split))
        for split in ("train", "validation")
    }


def maxima(data_dir: str | os.PathLike, *, tiny: bool = False) -> dict[str, int]:
    """{"boxes": n}, the most in an image of either split, from the index.

    Raises:
        UserError: as `train`, or the builder's note is missing or damaged.
    """
    facts = statistics(locate(data_dir, tiny)).values()
    return {"boxes": max(split["most_boxes"] for split in facts)}


def statistics(folder: records.Prepared) -> Mapping[str, Any]:
    """What `build` noted of each split: boxes, group-of, clipped and empty ones, the most in one image.

    Raises:
        UserError: the note is missing or damaged.
    """
    return _noted(folder)["splits"]


def class_names(data_dir: str | os.PathLike, *, tiny: bool = False) -> tuple[str, ...]:
    """Names of the classes by label, as `build` noted them.

    Raises:
        UserError: there is no prepared folder, or its note is missing or damaged.
    """
    return tuple(_noted(locate(data_dir, tiny))["categories"])


def _noted(folder: records.Prepared) -> Mapping[str, Any]:
    try:
        noted = json.loads(records.read_text(f"{folder.folder}/metadata.json"))
        return {part: noted[part] for part in ("splits", "categories")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder.folder}/metadata.json is missing or damaged ({error}); build it again"
        ) from error


def build(
    data_dir: str | os.PathLike, *, tiny: bool = False, source: str | os.PathLike | None = None
) -> str:
    """Writes the prepared folder and returns its path; does nothing if it is there already.

    A build that was killed goes on where it stopped: the shards that are whole stay.

    Args:
        data_dir: where `openimages_mlperf/1.0.0` (tiny: `openimages_mlperf_tiny/1.0.0`) goes.
        tiny: draw scenes of shapes in place of Open Images, in about a second.
        source: folder with `train` and `validation`, each holding `data` (images) and
            `labels/openimages-mlperf.json`; `data_dir` by default.

    Raises:
        UserError: nothing to build from, labels that do not fit, or not enough room on the disk.
    """
    from mlperf_jax.input_pipelines import openimages_builder  # imports tensorflow-datasets: 0.4 s

    data_dir = records.local(data_dir)
    folder = f"{data_dir}/{TINY_NAME if tiny else NAME}/{VERSION}"
    if records.prepared(folder) is None:
        if tiny:
            openimages_builder.write_tiny(folder)
        else:
            where = records.local(source or data_dir)
            if not os.path.isdir(f"{where}/validation/labels"):
                raise UserError(_missing(where, tiny))
            openimages_builder.write(folder, where, CLASSES[NAME])
    return folder


def check(data_dir: str | os.PathLike, *, tiny: bool = False) -> list[str]:
    """Reads the index of both splits and the first and last image of every shard.

    Returns:
        A report, line by line; lines that begin with "problem:" need mending.

    Raises:
        UserError: there is no data set to look at, or a shard is missing or cut short.
    """
    folder = locate(data_dir, tiny)
    report, kind = [folder.folder], TINY_NAME if tiny else NAME
    for split, expected in COUNTS[kind].items():
        source = PreparedScenes(folder.shards(split))
        facts, size = statistics(folder)[split], sum(shard.size for shard in source.shards)
        report.append(
            f"{split}: {len(source):,} images in {len(source.shards)} shards, {size / 1e9:,.2f} GB; "
            f"{facts['boxes']:,} boxes, at most {facts['most_boxes']} in an image, {facts['crowd']:,} "
            f"of groups, {facts['outside']:,} that leave the image, {facts['empty']:,} empty; "
            f"{facts['without']:,} images without a box"
        )
        if len(source) != expected:
            report.append(f"problem: {split} has {len(source):,} images, {kind} has {expected:,}")
        ends = np.cumsum([shard.length for shard in source.shards])
        looked_at = sorted({*(int(e) - 1 for e in ends), 0, *(int(e) for e in ends[:-1])})
        problems = [p for p in (_problem(source, index, CLASSES[kind]) for index in looked_at) if p]
        report += [f"problem: {p}" for p in problems]
        report.append(f"{split}: decoded {len(looked_at)} images, {len(problems)} with problems")
    return report


def _problem(source: PreparedScenes, index: int, classes: int) -> str | None:
    where = source.describe(index)
    try:
        scene = source[index]
        EvalScene(8, max(1, len(scene.label)), classes)(scene)
        complaint = images.complaint(scene.image)
    except (UserError, ValueError, OSError) as error:
        return str(error) if where in str(error) else f"{where}: {error}"
    return f"{where}: {complaint}" if complaint else None


def _missing(data_dir: str, tiny: bool) -> str:
    if tiny:
        return (
            f"no {TINY_NAME}/{VERSION} in {data_dir}; write it (a second, no download) with: "
            f"mlperf-jax data build retinanet --tiny --data-dir {data_dir}"
        )
    return (
        f"no Open Images in {data_dir}: expected {NAME}/{VERSION} (prepared), or train and validation, each "
        "with data (images) and labels/openimages-mlperf.json. Export them with FiftyOne 0.15.1 by the "
        "script fiftyone_openimages.py of mlcommons/training (352 GB) and run: "
        f"mlperf-jax data build retinanet --data-dir {data_dir}"
    )

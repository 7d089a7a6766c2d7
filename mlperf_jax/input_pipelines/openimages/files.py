"""Open Images on disk: the prepared ArrayRecord folder, found and opened; no image is read.

n boxes of an image
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import images, records

NAME, TINY_NAME, VERSION = "openimages_mlperf", "openimages_mlperf_tiny", "1.0.0"
COUNTS = {
    NAME: {"train": 1_170_301, "validation": 24_781},
    TINY_NAME: {"train": 512, "validation": 96},
}
SPLITS = ("train", "validation")
CLASSES = {NAME: 264, TINY_NAME: 3}


_FACTS = "boxes", "most_boxes", "crowd", "outside", "empty", "without"  # noted of a split
_ARRAYS = "<f4", "<i4", "u1"  # of boxes, labels and crowd flags


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

    def __getitem__(self, index: int) -> Scene:  # pyright: ignore[reportIncompatibleMethodOverride]
        example = records.parse_example(super().__getitem__(index))
        image, ident, *arrays = records.fields(
            example,
            image=memoryview,
            image_id=int,
            boxes=memoryview,
            label=memoryview,
            crowd=memoryview,
        )
        boxes, label, crowd = (np.frombuffer(raw, t) for raw, t in zip(arrays, _ARRAYS))
        boxes = boxes.reshape(-1, 4)
        if not len(boxes) == len(label) == len(crowd):
            raise ValueError(
                f"{len(boxes)} boxes, {len(label)} labels and {len(crowd)} crowd flags"
            )
        if crowd.max(initial=0) > 1:
            raise ValueError(f"image {ident} has the crowd flag {crowd.max()}; it is 0 or 1")
        if not 0 <= ident < 2**31:
            raise ValueError(f"an image has the id {ident}; ids are 0 … 2^31 - 1")
        return Scene(image, ident, boxes, label, crowd)


def solid(boxes: np.ndarray) -> np.ndarray:
    """Which boxes [n, 4] have a width and a height: bool [n]."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def prepared_folder(data_dir: str, tiny: bool) -> str:
    """Where `build` writes the data set below `data_dir`."""
    return f"{data_dir}/{TINY_NAME if tiny else NAME}/{VERSION}"


def locate(data_dir: records.Folder, tiny: bool = False) -> records.Prepared:
    """The prepared folder.

    Raises:
        UserError: there is none; says how to make it.
    """
    data_dir = records.local(data_dir)
    found = records.prepared(prepared_folder(data_dir, tiny))
    if found is None:
        raise UserError(missing(data_dir, tiny))
    return found


def open_split(data_dir: records.Folder, split: str, tiny: bool = False) -> PreparedScenes:
    """Opens "train" or "validation", reading no image."""
    return PreparedScenes(locate(data_dir, tiny).shards(split))


def noted(folder: records.Prepared) -> Mapping[str, Any]:
    """What `build` noted: "categories", their names by label, and by "splits" what `check` reports of each.

    Raises:
        UserError: the note is missing or damaged.
    """
    found = records.read_object(folder.folder, "metadata.json")
    try:
        facts = {split: {f: int(found["splits"][split][f]) for f in _FACTS} for split in SPLITS}
        return {"splits": facts, "categories": [str(name) for name in found["categories"]]}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder.folder}/metadata.json does not say of both splits what it should ({error!r}); build it again"
        ) from error


def missing(data_dir: str, tiny: bool = False) -> str:
    """The sentence that says how to get the data."""
    if tiny:
        return records.missing_tiny(f"{TINY_NAME}/{VERSION}", "retinanet", data_dir)
    return (
        f"no Open Images in {data_dir}: expected {NAME}/{VERSION} (prepared), or train and validation, each "
        "with data (images) and labels/openimages-mlperf.json; export them with FiftyOne 0.15.1 by the "
        "script fiftyone_openimages.py of mlcommons/training (352 GB) and run: "
        f"mlperf-jax data build retinanet --data-dir {data_dir}"
    )

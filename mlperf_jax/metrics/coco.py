"""COCO's mean average precision of boxes, by pycocotools itself.

The rows that `predict` returns carry detections and ground truth alike, in pixels of the original images, so the
metric needs no file: what is scored is what was read. Rows are gathered on process 0; an image that
comes twice counts once.

N images · D detections of an image, empty places included · G boxes of an image, padding included
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

Rows = Mapping[str, np.ndarray]
_ALL = (0.0, 1e10)  # the area range that leaves no box out


@dataclass(frozen=True)
class CocoMAP:
    """Mean over categories and the IoU thresholds .5, .55, … .95 of the average precision of boxes.

    `predict` returns a dict of rows: `boxes` [N, D, 4] corners, `scores` [N, D], `classes` [N, D] (-1
    for an empty place), `image_id` [N], and the truth: `true_boxes` [N, G, 4] corners, `true_classes`
    [N, G] (-1 for padding), `crowd` [N, G].

    Group-of ("crowd") boxes are regions to ignore. At most 100 detections of an image and category
    count. A category without ground truth has no precision and is left out of the mean; where no
    category has any, or nothing is detected, the mean is 0.

    The result is `mAP`, `AP50`, `AP75`, and the table of categories as "AP/<class>".

    Attributes:
        name: of the mean.
        detections: that count for an image and category.
    """

    name: str = "mAP"
    detections: int = 100
    mode: str = "beside"
    rows: ClassVar[bool] = True

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        return dict.fromkeys((self.name, "AP50", "AP75"), (0, 1))

    def sums(self, outputs: Any, mask: Any) -> Any:
        raise NotImplementedError("mAP is no sum: it takes rows")

    def result(self, total: Rows) -> dict[str, float]:
        """Quality by name, from all rows, on the host.

        Raises:
            UserError: pycocotools is missing.
        """
        precision, categories = self._precision(total)
        by_class = [_mean(precision[:, :, i]) for i in range(len(categories))]
        quality = {
            self.name: _mean(precision),
            "AP50": _mean(precision[:1]),
            "AP75": _mean(precision[5:6]),
        }
        table = zip(categories, by_class)
        return {k: max(v, 0.0) for k, v in quality.items()} | {
            f"AP/{category}": value for category, value in table if value >= 0
        }

    def _precision(self, total: Rows) -> tuple[np.ndarray, list[int]]:
        """Precision [10 thresholds, 101 recalls, categories], -1 where there is no truth."""
        cocoeval = evaluator()
        _, first = np.unique(total["image_id"], return_index=True)
        rows = {name: np.asarray(value)[first] for name, value in total.items()}
        truth = _Annotations.of(rows, "true_boxes", "true_classes", crowd=rows["crowd"])
        found = _Annotations.of(rows, "boxes", "classes", scores=rows["scores"])
        images = [int(i) for i in rows["image_id"]]
        categories = sorted({a["category_id"] for a in truth.items})
        scoring = cocoeval.COCOeval(truth, found, "bbox")
        params = scoring.params
        params.imgIds, params.catIds = images, categories
        params.maxDets, params.areaRng, params.areaRngLbl = [self.detections], [_ALL], ["all"]
        _match(scoring, truth.items + found.items)
        scoring.accumulate()
        return scoring.eval["precision"][:, :, :, 0, 0], categories


def _mean(precision: np.ndarray) -> float:
    """As COCOeval.summarize: the mean of what is defined, -1 if nothing is."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else -1.0


def _match(scoring: Any, annotations: Sequence[Mapping[str, Any]]) -> None:
    """COCOeval.evaluate, asking only for pairs of image and category that hold a box.

    It would ask for all 6.5 million pairs of 24,781 images and 264 categories, nearly all of them empty.
    """
    params = scoring.params
    images = {image: at for at, image in enumerate(params.imgIds)}
    categories = {category: at for at, category in enumerate(params.catIds)}
    scoring._prepare()
    scoring._paramsEval = params
    scoring.ious = {}
    scoring.evalImgs = [None] * (len(images) * len(categories))
    pairs = {(a["image_id"], a["category_id"]) for a in annotations}
    for image, category in sorted(pairs):
        if category in categories:
            scoring.ious[image, category] = scoring.computeIoU(image, category)
            at = categories[category] * len(images) + images[image]
            scoring.evalImgs[at] = scoring.evaluateImg(image, category, _ALL, params.maxDets[-1])


@dataclass(frozen=True)
class _Annotations:
    """As much of pycocotools' COCO as its COCOeval asks for; COCO itself prints as it indexes.

    Ids start at 1: a matched id of 0 reads as "no match" there.
    """

    items: list[dict[str, Any]]

    @classmethod
    def of(
        cls,
        rows: Rows,
        boxes: str,
        classes: str,
        *,
        crowd: np.ndarray | None = None,
        scores: np.ndarray | None = None,
    ) -> _Annotations:
        row, place = np.nonzero(rows[classes] >= 0)
        corners = rows[boxes][row, place].astype(np.float64)
        extents = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
        columns = zip(
            rows["image_id"][row].tolist(), rows[classes][row, place].tolist(), extents.tolist()
        )
        items: list[dict[str, Any]] = [
            {"id": i, "image_id": image, "category_id": kind, "bbox": box, "area": box[2] * box[3]}
            for i, (image, kind, box) in enumerate(columns, 1)
        ]
        extra = {"iscrowd": crowd, "score": scores}
        for name, array in extra.items():
            if array is not None:
                for item, value in zip(items, array[row, place].tolist()):
                    item[name] = value
        return cls(items)

    def getImgIds(self) -> list[int]:
        return []  # set by the caller

    def getCatIds(self) -> list[int]:
        return []

    def getAnnIds(self, imgIds: Sequence[int] = (), catIds: Sequence[int] = ()) -> list[int]:
        wanted = set(catIds)
        return [item["id"] for item in self.items if item["category_id"] in wanted]

    def loadAnns(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        return [self.items[i - 1] for i in ids]


@functools.cache
def evaluator() -> Any:
    """pycocotools.cocoeval, kept from printing: it is run in a thread, beside the progress display."""
    module: Any = importlib.import_module("pycocotools.cocoeval")
    module.print = lambda *words, **how: None
    return module

"""COCO's mAP of gathered rows equals what pycocotools finds on its own for the same boxes."""

import contextlib
import io

import numpy as np
import pytest

from mlperf_jax.metrics import coco

pytest.importorskip("pycocotools")

IMAGES, FOUND, TRUE, CLASSES = 40, 130, 8, 5


def some_boxes(draw, *shape):
    corner = draw.uniform(0, 100, (*shape, 2))
    return np.concatenate([corner, corner + draw.uniform(5, 60, (*shape, 2))], -1)


def some_rows(seed=0):
    """Detections near the truth and far from it; the last class has no truth, and some boxes are crowds."""
    draw = np.random.default_rng(seed)
    truth = some_boxes(draw, IMAGES, TRUE).astype(np.float32)
    kinds = draw.integers(-1, CLASSES - 1, (IMAGES, TRUE)).astype(np.int32)
    found = some_boxes(draw, IMAGES, FOUND).astype(np.float32)
    found[:, :TRUE] = truth + draw.normal(0, 2, truth.shape)
    classes = draw.integers(-1, CLASSES, (IMAGES, FOUND)).astype(np.int32)
    classes[:10] = 0  # more than the 100 that count
    right = draw.random((IMAGES, TRUE)) < 0.8
    classes[:, :TRUE] = np.where(right, kinds, classes[:, :TRUE])
    return {
        "boxes": found,
        "scores": draw.random((IMAGES, FOUND)).astype(np.float32),
        "classes": classes,
        "image_id": (3 * draw.permutation(1000)[:IMAGES]).astype(np.int32),
        "true_boxes": truth,
        "true_classes": kinds,
        "crowd": (draw.random((IMAGES, TRUE)) < 0.15).astype(np.int32),
    }


def listed(rows, boxes, classes, **more):
    """COCO's dicts of all boxes that are no padding."""
    found = []
    for row, place in zip(*np.nonzero(rows[classes] >= 0)):
        x0, y0, x1, y1 = rows[boxes][row, place].astype(float)
        item = {
            "id": len(found) + 1,
            "image_id": int(rows["image_id"][row]),
            "category_id": int(rows[classes][row, place]),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0),
        }
        found.append(item | {k: rows[v][row, place].item() for k, v in more.items()})
    return found


def official(rows):
    """(stats, precision) of pycocotools, its own files and loops."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": int(i)} for i in np.unique(rows["image_id"])],
            "categories": [{"id": i} for i in range(CLASSES)],
            "annotations": listed(rows, "true_boxes", "true_classes", iscrowd="crowd"),
        }
        truth.createIndex()
        found = truth.loadRes(listed(rows, "boxes", "classes", score="scores"))
        scoring = COCOeval(truth, found, "bbox")
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    return scoring.stats, scoring.eval["precision"][:, :, :, 0, 2]


@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools_on_its_own(seed):
    rows = some_rows(seed)
    stats, precision = official(rows)
    quality = coco.CocoMAP().result(rows)
    assert quality["mAP"] == pytest.approx(stats[0], abs=1e-12)
    assert quality["AP50"] == pytest.approx(stats[1], abs=1e-12)
    assert quality["AP75"] == pytest.approx(stats[2], abs=1e-12)
    assert 0.01 < quality["mAP"] < 0.9
    table = {name: value for name, value in quality.items() if name.startswith("AP/")}
    assert list(table) == [f"AP/{i}" for i in range(CLASSES - 1)]  # the last has no truth
    for i in range(CLASSES - 1):
        assert table[f"AP/{i}"] == pytest.approx(precision[:, :, i].mean(), abs=1e-12)


def test_images_that_come_twice_count_once():
    rows = some_rows()
    again = np.r_[np.arange(IMAGES), 3, 0, 3]
    twice = {name: value[again] for name, value in rows.items()}
    assert coco.CocoMAP().result(twice) == coco.CocoMAP().result(rows)


def test_the_order_of_images_does_not_matter():
    rows = some_rows()
    order = np.random.default_rng(1).permutation(IMAGES)
    mixed = {name: value[order] for name, value in rows.items()}
    assert coco.CocoMAP().result(mixed) == coco.CocoMAP().result(rows)


def test_the_truth_as_detections_is_perfect():
    """Checks ids, sides and box scaling; group-of boxes are ignored whether found or not."""
    rows = some_rows()
    rows |= {"boxes": rows["true_boxes"], "classes": rows["true_classes"]}
    rows["scores"] = np.ones((IMAGES, TRUE), np.float32)
    assert coco.CocoMAP().result(rows)["mAP"] == pytest.approx(1)
    without = np.where(rows["crowd"] == 1, -1, rows["classes"])
    assert coco.CocoMAP().result(rows | {"classes": without})["mAP"] == pytest.approx(1)


def test_no_detection_at_all_is_zero():
    rows = some_rows()
    nothing = rows | {"classes": np.full_like(rows["classes"], -1)}
    quality = coco.CocoMAP().result(nothing)
    assert quality["mAP"] == quality["AP50"] == 0
    assert quality["AP/0"] == 0


def test_no_truth_at_all_is_zero():
    rows = some_rows()
    empty = rows | {"true_classes": np.full_like(rows["true_classes"], -1)}
    assert coco.CocoMAP().result(empty) == {"mAP": 0, "AP50": 0, "AP75": 0}


def test_it_is_silent(capsys):
    coco.CocoMAP().result(some_rows())
    assert capsys.readouterr().out == ""

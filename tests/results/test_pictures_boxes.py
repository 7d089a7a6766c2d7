"""Boxes drawn on images: where, in which shape, with which words' places, and what is refused."""

import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.results import pictures, pictures_boxes

pytest.importorskip("PIL")
SIDE = 100


def batch(count=1, size=(50, 100)):
    """A grey image of another shape than the network's, one box, a group, and padding."""
    return {
        "image": np.linspace(-1, 1, count * 16 * 16 * 3).reshape(count, 16, 16, 3),
        "size": np.array([size] * count),
        "boxes": np.array([[[20, 10, 80, 40], [0, 0, 100, 50], [0, 0, 0, 0]]] * count, np.float32),
        "label": np.array([[1, 0, -1]] * count),
        "crowd": np.array([[0, 1, 0]] * count),
    }


def found(count=1):
    return {
        "boxes": np.array([[[10, 5, 90, 45], [0, 0, 30, 30], [0, 0, 0, 0]]] * count, np.float32),
        "scores": np.array([[0.9, 0.1, 0.0]] * count),
        "classes": np.array([[1, 0, -1]] * count),
    }


def is_tint(picture, x, y, kind):
    return picture.getpixel((x, y)) == pictures.COLOURS[kind]


def test_the_true_boxes_lie_where_they_should():
    picture = pictures_boxes.boxes(batch(), side=SIDE)
    gap = pictures._GAP
    assert picture.width == SIDE + 2 * gap  # the original's shape: 100 wide, 50 high
    assert picture.height == SIDE // 2 + pictures._LINE + 2 * gap
    assert is_tint(picture, gap + 70, gap + 40, 1)  # its lower edge
    assert is_tint(picture, gap + 80, gap + 30, 1)  # its right one
    assert not is_tint(picture, gap + 60, gap + 30, 1)


def test_detections_stand_beside_the_truth_from_a_score_on():
    both = pictures_boxes.boxes(batch(), found(), side=SIDE)
    gap = pictures._GAP
    assert both.width == 2 * SIDE + 3 * gap
    start = SIDE + 2 * gap
    assert is_tint(both, start + 50, gap + 45, 1)
    assert not is_tint(both, start + 5, gap + 30, 0)
    more = pictures_boxes.boxes(batch(), found(), side=SIDE, least_score=0.05)
    assert is_tint(more, start + 5, gap + 30, 0)


def test_many_images_are_cut_and_odd_boxes_survive():
    rows = batch(9)
    rows["boxes"][:, 0] = [300, 400, -20, -7]
    picture = pictures_boxes.boxes(rows, found(9), names=["dog", "cat \u4e2d"], side=SIDE, most=3)
    assert picture.height == 3 * (SIDE // 2 + pictures._LINE) + 4 * pictures._GAP
    assert pictures.to_png(picture)[:4] == b"\x89PNG"


def test_rows_of_another_batch_are_refused():
    with pytest.raises(UserError, match="1 rows of detections cannot be drawn on 2 images"):
        pictures_boxes.boxes(batch(2), found(1))

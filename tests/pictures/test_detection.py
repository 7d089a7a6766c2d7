"""Boxes drawn on images: where, in which shape, with which words' places, and what is refused."""

import numpy as np
import pytest

from mlperf_jax import pictures
from mlperf_jax.errors import UserError
from mlperf_jax.pictures import detection

pytest.importorskip("PIL")
SIDE = 300
K = SIDE // 100  # pixels drawn for one of the image


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
    picture = detection.boxes(batch(), side=SIDE)
    gap = pictures._GAP
    assert picture.width == SIDE + 2 * gap  # the original's shape: 100 wide, 50 high
    assert picture.height == SIDE // 2 + pictures._LINE + 2 * gap
    assert is_tint(picture, gap + K * 70, gap + K * 40, 1)  # its lower edge
    assert is_tint(picture, gap + K * 80, gap + K * 30, 1)  # its right one
    assert not is_tint(picture, gap + K * 60, gap + K * 30, 1)


def test_detections_stand_beside_the_truth_from_a_score_on():
    both = detection.boxes(batch(), found(), side=SIDE)
    gap = pictures._GAP
    assert both.width == 2 * SIDE + 3 * gap
    start = SIDE + 2 * gap
    assert is_tint(both, start + K * 50, gap + K * 45, 1)
    assert not is_tint(both, start + K * 20, gap + K * 30, 0)
    more = detection.boxes(batch(), found(), side=SIDE, least_score=0.05)
    assert is_tint(more, start + K * 20, gap + K * 30, 0)


def test_many_images_are_cut_and_odd_boxes_survive():
    rows = batch(9)
    rows["boxes"][:, 0] = [300, 400, -20, -7]
    picture = detection.boxes(rows, found(9), names=["dog", "cat \u4e2d"], side=SIDE, most=3)
    assert picture.width == 4 * SIDE + 5 * pictures._GAP  # two images and their twins in a row
    assert picture.height == 2 * (SIDE // 2 + pictures._LINE) + 3 * pictures._GAP
    assert pictures.to_png(picture)[:4] == b"\x89PNG"


def test_names_stand_at_their_boxes_and_hide_no_other():
    taken = []
    for _ in range(4):
        place = detection._free_place((20, 40, 80, 90), 30, 16, (100, 100), taken)
        x0, y0, x1, y1 = place
        assert x0 >= 0 and y0 >= 0 and x1 <= 100 and y1 <= 100
        assert x0 <= 80 and x1 >= 20 and y0 <= 90 and y1 >= 24, "it touches its box"
        assert not any(detection._overlap(place, other) for other in taken)
        taken.append(place)
    assert taken[0] == (20, 24, 50, 40)  # above its left corner
    everywhere = [(0, 0, 100, 100)]
    assert detection._free_place((20, 40, 80, 90), 30, 16, (100, 100), everywhere) is None
    assert detection._overlap((0, 0, 2, 2), (1, 1, 3, 3))
    assert not detection._overlap((0, 0, 2, 2), (2, 0, 3, 2))


def test_the_likeliest_box_lies_on_top_and_has_its_name():
    rows, several = batch(), found()
    several["boxes"][0, 0] = several["boxes"][0, 1] = [10, 20, 90, 45]
    several["scores"][:] = [0.9, 0.8, 0.0]
    picture = detection.boxes(rows, several, side=SIDE)
    start, gap = SIDE + 2 * pictures._GAP, pictures._GAP
    assert is_tint(picture, start + K * 50, gap + K * 45, 1)
    assert is_tint(picture, start + K * 10 + 1, gap + K * 20 - 10, 1)  # the field of its name


def test_rows_of_another_batch_are_refused():
    with pytest.raises(UserError, match="1 rows of detections cannot be drawn on 2 images"):
        detection.boxes(batch(2), found(1))

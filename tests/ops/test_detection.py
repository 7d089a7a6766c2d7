"""Boxes, anchors, matching, focal loss, suppression and selection, each against a slow NumPy twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mlperf_jax.ops import anchors, boxes, detections, focal, matching, nms, pretend


def some_boxes(draw, *shape, side=100.0):
    corner = draw.uniform(0, side, (*shape, 2))
    return np.concatenate([corner, corner + draw.uniform(2, side / 2, (*shape, 2))], -1)


def overlap(a, b):
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])  # noqa: E731
    union = area(a) + area(b) - shared
    return shared / union if union else 0.0


# -- boxes -----------------------------------------------------------------------------------------


def test_overlap_of_all_pairs(x64):
    draw = np.random.RandomState(0)
    a, b = some_boxes(draw, 20), some_boxes(draw, 30)
    wanted = [[overlap(p, q) for q in b] for p in a]
    np.testing.assert_allclose(boxes.overlap(a[:, None], jnp.asarray(b)), wanted, rtol=1e-12)
    touching = jnp.array([[0.0, 0, 2, 2], [2, 0, 4, 2], [1, 1, 1, 1], [1, 1, 1, 1]])
    np.testing.assert_array_equal(boxes.overlap(touching[0], touching), [1, 0, 0, 0])
    assert boxes.overlap(touching[2], touching[3]) == 0  # two empty ones


def test_the_code_of_boxes(x64):
    anchor = np.array([10.0, 20, 30, 60])  # centre (20, 40), 20 x 40
    box = np.array([20.0, 30, 40, 40])  # centre (30, 35), 20 x 10
    wanted = [0.5, -0.125, 0, np.log(0.25)]
    np.testing.assert_allclose(boxes.encode(jnp.asarray(box), anchor), wanted, atol=1e-12)
    draw = np.random.RandomState(1)
    many, around = some_boxes(draw, 50), some_boxes(draw, 50)
    back = boxes.decode(boxes.encode(many, around), jnp.asarray(around))
    np.testing.assert_allclose(back, many, rtol=1e-10)
    grown = boxes.decode(jnp.array([0.0, 0, 9, -9]), jnp.array([0.0, 0, 8, 8]))
    np.testing.assert_allclose(grown[2] - grown[0], 8 * 62.5, rtol=1e-6)
    np.testing.assert_allclose(grown[3] - grown[1], 8 * np.exp(-9), rtol=1e-6)


def test_clipping():
    cut = boxes.clip(jnp.array([-5.0, -2, 30, 12]), 10, 20)
    np.testing.assert_array_equal(cut, [0, 0, 20, 10])


# -- anchors ---------------------------------------------------------------------------------------


def test_anchors_of_the_fact_sheet():
    levels = anchors.pyramid(800)
    assert [len(level) for level in levels] == [9 * n * n for n in (100, 50, 25, 13, 7)]
    first = [[-23, -11, 23, 11], [-28, -14, 28, 14], [-35, -18, 35, 18]]
    first += [[-s, -s, s, s] for s in (16, 20, 25)]
    first += [[-11, -23, 11, 23], [-14, -28, 14, 28], [-18, -35, 18, 35]]
    np.testing.assert_array_equal(levels[0][:9], first)
    # strides by integer division, no half cell: the second anchor of P6 lies at 61, of P7 at 114
    strides = [level[9, 0] - level[0, 0] for level in levels]
    assert strides == [8, 16, 32, 61, 114]
    down = [level[9 * grid, 1] - level[0, 1] for level, grid in zip(levels, anchors.grids(800))]
    assert down == strides


def test_half_pixels_are_rounded_to_even():
    sizes = [size for level in anchors.scales(32) for size in level]
    square = {size: anchors.cell([size])[1, 2] for size in sizes}
    assert (square[101], square[161], square[203], square[645]) == (50, 80, 102, 322)


# -- matching --------------------------------------------------------------------------------------


def match_slowly(around, truth, high=0.5, low=0.4):
    """One image: the index of each anchor's box, -1 background, -2 ignored."""
    table = np.array([[overlap(a, t) for t in truth] for a in around]).reshape(len(around), -1)
    if not len(truth):
        return np.full(len(around), -1)
    best, value = table.argmax(1), table.max(1)
    found = np.where(value >= high, best, np.where(value < low, -1, -2))
    for column in table.T:
        lifted = column == column.max()
        found[lifted] = best[lifted]
    return found


@pytest.mark.parametrize("count", [0, 1, 7, 19])
def test_matching_equals_its_twin(count, x64):
    """Padding between the boxes, more boxes than a round takes, and few anchors that fit any."""
    draw = np.random.RandomState(count)
    around = np.concatenate(anchors.pyramid(96, 16)[1:]).astype(np.float64)
    places, rows = 21, 2
    truth = np.zeros((rows, places, 4))
    label = np.full((rows, places), -1)
    for row in range(rows):
        at = np.sort(draw.permutation(places)[:count])
        truth[row, at], label[row, at] = some_boxes(draw, count, side=60), draw.randint(0, 5, count)
    matches = jax.jit(matching.match)(around, truth, label)
    for row in range(rows):
        real = label[row] >= 0
        wanted = match_slowly(around, truth[row, real])
        np.testing.assert_array_equal(matches.foreground[row], wanted >= 0)
        np.testing.assert_array_equal(matches.background[row], wanted == -1)
        inside, index = wanted >= 0, wanted[wanted >= 0]
        assert (inside.sum() > 0) == (count > 0)
        np.testing.assert_array_equal(matches.label[row][inside], label[row, real][index])
        np.testing.assert_array_equal(matches.boxes[row][inside], truth[row, real][index])


def test_a_lifted_anchor_regains_its_own_best_box():
    """The small box reaches its best with an anchor that fits the large one better."""
    around = np.array([[0.0, 0, 10, 10], [0, 0, 10, 11]], np.float32)
    truth = np.array([[[0, 0, 10, 9.9], [0, 0, 4, 4], [0, 0, 0, 0]]], np.float32)
    label = np.array([[1, 2, -1]])
    matches = jax.jit(matching.match)(around, truth, label)
    assert matches.foreground.all()
    np.testing.assert_array_equal(matches.label, [[1, 1]])


def test_between_the_thresholds_is_ignored():
    around = np.array(
        [[0.0, 0, 10, 10], [0, 0, 10, 4.5], [0, 0, 10, 3.9], [0, 0, 10, 5]], np.float32
    )
    truth = np.array([[[0, 0, 10, 10]]], np.float32)
    matches = jax.jit(matching.match)(around, truth, np.array([[0]]))
    np.testing.assert_array_equal(matches.foreground, [[True, False, False, True]])
    np.testing.assert_array_equal(matches.background, [[False, False, True, False]])


# -- focal loss ------------------------------------------------------------------------------------


def focal_slowly(logits, label, weight, alpha=0.25, gamma=2):
    p = 1 / (1 + np.exp(-logits))
    hit = label[..., None] == np.arange(logits.shape[-1])
    p_true = np.where(hit, p, 1 - p)
    loss = -np.where(hit, alpha, 1 - alpha) * (1 - p_true) ** gamma * np.log(p_true)
    return (loss * weight[..., None]).sum()


@pytest.mark.parametrize("piece", [2, 4, 100])
def test_focal_loss_and_its_gradient(piece, x64, monkeypatch):
    """In one piece, and in several of which the last reaches back."""
    monkeypatch.setattr(focal, "_CPU_PIECE", piece)
    draw = np.random.RandomState(0)
    logits = jnp.asarray(draw.standard_normal((2, 5, 3)) * 3)
    label, weight = jnp.asarray([[0, -1, 2, 1, -1]] * 2), jnp.asarray(draw.uniform(0, 1, (2, 5)))
    wanted = focal_slowly(logits, label, weight)
    np.testing.assert_allclose(focal.focal_loss(logits, label, weight), wanted, rtol=1e-12)
    other = focal.focal_loss(logits, label, weight, 0.4, 3)
    np.testing.assert_allclose(other, focal_slowly(logits, label, weight, 0.4, 3), rtol=1e-12)
    loss = jax.jit(lambda x: focal.focal_loss(x, label, weight))
    check_grads(loss, [logits], 1, ["rev"], rtol=1e-6)
    scaled, plain = jax.grad(lambda x: 3 * loss(x))(logits), jax.grad(loss)(logits)
    np.testing.assert_allclose(scaled, 3 * plain, rtol=1e-12)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_focal_loss_of_anchors_side_by_side(platform, x64):
    draw = np.random.RandomState(1)
    logits = jnp.asarray(draw.standard_normal((2, 4, 5, 3 * 7)) * 3)
    label = jnp.asarray(draw.randint(-1, 7, (2, 4, 5, 3)))
    weight = jnp.asarray(draw.uniform(0, 1, (2, 4, 5, 3)))

    def apart(x):
        flat = x.reshape(2, -1, 7), label.reshape(2, -1), weight.reshape(2, -1)
        return focal.focal_loss(*flat)

    wanted = jax.value_and_grad(apart)(logits)
    with pretend.platform(platform):
        loss = lambda x: focal.focal_loss_of_cells(x, label, weight)  # noqa: E731
        found = jax.value_and_grad(loss)(logits)
        shapes = str(jax.make_jaxpr(jax.grad(loss))(logits))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
    assert ("f64[2,20,7]" in shapes or "f64[2,60,7]" in shapes) == (platform == "cpu")


def test_focal_loss_of_extreme_and_of_narrow_logits():
    logits = jnp.array([[-300.0, 300.0], [0.0, 80.0]])
    value, gradient = jax.value_and_grad(focal.focal_loss)(logits, jnp.array([0, 1]), jnp.ones(2))
    np.testing.assert_allclose(value, 0.25 * 300 + 0.75 * 300 + 0.75 * 0.25 * np.log(2), rtol=1e-5)
    np.testing.assert_allclose(gradient[0], [-0.25, 0.75], rtol=1e-5)
    narrow = logits.astype(jnp.bfloat16)
    value, gradient = jax.value_and_grad(focal.focal_loss)(narrow, jnp.array([0, 1]), jnp.ones(2))
    assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)


# -- suppression and selection ---------------------------------------------------------------------


def suppress_slowly(found, scores, classes, outputs, threshold):
    kept = []
    for at in np.argsort(-scores, kind="stable"):
        if scores[at] > 0 and len(kept) < outputs:
            rivals = [k for k in kept if classes[k] == classes[at]]
            if all(overlap(found[k], found[at]) <= threshold for k in rivals):
                kept.append(at)
    return kept


@pytest.mark.parametrize("outputs", [5, 60])
def test_suppression_equals_its_twin(outputs, x64):
    draw = np.random.RandomState(3)
    found = some_boxes(draw, 2, 80, side=50)
    scores = np.round(
        draw.uniform(-0.2, 1, (2, 80)), 2
    )  # with ties, and some that are no candidates
    classes = draw.randint(0, 3, (2, 80))
    result = nms.class_wise_nms(
        jnp.asarray(found), jnp.asarray(scores), jnp.asarray(classes), outputs=outputs
    )
    for row in range(2):
        kept = suppress_slowly(found[row], scores[row], classes[row], outputs, 0.5)
        assert len(kept) == outputs or outputs == 60
        count = len(kept)
        np.testing.assert_array_equal(result.scores[row, :count], scores[row, kept])
        np.testing.assert_array_equal(result.boxes[row, :count], found[row, kept])
        np.testing.assert_array_equal(result.classes[row, :count], classes[row, kept])
        assert (result.scores[row, count:] == 0).all()
        assert (result.classes[row, count:] == -1).all()


def test_nothing_found_leaves_all_places_empty():
    """At the start all scores are 0.01, below the threshold."""
    around = anchors.pyramid(64, 16)
    logits = [jnp.full((1, len(level), 3), -4.595) for level in around]
    deltas = [jnp.zeros((1, len(level), 4)) for level in around]
    found = jax.jit(lambda x, y: detections.detect(x, y, around, 64, outputs=4))(logits, deltas)
    assert (found.classes == -1).all()
    assert (found.scores == 0).all()
    assert (found.boxes == 0).all()


@pytest.mark.parametrize(("count", "values"), [(7, 1000), (7, 4), (40, 3), (500, 9)])
def test_the_best_pairs_equal_a_search_of_all(count, values):
    """With few distinct values nearly all are tied: the order of the flattened array decides."""
    logits = np.random.RandomState(values).randint(0, values, (3, 30, 5)).astype(np.float32)
    value, anchor, kind = detections.top_pairs(jnp.asarray(logits), count)
    wanted, at = jax.lax.top_k(jnp.asarray(logits.reshape(3, -1)), min(count, 150))
    np.testing.assert_array_equal(value, wanted)
    np.testing.assert_array_equal(anchor * 5 + kind, at)


def test_only_scores_above_the_threshold_are_found():
    around = anchors.pyramid(64, 16)
    edge = float(np.log(0.05 / 0.95))
    logits = [np.full((1, len(level), 2), -9.0, np.float32) for level in around]
    logits[0][0, 5, 1], logits[2][0, 3, 0] = edge + 0.01, edge - 0.01
    deltas = [np.zeros((1, len(level), 4), np.float32) for level in around]
    found = jax.jit(lambda x, y: detections.detect(x, y, around, 64, outputs=4))(logits, deltas)
    np.testing.assert_array_equal(found.classes, [[1, -1, -1, -1]])
    np.testing.assert_array_equal(found.boxes[0, 0], np.clip(around[0][5], 0, 64))

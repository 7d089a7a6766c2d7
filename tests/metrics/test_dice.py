"""Mean DICE against the rules: every volume weighs the same, whatever the batches were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax.metrics.dice import Dice, overlap


def by_hand(prediction, label):
    """Dice of classes 1 and 2 of one volume, in NumPy."""
    found = []
    for kind in (1, 2):
        p, t = prediction == kind, label == kind
        found.append((2 * (p & t).sum() + 1e-6) / (p.sum() + t.sum() + 1e-6))
    return found


def volumes(count):
    draw = np.random.RandomState(0)
    shape = (count, 6, 5, 4)
    prediction, label = draw.randint(0, 3, shape), draw.randint(0, 3, shape).astype(np.uint8)
    prediction[0][prediction[0] == 2] = 1  # a class that neither has counts 1
    label[0][label[0] == 2] = 0
    return prediction, label


def test_mean_over_volumes_then_classes():
    prediction, label = volumes(5)
    rows = np.stack([overlap(p, t, 3) for p, t in zip(prediction, label, strict=True)])
    each = np.array([by_hand(p, t) for p, t in zip(prediction, label, strict=True)])
    assert each[0, 1] == 1
    quality = Dice(("kidney", "tumour")).result(rows)
    assert quality == {
        "mean_dice": pytest.approx(each.mean(), rel=1e-14),
        "kidney_dice": pytest.approx(each[:, 0].mean(), rel=1e-14),
        "tumour_dice": pytest.approx(each[:, 1].mean(), rel=1e-14),
    }
    pooled = Dice(("kidney", "tumour")).result(rows.sum(0, keepdims=True))
    assert pooled["mean_dice"] != pytest.approx(quality["mean_dice"], rel=1e-3)


def test_what_is_not_part_of_the_volume_counts_nowhere():
    prediction, label = volumes(2)
    padded = np.full((8, 8, 8), 255, np.uint8)
    padded[1:7, 2:7, 3:7] = label[1]
    guessed = np.ones((8, 8, 8), int)
    guessed[1:7, 2:7, 3:7] = prediction[1]
    np.testing.assert_array_equal(overlap(guessed, padded, 3), overlap(prediction[1], label[1], 3))


def test_counts_are_whole_numbers_beyond_float32():
    """448^3 voxels: float32 sums lose the last ones."""
    counts = jax.eval_shape(lambda x: overlap(x, x, 3), jnp.zeros((448,) * 3, jnp.uint8))
    assert (counts.dtype, counts.shape) == (jnp.int32, (3, 2))
    many = np.array([[[2**25 + 1, 0], [2**25 + 1, 0], [2**25 + 3, 0]]])
    found = Dice(("kidney", "tumour")).result(many)
    assert found["kidney_dice"] == pytest.approx(1 - 2 / (2**26 + 4), rel=1e-13)
    assert found["tumour_dice"] == 1

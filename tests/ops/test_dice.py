"""The segmentation loss, by hand; against torch's it is compared in tests/models/test_unet3d.py."""

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.ops.dice import dice_xent


def by_hand(logits, label):
    """In NumPy, row by row and class by class."""
    total = []
    for row, true in zip(np.asarray(logits, np.float64), label, strict=True):
        prob = np.exp(row) / np.exp(row).sum(-1, keepdims=True)
        xent = -np.log(np.take_along_axis(prob, true[..., None].astype(int), -1)).mean()
        dice = []
        for kind in (1, 2):
            p, t = prob[..., kind], true == kind
            dice.append((2 * p[t].sum() + 1e-6) / (p.sum() + t.sum() + 1e-6))
        total.append((1 - np.mean(dice) + xent) / 2)
    return np.mean(total)


def test_equals_the_definition():
    draw = np.random.RandomState(0)
    logits = 2 * draw.standard_normal((3, 4, 4, 4, 3)).astype(np.float32)
    label = draw.randint(0, 3, (3, 4, 4, 4)).astype(np.uint8)
    label[1] = 0  # no foreground at all: its Dice is nearly 0, its loss nearly 1
    np.testing.assert_allclose(dice_xent(logits, label), by_hand(logits, label), rtol=1e-6)
    assert by_hand(logits[1:2], label[1:2]) > 0.5


def test_a_perfect_prediction_costs_nothing_and_an_absent_class_counts_as_found():
    label = np.zeros((1, 4, 4, 4), np.uint8)
    label[0, 0] = 1
    logits = 200.0 * jax.nn.one_hot(label, 3)
    assert dice_xent(logits, label) < 1e-6


def test_computes_in_float32_at_least():
    logits = jnp.zeros((1, 2, 2, 2, 3), jnp.bfloat16)
    label = jnp.ones((1, 2, 2, 2), jnp.uint8)
    loss = dice_xent(logits, label)
    assert loss.dtype == jnp.float32
    p = 1 / 3
    dice = np.mean([2 * 8 * p / (8 * p + 8), 0])
    np.testing.assert_allclose(loss, (np.log(3) + 1 - dice) / 2, rtol=1e-5)

"""Resizing against Pillow, to the last bit, and against torch (scripts/make_clip_reference.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.ops import resize
from scripts import make_clip_reference as reference

Image = pytest.importorskip("PIL.Image")


def noise(height, width, channels=3):
    """Random levels, and black and white alone, where the kernel overshoots most."""
    draw = np.random.RandomState(0)
    levels = draw.randint(0, 256, (height, width, channels))
    return np.stack([levels, (levels > 127) * 255]).astype(np.uint8)


def pillow(images, height, width):
    return np.stack(
        [np.asarray(Image.fromarray(x).resize((width, height), Image.BICUBIC)) for x in images]
    )


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((512, 512), (224, 224)),  # as the benchmark has it
        ((37, 53), (64, 80)),
        ((48, 64), (31, 24)),
        ((30, 30), (30, 30)),
        ((16, 17), (1, 2)),
        ((3, 2), (9, 8)),
        ((40, 700), (5, 11)),
    ],
)
def test_bicubic_is_pillow_s_to_the_last_bit(size, wanted):
    images = noise(*size)
    found = jax.jit(lambda x: resize.pillow_bicubic(x, *wanted))(images)
    assert found.dtype == jnp.uint8
    np.testing.assert_array_equal(found, pillow(images, *wanted))


def test_weights_are_whole_numbers_that_sum_to_one():
    weights = resize.pillow_weights(512, 224)
    assert weights.shape == (224, 512) and weights.dtype == np.int64
    assert np.abs(weights.sum(1) - 2**22).max() <= 8
    assert (weights != 0).sum(1).max() == 10 and weights.min() < 0
    digits = resize._digits(512, 224).astype(np.int64)
    assert (digits[:2] >= 0).all() and (digits[:2] < 256).all() and np.abs(digits[2]).max() < 128
    np.testing.assert_array_equal(digits[0] + (digits[1] << 8) + (digits[2] << 16), weights)


@pytest.mark.parametrize(
    ("size", "middle"), [((50, 83), (0, 8)), ((71, 40), (9, 0)), ((24, 31), (0, 4))]
)
def test_the_shortest_side_is_resized_and_the_middle_kept(size, middle):
    images = noise(*size)
    short = min(size)
    larger = pillow(images, *(int(24 * length / short) for length in size))
    top, left = middle
    found = resize.shortest_side(jnp.asarray(images), 24)
    np.testing.assert_array_equal(found, larger[:, top : top + 24, left : left + 24])


def test_an_image_that_shrinks_beyond_the_sums_is_refused():
    assert resize.pillow_bicubic(jnp.full((1, 1, 128, 1), 255, jnp.uint8), 1, 2).tolist() == [
        [[[255]] * 2]
    ]
    with pytest.raises(UserError, match="1000 pixels to 2 is over 64 times as small"):
        resize.pillow_bicubic(jnp.zeros((1, 1, 1000, 1), jnp.uint8), 1, 2)


def test_bilinear_is_torch_s():
    with jax.enable_x64(True), np.load(reference.OUTPUT) as stored:
        found = resize.bilinear(jnp.asarray(reference.aliased()), 20, 7)
        np.testing.assert_allclose(found, stored["bilinear"], atol=1e-14)
    narrow = resize.bilinear(jnp.asarray(reference.aliased(), jnp.bfloat16), 20, 13)
    assert narrow.dtype == jnp.bfloat16 and narrow.shape == (2, 20, 13, 3)


def test_bilinear_has_a_gradient():
    slope = jax.grad(lambda x: resize.bilinear(x, 4, 6).sum())(jnp.ones((1, 2, 3, 1)))
    np.testing.assert_allclose(slope, 4.0)  # every pixel has as large a part


def test_resizing_is_bilinear_between_centres_without_antialiasing():
    """One row of 8 to 3: places 5/6, 3 1/2 and 6 1/6 of the row, each between two pixels."""
    row = np.random.RandomState(0).rand(8).astype(np.float32)
    image = np.broadcast_to(row[None, None, :, None], (1, 8, 8, 3))
    found = resize.bilinear(jnp.asarray(image), 3, 3)
    wanted = np.interp((np.arange(3) + 0.5) * 8 / 3 - 0.5, np.arange(8), row)
    np.testing.assert_allclose(found[0, 1, :, 2], wanted, rtol=1e-6)

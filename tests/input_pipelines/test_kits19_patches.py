"""Patches and whole volumes against the reference's rules, each against a slow twin of its own."""

import types

import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.kits19 import patches


def volume(shape, boxes=None, seed=0):
    draw = np.random.RandomState(seed)
    image = draw.standard_normal(shape).astype(np.float32)
    label = draw.randint(0, 3, shape).astype(np.uint8)
    return types.SimpleNamespace(image=image, label=label, boxes=boxes or {})


class Script:
    """A generator whose draws are given: `random` from a list, `integers` the largest or smallest."""

    def __init__(self, *randoms, last=False):
        self.randoms, self.last, self.bounds = list(randoms), last, []

    def random(self):
        return self.randoms.pop(0)

    def integers(self, bound):
        self.bounds.append(bound)
        return bound - 1 if self.last else 0

    def uniform(self, low, high):
        self.bounds.append((low, high))
        return high

    def standard_normal(self, shape, dtype):
        return np.ones(shape, dtype)


# random() draws in order: oversampling, three flips, brightness, noise
STILL = (1, 1, 1, 1)


def test_a_uniform_patch_never_takes_the_last_place():
    given = volume((8, 12, 9))
    rng = Script(1, *STILL, 1, last=True)
    found = patches.Patch(8, 0.4, "reference").random_map(given, rng)
    assert rng.bounds == [4, 1]  # sizes 12 and 9; where the size is 8 nothing is drawn
    np.testing.assert_array_equal(found["image"][..., 0], given.image[:8, 3:11, :8])
    np.testing.assert_array_equal(found["label"], given.label[:8, 3:11, :8])
    assert (found["image"].dtype, found["label"].dtype) == (np.float32, np.uint8)


def test_foreground_is_chosen_by_class_then_component():
    boxes = {
        1: (patches.Box((0, 0, 0), (2, 2, 2)),),
        2: (patches.Box((9, 9, 9), (11, 11, 11)),) * 2,
    }
    rng = Script(0.39, *STILL, 1)
    patches.Patch(4, 0.4, "reference").random_map(volume((12, 12, 12), boxes), rng)
    assert rng.bounds[:2] == [2, 1]  # two classes, one component of class 1
    rng = Script(0.41, *STILL, 1)
    patches.Patch(4, 0.4, "reference").random_map(volume((12, 12, 12), boxes), rng)
    assert rng.bounds == [8, 8, 8]  # not oversampled: anywhere


def test_a_volume_without_foreground_gives_uniform_patches():
    rng = Script(0.0, *STILL, 1)
    patches.Patch(4, 0.4, "reference").random_map(volume((12, 12, 12)), rng)
    assert rng.bounds == [8, 8, 8]


def reference_span(start, stop, size, side, before):
    """pytorch_loader's adjust, in its own order of cases, for a draw of `before`."""
    free = side - (stop - start)
    sign = -1 if free < 0 else 1
    after = abs(free) - before
    low, high = max(0, start - sign * before), min(size, stop + sign * after)
    missing = side - (high - low)
    if missing > 0 and low == 0:
        high += missing
    elif missing > 0:
        low -= missing
    return low, high


def test_foreground_start_equals_the_reference_for_every_case():
    side = 6
    for size in (6, 9, 14):
        for start in range(size):
            for stop in range(start + 1, size + 1):
                free = abs(side - (stop - start))
                for last in (False, True):
                    rng = Script(last=last)
                    low = patches.foreground_start(start, stop, size, side, rng)
                    before = (free - 1 if last else 0) if free else 0
                    assert rng.bounds == ([free] if free else [])
                    assert (low, low + side) == reference_span(start, stop, size, side, before)
                    assert 0 <= low <= size - side


def test_flips_are_drawn_for_each_axis():
    given = volume((4, 4, 4))
    found = patches.Patch(4, 0.0, "reference").random_map(given, Script(1, 0.33, 0.34, 0.33, 1, 1))
    np.testing.assert_array_equal(found["image"][..., 0], given.image[::-1, :, ::-1])
    np.testing.assert_array_equal(found["label"], given.label[::-1, :, ::-1])
    assert patches.FLIP == 1 / 3


@pytest.mark.parametrize(
    ("augmentation", "factor", "sigma"), [("reference", 2.3, 0.1), ("dali", 1.3, 0.1)]
)
def test_brightness_and_noise(augmentation, factor, sigma):
    """The reference multiplies by 1 + f, f up to 1.3, which was hardly meant; both were accepted."""
    image = np.full((2, 2, 2), 2, np.float32)
    bright, noisy = Script(0.09, 1), Script(1, 0.09)
    found = patches.change_intensity(image, augmentation, bright)
    np.testing.assert_allclose(found, 2 * factor, rtol=1e-6)
    assert bright.bounds == [(0.7, 1.3)]
    found = patches.change_intensity(image, augmentation, noisy)
    np.testing.assert_allclose(found, 2 + sigma, rtol=1e-6)
    assert noisy.bounds == ([(0, 0.1)] if augmentation == "reference" else [])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(
        patches.change_intensity(image, augmentation, Script(0.1, 0.1)), 2
    )


def test_frequencies():
    """Of many patches of one voxel-wide marks: how often each thing happens."""
    given = volume((4, 4, 4))
    make = patches.Patch(4, 0.4, "reference")
    rng = np.random.default_rng(0)
    flips = np.zeros(3)
    changed = 0
    for _ in range(2000):
        found = make.random_map(given, rng)
        for axis in range(3):
            flips[axis] += (np.flip(found["label"], axis) == given.label).all()
        changed += found["image"].std() > 1.5 * given.image.std()
    # alone flipped: 1/3 * 4/9 each; brightened: 1/10
    np.testing.assert_allclose(flips / 2000, 4 / 27, atol=0.03)
    assert changed / 2000 == pytest.approx(0.1, abs=0.02)


def test_unknown_augmentation_and_small_volumes_are_refused():
    with pytest.raises(UserError, match="augmentation is 'torch'"):
        patches.Patch(4, 0.4, "torch")
    with pytest.raises(UserError, match="a volume of 8x3x8 voxels holds no patch"):
        patches.Patch(4, 0.4, "dali").random_map(volume((8, 3, 8)), np.random.default_rng(0))


# -- evaluation --------------------------------------------------------------------------------------


def reference_axis(size, side=128):
    """Crop before, kept, padding before, windows: sliding_window_inference and pad_input, one axis."""
    stride = side // 2
    over = size % stride
    over = over if over < stride // 2 else 0
    cropped = list(range(size))[over // 2 : size - (over - over // 2)]
    bounds = (stride - len(cropped) % stride) % stride
    bounds = bounds if len(cropped) + bounds >= side else bounds + stride
    padded = len(cropped) + bounds
    return cropped[0], len(cropped), bounds // 2, (padded - side) // stride + 1


def test_fit_equals_the_reference_for_every_size():
    for size in range(128, 500):
        assert patches.fit(size, 128) == reference_axis(size), size
    assert patches.fit(80, 128) == (8, 64, 32, 1)  # still short of a window: another stride
    assert patches.fit(456, 128) == (4, 448, 0, 6)
    assert patches.fit(416, 128) == (0, 416, 16, 6)


def test_a_whole_volume_is_laid_out_with_its_windows():
    given = volume((17, 21, 16))
    found = patches.WholeVolume((24, 24, 16), 8).map(given)
    # 17: one voxel over is cut, after; 21: one over, likewise; 16: as it is
    assert found["windows"].tolist() == [3, 4, 3]
    np.testing.assert_array_equal(found["image"][:16, :20, :16, 0], given.image[:16, :20])
    np.testing.assert_array_equal(found["label"][:16, :20, :16], given.label[:16, :20])
    assert (found["label"] == 255).sum() == found["label"].size - 16 * 20 * 16
    assert set(np.unique(found["image"][:, 20:])) == {np.float32(-2.2)}
    assert found["windows"].dtype == np.int32


def test_a_padded_volume_has_its_padding_on_both_sides():
    given = volume((8, 8, 11))
    found = patches.WholeVolume((8, 8, 16), 8).map(given)
    assert found["windows"].tolist() == [1, 1, 2]
    np.testing.assert_array_equal(found["image"][..., :11, 0], given.image)  # 1 voxel, 0 before
    given = volume((8, 8, 10))
    found = patches.WholeVolume((8, 8, 16), 8).map(given)
    np.testing.assert_array_equal(found["image"][..., 1:11, 0], given.image)
    np.testing.assert_array_equal(found["label"][..., 0], 255)


def test_a_volume_beyond_eval_shape_is_refused():
    with pytest.raises(UserError, match=r"8x8x23 voxels takes 8x8x24 .* eval_shape 8x8x20"):
        patches.WholeVolume((8, 8, 20), 8).map(volume((8, 8, 23)))


# -- foreground --------------------------------------------------------------------------------------


def test_boxes_of_the_two_largest_components():
    label = np.zeros((12, 12, 12), np.uint8)
    label[0, 0, 0] = 1
    label[2:5, 2:4, 2:4] = 1
    label[5, 4, 4] = 1  # touches the former by a corner only: a component of its own
    label[8:10, 8:12, 8] = 1
    label[2:4, 2:4, 4] = 2  # touches class 1 by a face: classes are told apart first
    assert patches.largest_boxes(label) == {
        1: (patches.Box((2, 2, 2), (5, 4, 4)), patches.Box((8, 8, 8), (10, 12, 9))),
        2: (patches.Box((2, 2, 4), (4, 4, 5)),),
    }
    assert patches.largest_boxes(np.zeros((4, 4, 4), np.uint8)) == {}
    only = np.zeros((4, 4, 4), np.uint8)
    only[1, 1, 1] = 2
    assert list(patches.largest_boxes(only)) == [2]

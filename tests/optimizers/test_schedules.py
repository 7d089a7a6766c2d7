import itertools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.optimizers import (
    at_epochs,
    by_epoch,
    every_epochs,
    every_samples,
    every_steps,
    linear_decay,
    poly_decay,
    step_decay,
    steps_per_epoch,
    warmup_constant,
    warmup_cosine,
)

IMAGENET = 1_281_167


def take(iterator, n):
    return list(itertools.islice(iterator, n))


def rates(schedule, steps):
    """The schedule traced and vectorised over steps, as the optimizer calls it."""
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.asarray(steps, jnp.int32)))


# --- learning rates --------------------------------------------------------------------------------


# base rate, steps, warm-up and its start, of bert's reference points from batch 256 to 16,384
BERT = (
    (3.5e-4, 13700, 0, 0),
    (4.25e-4, 6700, 0, 0),
    (2e-3, 2254, 0, 0),
    (2e-3, 1141, 100, 0),
    (2.4e-3, 855, 0, 0),
    (3.5e-3, 700, 0, 0),
    (2.9293e-3, 700, 0, -700),
    (2.88293e-3, 600, 287, -76),
    (2.971656e-3, 600, 287, -76),
    (3.1e-3, 500, 300, -100),
    (3.19540686e-3, 500, 300, -100),
    (3.3e-3, 600, 290, -100),
)


@pytest.mark.parametrize(("base", "total", "warm", "start"), BERT)
def test_linear_decay_equals_the_fact_sheet(base, total, warm, start):
    def expected(t):
        if warm and t - start < warm:
            return base * (t - start) / warm
        return base * (1 - min(t, total) / total)

    border = warm + start if warm else 1
    steps = [0, 1, border - 1, border, border + 1, total // 2, total - 1, total, total + 1]
    with jax.enable_x64(True):
        got = rates(linear_decay(base, warm, total, start_warmup_step=start), steps)
    np.testing.assert_allclose(got, [expected(t) for t in steps], rtol=1e-13, atol=1e-18)
    np.testing.assert_allclose(got[-3:], [base / total, 0, 0], rtol=1e-10)
    if not warm:
        assert got[0] == base
    elif not start:
        assert got[0] == 0
    else:  # begins in the midst of its warm-up, and falls at the end of it
        assert 0 < got[0] < got[2] and got[3] < got[2]


def test_a_linear_decay_that_makes_no_schedule_is_refused():
    for warm, total, start, message in (
        (0, 0, 0, "over 0 steps"),
        (9, 8, 0, "must fit"),
        (5, 8, 1, "starts at step 1"),
    ):
        with pytest.raises(UserError, match=message):
            linear_decay(1.0, warm, total, start_warmup_step=start)


def test_poly_decay_equals_the_fact_sheet():
    base, warm, total, end = 10.5, 784, 14504, 1e-4
    length = total - warm + 1

    def expected(t):
        if t <= warm:
            return base * t / warm
        return end + (base - end) * (1 - min(t - warm, length) / length) ** 2

    steps = [0, 1, 783, 784, 785, 8000, 14503, 14504, 14505, 14506, 20000]
    with jax.enable_x64(True):
        got = rates(poly_decay(base, warm, total), steps)
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, [expected(t) for t in steps], rtol=1e-13)
        nvidia = rates(poly_decay(base, warm, total, first_step=1), steps)
        np.testing.assert_allclose(nvidia, [expected(t + 1) for t in steps], rtol=1e-13)
    assert got[0] == 0
    assert got[3] == base
    np.testing.assert_allclose(got[-1], 1e-4, rtol=1e-12)
    assert rates(poly_decay(base, warm, total), steps).dtype == np.float32


def test_poly_decay_without_warm_up_and_with_power_one():
    with jax.enable_x64(True):
        got = rates(poly_decay(2.0, 0, 9, power=1, end_lr=0.0), range(12))
        np.testing.assert_allclose(got, np.maximum(2.0 * (1 - np.arange(12) / 10), 0), atol=1e-15)


def resnet_recipes():
    """The convergence points of the official checker, if its wheel is installed."""
    checker = pytest.importorskip("mlperf_logging.rcp_checker")
    folder = pathlib.Path(checker.__path__[0]) / "training_4.0.0"
    points = json.loads((folder / "rcps_resnet.json").read_text())
    return [(point["BS"], point["Hyperparams"]) for point in points.values()]


def test_every_resnet_recipe_reaches_its_rate_after_the_warm_up():
    recipes = resnet_recipes()
    assert len(recipes) == 10
    for batch_size, recipe in recipes:
        epoch = steps_per_epoch(IMAGENET, batch_size)
        warm = recipe["opt_learning_rate_warmup_epochs"] * epoch
        base = recipe["opt_base_learning_rate"]
        total = warm + 20 * epoch
        got = rates(poly_decay(base, warm, total), [0, warm, warm + 1, total + 1])
        assert got[0] == 0
        assert got[1] == np.float32(base), batch_size
        assert got[2] < got[1]
        np.testing.assert_allclose(got[3], 1e-4, rtol=1e-5)


def test_cosine_forms():
    with jax.enable_x64(True):
        base, warm, total, end = 4e-4, 16, 1_200_000, 4e-5
        nemo = rates(warmup_cosine(base, warm, total, end_lr=end, form="nemo"), range(20))
        expected = [
            base * (t + 1) / (warm + 1)
            if t <= warm
            else end + (base - end) / 2 * (1 + math.cos(math.pi * (t - warm) / (total - warm)))
            for t in range(20)
        ]
        np.testing.assert_allclose(nemo, expected, rtol=1e-13)
        # deepseekv3_671b: updates use 0, 1/4, 1/2, 3/4, 1 of the rate, then the cosine to step 12,000
        deepseek = rates(warmup_cosine(2.4e-5, 4, 12_000, end_lr=1e-8), range(5))
        np.testing.assert_allclose(deepseek / 2.4e-5, [0, 0.25, 0.5, 0.75, 1], rtol=1e-13)
        # llama2_70b_lora: no warm-up, the first update has the full rate, 0 from step 1024 on
        steps = np.array([0, 1, 512, 1023, 1024, 2000])
        lora = rates(warmup_cosine(4e-4, 0, 1024), steps)
        wave = 4e-4 * 0.5 * (1 + np.cos(np.pi * np.minimum(steps, 1024) / 1024))
        np.testing.assert_allclose(lora, wave, rtol=1e-12, atol=1e-20)
        # gpt3 at batch 1536: constant at W, cosine from W + 1 to D
        gpt3 = rates(warmup_cosine(2e-5, 265, 108_600, end_lr=2e-6, hold_steps=1), [265, 266, 267])
        later = 2e-6 + 1.8e-5 / 2 * (1 + math.cos(math.pi / (108_600 - 266)))
        np.testing.assert_allclose(gpt3, [2e-5, 2e-5, later], rtol=1e-14)


def test_warm_up_then_constant():
    with jax.enable_x64(True):
        # stable_diffusion: the multiplier is 1e-6 at step 0 and 1 at step 1000
        got = rates(warmup_constant(1.0, 1000, start_lr=1e-6), [0, 500, 1000, 1001])
        np.testing.assert_allclose(got, [1e-6, 0.5 * (1 + 1e-6), 1, 1], rtol=1e-13)
        # flux1: (step + 1) / W
        got = rates(warmup_constant(2e-4, 1600, first_step=1), [0, 1598, 1599, 1600])
        np.testing.assert_allclose(got, np.array([1, 1599, 1600, 1600]) / 1600 * 2e-4, rtol=1e-13)
        # unet3d: per epoch, epoch e of 1..W has 1e-4 + (base - 1e-4) e / W
        got = rates(by_epoch(warmup_constant(2.0, 10, start_lr=1e-4), 6), [0, 5, 6, 53, 54, 600])
        epochs = np.array([1, 1, 2, 9, 10, 10])
        np.testing.assert_allclose(got, 1e-4 + (2.0 - 1e-4) * epochs / 10, rtol=1e-13)
        np.testing.assert_array_equal(rates(warmup_constant(0.3, 0, start_lr=1e-4), [0, 1]), 0.3)


def test_step_decay():
    with jax.enable_x64(True):
        epoch = 1251  # batch 1024: base 0.1 * 1024 / 256, x0.1 at epochs 30, 60, 80, warm-up 5
        lr = step_decay(0.4, [30 * epoch, 60 * epoch, 80 * epoch], warmup_steps=5 * epoch)
        steps = [0, epoch, 5 * epoch, 30 * epoch - 1, 30 * epoch, 60 * epoch, 90 * epoch]
        np.testing.assert_allclose(
            rates(lr, steps), [0, 0.08, 0.4, 0.4, 0.04, 0.004, 0.0004], rtol=1e-12
        )
        several = rates(step_decay(1.0, [2, 4], [0.5, 0.2], first_step=1), range(5))
        np.testing.assert_allclose(several, [1, 0.5, 0.5, 0.1, 0.1], rtol=1e-13)
        np.testing.assert_array_equal(rates(step_decay(1.0, []), [0, 9]), 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: poly_decay(1.0, 10, 9), "warm-up of 10 steps in a schedule of 9"),
        (lambda: poly_decay(1.0, -1, 9), "warm-up of -1"),
        (lambda: warmup_cosine(1.0, 5, 5, hold_steps=1), "warm-up of 6"),
        (lambda: warmup_cosine(1.0, 5, 9, form="hf"), "cosine form is 'hf'"),  # pyright: ignore
        (lambda: step_decay(1.0, [5, 5]), "must increase"),
        (lambda: step_decay(1.0, [5], [0.1, 0.1]), "one factor for each"),
        (lambda: by_epoch(poly_decay(1.0, 0, 9), 0), "epoch of 0 steps"),
        (lambda: every_steps(0), "at least 1"),
        (lambda: every_samples(10, 0), "batch 0"),
        (lambda: every_epochs(0, 100, 10), "every 0 epochs"),
        (lambda: every_epochs(1, 100, 101), "batch size 101 leaves no step"),
        (lambda: every_epochs(1, 100, 10, last_batch="keep"), "last_batch is 'keep'"),  # pyright: ignore
        (lambda: at_epochs([5], 100, 10), "at least two"),
    ],
)
def test_wrong_arguments_are_refused_at_once(make, message):
    with pytest.raises(UserError, match=message):
        make()


# --- evaluation: every row of the rules' table -----------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "epochs"), [(0, [4, 8, 12]), (1, [1, 5, 9]), (2, [2, 6, 10]), (3, [3, 7, 11])]
)
def test_resnet_every_four_epochs_with_an_offset(offset, epochs):
    # floor(1,281,167 / 3,264) = 392 steps an epoch
    got = take(every_epochs(4, IMAGENET, 3264, offset=offset), 3)
    assert got == [392 * epoch for epoch in epochs]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (every_samples(262_144, 512), [512, 1024]),  # flux1
        (every_samples(262_144, 1000), [263, 526]),  # flux1 at a batch that does not divide
        (every_samples(12_288, 16), [768, 1536]),  # llama31_8b, gpt_oss_20b
        (every_samples(12_288, 36), [342, 684]),  # 12,312 samples, as logged
        (every_samples(46_080, 1152), [40, 80]),  # llama31_405b v5.0
        (every_samples(24_576, 2048), [12, 24]),  # gpt3
        (every_samples(512_000, 1024), [500, 1000]),  # stable_diffusion checkpoints
        (every_samples(102_400, 2048), [50, 100]),  # dlrm
        (every_steps(40), [40, 80]),  # openfold
        (every_steps(4_195_197_692 // (65_536 * 20)), [3200, 6400]),  # dlrm_dcnv2
        (every_epochs(1, 117_266, 256), [458, 916]),  # retinanet and others: every epoch
        (every_epochs(5, 117_266, 1024), [570, 1140]),  # ssd v1.1
    ],
)
def test_plain_intervals(schedule, expected):
    assert take(schedule, 2) == expected


@pytest.mark.parametrize(("batch_size", "samples"), [(8, 1536), (64, 4224)])
def test_llama2_70b_lora_skips_the_first(batch_size, samples):
    schedule = every_samples(384, batch_size, skip=batch_size // 8 + 2)
    first, second = take(schedule, 2)
    assert first * batch_size == samples
    assert (second - first) * batch_size == 384


@pytest.mark.parametrize(("batch_size", "samples"), [(896, 282_240), (1152, 276_480)])
def test_llama31_405b_skips_the_first(batch_size, samples):
    schedule = every_samples(18_432, batch_size, skip=26 * batch_size // 10_000 + 12)
    assert next(schedule) * batch_size == samples


def test_deepseek_and_qwen_start_late_and_then_evaluate_every_step():
    for batch_size in (15_360, 16_384, 18_432):
        assert take(every_steps(1, first=42 + 24_576 // batch_size), 2) == [43, 44]
    for batch_size, first in ((256, 18), (512, 10), (1024, 7)):
        exact = -(-(5 * batch_size + 7680) // (2 * batch_size))  # ceil(2.5 + 3840 / batch)
        assert take(every_steps(1, first=exact), 2) == [first, first + 1]


@pytest.mark.parametrize(("batch_size", "block"), [(8192, 25), (16_384, 31), (32_768, 41)])
def test_dlrmv4_first_block(batch_size, block):
    gap = -(-2_290_836 // batch_size)  # ceil(0.001 * 2,290,835,423) samples
    first = (4480 * batch_size + 135_331_840) // 3
    assert take(every_samples(2_290_836, batch_size, first=first), 2) == [
        block * gap,
        (block + 1) * gap,
    ]


@pytest.mark.parametrize(
    ("batch_size", "first", "every"),
    [(2, 1000, 20), (28, 1000, 20), (32, 875, 18), (64, 875, 18), (80, 700, 14), (128, 657, 14)],
)
def test_unet3d_in_padded_epochs(batch_size, first, every):
    steps = steps_per_epoch(168, batch_size, "pad")
    epoch = steps * batch_size
    schedule = every_epochs(
        -(-20 * 168 // epoch),
        168,
        batch_size,
        offset=-(-1000 * 168 // epoch),
        last_batch="pad",
    )
    assert take(schedule, 2) == [first * steps, (first + every) * steps]


def test_unet3d_by_samples_and_bert_round_each_mark_up():
    # unet3d v4.0 at batch 64: the first iteration past each multiple of 3,360 samples
    assert take(every_samples(3360, 64, round_each=True), 3) == [53, 105, 158]
    # bert: 0.05 (230.23 batch + 3,000,000) down to a multiple of 25,000, in integers
    for batch_size, interval in ((256, 150_000), (2048, 150_000), (3072, 175_000), (8192, 225_000)):
        exact = (23_023 * batch_size + 300_000_000) // 50_000_000 * 25_000
        assert exact == interval
    assert take(every_samples(150_000, 256, round_each=True), 3) == [586, 1172, 1758]
    assert take(every_samples(150_000, 448, round_each=True), 3) == [335, 670, 1005]
    assert take(every_samples(500_000, 448, first=3_000_000, round_each=True), 2) == [6697, 7813]


def test_marks_inside_one_batch_are_evaluated_once():
    assert take(every_samples(10, 25, round_each=True), 4) == [1, 2, 3, 4]
    assert take(every_epochs(1, 10, 25, last_batch="mix"), 4) == [1, 2, 3, 4]


def test_ssd_listed_epochs_go_on():
    steps = 117_266 // 1024
    schedule = at_epochs([40, 50, 55, 60, 65, 70, 75, 80], 117_266, 1024)
    assert take(schedule, 10) == [steps * e for e in (40, 50, 55, 60, 65, 70, 75, 80, 85, 90)]


def test_last_batch_dropped_padded_or_mixed():
    assert take(every_epochs(1, 100, 30), 3) == [3, 6, 9]
    assert take(every_epochs(1, 100, 30, last_batch="pad"), 3) == [4, 8, 12]
    assert take(every_epochs(1, 100, 30, last_batch="mix"), 3) == [4, 7, 10]

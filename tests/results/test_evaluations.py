"""Evaluation schedules: their steps, and what keeps them."""

import itertools

import pytest

from mlperf_jax.results.evaluations import Evaluation


def first(evaluation, batch, samples=None, count=3):
    return list(itertools.islice(evaluation.steps(batch, samples), count))


@pytest.mark.parametrize(
    ("evaluation", "steps"),
    [
        (Evaluation("steps", every=40), [40, 80, 120]),
        (Evaluation("steps", every="ceil(250 / batch)", first="every * 5"), [15, 18, 21]),
        (Evaluation("samples", every=250), [3, 5, 8]),
        (Evaluation("samples", every=250, first=1000), [10, 13, 15]),
        (Evaluation("epochs", every=1), [10, 20, 30]),
        (Evaluation("epochs", every=1, pad=True), [11, 22, 33]),
        (Evaluation("epochs", every=4, first="any"), [40, 80, 120]),
        (Evaluation("epochs", every=0.05), [1, 2, 3]),
        (Evaluation("epochs", at=(4, 5)), [40, 50]),
        (Evaluation("generations", every=1), []),
    ],
)
def test_steps_keep_their_own_schedule(evaluation, steps):
    assert first(evaluation, 100, 1050) == steps
    assert evaluation.fault(steps, 100, 1050) is None


@pytest.mark.parametrize(
    ("evaluation", "steps", "says"),
    [
        (Evaluation("steps", every=40), [40, 80, 121], "after 80 and 121 steps"),
        (Evaluation("steps", every=40), [39, 79, 119], "the first after 40"),
        (Evaluation("steps", every=40), [40, 80], "only 2 evaluation"),
        (Evaluation("samples", every=250), [2, 5, 8], "comes after 2 steps"),
        (Evaluation("epochs", every=1), [10, 22, 32], "every 10 to 11 steps"),
        (Evaluation("epochs", every=1, pad=True), [10, 21, 32], "comes after 10 steps"),
        (Evaluation("epochs", every=4, first="any"), [45, 85, 125], "the first included"),
        (Evaluation("epochs", at=(4, 5)), [40, 60], "after 60 steps"),
        (Evaluation("epochs", at=(4, 5)), [], "no evaluation"),
    ],
)
def test_faults(evaluation, steps, says):
    assert says in evaluation.fault(steps, 100, 1050)


def test_an_epoch_may_count_its_partial_batch_or_not():
    evaluation = Evaluation("epochs", every=2)
    assert evaluation.fault([20, 40, 60], 100, 1050) is None
    assert evaluation.fault([22, 44, 66], 100, 1050) is None
    assert evaluation.fault([21, 42, 63], 100, 1050) is None


def test_a_schedule_in_epochs_needs_the_number_of_samples():
    with pytest.raises(ValueError, match="needs the number of training samples"):
        first(Evaluation("epochs", every=1), 100)


@pytest.mark.parametrize(
    ("evaluation", "text"),
    [
        (Evaluation("epochs", every=1), "every epoch"),
        (Evaluation("epochs", every=4, first="any"), "every 4 epochs, the first within these"),
        (
            Evaluation("samples", every=500000, first=3e6),
            "every 500,000 samples, the first after 3,000,000",
        ),
        (
            Evaluation("steps", every="ceil(9 / batch)", note="so"),
            "every ceil(9 / batch) steps (so)",
        ),
        (Evaluation("epochs", at=(40, 50)), "after epochs 40, 50"),
    ],
)
def test_words(evaluation, text):
    assert str(evaluation) == text

"""Area under the ROC curve: against scikit-learn's values, ties, bounds of the histogram, bad input."""

import doctest
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax import metrics
from mlperf_jax.errors import UserError
from mlperf_jax.metrics import auc

STORED = np.load(pathlib.Path(__file__).parent / "data" / "auc.npz")
CASES = ("distinct", "ties", "rare", "common", "logits")


def case(name):
    return STORED[f"{name}_scores"], STORED[f"{name}_labels"], float(STORED[f"{name}_area"])


def slow(scores, labels):
    """All pairs, one by one."""
    clicks, others = scores[labels > 0][:, None], scores[labels <= 0][None]
    return float(np.mean((clicks > others) + 0.5 * (clicks == others)))


def streamed(metric, outputs, batch):
    """As the core does: padded batches, sums on the device, added in float64."""
    rows = np.shape(outputs)[-1]
    added: dict = {}
    sums = jax.jit(metric.sums)
    for start in range(0, rows, batch):
        short = max(0, start + batch - rows)
        mask = np.arange(batch) < batch - short
        # what a padded row predicts is arbitrary
        parts = [
            np.append(x[start : start + batch], np.full(short, np.nan, x.dtype)) for x in outputs
        ]
        for name, value in sums(tuple(map(jnp.asarray, parts)), mask).items():
            added[name] = added.get(name, 0) + np.asarray(value, np.float64)
    return metric.result(added)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_scikit_learn(name, dtype):
    scores, labels, area = case(name)
    assert auc.roc_auc(labels, scores.astype(dtype)) == pytest.approx(area, abs=1e-12)
    assert slow(scores, labels) == pytest.approx(area, abs=1e-12)


def test_a_million_scores_with_a_thousand_values(monkeypatch):
    random = np.random.RandomState(0)
    scores = random.randint(0, 1000, 10**6) / np.float32(1000)
    labels = random.randint(0, 1000, 10**6) < 40 + 100 * scores
    assert abs(auc.roc_auc(labels, scores) - STORED["million_area"]) < 1e-12
    monkeypatch.setattr(
        auc, "_QUERIES", 1000
    )  # the blocks of the search add up, and so do the shares
    monkeypatch.setattr(auc, "_SHARE", 1000)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(7), raising=False)
    assert abs(auc.roc_auc(labels, scores) - STORED["million_area"]) < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_counts_of_parts_add_up(name):
    scores, labels, area = case(name)
    clicks, others = np.sort(scores[labels > 0]), scores[labels <= 0]
    won = sum(auc.twice_won(clicks, part.copy()) for part in np.array_split(others, 5))
    assert won / (2 * len(clicks) * len(others)) == pytest.approx(area, abs=1e-12)


def test_the_inputs_are_left_as_they_are():
    scores, labels, _ = case("ties")
    before = scores.copy(), labels.copy()
    auc.roc_auc(labels, scores)
    np.testing.assert_array_equal(scores, before[0])
    np.testing.assert_array_equal(labels, before[1])


@pytest.mark.parametrize("form", ["pair", "signed"])
def test_rows_of_the_evaluation(form):
    scores, labels, area = case("ties")
    pair = scores, labels.astype(np.float32)
    rows = pair if form == "pair" else np.asarray(jax.jit(auc.signed)(*pair))
    assert metrics.Auc().rows and metrics.Auc().mode == "inline"
    assert metrics.Auc("area").result(rows) == {"area": pytest.approx(area, abs=1e-12)}


def test_the_sign_holds_the_label_of_a_zero():
    scores = jnp.zeros(3)
    packed = np.asarray(auc.signed(scores, jnp.array([0.0, 1.0, 0.0])))
    assert np.signbit(packed).tolist() == [False, True, False]
    assert metrics.Auc().result(packed) == {"auc": 0.5}


def test_constant_and_perfect_predictions():
    labels = np.array([0, 1, 1, 0, 0])
    assert auc.roc_auc(labels, np.full(5, 0.3)) == 0.5
    assert auc.roc_auc(labels, labels * 0.5) == 1
    assert auc.roc_auc(labels, -labels * 0.5) == 0


@pytest.mark.parametrize("name", ["distinct", "ties", "rare", "common"])
@pytest.mark.parametrize("batch", [256, 1500])
def test_the_histogram_keeps_its_bound(name, batch):
    scores, labels, area = case(name)
    found = streamed(metrics.AucHistogram(), (scores, labels.astype(np.float32)), batch)
    assert set(found) == {"auc", "auc_error"}
    assert abs(found["auc"] - area) <= found["auc_error"] + 1e-12
    if name == "distinct":
        assert 0 < found["auc_error"] < 5e-4
        assert found["auc"] != area  # it is an estimate
    else:  # rounded scores do not share bins with others, so all that counts half is a tie
        assert found["auc"] == pytest.approx(area, abs=1e-12)


def test_the_bound_is_reached_when_bins_hide_the_order():
    labels = np.array([1, 1, 0, 0], np.float32)
    scores = np.float32(0.5) + np.array([1, 2, 0, 0.5], np.float32) * np.float32(1e-6)
    found = streamed(metrics.AucHistogram(), (scores, labels), 4)
    assert auc.roc_auc(labels, scores) == 1
    assert found == {"auc": 0.5, "auc_error": 0.5}


def test_the_histogram_takes_zero_and_one():
    scores = np.array([0, 0, 1, 1], np.float32)
    found = streamed(metrics.AucHistogram(), (scores, np.array([0, 1, 0, 1], np.float32)), 3)
    assert found["auc"] == 0.5


@pytest.mark.parametrize("bad", [np.nan, 1.5])
def test_the_histogram_refuses_what_is_no_probability(bad):
    outputs = np.array([0.1, bad, 0.3], np.float32), np.array([0, 1, 0], np.float32)
    with pytest.raises(UserError, match=r"1 scores of the evaluation are NaN or outside \[0, 1\]"):
        streamed(metrics.AucHistogram(), outputs, 3)


@pytest.mark.parametrize("label", [0, 1])
def test_nan_is_refused(label):
    scores, labels = np.array([0.1, 0.2, np.nan, 0.4], np.float32), np.array([0, 1, label, 0])
    with pytest.raises(UserError, match="NaN: the model has diverged"):
        auc.roc_auc(labels, scores)
    with pytest.raises(UserError, match="NaN: the model has diverged"):
        metrics.Auc().result(np.asarray(auc.signed(jnp.asarray(scores), jnp.asarray(labels))))


@pytest.mark.parametrize("label", [0, 1])
def test_labels_that_are_all_alike(label):
    labels, scores = np.full(5, label), np.linspace(0, 1, 5, dtype=np.float32)
    with pytest.raises(UserError, match="needs clicks and others"):
        auc.roc_auc(labels, scores)
    with pytest.raises(UserError, match="needs clicks and others"):
        streamed(metrics.AucHistogram(), (scores, labels.astype(np.float32)), 5)


def test_lengths_differ():
    with pytest.raises(UserError, match=r"labels \[3\] and scores \[4\]"):
        auc.roc_auc(np.zeros(3), np.zeros(4))


def test_documented_examples():
    assert doctest.testmod(auc).failed == 0

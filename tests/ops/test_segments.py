"""Segment sums and softmax against plain loops, and where they could break."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mlperf_jax.ops.segments import segment_softmax, segment_sum

COUNT = 5
SEGMENTS = np.array([0, 0, 0, 2, 2, 3, 3, 3, 3, 6])  # 1 and 4 are empty; 6 is no segment
REAL = np.array([1, 1, 0, 1, 1, 0, 0, 0, 0, 1], bool)  # all of 3 is padding
SHAPE = (10, 2, 3)


@pytest.fixture(params=["ascending", "shuffled"])
def case(request):
    """Values, segments, real, and whether they ascend."""
    draw, order = np.random.RandomState(0), np.arange(10)
    if request.param == "shuffled":
        order = draw.permutation(10)
    values = draw.standard_normal(SHAPE)[order]
    return values, SEGMENTS[order], REAL[order], request.param == "ascending"


def members(segments, real):
    return [np.flatnonzero((segments == s) & real) for s in range(COUNT)]


@pytest.mark.parametrize("masked", [False, True])
def test_sums_are_those_of_a_loop(case, masked, x64):
    values, segments, real, ascending = case
    real = real if masked else np.ones(10, bool)
    found = segment_sum(values, segments, COUNT, real=real if masked else None, ascending=ascending)
    wanted = [values[at].sum(0) for at in members(segments, real)]
    np.testing.assert_allclose(found, wanted, atol=1e-14)


@pytest.mark.parametrize("masked", [False, True])
def test_softmax_is_that_of_a_loop(case, masked, x64):
    values, segments, real, ascending = case
    real = real if masked else np.ones(10, bool)
    how = dict(real=real if masked else None, ascending=ascending)
    wanted = np.zeros(SHAPE)
    for at in members(segments, real):
        powers = np.exp(values[at])
        wanted[at] = powers / powers.sum(0)
    found = segment_softmax(values, segments, COUNT, **how)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, wanted, atol=1e-15)


def test_gradients_are_the_slopes(case, x64):
    values, segments, real, ascending = case
    probe = np.random.RandomState(1).standard_normal(SHAPE)

    def f(values):
        how = dict(real=real, ascending=ascending)
        weights = segment_softmax(values, segments, COUNT, **how)
        return jnp.sum(segment_sum(weights * probe, segments, COUNT, **how) ** 2)

    check_grads(f, (jnp.asarray(values),), order=1, modes=["rev"])
    slope = jax.grad(f)(jnp.asarray(values))
    assert (np.asarray(slope)[~real | (segments >= COUNT)] == 0).all()


@pytest.mark.parametrize("score", [-1e30, -300.0, 300.0, 1e30])
def test_scores_of_any_size_give_finite_gradients(score):
    """Padding scores far above and below its segment, which has elements or has none."""
    scores = jnp.where(REAL, score, -score).at[0].set(0)

    def f(scores):
        how = dict(real=REAL, ascending=True)
        return jnp.sum(segment_softmax(scores, SEGMENTS, COUNT, **how) ** 2)

    value, slope = jax.value_and_grad(f)(scores)
    assert np.isfinite(value) and np.isfinite(slope).all()


def test_what_does_not_count_may_be_no_number():
    values = jnp.where(REAL, 1.0, jnp.nan)
    how = dict(real=REAL, ascending=True)
    summed = functools.partial(segment_sum, segments=SEGMENTS, count=COUNT, **how)
    assert summed(values).tolist() == [2, 0, 2, 0, 0]
    assert jax.grad(lambda x: summed(x).sum())(values).tolist() == [1, 1, 0, 1, 1, 0, 0, 0, 0, 0]
    found = segment_softmax(values, SEGMENTS, COUNT, **how)
    assert found.tolist() == [0.5, 0.5, 0, 0.5, 0.5, 0, 0, 0, 0, 0]


def test_narrow_values_are_added_up_wide():
    ones = jnp.ones(1000, jnp.bfloat16)
    total = segment_sum(ones, jnp.zeros(1000, jnp.int32), 1, ascending=True)
    assert total.dtype == jnp.float32 and total.tolist() == [1000]  # bfloat16 stops at 256
    weights = segment_softmax(ones, jnp.zeros(1000, jnp.int32), 1, ascending=True)
    np.testing.assert_allclose(weights, 1e-3, rtol=1e-6)


def test_no_elements_and_axes_of_samples():
    none = jnp.zeros([0, 2])
    assert segment_sum(none, jnp.zeros(0, jnp.int32), 3).tolist() == [[0, 0]] * 3
    assert segment_softmax(none, jnp.zeros(0, jnp.int32), 3).shape == (0, 2)
    both = np.stack([SEGMENTS, np.maximum(SEGMENTS, 1)])
    found = jax.vmap(lambda s: segment_sum(jnp.ones(10), s, COUNT, ascending=True))(both)
    assert found.tolist() == [[3, 0, 2, 4, 0], [0, 3, 2, 4, 0]]

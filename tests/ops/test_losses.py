"""Losses against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mlperf_jax.ops.losses import softmax_xent, weighted_hits, weighted_xent


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_xent_equals_numpy(smoothing):
    logits = np.random.RandomState(0).standard_normal((5, 7)) * 4
    label = np.array([0, 6, 3, 3, 1])
    target = (1 - smoothing) * np.eye(7)[label] + smoothing / 7
    prob = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -(target * np.log(prob)).sum(-1).mean()
    with jax.enable_x64(True):
        loss = softmax_xent(jnp.asarray(logits), jnp.asarray(label), smoothing)
        assert loss.dtype == jnp.float64
        np.testing.assert_allclose(loss, expected, rtol=1e-13)
        check_grads(lambda x: softmax_xent(x, jnp.asarray(label), smoothing), (logits,), 1, ["rev"])


def test_softmax_xent_gradient_is_probability_less_target():
    logits = jnp.asarray(np.random.RandomState(0).standard_normal((2, 3)), jnp.float32)
    grad = jax.grad(softmax_xent)(logits, jnp.array([2, 0]), 0.1)
    target = 0.9 * np.eye(3)[[2, 0]] + 0.1 / 3
    np.testing.assert_allclose(grad, (jax.nn.softmax(logits) - target) / 2, atol=1e-6)


def test_softmax_xent_is_stable_and_wide():
    logits = jnp.array([[1e4, -1e4], [-1e4, 1e4]], jnp.bfloat16)
    loss = softmax_xent(logits, jnp.array([0, 0]), 0.1)
    assert loss.dtype == jnp.float32
    assert jnp.isfinite(loss)
    assert jnp.isfinite(jax.grad(softmax_xent)(logits, jnp.array([0, 0]))).all()


def test_weighted_xent_equals_numpy_and_passes_empty_slots_over():
    draw = np.random.RandomState(0)
    logits, label = draw.standard_normal((2, 3, 7)) * 4, np.array([[0, 6, 3], [3, 1, 99]])
    weight = np.array([[1, 0.5, 0], [1, 2, 0]])  # the last slot's label is none
    prob = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    picked = np.take_along_axis(prob, np.minimum(label, 6)[..., None], -1)[..., 0]
    with jax.enable_x64(True):
        loss = lambda logits: weighted_xent(logits, jnp.asarray(label), jnp.asarray(weight))  # noqa: E731
        total, count = loss(jnp.asarray(logits))
        np.testing.assert_allclose(total, (weight * -np.log(picked)).sum(), rtol=1e-13)
        assert float(count) == weight.sum() and total.dtype == jnp.float64
        check_grads(lambda x: loss(x)[0], (logits,), 1, ["rev"])
        assert not jax.grad(lambda x: loss(x)[0])(jnp.asarray(logits))[:, 2].any()
    assert jnp.isnan(weighted_xent(jnp.zeros([1, 7]), jnp.array([7]), jnp.ones(1))[0])


def test_weighted_hits_count_the_largest_logit_per_row():
    logits = np.zeros((2, 3, 4), np.float32)
    for slot, largest in zip(np.ndindex(2, 3), (0, 2, 1, 3, 3, 0)):
        logits[*slot, largest] = 1
    label = jnp.array([[0, 2, 0], [3, 1, 0]])
    hits, weight = weighted_hits(jnp.asarray(logits), label, jnp.array([[1.0, 0, 1], [2, 1, 1]]))
    assert hits.tolist() == [1, 3] and weight.tolist() == [2, 4]

"""Adagrad for dense weights against torch's rule, written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlperf_jax.optimizers import adagrad


def test_epsilon_is_added_after_the_root():
    with jax.enable_x64(True):
        generator = np.random.default_rng(0)
        weights, sums = generator.normal(size=(3, 4)), np.full((3, 4), 0.5)
        tx = adagrad.adagrad(0.1, 0.25, 0.5)
        params = {"w": jnp.asarray(weights)}
        state = tx.init(params)
        for _ in range(3):
            grad = generator.normal(size=(3, 4))
            sums += grad**2
            weights = weights - 0.1 * grad / (np.sqrt(sums) + 0.25)
            updates, state = tx.update({"w": jnp.asarray(grad)}, state, params)
            params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["w"], weights, rtol=1e-14)
        np.testing.assert_allclose(state.accumulator["w"], sums, rtol=1e-14)
        assert int(state.count) == 3


def test_the_first_step_is_the_rate_and_no_gradient_is_no_step():
    tx = adagrad.adagrad(0.004)
    grads = {"w": jnp.array([1e-3, -5.0, 0.0])}
    updates, _ = tx.update(grads, tx.init(grads))
    np.testing.assert_allclose(updates["w"], [-0.004, 0.004, 0.0], rtol=2e-5)


def test_a_schedule_reads_the_own_count():
    tx = adagrad.adagrad(lambda count: jnp.where(count == 0, 1.0, 0.0))
    state = tx.init({"w": jnp.ones(())})
    first, state = tx.update({"w": jnp.ones(())}, state)
    second, _ = tx.update({"w": jnp.ones(())}, state)
    assert float(first["w"]) == pytest.approx(-1) and float(second["w"]) == 0

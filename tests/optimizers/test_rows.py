"""Row optimizers against dense gradients in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax.optimizers import rows

R, D = 12, 3


def case(seed=0, looked_up=(4, 3)):
    """A table's rows, ids with repetitions, and a gradient for each."""
    generator = np.random.default_rng(seed)
    table = generator.normal(size=(R, D)).astype(np.float32)
    ids = generator.integers(0, R // 2, size=looked_up).astype(np.int32)
    assert len(np.unique(ids)) < ids.size
    grads = generator.normal(size=(*looked_up, D)).astype(np.float32)
    return table, ids, grads


def dense(ids, grads):
    whole = np.zeros((R, D), np.float32)
    np.add.at(whole, ids.ravel(), grads.reshape(-1, D))
    return whole


def optimized(optimizer, steps=3):
    """The table after some steps, and the dense gradients it saw."""
    start, *_ = case()
    table = {"rows": jnp.asarray(start), **optimizer.init(jnp.asarray(start))}
    seen = []
    for seed in range(steps):
        _, ids, grads = case(seed)
        table = jax.jit(optimizer.update)(table, ids, grads, seed)
        seen.append(dense(ids, grads))
    return start, table, seen


def test_sgd_equals_the_dense_step():
    start, table, grads = optimized(rows.sgd(0.5))
    np.testing.assert_allclose(table["rows"], start - 0.5 * sum(grads), rtol=1e-5, atol=1e-6)
    assert set(table) == {"rows"}


def test_adagrad_equals_the_dense_step():
    start, table, grads = optimized(rows.adagrad(0.5, epsilon=1e-3, initial=0.1))
    wanted, squares = start.copy(), np.full((R, D), 0.1, np.float32)
    for g in grads:
        squares += g**2
        wanted -= 0.5 * g / (np.sqrt(squares) + 1e-3)
    np.testing.assert_allclose(table["rows"], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(table["accumulator"], squares, rtol=1e-5)


def test_rowwise_adagrad_equals_the_dense_step():
    start, table, grads = optimized(rows.rowwise_adagrad(0.5, epsilon=1e-3, initial=0.1))
    wanted, squares = start.copy(), np.full(R, 0.1, np.float32)
    for g in grads:
        squares += (g**2).mean(1)
        wanted -= 0.5 * g / (np.sqrt(squares) + 1e-3)[:, None]
    np.testing.assert_allclose(table["rows"], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(table["accumulator"], squares, rtol=1e-5)


def decayed(count):
    """As DLRM's: warm-up over 8 steps, a plateau below the rate, a decay of power 2 over 12, its end."""
    rest = jnp.clip((25 - count) / 12, 0, 1)
    return 0.5 * jnp.minimum((count + 1) / 8, jnp.where(count < 13, 7 / 8, rest**2))


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise_adagrad"])
def test_a_schedule_is_read_at_the_count(kind):
    """30 steps whose rate changes, against dense gradients in NumPy."""
    start, table, grads = optimized(getattr(rows, kind)(decayed), steps=30)
    wanted, squares = start.copy(), 0.0
    rates = [0.5 * min((n + 1) / 8, 7 / 8 if n < 13 else (max(25 - n, 0) / 12) ** 2)
             for n in range(30)]  # fmt: skip
    assert max(rates) == rates[13] == 0.5 and rates[0] == 0.0625 and rates[12] == 0.4375
    for rate, g in zip(rates, grads, strict=True):
        if kind == "sgd":
            wanted -= rate * g
            continue
        squares = squares + (g**2 if kind == "adagrad" else (g**2).mean(1, keepdims=True))
        wanted -= rate * g / (np.sqrt(squares) + 1e-8)
    np.testing.assert_allclose(table["rows"], wanted, rtol=1e-4, atol=1e-5)
    assert table["rows"].dtype == jnp.float32


OPTIMIZERS = [rows.sgd(0.5), rows.adagrad(0.5), rows.rowwise_adagrad(0.5)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_rows_that_were_not_used_stay_bit_for_bit(optimizer):
    start, table, grads = optimized(optimizer)
    used = np.abs(sum(np.abs(g) for g in grads)).sum(1) > 0
    assert not used.all()
    np.testing.assert_array_equal(np.asarray(table["rows"])[~used], start[~used])
    assert np.all(np.asarray(table["rows"])[used] != start[used])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_ids_past_the_end_are_ignored(optimizer):
    start, ids, grads = case()
    table = {"rows": jnp.asarray(start), **optimizer.init(jnp.asarray(start))}
    after = optimizer.update(table, np.full_like(ids, R), grads, 0)
    for name, leaf in table.items():
        np.testing.assert_array_equal(after[name], leaf, err_msg=name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_gradient_of_zero_moves_nothing(optimizer):
    start, ids, grads = case()
    table = {"rows": jnp.asarray(start), **optimizer.init(jnp.asarray(start))}
    after = optimizer.update(table, ids, np.zeros_like(grads), 0)
    np.testing.assert_array_equal(after["rows"], start)

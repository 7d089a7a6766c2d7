"""The noise schedule against the rules' numbers, and v as a rotation of sample and noise."""

import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.ops import diffusion
from mlperf_jax.ops.diffusion import Schedule, add_noise, parts_of, v_target

TIMES = np.array([0, 1, 500, 999])


@functools.cache
def samples(dtype=np.float64):
    draw = np.random.RandomState(0)
    return [draw.standard_normal((4, 3, 2)).astype(dtype) for _ in range(2)]


def slow_alpha_bar(time):
    """One factor after the other."""
    kept = 1.0
    for t in range(time + 1):
        root = 0.00085**0.5 + t / 999 * (0.012**0.5 - 0.00085**0.5)
        kept *= 1 - root**2
    return kept


def test_the_schedule_is_stable_diffusions():
    schedule = Schedule()
    assert schedule.betas.dtype == schedule.alpha_bars.dtype == np.float64
    assert schedule.betas[[0, -1]] == pytest.approx([0.00085, 0.012], rel=1e-14)
    assert schedule.alpha_bars[0] == pytest.approx(0.99915, rel=1e-14)
    for time in TIMES:
        assert schedule.alpha_bars[time] == pytest.approx(slow_alpha_bar(time), rel=1e-12)
    # not the line of betas that DDPM has
    assert schedule.betas[500] == pytest.approx(0.0048, rel=0.02)


def test_noise_and_target_follow_their_formulas(x64):
    x, noise = samples()
    kept = np.array([slow_alpha_bar(t) for t in TIMES])[:, None, None]
    args = (x, noise, jnp.asarray(TIMES))
    wanted = np.sqrt(kept) * x + np.sqrt(1 - kept) * noise
    np.testing.assert_allclose(add_noise(*args), wanted, rtol=1e-12)
    wanted = np.sqrt(kept) * noise - np.sqrt(1 - kept) * x
    np.testing.assert_allclose(v_target(*args), wanted, rtol=1e-12)


def test_what_is_seen_and_v_give_sample_and_noise(x64):
    x, noise = samples()
    time = jnp.asarray(TIMES)
    rates = Schedule().rates(time, x)
    assert [rate.shape for rate in rates] == [(4, 1, 1)] * 2
    found = parts_of(add_noise(x, noise, time), v_target(x, noise, time), *rates)
    np.testing.assert_allclose(found[0], x, atol=1e-12)
    np.testing.assert_allclose(found[1], noise, atol=1e-12)


def test_rates_are_rounded_once():
    """float32 products of a thousand factors would be off in the fifth digit."""
    signal, noise = Schedule().rates(jnp.arange(1000), jax.ShapeDtypeStruct((1000,), jnp.bfloat16))
    kept = Schedule().alpha_bars
    assert signal.dtype == jnp.float32
    np.testing.assert_array_equal(signal, np.sqrt(kept).astype(np.float32))
    np.testing.assert_array_equal(noise, np.sqrt(1 - kept).astype(np.float32))


def test_narrow_samples_are_computed_in_float32():
    x, noise = (jnp.asarray(part, jnp.bfloat16) for part in samples(np.float32))
    wide = [part.astype(jnp.float32) for part in (x, noise)]
    for function in (add_noise, v_target):
        found = function(x, noise, jnp.asarray(TIMES))
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, function(*wide, jnp.asarray(TIMES)))


def test_a_time_that_is_none_gives_no_number():
    x, noise = samples(np.float32)
    found = add_noise(x, noise, jnp.array([-1, 0, 999, 1000]))
    assert np.isnan(found[0]).all() and np.isnan(found[3]).all()
    assert np.isfinite(found[1:3]).all()


def test_another_schedule():
    x, noise = samples(np.float32)
    short = Schedule(times=4, first=0.1, last=0.4)
    found = add_noise(x, noise, jnp.arange(4), short)
    kept = np.cumprod(1 - np.linspace(0.1**0.5, 0.4**0.5, 4) ** 2)[:, None, None]
    np.testing.assert_allclose(found, np.sqrt(kept) * x + np.sqrt(1 - kept) * noise, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"times": 0}, "has 0 times"),
        ({"first": 0.0}, "betas from 0 to 0.012"),
        ({"first": 0.02}, "betas from 0.02 to 0.012"),
        ({"last": 1.0}, "betas from 0.00085 to 1"),
    ],
)
def test_what_is_no_schedule_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        Schedule(**given)


def test_documented_examples():
    assert doctest.testmod(diffusion).failed == 0

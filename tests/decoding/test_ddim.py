"""The sampler against diffusers' DDIM, step by step (scripts/make_ddim_reference.py)."""

import doctest
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax.decoding import ddim
from mlperf_jax.errors import UserError
from mlperf_jax.ops.diffusion import Schedule
from scripts import make_ddim_reference as reference

predict_v = functools.partial(reference.predicted_v, jnp)


@functools.cache
def stored():
    with np.load(reference.OUTPUT) as file:
        return dict(file)


def inputs(dtype=np.float64):
    return [jnp.asarray(array, dtype) for array in reference.inputs()]


def test_every_step_is_that_of_diffusers(x64):
    """What the network sees before each step, and what comes out: one row for each sample and each context."""
    seen = []

    def recorded(noisy, time, context):
        seen.append((np.asarray(noisy), np.asarray(time)))
        return predict_v(noisy, time, context)

    with jax.disable_jit():
        found = ddim.sample(recorded, *inputs())
    latents, times = stored()["latents_50"], stored()["times_50"]
    assert times[[0, 1, -2, -1]].tolist() == [981, 961, 21, 1]
    assert len(seen) == 50
    for (noisy, time), wanted, at in zip(seen, latents, times):
        assert time.tolist() == [at] * 4
        np.testing.assert_array_equal(noisy[0::2], noisy[1::2])
        np.testing.assert_allclose(noisy[0::2], wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found, latents[-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", reference.COUNTS)
def test_samples_are_those_of_diffusers(count, x64):
    sample = jax.jit(functools.partial(ddim.sample, predict_v, steps=count))
    np.testing.assert_array_equal(ddim.steps_of(count).time, stored()[f"times_{count}"])
    wanted = stored()[f"latents_{count}"][-1]
    np.testing.assert_allclose(sample(*inputs()), wanted, rtol=0, atol=1e-12)


def test_the_last_step_goes_to_the_first_entry_of_the_table():
    steps = ddim.steps_of(50)
    assert steps.next_signal_rate[-1] ** 2 == pytest.approx(0.99915, rel=1e-12)
    np.testing.assert_array_equal(steps.next_signal_rate[:-1], steps.signal_rate[1:])
    for signal, noise in (steps[1:3], steps[3:5]):
        np.testing.assert_allclose(signal**2 + noise**2, 1, rtol=1e-14)


def test_in_float32_it_stays_close():
    noise, *contexts = inputs(np.float32)
    found = ddim.sample(predict_v, noise, *contexts)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, stored()["latents_50"][-1], atol=2e-4)
    narrow = ddim.sample(predict_v, noise.astype(jnp.bfloat16), *contexts, steps=2)
    assert narrow.dtype == jnp.float32


@pytest.mark.parametrize("shape", [(5, 6), (1, 5, 6), (2, 5, 6)])
def test_one_unconditional_context_or_one_each(shape, x64):
    noise, context, unconditional = inputs()
    found = ddim.sample(predict_v, noise, context, jnp.broadcast_to(unconditional, shape), steps=7)
    np.testing.assert_allclose(found, stored()["latents_7"][-1], rtol=0, atol=1e-12)


def test_guidance_of_one_is_the_context_alone(x64):
    noise, context, unconditional = inputs()
    found = [
        ddim.sample(predict_v, noise, context, other, steps=7, guidance=1.0)
        for other in (unconditional, 2 * unconditional)
    ]
    np.testing.assert_allclose(*found, rtol=0, atol=1e-12)
    guided = ddim.sample(predict_v, noise, context, unconditional, steps=7, guidance=8.0)
    assert abs(guided - found[0]).max() > 0.1


def test_a_perfect_network_finds_the_sample(x64):
    """Of one sample alone v is known at every time; the last step leaves it at alpha-bar of 0.99915."""
    schedule, noise = Schedule(), inputs()[0]
    wanted = np.random.RandomState(3).standard_normal(noise.shape)

    def exact(noisy, time, context):
        signal, share = schedule.rates(time, noisy)
        x = jnp.repeat(jnp.asarray(wanted), 2, axis=0)
        return (signal * noisy - x) / share

    found = ddim.sample(exact, noise, *inputs()[1:], schedule=schedule)
    first, kept = schedule.alpha_bars[981], schedule.alpha_bars[0]
    left = (noise - np.sqrt(first) * wanted) / np.sqrt(1 - first)
    np.testing.assert_allclose(found, np.sqrt(kept) * wanted + np.sqrt(1 - kept) * left, atol=1e-9)


def test_the_network_is_called_in_one_place_of_one_scan():
    calls = []

    def counted(noisy, time, context):
        calls.append((noisy.shape, time.shape, time.dtype, context.shape))
        return predict_v(noisy, time, context)

    text = str(jax.make_jaxpr(functools.partial(ddim.sample, counted))(*inputs(np.float32)))
    assert calls == [((4, 3, 4, 4), (4,), jnp.int32, (4, 5, 6))]
    assert len(re.findall(r"\bscan\[", text)) == 1 and "length=50" in text


def test_samples_on_several_devices_stay_where_they_are():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    args = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=placed)
        for shape, placed in (((16, 3, 4, 4), rows), ((16, 5, 6), rows), ((5, 6), whole))
    ]
    sample = jax.jit(functools.partial(ddim.sample, predict_v, steps=7), out_shardings=rows)
    text = sample.lower(*args).compile().as_text()
    assert "f32[2,3,4,4]" in text  # two samples a device
    assert not re.findall(r"all-gather|all-to-all|collective-permute|all-reduce", text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "a sampler of 0 steps .* choose 1 to 999"),
        ({"steps": 1000}, "a sampler of 1000 steps does not fit .* 1000 times"),
        ({"context": np.zeros((3, 5, 6))}, "2 samples have 3 contexts"),
        ({"unconditional": np.zeros((4, 6))}, r"context is \[4, 6\], .* give \[5, 6\]"),
        ({"predict_v": lambda x, t, c: jnp.tile(x, 2)}, r"gives \[4, 3, 4, 8\] .* \[4, 3, 4, 4\]"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    noise, context, unconditional = inputs(np.float32)
    given = {
        "predict_v": predict_v,
        "noise": noise,
        "context": context,
        "unconditional": unconditional,
    }
    with pytest.raises(UserError, match=message):
        ddim.sample(**(given | changes))


def test_documented_examples():
    assert doctest.testmod(ddim).failed == 0

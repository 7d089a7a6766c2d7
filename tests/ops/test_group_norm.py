"""Group normalisation against a slow NumPy twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from mlperf_jax.errors import UserError
from mlperf_jax.ops.group_norm import GroupNorm


def twin(x, groups, scale, bias, epsilon=1e-5):
    """One row and one group after the other, in float64."""
    x = np.asarray(x, np.float64)
    out = np.empty_like(x)
    each = x.shape[-1] // groups
    for row in range(x.shape[0]):
        for group in range(groups):
            part = x[row, ..., group * each : (group + 1) * each]
            out[row, ..., group * each : (group + 1) * each] = (part - part.mean()) / np.sqrt(
                part.var() + epsilon
            )
    return out * scale + bias


def made(features, groups, dtype=jnp.float32, **how):
    norm = GroupNorm(features, groups, dtype=dtype, **how, rngs=nnx.Rngs(0))
    draw = np.random.RandomState(1)
    for weight in (norm.scale, norm.bias):
        weight[...] = jnp.asarray(draw.standard_normal(features), weight.dtype)
    return norm


@pytest.mark.parametrize("groups", [1, 3, 12])
@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
def test_values_are_those_of_the_twin(groups, epsilon, x64):
    x = np.random.RandomState(0).standard_normal((2, 3, 5, 12)) * np.arange(1, 13)
    norm = made(12, groups, jnp.float64, epsilon=epsilon)
    wanted = twin(x, groups, norm.scale[...], norm.bias[...], epsilon)
    np.testing.assert_allclose(norm(jnp.asarray(x)), wanted, atol=1e-12)


def test_what_follows_is_applied_before_rounding(x64):
    x = np.random.RandomState(0).standard_normal((2, 3, 5, 12))
    norm = made(12, 4, jnp.float64)
    np.testing.assert_array_equal(norm(x, jnp.sin), jnp.sin(norm(x)))
    narrow = made(12, 4, jnp.bfloat16)
    wanted = jnp.asarray(np.sin(twin(x, 4, norm.scale[...], norm.bias[...])), jnp.bfloat16)
    found = narrow(jnp.asarray(x, jnp.float32), jnp.sin)
    assert found.dtype == jnp.bfloat16
    assert np.mean(np.asarray(found) == np.asarray(wanted)) > 0.98


def test_gradients(x64):
    x = np.random.RandomState(0).standard_normal((2, 3, 4, 6))
    norm = made(6, 3, jnp.float64)
    check_grads(lambda x: norm(x, nnx.silu), (jnp.asarray(x),), order=2, modes=("rev",))


def test_a_large_mean_does_not_drown_a_small_variance():
    """Channels around means of their own, far from each other and from 0."""
    noise = np.random.RandomState(0).standard_normal((2, 16, 16, 8))
    x = np.float32(300 + 0.03 * noise)
    norm = made(8, 2)
    wanted = twin(x, 2, norm.scale[...], norm.bias[...], 1e-5)
    np.testing.assert_allclose(norm(jnp.asarray(x)), wanted, atol=1e-2)
    apart = np.float32(noise + np.arange(8) * 100)
    wanted = twin(apart, 2, norm.scale[...], norm.bias[...], 1e-5)
    np.testing.assert_allclose(norm(jnp.asarray(apart)), wanted, atol=1e-5)


def test_statistics_are_wider_than_bfloat16():
    x = jnp.asarray(np.random.RandomState(0).standard_normal((1, 64, 64, 8)) + 4, jnp.bfloat16)
    norm = made(8, 2, jnp.bfloat16)
    wanted = twin(x, 2, norm.scale[...], norm.bias[...], 1e-5)
    np.testing.assert_allclose(np.float32(norm(x)), wanted, atol=0.02, rtol=0.005)
    assert norm.scale[...].dtype == jnp.float32


def test_the_backward_pass_keeps_the_input_as_it_came():
    norm, x = made(8, 2, jnp.bfloat16), jax.ShapeDtypeStruct((2, 16, 16, 8), jnp.bfloat16)
    kept = jax.eval_shape(lambda x: jax.vjp(lambda x: norm(x, nnx.silu), x)[1], x)
    large = {leaf.dtype for leaf in jax.tree.leaves(kept) if leaf.size >= 16 * 16}
    assert large == {jnp.dtype("bfloat16")}


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="12 channels do not split into 5 groups"):
        GroupNorm(12, 5, rngs=nnx.Rngs(0))

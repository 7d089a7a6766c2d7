"""Instance norm against its definition, also where plain one-pass statistics would fail."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlperf_jax.ops import instance_norm


def normal(seed, shape):
    return np.random.RandomState(seed).standard_normal(shape)


def test_equals_the_definition_and_torch_defaults():
    """Biased variance over a row's own voxels, epsilon 1e-5; in float64."""
    with jax.enable_x64(True):
        x = 3 + 2 * normal(0, (3, 4, 5, 6, 2)) * np.arange(1, 4)[:, None, None, None, None]
        norm = instance_norm.InstanceNorm(2, dtype=jnp.float64, rngs=nnx.Rngs(0))
        norm.scale[...] = jnp.asarray([2.0, -1.0])
        norm.bias[...] = jnp.asarray([0.5, 0.0])
        y = norm(jnp.asarray(x))
    mean, var = x.mean((1, 2, 3), keepdims=True), x.var((1, 2, 3), keepdims=True)
    wanted = (x - mean) / np.sqrt(var + 1e-5) * [2.0, -1.0] + [0.5, 0.0]
    np.testing.assert_allclose(y, wanted, rtol=1e-12, atol=1e-12)


def test_gradient_equals_that_of_the_definition():
    """The middle plane's mean, which is taken off first, must not count in the gradient."""
    with jax.enable_x64(True):
        x, weight = (jnp.asarray(normal(s, (2, 4, 4, 4, 3))) for s in (1, 2))
        norm = instance_norm.InstanceNorm(3, dtype=jnp.float64, rngs=nnx.Rngs(0))

        def plain(x):
            axes = (1, 2, 3)
            mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
            return jnp.vdot(weight, (x - mean) / jnp.sqrt(var + 1e-5))

        ours = jax.grad(lambda x: jnp.vdot(weight, norm(x)))(x)
        np.testing.assert_allclose(ours, jax.grad(plain)(x), rtol=1e-9, atol=1e-12)


def test_nearly_constant_patches_keep_their_variance():
    """Mean 1000, spread 0.1, in float32: mean of squares less square of mean would be noise."""
    x = (1000 + 0.1 * normal(3, (1, 16, 16, 16, 1))).astype(np.float32)
    mean, var = instance_norm.moments(jnp.asarray(x))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean.item(), exact.mean(), rtol=1e-6)
    np.testing.assert_allclose(var.item(), exact.var(), rtol=1e-3)
    assert abs((x * x).mean(dtype=np.float32) - x.mean() ** 2 - exact.var()) > exact.var() / 2


def test_constant_input_is_finite():
    norm = instance_norm.InstanceNorm(1, rngs=nnx.Rngs(0))
    value, grad = jax.value_and_grad(lambda x: (norm(x) ** 2).sum())(
        jnp.full((1, 4, 4, 4, 1), -2.2)
    )
    assert value == 0
    assert np.isfinite(grad).all()


def test_statistics_are_wide_and_the_output_is_narrow():
    x = jnp.asarray(1 + normal(4, (1, 16, 16, 16, 1)) / 100, jnp.bfloat16)
    norm = instance_norm.InstanceNorm(1, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    y = norm(x)
    assert (y.dtype, norm.scale[...].dtype) == (jnp.bfloat16, jnp.float32)
    exact = np.asarray(x, np.float64)
    wanted = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5)
    np.testing.assert_allclose(np.asarray(y, np.float64), wanted, rtol=0.02, atol=0.02)

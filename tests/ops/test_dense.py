"""dense.dot_general against lax's, and the form of its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from mlperf_jax.ops import dense

LAST_FIRST = (((2,), (0,)), ((), ()))


def arrays(dtype=np.float64):
    draw = np.random.RandomState(0)
    return [jnp.asarray(draw.randn(*shape), dtype) for shape in ((2, 3, 4), (4, 5), (2, 3, 5))]


def gradients(product, dtype=np.float64):
    """A function of (x, kernel) and where to take its gradient."""
    x, kernel, weight = arrays(dtype)

    def loss(x, kernel):
        return (product(x, kernel, LAST_FIRST) * weight).sum()

    return jax.grad(loss, (0, 1)), (x, kernel)


def test_values_and_gradients_are_those_of_lax():
    with jax.enable_x64(True):
        x, kernel, _ = arrays()
        np.testing.assert_array_equal(dense.dot_general(x, kernel, LAST_FIRST), x @ kernel)
        (ours, at), (theirs, _) = gradients(dense.dot_general), gradients(lax.dot_general)
        for one, other in zip(ours(*at), theirs(*at)):
            assert one.dtype == jnp.float64
            np.testing.assert_allclose(one, other, rtol=1e-13)


def test_gradients_keep_the_dtype():
    grad, at = gradients(dense.dot_general, jnp.bfloat16)
    assert {leaf.dtype for leaf in grad(*at)} == {jnp.dtype(jnp.bfloat16)}


def transposes(product) -> int:
    """How often the gradient of a product transposes an array."""
    grad, at = gradients(product, np.float32)
    return str(jax.make_jaxpr(grad)(*at)).count("transpose[")


def test_the_kernels_gradient_is_not_transposed_on_a_cpu(monkeypatch):
    assert transposes(lax.dot_general) > 0 and transposes(dense.dot_general) == 0
    monkeypatch.setattr(dense, "platform", lambda: "tpu")
    assert transposes(dense.dot_general) == transposes(lax.dot_general)


@pytest.mark.parametrize(
    ("dims", "how"),
    [
        ((((2,), (0,)), ((), ())), {"preferred_element_type": jnp.float32}),
        ((((2,), (0,)), ((), ())), {"precision": "highest"}),
        ((([2], [0]), ([], [])), {"precision": None, "out_sharding": None}),
        ((((1,), (1,)), ((0,), (0,))), {}),
    ],
)
def test_other_products_and_arguments_reach_lax(dims, how):
    x, kernel, _ = arrays(np.float32)
    other = kernel if dims[0][1][0] == 0 else jnp.swapaxes(x, 1, 2).swapaxes(1, 2)
    np.testing.assert_array_equal(
        dense.dot_general(x, other, dims, **how), lax.dot_general(x, other, dims, **how)
    )


def test_a_layer_of_flax_takes_it():
    layer = nnx.Linear(4, 5, dot_general=dense.dot_general, rngs=nnx.Rngs(0))
    x, _, _ = arrays(np.float32)
    np.testing.assert_allclose(layer(x), x @ layer.kernel[...], rtol=1e-6)

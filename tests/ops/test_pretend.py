"""Programs traced for a platform that is not here: its forms, its shapes, and nothing left behind."""

import jax
import jax.numpy as jnp

from mlperf_jax.ops import pretend
from mlperf_jax.ops.attention import attention
from mlperf_jax.ops.shard import platform


def test_the_platform_is_the_pretended_one_only_inside():
    assert platform() == "cpu"
    with pretend.platform("gpu"):
        assert platform() == "gpu"
        with pretend.platform("tpu"):
            assert platform() == "tpu"
        assert platform() == "gpu"
    assert platform() == "cpu"


def shapes(dtype=jnp.bfloat16, length=256):
    def loss(q, k, v):
        return attention(q, k, v).astype(jnp.float32).sum()

    q = jax.ShapeDtypeStruct((2, length, 8, 64), dtype)
    kv = jax.ShapeDtypeStruct((2, length, 2, 64), dtype)
    return jax.make_jaxpr(jax.value_and_grad(loss, (0, 1, 2)))(q, kv, kv)


def test_a_gpus_attention_has_the_right_shapes_and_no_scores():
    plain = shapes()
    with pretend.platform("gpu"):
        flash = shapes()
    assert flash.out_avals == plain.out_avals
    assert "256,256" in str(plain) and "256,256" not in str(flash)


def test_a_bias_and_values_of_another_width_have_theirs():
    sizes = [(2, 256, 8, 64), (2, 128, 2, 64), (2, 128, 2, 32), (1, 8, 256, 1)]
    arrays = [jax.ShapeDtypeStruct(size, jnp.bfloat16) for size in sizes]

    def traced():
        def loss(q, k, v, bias):
            out = attention(q, k, v, bias=bias, causal=False)
            return out.astype(jnp.float32).sum(), out

        return jax.make_jaxpr(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))(*arrays)

    plain = traced()
    with pretend.platform("gpu"):
        flash = traced()
    assert flash.out_avals == plain.out_avals and "256,128]" not in str(flash)


def test_what_the_gpus_kernel_refuses_stays_plain():
    with pretend.platform("gpu"):
        assert "256,256" in str(shapes(dtype=jnp.float32))

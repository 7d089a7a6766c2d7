"""attention() by cuDNN: what it is asked for, what it refuses, and on a GPU that it equals XLA's."""

import jax
import jax.numpy as jnp
import pytest
from attention_cases import (
    CLIP,
    MESHES,
    assert_close,
    bias_of,
    over,
    packed,
    packed_apart,
    tensors,
    value_and_grads,
)

from mlperf_jax.errors import UserError
from mlperf_jax.ops import attention as attentions
from mlperf_jax.ops.attention import attention


@pytest.mark.parametrize(
    ("sizes", "causal", "segmented"),
    [
        ({}, True, False),
        ({}, True, True),
        ({"data": 2, "tensor": 4}, True, False),
        (MESHES[0], True, True),
        (MESHES[0], True, False),
        (MESHES[0], False, False),
    ],
)
def test_cudnn_is_asked_for_the_same(hopper, sizes, causal, segmented):
    q, k, v = tensors(4, 16, 4, 2, 8, jnp.bfloat16)
    how = {"causal": causal, "segments": packed(4, 16) if segmented else None}
    wanted = value_and_grads(q, k, v, backend="xla", **how)
    with jax.set_mesh(over(sizes)):
        found = value_and_grads(q, k, v, **how)
    assert hopper
    split = sizes.get("context", 1) > 1
    assert hopper[0]["is_causal"] is (causal and not split)
    assert (hopper[0]["mask"] is None) is not (segmented or (causal and split))
    assert_close(found, wanted, 2e-2)


@pytest.mark.parametrize("shape", [(4, 4, 16, 16), (1, 4, 16, 16), (4, 1, 1, 16)], ids=str)
@pytest.mark.parametrize("sizes", [{}, MESHES[0]], ids=str)
def test_cudnn_takes_a_bias_and_gives_its_gradient(hopper, sizes, shape):
    arrays = *tensors(4, 16, 4, 2, 8, jnp.bfloat16), bias_of(*shape)
    how = {"segments": packed(4, 16)}
    wanted = value_and_grads(*arrays, backend="xla", **how)
    with jax.set_mesh(over(sizes)):
        assert_close(value_and_grads(*arrays, **how), wanted, 3e-2)
    assert hopper[0]["bias"].dtype == jnp.bfloat16
    assert hopper[0]["bias"].shape[2:] == hopper[0]["mask"].shape[2:]  # it does not broadcast these


@pytest.mark.parametrize("sizes", [{}, {"data": 2, "context": 2}], ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_cudnn_is_given_even_lengths_and_one_width(hopper, sizes, biased):
    """A mask or a bias of odd lengths is padded, and values are widened: 192 and 128 in DeepSeek."""
    arrays = tensors(2, 14, 4, 2, 24, jnp.bfloat16, keys=11, values=16)
    how = packed_apart(2, 14, 11) if not biased else {"causal": False}
    arrays = [*arrays, bias_of(1, 4, 14, 11)] if biased else arrays
    wanted = value_and_grads(*arrays, backend="xla", **how)
    with jax.set_mesh(over(sizes)):
        found = value_and_grads(*arrays, **how)
    assert found[0].shape == (2, 14, 4, 16)
    assert_close(found, wanted, 3e-2)
    assert hopper[0]["mask"].shape[2:] == (8 if sizes else 14, 12)


def test_cudnn_is_given_odd_lengths_as_they_are_where_nothing_is_masked(hopper):
    arrays = tensors(2, 16, 4, 2, 8, jnp.bfloat16, keys=CLIP)
    wanted = value_and_grads(*arrays, backend="xla", causal=False)
    assert_close(value_and_grads(*arrays, causal=False), wanted, 2e-2)
    assert hopper[0]["mask"] is None


@pytest.mark.parametrize(
    ("dtype", "head", "words"),
    [
        (jnp.float32, 128, "float32"),
        (jnp.bfloat16, 12, "head dimension 12"),
        (jnp.bfloat16, 264, "up to 256"),
    ],
)
def test_what_cudnn_refuses_goes_to_xla(hopper, dtype, head, words):
    assert attentions._cudnn_misfit(jnp.dtype(jnp.bfloat16), 128) is None
    assert words in attentions._cudnn_misfit(jnp.dtype(dtype), head)
    arrays = tensors(1, 16, 2, 2, head, dtype)
    attention(*arrays)
    assert not hopper
    with pytest.raises(UserError, match="back end 'cudnn' cannot take"):
        attention(*arrays, backend="cudnn")


def test_older_gpus_take_narrower_heads(monkeypatch):
    monkeypatch.setattr(attentions, "_cuda_capability", lambda: (8, 0))
    dtype = jnp.dtype(jnp.bfloat16)
    assert attentions._cudnn_misfit(dtype, 128) is None
    assert "up to 128" in attentions._cudnn_misfit(dtype, 136)
    monkeypatch.setattr(attentions, "_cuda_capability", lambda: (7, 5))
    assert "8.0" in attentions._cudnn_misfit(dtype, 128)


@pytest.mark.gpu
@pytest.mark.parametrize("case", ["causal", "segments", "bias", "keys", "values"])
def test_cudnn_equals_xla_on_a_gpu(case):
    arrays = tensors(2, 512, 8, 2, 128, jnp.bfloat16)
    how = {"segments": packed(2, 512) if case == "segments" else None}
    if case == "bias":
        arrays = [*arrays, bias_of(1, 8, 512, 512)]
    elif case == "keys":
        arrays = tensors(2, 511, 8, 2, 128, jnp.bfloat16, keys=CLIP)
        how = packed_apart(2, 511, CLIP)
    elif case == "values":
        arrays = tensors(2, 512, 8, 2, 192, jnp.bfloat16, values=128)
    wanted = value_and_grads(*(x.astype(jnp.float32) for x in arrays), backend="xla", **how)
    assert_close(value_and_grads(*arrays, backend="cudnn", **how), wanted, 2e-2)

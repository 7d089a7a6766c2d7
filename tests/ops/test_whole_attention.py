"""The TPU kernel of attention with dropout, interpreted: the numbers and the mask of plain XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import assert_close, over, packed, packed_apart, tensors, value_and_grads

from mlperf_jax.errors import UserError
from mlperf_jax.ops import attention as attentions, attention_backends as backends
from mlperf_jax.ops.attention import attention

pytestmark = pytest.mark.usefixtures("compiled_quickly")
DROPPING = {"dropout_rate": 0.2, "dropout_key": jax.random.key(4)}


def both(arrays, **how):
    """Value and gradients of plain XLA, and of the kernel."""
    names = ("xla", "whole_interpret")
    return [value_and_grads(*arrays, backend=name, **DROPPING, **how) for name in names]


@pytest.mark.parametrize(
    ("arrays", "how"),
    [
        (tensors(2, 256, 2, 2, 64), {"causal": False, "segments": packed(2, 256)}),
        (tensors(1, 256, 2, 2, 64), {"causal": True, "scale": 0.3}),
        (tensors(1, 256, 2, 2, 64, keys=128, values=128), {"causal": False}),
        (tensors(2, 128, 1, 1, 64, keys=256), packed_apart(2, 128, 256)),
    ],
    ids=["segments", "causal", "other lengths and widths", "queries that see nothing"],
)
def test_the_kernel_equals_xla(arrays, how):
    wanted, found = both(arrays, **how)
    assert_close(found, wanted, 2e-6)


def test_in_bfloat16():
    arrays = tensors(1, 256, 2, 2, 64, jnp.bfloat16)
    wide = tuple(x.astype(jnp.float32) for x in arrays)
    wanted = value_and_grads(*wide, backend="xla", **DROPPING)
    assert_close(both(arrays)[1], wanted, 2e-2)


def test_over_a_mesh_it_drops_the_same():
    arrays = tensors(2, 256, 2, 2, 64)
    how = {"causal": False, "segments": packed(2, 256)}
    wanted = both(arrays, **how)[0]
    with jax.set_mesh(over({"data": 2, "tensor": 2, "context": 2})):
        found = value_and_grads(*arrays, backend="whole_interpret", **DROPPING, **how)
    assert_close(found, wanted, 2e-6)


def test_no_scores_leave_the_kernel(monkeypatch):
    monkeypatch.setattr(attentions, "platform", lambda: "tpu")
    q = jax.ShapeDtypeStruct((2, 256, 3, 64), jnp.bfloat16)

    def loss(q):
        return attention(q, q, q, **DROPPING).astype(jnp.float32).sum()

    found = jax.make_jaxpr(jax.value_and_grad(loss))(q)
    outside = [e for e in found.eqns if e.primitive.name != "pallas_call"]
    kinds = {v.aval.dtype for e in outside for v in e.outvars if v.aval.shape[-2:] == (256, 256)}
    assert np.dtype("int8") in kinds and not {np.dtype("float32"), jnp.bfloat16.dtype} & kinds
    # under these names planning knows them
    assert {"whole_attention_fwd", "whole_attention_bwd"} <= set(str(found).split())


def call_of(
    queries, keys, *, heads=2, width=64, dtype=jnp.bfloat16, causal=False, bias=None, ways=1
):
    q = jax.ShapeDtypeStruct((1, queries, 2, width), dtype)
    k = jax.ShapeDtypeStruct((1, keys, heads, width), dtype)
    return backends.Call(q, k, k, bias, None, None, causal, 1.0, {"context": ways})


def test_auto_on_a_tpu_takes_it_where_it_fits(monkeypatch):
    monkeypatch.setattr(attentions, "platform", lambda: "tpu")
    calls = {
        "BERT's": call_of(512, 512),
        "few keys": call_of(1024, 128),
        "split queries": call_of(512, 512, ways=2),
        "half a tile of queries": call_of(128, 128, ways=2),
        "split causal queries": call_of(512, 512, causal=True, ways=2),
        "long": call_of(1024, 512),
        "no whole tile": call_of(512, 77),
        "grouped": call_of(512, 512, heads=1),
        "narrow": call_of(512, 512, width=32),
        "float64": call_of(512, 512, dtype=jnp.float64),
        "a bias": call_of(512, 512, bias=jnp.zeros((1, 1, 512, 512))),
    }
    chosen = {name: attentions._choose("auto", call, dropping=True) for name, call in calls.items()}
    assert {name for name, backend in chosen.items() if backend == "whole"} == {
        "BERT's",
        "few keys",
        "split queries",
    }
    assert set(chosen.values()) == {"whole", "xla"}


def test_forced_it_says_why_not():
    q, k, v = tensors(1, 256, 2, 2, 64)
    with pytest.raises(UserError, match="'whole' cannot take attention without dropout"):
        attention(q, k, v, backend="whole")
    q, k, v = tensors(1, 77, 2, 2, 64)
    with pytest.raises(UserError, match="'whole' cannot take 77 queries and 77 keys, only multi"):
        attention(q, k, v, backend="whole", **DROPPING)

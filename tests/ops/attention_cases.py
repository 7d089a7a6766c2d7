"""Tensors, meshes and a slow twin for the tests of attention."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from mlperf_jax.ops.attention import attention

AXES = ("data", "fsdp", "tensor", "expert", "context")
CLIP = 77  # tokens of a caption
MESHES = [
    {"data": 2, "tensor": 2, "context": 2},
    {"expert": 2, "context": 4},
    {"data": 2, "tensor": 4},  # more devices than key heads
]


def tensors(batch, length, heads, kv_heads, head, dtype=np.float32, keys=None, values=None):
    random = np.random.RandomState(0)
    shapes = [(length, heads), (keys or length, kv_heads), (keys or length, kv_heads)]
    widths = (head, head, values or head)
    return [
        jnp.asarray(random.randn(batch, *shape, width), dtype)
        for shape, width in zip(shapes, widths)
    ]


def packed(batch, length, documents=3):
    """Sorted document ids [B, T], different in each row."""
    return jnp.asarray(
        np.sort(np.random.RandomState(1).randint(0, documents, (batch, length)), 1), jnp.int32
    )


def packed_apart(batch, length, keys):
    """Segments of queries and keys that differ, as arguments; the last queries' documents have no key."""
    sources, targets = packed(batch, keys), packed(batch, length).at[:, -length // 4 :].set(7)
    return {"query_segments": targets, "key_segments": sources, "causal": False}


def bias_of(*shape, dtype=np.float32):
    return jnp.asarray(np.random.RandomState(3).randn(*shape), dtype)


def slow(q, k, v, scale, *, causal=True, segments=None, query_segments=None, key_segments=None,
         bias=None, keep=None):  # fmt: skip
    """One query of one head of one row at a time; `keep` [B, N, T, S] is what dropout multiplies by."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    whole = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    bias = np.broadcast_to(0.0 if bias is None else np.asarray(bias, np.float64), whole)
    keep = np.broadcast_to(1.0 if keep is None else keep, whole)
    if segments is not None:
        query_segments = key_segments = segments
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    for b, t, n in np.ndindex(q.shape[:3]):
        seen = np.ones(k.shape[1], bool)
        if causal:
            seen[t + 1 :] = False
        if query_segments is not None:
            seen &= np.asarray(key_segments)[b] == np.asarray(query_segments)[b, t]
        if not seen.any():
            continue
        kv_head = n // (q.shape[2] // k.shape[2])
        score = k[b, seen, kv_head] @ q[b, t, n] * scale + bias[b, n, t, seen]
        weight = np.exp(score - score.max())
        out[b, t, n] = (weight / weight.sum() * keep[b, n, t, seen]) @ v[b, seen, kv_head]
    return out


def value_and_grads(q, k, v, bias=None, **how):
    """The result and the gradients of a weighted sum of it with respect to q, k, v and the bias."""
    weight = jnp.asarray(np.random.RandomState(2).randn(*q.shape[:3], v.shape[-1]), q.dtype)
    arrays = (q, k, v) if bias is None else (q, k, v, bias)

    def loss(q, k, v, bias=None):
        out = attention(q, k, v, bias=bias, **how)
        return (out.astype(jnp.promote_types(out.dtype, jnp.float32)) * weight).sum(), out

    grads, out = jax.jit(jax.grad(loss, range(len(arrays)), has_aux=True))(*arrays)
    return [out, *grads]


def over(sizes: dict[str, int]):
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 5, devices=devices)


def assert_close(found, wanted, tolerance):
    assert len(found) == len(wanted)
    for name, one, other in zip(("out", "dq", "dk", "dv", "dbias"), found, wanted):
        one, other = (np.asarray(x, np.float64) for x in (one, other))
        difference = np.linalg.norm(one - other) / np.linalg.norm(other)
        assert difference < tolerance, f"{name}: {difference}"

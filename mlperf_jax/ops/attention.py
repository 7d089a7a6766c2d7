"""Attention: one function, three back ends, the same numbers from each.

B batch · T queries · S keys · N heads · K key and value heads · G heads per K · H head
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from mlperf_jax.errors import UserError
from mlperf_jax.ops import splash
from mlperf_jax.ops.pretend import pretended
from mlperf_jax.ops.shard import ROWS, free_axes, platform, row_axes, shard

BACKENDS = ("auto", "xla", "cudnn", "splash", "splash_interpret")
NAME = splash.NAME  # a remat policy that keeps this name does not attend twice
_PRETENDED = {"gpu": (9, 0)}  # the CUDA capability of a GPU that is not here


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool = True,
    segments: jax.Array | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> jax.Array:
    """Softmax attention of grouped heads: head n reads key and value head n // G.

    Over the mesh of `jax.set_mesh` rows go over `ROWS`, heads over `tensor` and queries
    over `context`, whose devices gather all keys and values; the result does not depend on the mesh.
    Scores and softmax are in `promote_types(q.dtype, f32)`. Every back end names its result
    "attention" for remat policies.

    "auto" is cuDNN's flash attention on NVIDIA GPUs and the splash kernel on TPUs where they take the
    shapes, else plain XLA, which holds all [B, N, T, S] scores.

    Args:
      q: [B, T, N, H] queries.
      k: [B, S, K, H] keys; N is a multiple of K.
      v: [B, S, K, H] values.
      causal: query t sees keys 0 ... t only; needs T = S.
      segments: [B, T] int, ids of packed documents; a query sees its own segment only. Needs T = S.
      scale: of the scores; None is 1 / sqrt(H).
      backend: "auto", "xla", "cudnn", "splash", or "splash_interpret" (the TPU kernel, slowly, on
        any device: for tests).

    Returns:
      [B, T, N, H] in q's dtype.

    Raises:
      UserError: an unknown back end, or one that cannot take these arguments.
      ValueError: shapes that do not belong together, or that the mesh does not divide.

    >>> q, kv = jnp.ones([2, 16, 4, 8]), jnp.ones([2, 16, 2, 8])
    >>> attention(q, kv, kv).shape
    (2, 16, 4, 8)
    """
    _check_shapes(q, k, v, causal, segments)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    parts = free_axes()
    k, v = (_spread_heads(x, parts.get("tensor", 1)) for x in (k, v))
    chosen = _choose(backend, q, k, segments, parts.get("context", 1))
    if chosen == "xla":
        return checkpoint_name(_xla(q, k, v, causal, segments, scale), NAME)
    if pretended() is not None:
        return checkpoint_name(_shapes_of_flash(q, k, v), NAME)
    if chosen == "cudnn":
        return checkpoint_name(_cudnn(q, k, v, causal, segments, scale, parts), NAME)
    return _splash(q, k, v, causal, segments, scale, parts, chosen == "splash_interpret")


def _check_shapes(q, k, v, causal: bool, segments):
    shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
        raise ValueError(f"attention: {shapes}; want [B, T, N, H] and twice [B, S, K, H]")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[2] % k.shape[2]:
        raise ValueError(f"attention: {shapes}; B and H must agree and N be a multiple of K")
    if (causal or segments is not None) and q.shape[1] != k.shape[1]:
        raise ValueError(f"attention: {shapes}; causal and segments need as many queries as keys")
    if segments is not None and segments.shape != q.shape[:2]:
        raise ValueError(f"attention: segments {segments.shape}, but q {q.shape}; want [B, T]")


# --- choice of the back end


def _choose(backend: str, q, k, segments, ways: int) -> str:
    """The back end to use; `ways` is the number of parts the queries are split into."""
    if backend not in BACKENDS:
        raise UserError(
            f"attention: unknown back end {backend!r}; choose one of {', '.join(BACKENDS)}."
        )
    wanted = backend
    if backend == "auto":
        wanted = {"gpu": "cudnn", "tpu": "splash"}.get(platform(), "xla")
    if wanted == "xla":
        return wanted
    if wanted == "cudnn":
        masked = segments is not None or ways > 1
        misfit = _cudnn_misfit(q.dtype, q.shape[1] // ways, k.shape[1], q.shape[3], masked)
    else:
        misfit = splash.misfit(q.dtype, q.shape[1], k.shape[1], q.shape[3], ways)
    if misfit is None:
        return wanted
    if backend == "auto":
        return "xla"
    raise UserError(
        f"attention: back end {backend!r} cannot take {misfit}; choose 'auto' or 'xla', "
        "or change the shape."
    )


def _cudnn_misfit(dtype, queries: int, keys: int, head: int, masked: bool) -> str | None:
    """What cuDNN's flash attention would refuse, in words, or None."""
    capability = _PRETENDED.get(pretended() or "") or _cuda_capability()
    if capability is None or capability < (8, 0):
        return "this device: it needs an NVIDIA GPU of compute capability 8.0 or newer"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"{dtype}, only bfloat16 and float16"
    widest = 256 if capability >= (9, 0) else 128
    if head > widest or head % 8:
        return f"head dimension {head}, only multiples of 8 up to {widest}"
    if masked and (queries % 2 or keys % 2):  # the mask travels as a bias
        return f"{queries} queries and {keys} keys with a mask, only even numbers"
    return None


@functools.cache
def _cuda_capability() -> tuple[int, int] | None:
    if jax.default_backend() != "gpu":
        return None
    device = jax.local_devices()[0]
    if "cuda" not in device.client.platform_version:  # AMD GPUs are "gpu" too
        return None
    major, _, minor = str(device.compute_capability).partition(".")
    return int(major), int(minor or 0)


# --- the back ends


def _xla(q, k, v, causal, segments, scale) -> jax.Array:
    # keys and values whole over `context`: the compiler gathers them
    q = shard(q, ROWS, "context", "tensor")
    k, v = (shard(x, ROWS, None, "tensor") for x in (k, v))
    batch, queries, heads, head = q.shape
    wide = jnp.promote_types(q.dtype, jnp.float32)
    # groups get an axis of their own, so keys and values are read as they are, not repeated
    grouped = q.reshape(batch, queries, k.shape[2], -1, head)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=wide) * scale
    mask = _mask(jnp.arange(queries), k.shape[1], causal, segments, segments)
    weights = _softmax(scores, mask if mask is None else mask[:, :, None]).astype(v.dtype)  # over G
    out = jnp.einsum("bkgts,bskh->btkgh", weights, v, preferred_element_type=wide)
    out = out.reshape(batch, queries, heads, head).astype(q.dtype)
    return shard(out, ROWS, "context", "tensor")


@jax.custom_jvp
def _softmax(scores: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Softmax over the last axis where the mask, of which no row is empty, is true.

    The backward pass keeps the result alone: JAX's own softmax keeps three arrays of its size.
    """
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores, axis=-1)


@_softmax.defjvp
def _softmax_jvp(primals, tangents):
    weights = _softmax(*primals)
    moved = weights * tangents[0]  # nothing where the mask is false
    return weights, moved - weights * moved.sum(-1, keepdims=True)


def _mask(positions, keys: int, causal: bool, q_segments, k_segments) -> jax.Array | None:
    """[1 or B, 1, T, S], true where the query at `positions` [T] sees the key; None: everywhere."""
    mask = None
    if causal:
        mask = (positions[:, None] >= jnp.arange(keys))[None, None]
    if q_segments is not None:
        same = (q_segments[:, :, None] == k_segments[:, None])[:, None]
        mask = same if mask is None else mask & same
    return mask


def _cudnn(q, k, v, causal, segments, scale, parts: dict[str, int]) -> jax.Array:
    ways = parts.get("context", 1)

    def local(q, k, v, q_segments, k_segments):
        k, v = (_gather(x, ways) for x in (k, v))
        masked = causal and ways > 1
        mask = None
        if masked or q_segments is not None:
            first = lax.axis_index("context") * q.shape[1] if ways > 1 else 0
            positions = first + jnp.arange(q.shape[1])
            mask = _mask(positions, k.shape[1], masked, q_segments, k_segments)
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            mask=mask,
            scale=scale,
            # its causal mask starts at the first local query, so it serves unsplit queries only
            is_causal=causal and ways == 1,
            implementation="cudnn",
        )

    return _over_mesh(local, parts, q, k, v, segments)


@jax.custom_vjp
def _shapes_of_flash(q, k, v) -> jax.Array:
    """What a flash kernel makes and keeps, of the right shapes and wrong values; see `ops.pretend`."""
    return _like_flash(q, k, v)[0]


def _like_flash(q, k, v):
    keys, values = (shard(x, ROWS, None, "tensor").mean((1, 2), keepdims=True) for x in (k, v))
    touched = keys + values
    out = shard(q + touched.astype(q.dtype), ROWS, "context", "tensor")
    kept = jnp.max(out, -1).astype(jnp.promote_types(q.dtype, jnp.float32))  # log-sum-exp [B, T, N]
    return out, (q, k, v, out, kept)


def _like_flash_backward(saved, slope):
    q, k, v, out, kept = saved
    delta = jnp.sum((out * slope).astype(kept.dtype), -1) + kept
    per_row = delta.mean((1, 2))[:, None, None, None]
    of_q = slope + q * delta[..., None].astype(q.dtype)
    return of_q, *(shard((x * per_row.astype(x.dtype)), ROWS, "context", "tensor") for x in (k, v))


_shapes_of_flash.defvjp(_like_flash, _like_flash_backward)


def _splash(q, k, v, causal, segments, scale, parts: dict[str, int], interpret) -> jax.Array:
    ways = parts.get("context", 1)
    heads = q.shape[2] // parts.get("tensor", 1)
    kernel = splash.make_kernel(heads, q.shape[1], k.shape[1], q.shape[3], causal, ways, interpret)
    # the kernel does not scale, and rounds less often if its input is scaled before it is rounded
    wide = jnp.promote_types(q.dtype, jnp.float32)
    q = (q.astype(wide) * scale).astype(q.dtype)

    def local(q, k, v, q_segments, k_segments, kernel):
        k, v = (_gather(x, ways) for x in (k, v))
        return splash.apply(kernel, q, k, v, q_segments, k_segments)

    axis = "context" if causal and ways > 1 else None
    spec = splash.kernel_spec(kernel, axis) if parts else None
    return _over_mesh(local, parts, q, k, v, segments, kernel, spec)


# --- the mesh


def _spread_heads(x: jax.Array, ways: int) -> jax.Array:
    """x [B, S, K, H], its heads repeated up to `ways` where K is a smaller divisor of it."""
    heads = x.shape[2]
    return jnp.repeat(x, ways // heads, axis=2) if heads < ways and ways % heads == 0 else x


def _gather(x: jax.Array, ways: int) -> jax.Array:
    """All keys of the context axis; its transpose scatters the summed gradient back."""
    return lax.all_gather(x, "context", axis=1, tiled=True) if ways > 1 else x


def _over_mesh(
    local, parts: dict[str, int], q, k, v, segments, kernel=None, spec=None
) -> jax.Array:
    """local(q, k, v, query segments, key segments[, kernel]) on each device's part.

    Kernels are opaque to the compiler's partitioner, so they are mapped by hand over all axes. `spec`
    is the kernel's own.
    """
    args, specs = (q, k, v, segments, segments), ()
    if kernel is not None:
        args, specs = (*args, kernel), (spec,)
    if all(size == 1 for size in parts.values()):
        return local(*args)
    _check_divisible(q, k, parts)
    rows = row_axes() or None
    context, tensor = (axis if axis in parts else None for axis in ("context", "tensor"))
    split = PartitionSpec(rows, context, tensor)
    ids = (None, None) if segments is None else (PartitionSpec(rows, context), PartitionSpec(rows))
    return jax.shard_map(
        local,
        in_specs=(split, split, split, *ids, *specs),
        out_specs=split,
        axis_names=set(parts),
        check_vma=False,  # kernels say nothing about how their results vary over the mesh
    )(*args)


def _check_divisible(q, k, parts: dict[str, int]):
    rows = math.prod(parts[axis] for axis in row_axes())
    context, tensor = parts.get("context", 1), parts.get("tensor", 1)
    checks = [
        ("rows", q.shape[0], " and ".join(ROWS), rows),
        ("queries", q.shape[1], "context", context),
        ("keys", k.shape[1], "context", context),
        ("heads", q.shape[2], "tensor", tensor),
        ("key and value heads", k.shape[2], "tensor", tensor),
    ]
    for what, size, axes, ways in checks:
        if size % ways:
            raise ValueError(f"attention: {size} {what} are not divided by {axes} of {ways} parts")

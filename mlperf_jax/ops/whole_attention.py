"""Attention with dropout over short sequences (Pallas, TPU): all scores of a head lie in vector memory at once.

Plain XLA writes the scores of all heads to the device's memory and reads them again at every step of the softmax, which
for BERT's 512 tokens takes several times as long as the products. The splash kernel, which writes none, drops
nothing. Here a program of the grid computes one head of one row, forward and, again from its beginning, backward.

B batch · T queries · S keys · N heads · H width of a head's queries and keys · V width of its values
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mlperf_jax.ops import dropout, hints

_LANES = 128
_MOST = (
    512 * 512
)  # scores of a head: with their gradients 6 MiB of float32, of the 16 that a kernel is granted


def misfit(
    dtype, queries: int, keys: int, heads: tuple[int, int], widths: Collection[int], ordered: bool
) -> str | None:
    """What the kernel would refuse, in words, or None.

    Args:
        dtype: of queries, keys and values.
        queries, keys: on a device.
        heads: of queries, and of keys and values.
        widths: H and V.
        ordered: whether the queries are causal and only a part of them is on a device.
    """
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"{dtype}, only bfloat16 and float32"
    if heads[0] != heads[1]:
        return f"{heads[0]} heads over {heads[1]} of keys, only as many"
    if queries % _LANES or keys % _LANES or queries * keys > _MOST:
        return (
            f"{queries} queries and {keys} keys, only multiples of {_LANES} up to {_MOST:,} scores"
        )
    if ordered:
        return "a part of causal queries, only all of them"
    for width in widths:
        if width % 64:
            return f"head dimension {width}, only multiples of 64"
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8, 9))
def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segments: jax.Array,
    k_segments: jax.Array,
    keep: jax.Array,
    scale: float,
    causal: bool,
    rate: float,
    interpret: bool,
) -> jax.Array:
    """Softmax attention on one device.

    Args:
        q, k, v: [B, N, T, H], [B, N, S, H] and [B, N, S, V].
        q_segments, k_segments: int32 [B, T] and [B, S]; a query sees keys of its own number.
        keep: int8 [B, N, T, S], 0 where a weight is dropped.
        scale: of the scores.
        causal: whether query t sees keys 0 ... t only.
        rate: of the dropout; what is kept is divided by 1 - rate.
        interpret: run on any device, slowly, for tests.

    Returns:
        [B, N, T, V] in q's dtype; of a query that sees no key, the mean over all keys.
    """
    run = functools.partial(_forward, scale=scale, causal=causal, rate=rate)
    out = jax.ShapeDtypeStruct((*q.shape[:3], v.shape[3]), q.dtype)
    arrays = _given(q, k, v, q_segments, k_segments, keep)
    return _over_heads("fwd", run, arrays, [out], interpret)[0]


def _attend_forward(q, k, v, q_segments, k_segments, keep, *how):
    given = (q, k, v, q_segments, k_segments, keep)
    return attend(*given, *how), given


def _attend_backward(scale, causal, rate, interpret, given, slope):
    run = functools.partial(_backward, scale=scale, causal=causal, rate=rate)
    outs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in given[:3]]
    found = _over_heads("bwd", run, [*_given(*given), slope], outs, interpret)
    return (*found, None, None, None)


attend.defvjp(_attend_forward, _attend_backward)


def _given(q, k, v, q_segments, k_segments, keep) -> list[jax.Array]:
    """The arrays of a kernel, each with an axis for heads and two behind it."""
    return [q, k, v, q_segments[:, None, :, None], k_segments[:, None, None], keep]


def _over_heads(which: str, run: Any, arrays: Any, outs: Any, interpret: bool) -> list[jax.Array]:
    """One program for each row and head; what has one head is every head's."""

    def spec(shape: tuple[int, ...]) -> pl.BlockSpec:
        each = shape[1] > 1
        return pl.BlockSpec(
            (None, None, *shape[2:]), lambda row, head: (row, head if each else 0, 0, 0)
        )

    return pl.pallas_call(
        run,
        outs,
        grid=outs[0].shape[:2],
        in_specs=[spec(x.shape) for x in arrays],
        out_specs=[spec(x.shape) for x in outs],
        # so the two cores of a chip share the heads
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        name=f"{hints.WHOLE_ATTENTION}_{which}",
    )(*arrays)


# -- one head --------------------------------------------------------------------------------------


def _product(a: jax.Array, b: jax.Array, along: tuple[int, int]) -> jax.Array:
    """The product of two matrices along an axis of each, in float32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    axes = (((along[0],), (along[1],)), ((), ()))
    return lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)


def _weights(q, k, q_segments, k_segments, *, scale: float, causal: bool) -> jax.Array:
    """The softmax over the keys, float32 [T, S]."""
    scores = _product(q, k, (1, 1)) * scale
    seen = q_segments == k_segments
    if causal:
        query, key = (lax.broadcasted_iota(jnp.int32, scores.shape, axis) for axis in (0, 1))
        seen &= query >= key
    scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
    powers = jnp.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _forward(
    q, k, v, q_segments, k_segments, keep, out, *, scale: float, causal: bool, rate: float
) -> None:
    weights = _weights(q[...], k[...], q_segments[...], k_segments[...], scale=scale, causal=causal)
    kept = dropout.masked(weights, rate, keep[...].astype(jnp.int32) != 0)
    out[...] = _product(kept.astype(v.dtype), v[...], (1, 0)).astype(out.dtype)


def _backward(
    q, k, v, q_segments, k_segments, keep, slope, of_q, of_k, of_v,
    *, scale: float, causal: bool, rate: float,
) -> None:  # fmt: skip
    weights = _weights(q[...], k[...], q_segments[...], k_segments[...], scale=scale, causal=causal)
    stays = keep[...].astype(jnp.int32) != 0
    kept = dropout.masked(weights, rate, stays).astype(v.dtype)
    of_v[...] = _product(kept.T, slope[...], (1, 0)).astype(of_v.dtype)
    of_weights = dropout.masked(_product(slope[...], v[...], (1, 1)), rate, stays)
    moved = weights * of_weights
    of_scores = ((moved - weights * moved.sum(1, keepdims=True)) * scale).astype(q.dtype)
    of_q[...] = _product(of_scores, k[...], (1, 0)).astype(of_q.dtype)
    of_k[...] = _product(of_scores.T, q[...], (1, 0)).astype(of_k.dtype)

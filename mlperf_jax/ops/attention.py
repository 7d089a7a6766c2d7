"""Attention: one function, four back ends, the same numbers from each.

B batch · T queries · S keys · N heads · K key and value heads · G heads per K · H width of a head's
queries and keys · V width of its values

What each back end takes; "auto" goes to plain XLA with the rest, and a back end that was asked for by
name refuses it:

              xla    cudnn                            splash                    whole
    runs on   all    NVIDIA GPUs, capability 8.0 on   TPUs                      TPUs
    dtypes    all    bfloat16, float16                bfloat16, float32         bfloat16, float32
    T, S      all    all                              from 64 on                multiples of 128, T S <= 512^2
    H, V      all    multiples of 8 up to 256         multiples of 64           multiples of 64
                     (128 before capability 9.0)
    N, K      all    all                              all                       N = K
    bias      yes    yes, with its gradient           no                        no
    dropout   yes    no: the seed is a constant       no                        always
    context   yes    yes                              causal: 128 queries or    not causal
                                                      a multiple per part

Lengths that a kernel's tiles do not divide are padded and masked, and where cuDNN wants one width for
keys and values the narrower of the two is filled up with zeros.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mlperf_jax.errors import UserError
from mlperf_jax.ops import attention_backends as backends, splash, whole_attention
from mlperf_jax.ops.pretend import pretended
from mlperf_jax.ops.shard import free_axes, platform

BACKENDS = ("auto", "xla", "cudnn", "splash", "splash_interpret", "whole", "whole_interpret")
NAME = splash.NAME  # a remat policy that keeps this name does not attend twice
_PRETENDED = {"gpu": (9, 0)}  # the CUDA capability of a GPU that is not here


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool = True,
    segments: jax.Array | None = None,
    query_segments: jax.Array | None = None,
    key_segments: jax.Array | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    backend: str = "auto",
) -> jax.Array:
    """Softmax attention of grouped heads: head n reads key and value head n // G.

    Over the mesh of `jax.set_mesh` rows go over `ROWS`, heads over `tensor` and queries over `context`,
    whose devices gather all keys and values; the result does not depend on the mesh, the mask of the
    dropout included. Scores and softmax are in `promote_types(q.dtype, f32)`. Every back end names its
    result "attention" for remat policies.

    A query that sees no key (padding of a packed row) gives zeros, and neither it nor its gradient
    reaches anything else.

    "auto" is cuDNN's flash attention on NVIDIA GPUs and on TPUs the splash kernel, or with dropout that of whole
    rows, where they take the arguments, else plain XLA, which holds all [B, N, T, S] scores (on one CPU a few rows' of them).

    Args:
        q: [B, T, N, H] queries.
        k: [B, S, K, H] keys; N is a multiple of K.
        v: [B, S, K, V] values.
        causal: query t sees keys 0 ... t only; needs T = S.
        segments: [B, T] int, ids of packed documents; a query sees its own segment only. Needs T = S.
        query_segments, key_segments: [B, T] and [B, S] int32 except its smallest: the same for queries
            and keys that differ, as of a decoder over an encoder; given together, and without `segments`.
        bias: added to the scaled scores: [B, N, T, S], each of them or 1; finite. It has a gradient.
        scale: of the scores; None is 1 / sqrt(H).
        dropout_rate: the probability that a weight of the softmax becomes 0; the others are divided by
            1 - rate.
        dropout_key: what the dropped weights follow from; None drops nothing, as in evaluation.
        backend: "auto", "xla", "cudnn", "splash", "whole", or with "_interpret" behind it a TPU kernel, slowly,
            on any device: for tests.

    Returns:
        [B, T, N, V] in q's dtype.

    Raises:
        UserError: an unknown back end, or one that cannot take these arguments; the mesh does not divide them.
        ValueError: shapes that do not belong together.

    >>> q, kv = jnp.ones([2, 16, 4, 8]), jnp.ones([2, 16, 2, 8])
    >>> attention(q, kv, kv).shape
    (2, 16, 4, 8)
    """
    _check_shapes(q, k, v, causal, bias)
    _check_segments(q, k, segments, query_segments, key_segments)
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"attention: dropout_rate {dropout_rate} is not in [0, 1)")
    own = segments is not None
    seen_by = (segments, segments) if own else (query_segments, key_segments)
    parts = free_axes()
    k, v = (_spread_heads(x, parts.get("tensor", 1)) for x in (k, v))
    call = backends.Call(
        q,
        k,
        v,
        bias,
        *seen_by,
        causal,
        1 / math.sqrt(q.shape[-1]) if scale is None else scale,
        parts,
    )
    dropping = dropout_rate > 0 and dropout_key is not None
    chosen = _choose(backend, call, dropping)
    if chosen == "xla":
        out = backends.xla(call, dropout_rate, dropout_key)
    elif pretended() is not None:
        out = backends.shapes_of_flash(call)
    elif chosen == "cudnn":
        out = backends.cudnn(call)
    elif chosen.startswith("whole"):
        assert dropout_key is not None
        out = backends.whole(call, dropout_rate, dropout_key, chosen == "whole_interpret")
    else:  # names what it keeps itself
        return backends.without_blind(
            backends.splash(call, chosen == "splash_interpret"), call, own
        )
    return checkpoint_name(backends.without_blind(out, call, own), NAME)


def _check_shapes(q, k, v, causal: bool, bias):
    shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4 or k.shape[:3] != v.shape[:3]:
        raise ValueError(f"attention: {shapes}; want [B, T, N, H], [B, S, K, H] and [B, S, K, V]")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[2] % k.shape[2]:
        raise ValueError(f"attention: {shapes}; B and H must agree and N be a multiple of K")
    if causal and q.shape[1] != k.shape[1]:
        raise ValueError(f"attention: {shapes}; causal needs as many queries as keys")
    if bias is not None:
        whole = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
        if bias.ndim != 4 or any(n not in (1, m) for n, m in zip(bias.shape, whole)):
            raise ValueError(
                f"attention: bias {bias.shape}, but {shapes}; want [B, N, T, S] = {whole}, or 1 in the "
                "place of any of them"
            )


def _check_segments(q, k, segments, query_segments, key_segments):
    shapes = f"q {q.shape}, k {k.shape}"
    if segments is not None:
        if query_segments is not None or key_segments is not None:
            raise ValueError("attention: segments are those of queries and keys; give no others")
        if q.shape[1] != k.shape[1] or segments.shape != q.shape[:2]:
            raise ValueError(
                f"attention: segments {segments.shape}, but {shapes}; want [B, T], and as many queries "
                "as keys"
            )
    elif query_segments is not None or key_segments is not None:
        found = tuple(x if x is None else x.shape for x in (query_segments, key_segments))
        if found != (q.shape[:2], k.shape[:2]):
            raise ValueError(
                "attention: query_segments and key_segments of shapes {} and {}, but {}; want [B, T] "
                "and [B, S]".format(*found, shapes)
            )


def _spread_heads(x: jax.Array, ways: int) -> jax.Array:
    """x [B, S, K, H], its heads repeated up to `ways` where K is a smaller divisor of it."""
    heads = x.shape[2]
    return jnp.repeat(x, ways // heads, axis=2) if heads < ways and ways % heads == 0 else x


# --- choice of the back end


def _choose(backend: str, call: backends.Call, dropping: bool = False) -> str:
    """The back end to use."""
    if backend not in BACKENDS:
        raise UserError(
            f"attention: unknown back end {backend!r}; choose one of {', '.join(BACKENDS)}"
        )
    wanted = backend
    if backend == "auto":
        on_tpu = "whole" if dropping else "splash"
        wanted = {"gpu": "cudnn", "tpu": on_tpu}.get(platform(), "xla")
    if wanted == "xla":
        return wanted
    widths = {call.q.shape[-1], call.v.shape[-1]}
    if wanted.startswith("whole"):
        misfit = _whole_misfit(call, widths, dropping)
    elif dropping:
        misfit = "dropout"
    elif wanted == "cudnn":
        misfit = _cudnn_misfit(call.q.dtype, max(widths))
    elif call.bias is not None:
        misfit = "a bias"
    else:
        misfit = splash.misfit(
            call.q.dtype, call.queries, call.keys, widths, call.causal, call.ways
        )
    if misfit is None:
        return wanted
    if backend == "auto":
        return "xla"
    raise UserError(
        f"attention: back end {backend!r} cannot take {misfit}; choose 'auto' or 'xla', "
        "or change the arguments"
    )


def _whole_misfit(call: backends.Call, widths: set[int], dropping: bool) -> str | None:
    """What the kernel of whole rows would refuse, in words, or None."""
    if not dropping:
        return "attention without dropout, which splash is for"
    if call.bias is not None:
        return "a bias"
    heads, queries = (call.q.shape[2], call.k.shape[2]), call.queries // call.ways
    ordered = call.causal and call.ways > 1
    return whole_attention.misfit(call.q.dtype, queries, call.keys, heads, widths, ordered)


def _cudnn_misfit(dtype, width: int) -> str | None:
    """What cuDNN's flash attention would refuse, in words, or None."""
    capability = _PRETENDED.get(pretended() or "") or _cuda_capability()
    if capability is None or capability < (8, 0):
        return "this device: it needs an NVIDIA GPU of compute capability 8.0 or newer"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"{dtype}, only bfloat16 and float16"
    widest = 256 if capability >= (9, 0) else 128
    if width > widest or width % 8:
        return f"head dimension {width}, only multiples of 8 up to {widest}"
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

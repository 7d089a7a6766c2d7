"""The back ends of `ops.attention`: plain XLA, cuDNN's flash attention, the splash kernel, and that of whole rows.

B batch · T queries · S keys · N heads · K key and value heads · G heads per K · H width of a head's
queries and keys · V width of its values
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from mlperf_jax.errors import UserError
from mlperf_jax.ops import dropout, splash as kernels, whole_attention
from mlperf_jax.ops.shard import ROWS, platform, row_axes, shard


class Call(NamedTuple):
    """The arguments of one attention, whole or a device's part.

    Attributes:
        q, k, v: [B, T, N, H], [B, S, K, H] and [B, S, K, V].
        bias: [B, N, T, S], each of them or 1, or None.
        q_segments, k_segments: [B, T] and [B, S], or None.
        causal: whether query t sees keys 0 ... t only.
        scale: of the scores.
        parts: sizes of the mesh's axes.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    bias: jax.Array | None
    q_segments: jax.Array | None
    k_segments: jax.Array | None
    causal: bool
    scale: float
    parts: dict[str, int]

    @property
    def queries(self) -> int:
        return self.q.shape[1]

    @property
    def keys(self) -> int:
        return self.k.shape[1]

    @property
    def ways(self) -> int:
        """Into how many parts the queries are split."""
        return self.parts.get("context", 1)

    @property
    def key_axis(self) -> str | None:
        """The axis that keys come split over: none that does not divide them, such as 77 CLIP tokens."""
        return "context" if "context" in self.parts and self.keys % self.ways == 0 else None

    def mask(self, first: jax.Array | int = 0, causal: bool | None = None) -> jax.Array | None:
        """[1 or B, 1, T, S], true where a query sees a key; None: everywhere.

        Args:
            first: the position of the first query.
            causal: in place of the call's own.
        """
        mask = None
        if self.causal if causal is None else causal:
            positions = first + jnp.arange(self.queries)
            mask = (positions[:, None] >= jnp.arange(self.keys))[None, None]
        if self.q_segments is not None and self.k_segments is not None:
            same = (self.q_segments[:, :, None] == self.k_segments[:, None])[:, None]
            mask = same if mask is None else mask & same
        return mask


def without_blind(out: jax.Array, call: Call, own: bool) -> jax.Array:
    """out [B, T, N, V] with zeros for queries that see no key.

    Kernels give the mean of all values there. `own`: each query is a key of its own segment.
    """
    if own or call.q_segments is None:
        return out
    mask = call.mask()
    assert mask is not None
    return jnp.where(mask.any(-1)[:, 0, :, None, None], out, jnp.zeros((), out.dtype))


# --- plain XLA


# Bytes of scores that a CPU holds at once where there are more of them: larger ones leave its caches.
CACHED = 4 << 20


def xla(call: Call, dropout_rate: float, dropout_key: jax.Array | None) -> jax.Array:
    """All scores at once; on one CPU those of a few rows, which are computed again in the backward pass."""
    # keys and values whole over `context`: the compiler gathers them
    q = shard(call.q, ROWS, "context", "tensor")
    k, v = (shard(x, ROWS, None, "tensor") for x in (call.k, call.v))
    batch, queries, heads, head = q.shape
    wide = jnp.promote_types(q.dtype, jnp.float32)
    # groups get an axis of their own, so keys and values are read as they are, not repeated
    grouped = q.reshape(batch, queries, k.shape[2], -1, head)
    mask, bias = call.mask(), call.bias
    if mask is not None:
        mask = mask[:, :, None]  # over G
    if bias is not None:
        groups = (k.shape[2], grouped.shape[3]) if bias.shape[1] > 1 else (1, 1)
        bias = bias.reshape(bias.shape[0], *groups, *bias.shape[2:])
        bias = bias.astype(jnp.promote_types(bias.dtype, wide))
    keep = None
    if dropout_rate > 0 and dropout_key is not None:
        shape = (batch, k.shape[2], grouped.shape[3], queries, k.shape[1])
        keep = dropout.kept(dropout_key, dropout_rate, shape)

    def attend(grouped: Any, k: Any, v: Any, mask: Any, bias: Any, keep: Any) -> jax.Array:
        scores = _scores(grouped, k, wide) * call.scale
        weights = _softmax(scores if bias is None else scores + bias, mask)
        if keep is not None:
            weights = dropout.masked(weights, dropout_rate, keep)
        return _weighted(weights.astype(v.dtype), v, wide).astype(q.dtype)

    arrays = grouped, k, v, mask, bias, keep
    pieces = _pieces(call, heads * queries * k.shape[1] * wide.itemsize)
    if pieces > 1:
        out = _in_pieces(jax.checkpoint(attend, prevent_cse=False), pieces, arrays)
    elif keep is not None:
        # a byte of mask is kept for each weight, and no weights: they are computed again, as flash attention does
        out = jax.checkpoint(attend)(*arrays)
    else:
        out = attend(*arrays)
    return shard(out.reshape(batch, queries, heads, v.shape[-1]), ROWS, "context", "tensor")


def _scores(q: jax.Array, k: jax.Array, wide: Any) -> jax.Array:
    """[B, T, K, G, H] and [B, S, K, H] -> [B, K, G, T, S] of dtype `wide`.

    XLA:CPU is given products of matrices that lie as they are multiplied, gradients too: in the form of the
    others it copies the scores from one order to another, over and over.
    """
    if platform() != "cpu":
        return jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=wide)
    batch, queries, shared, groups, width = q.shape
    q = q.transpose(0, 2, 3, 1, 4).reshape(batch, shared, groups * queries, width)
    scores = jnp.einsum("bkth,bksh->bkts", q, k.swapaxes(1, 2), preferred_element_type=wide)
    return scores.reshape(batch, shared, groups, queries, -1)


def _weighted(weights: jax.Array, v: jax.Array, wide: Any) -> jax.Array:
    """[B, K, G, T, S] and [B, S, K, V] -> [B, T, K, G, V], sums in dtype `wide`; see `_scores`."""
    if platform() != "cpu":
        return jnp.einsum("bkgts,bskh->btkgh", weights, v, preferred_element_type=wide)
    batch, shared, groups, queries, keys = weights.shape
    weights = weights.reshape(batch, shared, groups * queries, keys)
    v = v.transpose(0, 2, 3, 1)
    out = jnp.einsum("bkts,bkvs->bktv", weights, v, preferred_element_type=wide)
    return out.reshape(batch, shared, groups, queries, -1).transpose(0, 3, 1, 2, 4)


def _pieces(call: Call, row_bytes: int) -> int:
    """Into how many pieces the rows are cut: more than 1 on a CPU alone, whose caches the scores exceed."""
    batch = len(call.q)
    alone = platform() == "cpu" and math.prod(call.parts.values()) == 1
    if not alone or batch * row_bytes <= CACHED:
        return 1
    whole = (n for n in range(2, batch) if batch % n == 0 and batch // n * row_bytes <= CACHED)
    return next(whole, batch)


def _in_pieces(function: Callable[..., jax.Array], pieces: int, arrays: Any) -> jax.Array:
    """function(*arrays) by pieces of the rows; an array with one row only is given whole."""
    rows = len(arrays[0])
    cut = [x is not None and len(x) == rows for x in arrays]
    taken = [x.reshape(pieces, -1, *x.shape[1:]) for x, is_cut in zip(arrays, cut) if is_cut]

    def piece(parts: list[jax.Array]) -> jax.Array:
        left = iter(parts)
        return function(*(next(left) if is_cut else x for x, is_cut in zip(arrays, cut)))

    return jnp.concatenate(lax.map(piece, taken))


@jax.custom_jvp
def _softmax(scores: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Softmax over the last axis where the mask is true; the mean of all where it is so nowhere.

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


# --- cuDNN


def cudnn(call: Call) -> jax.Array:
    """cuDNN's flash attention; a mask travels as a bias, in q's dtype."""

    def local(part: Call, kernel: None) -> jax.Array:
        split = part.ways > 1
        # its causal mask starts at the first local query, so it serves unsplit queries only
        first = lax.axis_index("context") * part.queries if split else 0
        mask = part.mask(first, causal=part.causal and split)
        bias, more_q, more_k = part.bias, 0, 0
        if bias is not None:
            bias = jnp.broadcast_to(bias, (*bias.shape[:2], part.queries, part.keys))
            bias = bias.astype(part.q.dtype)  # gradients of a float32 one were NaN in cuDNN 9.10
        if bias is not None or mask is not None:  # then it takes even lengths only
            more_q, more_k = part.queries % 2, part.keys % 2
        if more_k and mask is None:
            mask = jnp.ones((1, 1, part.queries, part.keys), bool)
        widest = max(part.q.shape[-1], part.v.shape[-1])
        q, k, v = (
            _longer(x, {1: more, 3: widest - x.shape[3]})
            for x, more in ((part.q, more_q), (part.k, more_k), (part.v, more_k))
        )
        out = jax.nn.dot_product_attention(
            q,
            k,
            v,
            bias=None if bias is None else _longer(bias, {2: more_q, 3: more_k}),
            mask=None if mask is None else _longer(mask, {2: more_q, 3: more_k}),
            scale=part.scale,
            is_causal=part.causal and not split,
            implementation="cudnn",
        )
        return out[:, : part.queries, :, : part.v.shape[-1]]

    return _over_mesh(local, call)


def _longer(x: jax.Array, more: dict[int, int], fill: int = 0) -> jax.Array:
    """x with so many elements more at the end of some axes."""
    if not any(more.values()):
        return x
    return jnp.pad(x, [(0, more.get(axis, 0)) for axis in range(x.ndim)], constant_values=fill)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _shapes_of_flash(q, k, v, bias, key_axis: str | None) -> jax.Array:
    return _like_flash(q, k, v, bias, key_axis)[0]


def _like_flash(q, k, v, bias, key_axis):
    keys, values = (shard(x, ROWS, None, "tensor").mean((1, 2), keepdims=True) for x in (k, v))
    touched = keys.mean(-1, keepdims=True) + values + (0 if bias is None else bias.mean())
    out = shard(_of_width(q, v) + touched.astype(q.dtype), ROWS, "context", "tensor")
    kept = jnp.max(out, -1).astype(jnp.promote_types(q.dtype, jnp.float32))  # log-sum-exp [B, T, N]
    return out, (q, k, v, bias, out, kept)


def _like_flash_backward(key_axis, saved, slope):
    q, k, v, bias, out, kept = saved
    delta = jnp.sum((out * slope).astype(kept.dtype), -1) + kept
    per_row = delta.mean((1, 2))[:, None, None, None]
    of_q = _of_width(slope, q) + q * delta[..., None].astype(q.dtype)
    of_k, of_v = (shard(x * per_row.astype(x.dtype), ROWS, key_axis, "tensor") for x in (k, v))
    of_bias = None if bias is None else bias * per_row.mean().astype(bias.dtype)
    return of_q, of_k, of_v, of_bias


def _of_width(x: jax.Array, like: jax.Array) -> jax.Array:
    return x if x.shape[-1] == like.shape[-1] else x.mean(-1, keepdims=True)


_shapes_of_flash.defvjp(_like_flash, _like_flash_backward)


def shapes_of_flash(call: Call) -> jax.Array:
    """What a flash kernel makes and keeps, of the right shapes and wrong values; see `ops.pretend`."""
    return _shapes_of_flash(call.q, call.k, call.v, call.bias, call.key_axis)


# --- splash


def splash(call: Call, interpret: bool) -> jax.Array:
    """The splash kernel over rows of whole tiles: what is added to them sees and is seen by nobody."""
    heads = call.q.shape[2] // call.parts.get("tensor", 1)
    queries = kernels.whole_tiles(call.queries // call.ways)
    keys = kernels.whole_tiles(call.keys)
    width = max(call.q.shape[-1], call.v.shape[-1])
    kernel = kernels.make_kernel(heads, queries, keys, width, call.causal, call.ways, interpret)
    # the kernel does not scale, and rounds less often if its input is scaled before it is rounded
    wide = jnp.promote_types(call.q.dtype, jnp.float32)
    scaled = (call.q.astype(wide) * call.scale).astype(call.q.dtype)

    def local(part: Call, kernel: Any) -> jax.Array:
        more_q, more_k = queries - part.queries, keys - part.keys
        ids = part.q_segments, part.k_segments
        if more_k and not part.causal and ids[0] is None:  # causality hides what follows
            ids = jnp.zeros(part.q.shape[:2], jnp.int32), jnp.zeros(part.k.shape[:2], jnp.int32)
        q_segments, k_segments = (
            x if x is None else _longer(x.astype(jnp.int32), {1: more}, kernels.NOBODY)
            for x, more in zip(ids, (more_q, more_k))
        )
        q, k, v = (
            _longer(x, {1: m}) for x, m in ((part.q, more_q), (part.k, more_k), (part.v, more_k))
        )
        out = kernels.apply(kernel, q, k, v, q_segments, k_segments)
        return out[:, : part.queries]

    axis = "context" if call.causal and call.ways > 1 else None
    spec = kernels.kernel_spec(kernel, axis) if call.parts else None
    return _over_mesh(local, call._replace(q=scaled), kernel, spec)


# --- whole rows


def whole(call: Call, dropout_rate: float, dropout_key: jax.Array, interpret: bool) -> jax.Array:
    """The kernel of short sequences with dropout; the mask is that of plain XLA."""
    batch, queries, heads, _ = call.q.shape
    keep = dropout.kept(dropout_key, dropout_rate, (batch, heads, queries, call.keys))

    def local(part: Call, keep: jax.Array) -> jax.Array:
        ids = part.q_segments, part.k_segments
        if ids[0] is None:
            ids = jnp.zeros(part.q.shape[:2], jnp.int32), jnp.zeros(part.k.shape[:2], jnp.int32)
        q, k, v = (x.swapaxes(1, 2) for x in (part.q, part.k, part.v))
        q_segments, k_segments = (x if x is None else x.astype(jnp.int32) for x in ids)
        how = (part.scale, part.causal, dropout_rate, interpret)
        out: Any = whole_attention.attend(q, k, v, q_segments, k_segments, keep, *how)
        return out.swapaxes(1, 2)

    parts = call.parts
    context, tensor = (axis if axis in parts else None for axis in ("context", "tensor"))
    spec = PartitionSpec(row_axes() or None, tensor, context)
    return _over_mesh(local, call, keep.astype(jnp.int8), spec)


# --- the mesh


def _over_mesh(
    local: Callable[[Call, Any], jax.Array], call: Call, kernel: Any = None, spec: Any = None
) -> jax.Array:
    """local(part of the call, kernel) on each device's queries and heads, and all of their keys.

    Kernels are opaque to the compiler's partitioner, so they are mapped by hand over all axes. `spec`
    is the kernel's own.
    """
    parts, key_axis = call.parts, call.key_axis
    if all(size == 1 for size in parts.values()):
        return local(call, kernel)
    _check_divisible(call)
    rows = row_axes() or None
    context, tensor = (axis if axis in parts else None for axis in ("context", "tensor"))
    # of each array on the mesh; a bias of length 1 along an axis is not split there
    bias = (1,) * 4 if call.bias is None else call.bias.shape
    of_bias = (axis if n > 1 else None for n, axis in zip(bias, (rows, tensor, context)))
    split, of_keys = PartitionSpec(rows, context, tensor), PartitionSpec(rows, key_axis, tensor)
    ids = PartitionSpec(rows, context), PartitionSpec(rows)

    def gathered(q, k, v, bias, q_segments, k_segments, kernel) -> jax.Array:
        k, v = (_gather(x, key_axis) for x in (k, v))
        arrays = Call(q, k, v, bias, q_segments, k_segments, call.causal, call.scale, parts)
        return local(arrays, kernel)

    return jax.shard_map(
        gathered,
        in_specs=(split, of_keys, of_keys, PartitionSpec(*of_bias), *ids, spec),
        out_specs=split,
        axis_names=set(parts),
        check_vma=False,  # kernels say nothing about how their results vary over the mesh
    )(*call[:6], kernel)


def _gather(x: jax.Array, axis: str | None) -> jax.Array:
    """All keys of the context axis; its transpose scatters the summed gradient back."""
    return x if axis is None else lax.all_gather(x, axis, axis=1, tiled=True)


def _check_divisible(call: Call):
    parts = call.parts
    rows, tensor = math.prod(parts[axis] for axis in row_axes()), parts.get("tensor", 1)
    checks = [
        ("rows", call.q.shape[0], " and ".join(ROWS), rows),
        ("queries", call.queries, "context", call.ways),
        ("heads", call.q.shape[2], "tensor", tensor),
        ("key and value heads", call.k.shape[2], "tensor", tensor),
    ]
    for what, size, axes, ways in checks:
        if size % ways:
            raise UserError(
                f"attention: {axes} of --mesh split {size} {what} {ways} ways, which do not divide them: give a mesh "
                "that does"
            )

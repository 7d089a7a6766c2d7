"""Cross entropy of a language model's head, a few tokens at a time.

Logits of all tokens in float32 are the largest array of a decoder's training step: 4.2 GB for one
sequence of Llama 3.1 8B (8,192 x 128,256). Here a scan holds those of one chunk of tokens only, and
when a gradient is wanted the same pass turns them into the gradients of `hidden` and `head`, so logits
are computed once and never kept.

On a mesh every device works on its own tokens (`ROWS` and `context`) and its own slice of the
vocabulary (`tensor`). The head's gradient stays a sum per group of tokens until the scan is over:
one reduction over the mesh, not one per chunk.

B batch · T tokens · D model · V vocabulary
Z groups of tokens that live together · N chunks of a group · C tokens of a chunk
W columns of a tile of the head
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mlperf_jax.ops.shard import ROWS, free_axes, platform, shard

IGNORE = -100  # the label of a token that is not scored, as PyTorch and Hugging Face write it
# Most columns of the head that are multiplied at once. TPUs add a product to an accumulator where it is
# made, and GPU matrix products can: there tiles would only cost passes over the gradient.
WIDEST = {"cpu": 24_576}


def chunked_xent(
    hidden: jax.Array,
    head: jax.Array,
    labels: jax.Array,
    *,
    smoothing: float = 0.0,
    chunk: int = 1024,
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy summed over the scored tokens, and their number; the loss of a training step.

    Logits are products in `hidden.dtype`, accumulated and reduced in `promote_types(dtype, f32)`: the
    references cast logits to float32 before the softmax, here they are never rounded below it. The
    head's gradient is accumulated in the wider of that and the head's own dtype. No z-loss.

    Args:
      hidden: [B, T, D], after the final norm; its dtype is the one multiplied in.
      head: [D, V], the output projection (for tied embeddings the transposed table).
      labels: [B, T] int; `IGNORE` (-100) marks a token that is not scored.
      smoothing: the share of each label spread evenly over the vocabulary.
      chunk: most tokens that one device takes at a time; it holds `4 * chunk * V / tensor` bytes of
        logits. Smaller ones save little more, as the head's gradient is read and written per chunk.

    Returns:
      The sum (NaN if a scored label is outside the vocabulary) in `promote_types(hidden.dtype, f32)`,
      and the int32 count.

    Raises:
      ValueError: shapes that do not fit, or a chunk below 1.

    >>> loss, count = chunked_xent(jnp.ones([1, 3, 2]), jnp.ones([2, 4]), jnp.array([[1, 3, -100]]))
    >>> float(loss) == float(2 * jnp.log(4.0)), int(count)
    (True, 2)
    """
    _check(hidden, head, labels, chunk)
    layout = Layout.of(hidden.shape, chunk)
    total: Any = _total(layout.split(hidden), head, layout.split(labels, IGNORE), layout)
    if smoothing:
        total += smoothing * _above_mean(hidden, head, labels).astype(total.dtype)
    return total, jnp.sum(labels != IGNORE, dtype=jnp.int32)


def _above_mean(hidden: jax.Array, head: jax.Array, labels: jax.Array) -> jax.Array:
    """How far the labels' logits lie above the mean over the vocabulary, summed over the scored tokens.

    With a share s of each label spread evenly, a token's loss is its own plus s times this.
    """
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    columns = head.T[jnp.where(labels == IGNORE, 0, labels)] - head.mean(-1)  # [B, T, D]
    each = jnp.einsum(
        "btd,btd->bt", hidden, columns.astype(hidden.dtype), preferred_element_type=wide
    )
    return jnp.where(labels == IGNORE, 0, each).sum()


def sequence_xent(
    hidden: jax.Array,
    head: jax.Array,
    labels: jax.Array,
    *,
    chunk: int = 1024,
) -> tuple[jax.Array, jax.Array]:
    """What `chunked_xent` returns, per sequence: sums [B] and int32 counts [B]; for evaluation.

    A gradient of it is right but keeps the logits of all tokens.

    >>> loss, count = sequence_xent(jnp.ones([2, 1, 3]), jnp.ones([3, 4]), jnp.array([[1], [-100]]))
    >>> count.tolist()
    [1, 0]
    """
    _check(hidden, head, labels, chunk)
    layout = Layout.of(hidden.shape, chunk)
    losses = _losses(layout.split(hidden), head, layout.split(labels, IGNORE), layout)
    return layout.join(losses).sum(1), jnp.sum(labels != IGNORE, 1, dtype=jnp.int32)


@dataclass(frozen=True)
class Layout:
    """How [B, T] tokens become N chunks of [Z, C], without a token leaving its device.

    Attributes:
        rows, tokens: B and T.
        row_axes, token_axes: mesh axes that split B and T.
        row_ways, token_ways: into how many parts; Z is their product.
        chunks: N.
        size: C.
    """

    rows: int
    tokens: int
    row_axes: tuple[str, ...]
    token_axes: tuple[str, ...]
    row_ways: int
    token_ways: int
    chunks: int
    size: int

    @classmethod
    def of(cls, shape: tuple[int, ...], chunk: int) -> Layout:
        """The layout for hidden [B, T, D] on the surrounding mesh, chunks of at most `chunk`."""
        rows, tokens = shape[:2]
        row_axes, row_ways = _dividing(rows, ROWS)
        token_axes, token_ways = _dividing(tokens, ("context",))
        each = rows * tokens // (row_ways * token_ways)
        chunks = max(1, math.ceil(each / chunk))
        # equal chunks: fewer than N padded tokens instead of almost a whole chunk
        size = math.ceil(each / chunks)
        return cls(rows, tokens, row_axes, token_axes, row_ways, token_ways, chunks, size)

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes of Z."""
        return self.row_axes + self.token_axes

    @property
    def each(self) -> int:
        """Tokens of one group, before padding."""
        return self.rows * self.tokens // (self.row_ways * self.token_ways)

    def split(self, x: jax.Array, fill: int = 0) -> jax.Array:
        """[B, T, ...] as [N, Z, C, ...], tokens of the last chunk filled up with `fill`."""
        rest = x.shape[2:]
        x = shard(x, self.row_axes, self.token_axes)
        x = x.reshape(self.row_ways, -1, self.token_ways, self.tokens // self.token_ways, *rest)
        x = x.swapaxes(1, 2).reshape(self.row_ways * self.token_ways, self.each, *rest)
        x = shard(x, self.axes)
        missing = self.chunks * self.size - self.each
        if missing:
            x = jnp.pad(x, ((0, 0), (0, missing), *((0, 0) for _ in rest)), constant_values=fill)
        x = x.reshape(len(x), self.chunks, self.size, *rest).swapaxes(0, 1)
        return shard(x, None, self.axes)

    def join(self, x: jax.Array) -> jax.Array:
        """The inverse of `split` for [N, Z, C]: [B, T]."""
        x = x.swapaxes(0, 1).reshape(x.shape[1], -1)[:, : self.each]
        x = x.reshape(self.row_ways, self.token_ways, self.rows // self.row_ways, -1)
        return shard(x.swapaxes(1, 2).reshape(self.rows, -1), self.row_axes, self.token_axes)


@dataclass(frozen=True)
class Tiles:
    """How the columns of the head [D, V] are walked through: all at once, or in slices of W.

    A CPU keeps a product apart from what it is added to, and a copy of the head in the dtype it
    multiplies in: two more arrays of 2 GB each for Llama 3.1 8B, unless they are made in slices. A
    vocabulary split over `tensor` is not sliced again.

    Attributes:
        model_axes, vocab_axes: mesh axes that split D and V.
        count: number of slices.
        width: W.
    """

    model_axes: tuple[str, ...]
    vocab_axes: tuple[str, ...]
    count: int
    width: int

    @classmethod
    def of(cls, head: jax.Array) -> Tiles:
        """The tiles of head [D, V] on the surrounding mesh."""
        model_axes, _ = _dividing(head.shape[0], ("fsdp",))
        vocab_axes, ways = _dividing(head.shape[1], ("tensor",))
        widest = WIDEST.get(platform())
        count = 1 if widest is None or ways > 1 else _tile_count(head.shape[1], widest)
        return cls(model_axes, vocab_axes, count, head.shape[1] // count)

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.count * self.width

    def gather(self, head: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """The head [D, V], every device holding all rows of its part of the vocabulary."""
        head = shard(head, self.model_axes, self.vocab_axes)
        if _ways(self.model_axes) == 1:
            return head
        # once, not per chunk; cast first, so that half the bytes travel
        return shard(head.astype(dtype), None, self.vocab_axes)

    def take(self, x: jax.Array, tile: jax.Array) -> jax.Array:
        """[..., W] of [..., V]."""
        if self.count == 1:
            return x
        return jax.lax.dynamic_slice_in_dim(x, tile * self.width, self.width, x.ndim - 1)

    def put(self, x: jax.Array, part: jax.Array, tile: jax.Array) -> jax.Array:
        """x [..., V] with one tile replaced."""
        if self.count == 1:
            return part
        return jax.lax.dynamic_update_slice_in_dim(x, part, tile * self.width, x.ndim - 1)

    def columns(self, tile: jax.Array) -> jax.Array:
        """The vocabulary ids [W] of a tile."""
        return (tile * self.width + jnp.arange(self.width)).astype(jnp.int32)


def _tile_count(columns: int, widest: int) -> int:
    """The fewest equal tiles of 1,024 ... widest columns, of whole vector lanes if there are such."""
    for lanes in (128, 1):
        for count in range(1, columns // 1024 + 1):
            if columns % (count * lanes) == 0 and columns // count <= widest:
                return count
    return 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _total(hidden: jax.Array, head: jax.Array, labels: jax.Array, layout: Layout) -> jax.Array:
    return _losses(hidden, head, labels, layout).sum()


def _losses(hidden: jax.Array, head: jax.Array, labels: jax.Array, layout: Layout) -> jax.Array:
    """Losses [N, Z, C]; 0 where the label is ignored."""
    tiles = Tiles.of(head)
    kernel = tiles.gather(head, hidden.dtype)

    def step(carry: None, part: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        logits = _logits(part[0], kernel, layout, tiles)
        return carry, _loss(logits, part[1], tiles)[0]

    return jax.lax.scan(step, None, (hidden, labels))[1]


def _total_and_gradients(
    hidden: jax.Array, head: jax.Array, labels: jax.Array, layout: Layout
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The sum of losses, and its gradients: hidden's [N, Z, C, D] and the head's [D, V]."""
    tiles = Tiles.of(head)
    kernel = tiles.gather(head, hidden.dtype)
    wide = jnp.promote_types(jnp.promote_types(hidden.dtype, jnp.float32), head.dtype)
    laid_out = functools.partial(_laid_out, layout=layout, tiles=tiles)

    def step(grad: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, tuple]:
        h, label = part
        logits = _logits(h, kernel, layout, tiles)
        loss, lse = _loss(logits, label, tiles)

        def one(sums: tuple, tile: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
            of_hidden, of_head = sums
            index, logits = tile  # [Z, C, W]
            hits = _hits(label, tiles.columns(index))
            slope = jnp.exp(logits - lse[..., None]) - hits
            slope = jnp.where((label != IGNORE)[..., None], slope, 0).astype(h.dtype)
            columns = tiles.take(kernel, index).astype(h.dtype)
            of_hidden += jnp.einsum(
                "zcv,dv->zcd", slope, columns, preferred_element_type=of_hidden.dtype
            )
            more = jnp.einsum("zcd,zcv->zdv", h, slope, preferred_element_type=wide)
            of_head = tiles.put(of_head, tiles.take(of_head, index) + more, index)
            return (shard(of_hidden, layout.axes), laid_out(of_head)), None

        # one tile needs no sum, and so none in f32: it would travel over the mesh in twice the bytes
        summed = h.dtype if tiles.count == 1 else loss.dtype
        (of_hidden, grad), _ = jax.lax.scan(
            one,
            (shard(jnp.zeros(h.shape, summed), layout.axes), grad),
            (jnp.arange(tiles.count), logits),
        )
        return grad, (loss, of_hidden.astype(h.dtype))

    groups = layout.row_ways * layout.token_ways
    zeros = laid_out(jnp.zeros((groups, *head.shape), wide))
    grad, (losses, of_hidden) = jax.lax.scan(step, zeros, (hidden, labels))
    of_head = shard(grad.sum(0), tiles.model_axes, tiles.vocab_axes)
    return losses.sum(), (of_hidden, of_head.astype(head.dtype))


def _scaled(
    layout: Layout, saved: tuple[jax.Array, jax.Array], scale: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    of_hidden, of_head = ((g * scale).astype(g.dtype) for g in saved)
    return of_hidden, of_head, None


_total.defvjp(_total_and_gradients, _scaled)


def _logits(hidden: jax.Array, kernel: jax.Array, layout: Layout, tiles: Tiles) -> jax.Array:
    """Logits of one chunk, tile by tile [count, Z, C, W], in at least f32."""
    wide = jnp.promote_types(hidden.dtype, jnp.float32)

    def one(index: jax.Array) -> jax.Array:
        columns = tiles.take(kernel, index).astype(hidden.dtype)
        logits = jnp.einsum("zcd,dv->zcv", hidden, columns, preferred_element_type=wide)
        return _laid_out(logits, layout, tiles)

    return jax.lax.map(one, jnp.arange(tiles.count))


def _loss(logits: jax.Array, label: jax.Array, tiles: Tiles) -> tuple[jax.Array, jax.Array]:
    """The loss [Z, C] of one chunk, and its log-sum-exp [Z, C]."""
    vocabulary = (0, 3)
    top = logits.max(vocabulary)
    lse = jnp.log(jnp.exp(logits - top[..., None]).sum(vocabulary)) + top
    columns = jax.vmap(tiles.columns)(jnp.arange(tiles.count))[:, None, None]
    picked = jnp.where(_hits(label, columns), logits, 0).sum(vocabulary)
    known = (label >= 0) & (label < tiles.vocabulary)
    loss = jnp.where(known, lse - picked, jnp.nan)
    return jnp.where(label != IGNORE, loss, 0), lse


def _hits(label: jax.Array, columns: jax.Array) -> jax.Array:
    """Where labels [Z, C] are columns [..., W].

    A comparison, not a gather: every device finds the labels of its own part of the vocabulary.
    """
    return label[..., None] == columns


def _laid_out(x: jax.Array, layout: Layout, tiles: Tiles) -> jax.Array:
    """[Z, C or D, W]: every device has its own tokens and its part of the vocabulary."""
    return shard(x, layout.axes, None, tiles.vocab_axes)


def _dividing(size: int, axes: tuple[str, ...]) -> tuple[tuple[str, ...], int]:
    """The axes that the mesh has and how many parts they make; none if they do not divide size."""
    free = free_axes()
    found = tuple(axis for axis in axes if axis in free)
    return (found, _ways(found)) if size % _ways(found) == 0 else ((), 1)


def _ways(axes: tuple[str, ...]) -> int:
    return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in axes)


def _check(hidden: jax.Array, head: jax.Array, labels: jax.Array, chunk: int) -> None:
    if hidden.ndim != 3 or head.ndim != 2 or hidden.shape[-1] != head.shape[0]:
        raise ValueError(
            f"cross entropy wants hidden [B, T, D] and head [D, V], not {hidden.shape} and "
            f"{head.shape}"
        )
    if labels.shape != hidden.shape[:2]:
        raise ValueError(
            f"cross entropy wants labels of shape {hidden.shape[:2]}, not {labels.shape}"
        )
    if chunk < 1:
        raise ValueError(f"cross entropy wants a chunk of at least 1 token, not {chunk}")

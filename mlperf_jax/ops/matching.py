"""Which box each anchor should find: RetinaNet's matcher, without a table of anchors times boxes.

120,087 anchors times the boxes of a crowded image would be hundreds of megabytes per image. The loop
below takes a few boxes at a time, and only as many rounds as the fullest image of the batch needs,
so padding costs nothing. What an anchor knows of its best box is carried along, hence no gathers.

Reference: torchvision.models.detection._utils.Matcher with thresholds 0.5 and 0.4 and low-quality
matches allowed.

B batch · A anchors · G boxes of an image, padding included
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mlperf_jax.ops import boxes as boxlib

_ROUND = 8  # boxes a round: each reads and writes all that is carried, once for these


class Matches(NamedTuple):
    """What each anchor is to learn.

    Attributes:
      foreground: bool [B, A], anchors that have a box.
      background: bool [B, A]; anchors that are neither are ignored.
      label: int [B, A], the class of the anchor's best box; meaningful in the foreground.
      boxes: [B, A, 4], that box; meaningful in the foreground.
    """

    foreground: jax.Array
    background: jax.Array
    label: jax.Array
    boxes: jax.Array


def match(
    anchors: np.ndarray | jax.Array,
    boxes: jax.Array,
    label: jax.Array,
    *,
    high: float = 0.5,
    low: float = 0.4,
) -> Matches:
    """Matches anchors with boxes.

    An anchor whose best overlap is at least `high` is foreground, below `low` background, between them
    ignored. Then each box lifts the anchors that reach its own best overlap, ties included, to the
    foreground: they regain *their* best box, which need not be this one. Padding takes no part in
    that: its best overlap is 0, which most anchors reach.

    Differs: a tie is an overlap within 4 units of the last place of the best, where torch compares bits.
    A compiler may compute an overlap twice and round it differently; then nothing would equal the best.

    Args:
      anchors: [A, 4].
      boxes: [B, G, 4].
      label: int [B, G], -1 for padding.
      high: see above.
      low: see above.
    """
    anchors = jnp.asarray(anchors, boxes.dtype)
    rows, count = label.shape
    boxes = jnp.pad(boxes, ((0, 0), (0, -count % _ROUND), (0, 0)))
    label = jnp.pad(label, ((0, 0), (0, -count % _ROUND)), constant_values=-1)
    last = jnp.max(jnp.where(label >= 0, jnp.arange(1, label.shape[1] + 1), 0))
    shape = (rows, len(anchors))
    start = (
        jnp.full(shape, -1, boxes.dtype),  # best overlap so far; padding has 0 and never wins
        jnp.full(shape, -1, label.dtype),
        tuple(jnp.zeros(shape, boxes.dtype) for _ in range(4)),
        jnp.zeros(shape, bool),
    )

    def round_(number: jax.Array, carry: tuple) -> tuple:
        some = lax.dynamic_slice_in_dim(boxes, number * _ROUND, _ROUND, 1)
        theirs = lax.dynamic_slice_in_dim(label, number * _ROUND, _ROUND, 1)
        for index in range(_ROUND):
            carry = _take(carry, anchors, some[:, index], theirs[:, index])
        return carry

    best, found, corners, lifted = lax.fori_loop(0, -(-last // _ROUND), round_, start)
    foreground = (best >= high) | lifted
    return Matches(foreground, (best < low) & ~lifted, found, jnp.stack(corners, -1))


def _take(carry: tuple, anchors: jax.Array, box: jax.Array, label: jax.Array) -> tuple:
    """One box of each image: [B, 4] and [B]."""
    best, found, corners, lifted = carry
    real = (label >= 0)[:, None]
    overlap = boxlib.overlap(anchors, box[:, None])  # [B, A]
    tie = 1 - 4 * jnp.finfo(overlap.dtype).eps
    lifted |= real & (overlap >= overlap.max(1, keepdims=True) * tie)
    better = real & (overlap > best)  # of equal ones the first, as torch's max
    corners = tuple(jnp.where(better, box[:, i, None], c) for i, c in enumerate(corners))
    return (
        jnp.where(better, overlap, best),
        jnp.where(better, label[:, None], found),
        corners,
        lifted,
    )

"""From a detector's raw outputs to boxes, with shapes that do not depend on what it finds.

Reference: torchvision's RetinaNet.postprocess_detections: score above 0.05, the best 1,000 of each level,
decode, clip, class-wise suppression over all levels, the best 300.

B batch · N anchors of a level · K classes · D outputs
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from mlperf_jax.ops import boxes as boxlib, nms
from mlperf_jax.ops.shard import free_axes, row_axes


def detect(
    logits: Sequence[jax.Array],
    deltas: Sequence[jax.Array],
    anchors: Sequence[np.ndarray],
    image_size: int,
    *,
    outputs: int = 300,
    candidates: int = 1000,
    score_threshold: float = 0.05,
    overlap_threshold: float = 0.5,
) -> nms.Detections:
    """Detections in pixels of the square network input.

    Args:
      logits: per level [B, N, K].
      deltas: per level [B, N, 4], the box code of the anchors.
      anchors: per level [N, 4].
      image_size: side of the input.
      outputs: D.
      candidates: taken from each level at most.
      score_threshold: scores must exceed it.
      overlap_threshold: see `class_wise_nms`.

    Returns:
      Boxes, scores and classes in `promote_types(dtype, f32)`.
    """

    def local(logits: Sequence[jax.Array], deltas: Sequence[jax.Array]) -> nms.Detections:
        found = [
            _level(*level, image_size, candidates, score_threshold)
            for level in zip(logits, deltas, anchors, strict=True)
        ]
        joined = (jnp.concatenate(parts, 1) for parts in zip(*found))
        return nms.class_wise_nms(*joined, outputs=outputs, threshold=overlap_threshold)

    axes = _row_axes(logits[0].shape[0])
    if not axes:
        return local(logits, deltas)
    # said by hand: the partitioner gathers the whole batch on each device for a `top_k`
    rows = PartitionSpec(axes)
    spread = jax.shard_map(
        local, in_specs=rows, out_specs=rows, axis_names=set(axes), check_vma=False
    )
    return spread(logits, deltas)


def _row_axes(rows: int) -> tuple[str, ...]:
    """The mesh axes that split the rows of a batch, if they do."""
    free, axes = free_axes(), row_axes()
    ways = math.prod(free[axis] for axis in axes)
    return axes if ways > 1 and rows % ways == 0 else ()


def _level(
    logits: jax.Array,
    deltas: jax.Array,
    anchors: np.ndarray,
    image_size: int,
    candidates: int,
    score_threshold: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Boxes [B, n, 4], scores [B, n] (0 below the threshold) and classes [B, n] of one level."""
    kept = jnp.promote_types(logits.dtype, jnp.float32)
    best, anchor, kind = top_pairs(logits, candidates)
    scores = jax.nn.sigmoid(best.astype(kept))
    scores = jnp.where(scores > score_threshold, scores, 0)
    chosen = jnp.take_along_axis(deltas, anchor[..., None], 1).astype(kept)  # [B, n, 4]
    boxes = boxlib.decode(chosen, jnp.asarray(anchors, kept)[anchor])
    return boxlib.clip(boxes, image_size, image_size), scores, kind


def top_pairs(logits: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The largest logits over anchors and classes together, as `top_k` of the flattened array.

    P3 alone has 23.8 million pairs an image. The best n pairs lie within the n anchors of the largest
    best class, so two small selections and one reduction do. Equal values come in the
    order of the flattened array, as if it had been searched whole.

    Args:
      logits: [B, N, K].
      count: n, cut to N K.

    Returns:
      (value, anchor, class), each [B, n], largest first.
    """
    rows, anchors, classes = logits.shape
    if anchors > count:
        _, index = lax.top_k(logits.max(-1), count)
        index = jnp.sort(index, -1)  # the flattened order decides between equals
        logits = jnp.take_along_axis(logits, index[..., None], 1)
    else:
        index = jnp.broadcast_to(jnp.arange(anchors, dtype=jnp.int32), (rows, anchors))
    flat = logits.reshape(rows, -1)
    value, at = lax.top_k(flat, min(count, flat.shape[1]))
    return value, jnp.take_along_axis(index, at // classes, 1), at % classes

"""Non-maximum suppression with a fixed number of outputs.

Greedy suppression in order of score, cut after the first D survivors, is the same as D times taking the best that
is left and dropping what overlaps it: no sort, no data-dependent shape, and each round is one pass over
the candidates of all images at once.

B batch · N candidates · D outputs
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mlperf_jax.ops import boxes as boxlib


class Detections(NamedTuple):
    """What was found, best first.

    Attributes:
      boxes: [B, D, 4].
      scores: [B, D]; 0 for places left empty.
      classes: int32 [B, D]; -1 for places left empty.
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array


def class_wise_nms(
    boxes: jax.Array,
    scores: jax.Array,
    classes: jax.Array,
    *,
    outputs: int,
    threshold: float = 0.5,
) -> Detections:
    """The best detections, none overlapping a better one of its class by more than `threshold`.

    Of equal scores the first is taken first. Reference: torchvision.ops.batched_nms, then a cut.

    Args:
      boxes: [B, N, 4].
      scores: [B, N]; 0 or less is no candidate.
      classes: int32 [B, N].
      outputs: D.
      threshold: a larger overlap (strictly) drops the weaker box.
    """

    def take(left: jax.Array, _: None) -> tuple[jax.Array, tuple]:
        best = jnp.argmax(left, 1)[:, None]  # [B, 1]
        box = jnp.take_along_axis(boxes, best[..., None], 1)  # stays on the row's own device
        kind, score = (jnp.take_along_axis(array, best, 1) for array in (classes, left))
        beaten = (boxlib.overlap(boxes, box) > threshold) & (classes == kind)
        beaten |= jnp.arange(left.shape[1]) == best
        kept = score > 0
        found = (
            jnp.where(kept[..., None], box, 0)[:, 0],
            jnp.where(kept, score, 0)[:, 0],
            jnp.where(kept, kind, -1)[:, 0],
        )
        return jnp.where(beaten, 0, left), found

    _, found = lax.scan(take, scores, None, length=outputs)
    return Detections(*(jnp.swapaxes(part, 0, 1) for part in found))

"""Axis-aligned boxes as corners (x0, y0, x1, y1) in pixels: overlap, the box code, clipping.

Reference: torchvision.ops.boxes and BoxCoder with weights (1, 1, 1, 1), as MLPerf's RetinaNet has them:
continuous coordinates, no "+ 1" anywhere.

N, M boxes · ... any leading axes that broadcast
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

# decoding caps log sizes here, so that no anchor grows more than 62.5 times
SCALE_CLIP = math.log(1000 / 16)


def area(boxes: jax.Array) -> jax.Array:
    """Areas [...] of boxes [..., 4]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def overlap(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union of boxes a [..., 4] and b [..., 4], whose leading axes broadcast.

    Returns:
      [...], in [0, 1]; 0 where both boxes are empty.

    >>> float(overlap(jnp.array([0.0, 0, 2, 2]), jnp.array([1.0, 0, 3, 2])))
    0.3333333432674408
    """
    width = jnp.minimum(a[..., 2], b[..., 2]) - jnp.maximum(a[..., 0], b[..., 0])
    height = jnp.minimum(a[..., 3], b[..., 3]) - jnp.maximum(a[..., 1], b[..., 1])
    shared = jnp.maximum(width, 0) * jnp.maximum(height, 0)
    union = area(a) + area(b) - shared
    return jnp.where(union > 0, shared / jnp.where(union > 0, union, 1), 0)


def encode(boxes: jax.Array, anchors: jax.Array) -> jax.Array:
    """The code of boxes relative to anchors: (dx, dy) in anchor sizes, (dw, dh) as logarithms.

    Args:
      boxes: [..., 4] of positive width and height.
      anchors: [..., 4].

    Returns:
      [..., 4].
    """
    (x, y, w, h), (xa, ya, wa, ha) = _centred(boxes), _centred(anchors)
    return jnp.stack([(x - xa) / wa, (y - ya) / ha, jnp.log(w / wa), jnp.log(h / ha)], -1)


def decode(deltas: jax.Array, anchors: jax.Array) -> jax.Array:
    """The boxes [..., 4] whose code relative to the anchors is `deltas`; growth capped.

    >>> anchors = jnp.array([0.0, 0, 4, 2])
    >>> decode(encode(jnp.array([1.0, 1, 3, 2]), anchors), anchors).round(4).tolist()
    [1.0, 1.0, 3.0, 2.0]
    """
    xa, ya, wa, ha = _centred(anchors)
    x, y = deltas[..., 0] * wa + xa, deltas[..., 1] * ha + ya
    w = jnp.exp(jnp.minimum(deltas[..., 2], SCALE_CLIP)) * wa
    h = jnp.exp(jnp.minimum(deltas[..., 3], SCALE_CLIP)) * ha
    return jnp.stack([x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h], -1)


def clip(boxes: jax.Array, height: float, width: float) -> jax.Array:
    """The boxes [..., 4] cut at the edges of an image."""
    return jnp.clip(boxes, 0, jnp.array([width, height, width, height], boxes.dtype))


def _centred(boxes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Centre and size: x, y, width, height."""
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return boxes[..., 0] + 0.5 * width, boxes[..., 1] + 0.5 * height, width, height

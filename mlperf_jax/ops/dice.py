"""The loss of volume segmentation: Dice and cross entropy, half each.

B batch · ... spatial axes · K classes, 0 the background
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

SMOOTH = 1e-6  # above and below the line, so that a class absent from both counts as found


def dice_xent(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Mean over rows of (Dice loss + cross entropy) / 2.

    Cross entropy is the mean over all voxels, unweighted. The Dice of a row and a class other than the
    background is (2 sum p t + 1e-6) / (sum p + sum t + 1e-6) with softmax p; its loss is the mean of
    1 - Dice, nearly 1 for a class that a patch lacks. Reference: model/losses.py, DiceCELoss.

    Args:
      logits: [B, ..., K].
      label: [B, ...] integers, 0 ... K - 1.

    Returns:
      A scalar in `promote_types(logits.dtype, f32)`.

    >>> loss = dice_xent(jnp.zeros([1, 2, 2, 2, 3]), jnp.zeros([1, 2, 2, 2], jnp.uint8))
    >>> round(float(loss), 4)
    1.0493
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    spatial = tuple(range(1, logits.ndim - 1))
    log_prob = jax.nn.log_softmax(logits)
    hit = label[..., None] == jnp.arange(logits.shape[-1], dtype=label.dtype)
    xent = -jnp.where(hit, log_prob, 0).sum(-1).mean()
    prob = jnp.exp(log_prob[..., 1:])
    both = jnp.where(hit[..., 1:], prob, 0).sum(spatial)  # [B, K - 1]
    either = prob.sum(spatial) + hit[..., 1:].sum(spatial, dtype=logits.dtype)
    dice = (2 * both + SMOOTH) / (either + SMOOTH)
    return (1 - dice.mean() + xent) / 2

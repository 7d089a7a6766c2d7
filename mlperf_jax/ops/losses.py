"""Losses that several benchmarks share.

B batch · C classes · … any axes, of slots that may be empty
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def softmax_xent(
    logits: jax.Array, label: jax.Array | np.ndarray, smoothing: float = 0.0
) -> jax.Array:
    """Softmax cross entropy with label smoothing, mean over rows.

    The target is `(1 - smoothing) * onehot + smoothing / C`. Differs: the TF2 reference clips
    probabilities to [1e-7, 1 - 1e-7] before the logarithm; a stable log-softmax needs no clip.

    Args:
      logits: [B, C].
      label: [B] int, in 0 ... C - 1.
      smoothing: the share of the target spread evenly over all classes.

    Returns:
      A scalar in `promote_types(logits.dtype, f32)`.

    >>> float(softmax_xent(jnp.zeros([2, 4]), jnp.array([1, 3]))) == float(jnp.log(4.0))
    True
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    log_prob = jax.nn.log_softmax(logits)
    # a comparison fuses into its neighbours; a gather would become a scatter in the gradient
    hit = label[:, None] == jnp.arange(logits.shape[-1], dtype=label.dtype)
    picked = jnp.where(hit, log_prob, 0).sum(-1)
    loss = -(1 - smoothing) * picked.mean()
    return loss - smoothing * log_prob.mean() if smoothing else loss


def weighted_xent(
    logits: jax.Array, label: jax.Array, weight: jax.Array, smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy times weight, summed, and the sum of weights: what a `Weighted` mean is made of.

    Of the masked tokens as of the next sentences. Differs: the reference divides by its replica's own
    weights plus 1e-5; here both sums are over the whole batch, and the epsilon, a billionth of the 10^4
    masked tokens of the smallest batch, is left out.

    Args:
      logits: [..., C].
      label: [...] int in 0 ... C - 1; another one makes the sum NaN, unless its weight is 0.
      weight: [...], 0 for slots that are not used.
      smoothing: the share of the target spread evenly over all classes.

    >>> total, weight = weighted_xent(jnp.zeros([1, 2, 4]), jnp.array([[3, 9]]), jnp.array([[2.0, 0]]))
    >>> float(total / weight) == float(jnp.log(4.0)), float(weight)
    (True, 2.0)
    """
    # a comparison fuses into its neighbours; a gather would become a scatter in the gradient
    hit = label[..., None] == jnp.arange(logits.shape[-1])
    picked = jnp.where(hit, logits, 0).sum(-1)
    if smoothing:
        picked = (1 - smoothing) * picked + smoothing * logits.mean(-1)
    loss = jax.nn.logsumexp(logits, -1) - picked
    loss = jnp.where((label >= 0) & (label < logits.shape[-1]), loss, jnp.nan)
    weight = weight.astype(loss.dtype)
    return jnp.where(weight == 0, 0, weight * loss).sum(), weight.sum()


def weighted_hits(
    logits: jax.Array, label: jax.Array, weight: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Per row the weight of slots whose label has the largest logit, and of all: accuracy's parts, [B].

    >>> hits, weight = weighted_hits(jnp.eye(3)[None], jnp.array([[0, 1, 0]]), jnp.ones([1, 3]))
    >>> hits.tolist(), weight.tolist()
    ([2.0], [3.0])
    """
    hit = logits.argmax(-1) == label
    return jnp.where(hit, weight, 0).sum(-1), weight.sum(-1)

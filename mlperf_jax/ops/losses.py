"""Losses that several benchmarks share.

B batch · C classes
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

"""Sigmoid focal loss over classes, made for outputs too large to be stored twice.

RetinaNet's logits are 120,087 anchors times 264 classes an image, 31.7 million. One-hot targets,
probabilities or saved intermediates would each be as large again, so the loss is one pass over the logits,
its gradient another, and nothing is kept between them.

Reference: torchvision.ops.sigmoid_focal_loss (Lin et al., arXiv 1708.02002), alpha 0.25, gamma 2.

On a TPU the anchors of a cell stay side by side along the last axis, as the convolution gives them: 264 classes
are no multiple of its 128 lanes, and to take them apart would be to write all logits once more.

N anchors, A of them side by side, any leading axes · K classes
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mlperf_jax.ops.shard import platform

_CPU_PIECE = 1024  # anchors: some 60 MB for 8 images and 264 classes


def focal_loss(
    logits: jax.Array, label: jax.Array, weight: jax.Array, alpha: float = 0.25, gamma: int = 2
) -> jax.Array:
    """The weighted sum over anchors of -alpha_t (1 - p_t)^gamma log p_t, summed over classes.

    Args:
      logits: [..., N, K].
      label: int [..., N]: the anchor's class; -1 has no class, all targets are 0.
      weight: [..., N]: 0 leaves an anchor out. Normalisation belongs here; it gets no gradient.
      alpha: weight of the positive term; 1 - alpha of the negative.
      gamma: whole power by which easy examples count less.

    Returns:
      A scalar in `promote_types(logits.dtype, f32)`.

    >>> logits = jnp.full([1, 2], -4.59511985)          # p = 0.01
    >>> round(float(focal_loss(logits, jnp.array([0]), jnp.ones(1))), 4)
    1.1284
    """
    return focal_loss_of_cells(logits, label[..., None], weight[..., None], alpha, gamma)


def focal_loss_of_cells(
    logits: jax.Array, label: jax.Array, weight: jax.Array, alpha: float = 0.25, gamma: int = 2
) -> jax.Array:
    """`focal_loss` of logits [..., A K]: those of A anchors side by side, whose label and weight are [..., A]."""
    kept = jnp.promote_types(logits.dtype, jnp.float32)
    if platform() != "tpu":  # one anchor after the other, row by row
        rows, classes = logits.shape[: logits.ndim > 2], logits.shape[-1] // label.shape[-1]
        logits = logits.reshape(*rows, -1, classes)
        label, weight = (v.reshape(*logits.shape[:-1], 1) for v in (label, weight))
    return _focal_loss(logits, label, weight.astype(kept), alpha, gamma)


def _value(logits, label, weight, alpha, gamma):
    def add(total, first, fresh, logits, label, weight):
        return total + _loss(logits, label, weight * fresh, alpha, gamma)

    return _in_pieces(add, jnp.zeros((), weight.dtype), logits, label, weight)


def _loss(logits, label, weight, alpha, gamma):
    hit, weight = _by_class(logits, label, weight)
    s, scale = _wrongness(logits, hit, alpha)
    small = jnp.exp(-jnp.abs(s))  # at most 1: cannot overflow
    wrong = jnp.where(s >= 0, 1, small) / (1 + small)
    xent = jnp.maximum(s, 0) + jnp.log1p(small)
    return jnp.sum(scale * wrong**gamma * xent * weight)


def _gradient(logits, label, weight, alpha, gamma):
    """The derivative by the logits, made from them anew, in words of its own.

    Were its exponential spelled as the loss spells it, the compiler would find them equal, compute
    it once and keep it: 1 GB for 8 images, and more for what follows from it.
    """
    hit, weight = _by_class(logits, label, weight)
    s, scale = _wrongness(logits, hit, alpha)
    small = jnp.exp(jnp.minimum(s, -s))
    right = jnp.where(s >= 0, small, 1) / (1 + small)
    xent = jnp.log1p(small) - jnp.minimum(-s, 0)
    slope = scale * (1 - right) ** gamma * (gamma * right * xent + 1 - right)
    return (jnp.where(hit, -slope, slope) * weight).astype(logits.dtype)


def _by_class(logits, label, weight) -> tuple[jax.Array, jax.Array]:
    """For each of [..., A K], whether it is the anchor's class, and the anchor's weight.

    By one choice for each anchor of a cell, which fuses into what uses it; a repeat would be written out.
    """
    anchors = label.shape[-1]
    classes = logits.shape[-1] // anchors
    at = jnp.arange(logits.shape[-1], dtype=label.dtype)
    shape = logits.shape[:-1]
    wanted, weights = (jnp.zeros((*shape, 1), v.dtype) for v in (label, weight))
    for anchor in range(anchors):
        mine = at // classes == anchor
        wanted = jnp.where(mine, label[..., anchor, None], wanted)
        weights = jnp.where(mine, weight[..., anchor, None], weights)
    return wanted == at % classes, weights


def _wrongness(logits: jax.Array, hit: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """s, large where a class is wrong, and alpha_t: the loss is alpha_t sigmoid(s)^gamma softplus(s)."""
    x = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jnp.where(hit, -x, x), jnp.where(hit, alpha, 1 - alpha).astype(x.dtype)


def _in_pieces(step: Callable[..., Any], carry: Any, logits, label, weight) -> Any:
    """Folds `step(carry, first, fresh, logits, label, weight)` over pieces of the last axis but one.

    One piece but on CPUs, where XLA hands sums to a library and writes out all that enters them. The
    last piece reaches back to be as long as the others; `fresh` is 0 for anchors it meets again.
    """
    count = logits.shape[-2]
    size = min(_CPU_PIECE, count) if platform() == "cpu" else count
    if size == count:
        return step(carry, 0, 1, logits, label, weight)

    def piece(number: jax.Array, carry: Any) -> Any:
        first = jnp.minimum(number * size, count - size)
        cut = functools.partial(lax.dynamic_slice_in_dim, start_index=first, slice_size=size)
        fresh = first + jnp.arange(size)[:, None] >= number * size
        return step(carry, first, fresh, *(cut(v, axis=-2) for v in (logits, label, weight)))

    return lax.fori_loop(0, -(-count // size), piece, carry)


def _forward(logits, label, weight, alpha, gamma):
    return _value(logits, label, weight, alpha, gamma), (logits, label, weight)


def _backward(alpha, gamma, kept, cotangent):
    logits, label, weight = kept

    def write(gradient, first, fresh, logits, label, weight):
        found = _gradient(logits, label, weight, alpha, gamma)
        if found.shape == gradient.shape:
            return found
        return lax.dynamic_update_slice_in_dim(gradient, found, first, axis=-2)

    gradient = _in_pieces(write, jnp.zeros_like(logits), logits, label, weight * cotangent)
    return gradient, None, None


_focal_loss: Any = jax.custom_vjp(_value, nondiff_argnums=(3, 4))
_focal_loss.defvjp(_forward, _backward)

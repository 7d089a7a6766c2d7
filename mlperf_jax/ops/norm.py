"""Batch normalisation over a chosen span of the global batch.

B batch · N span (rows that share statistics) · G groups, B / N · C channels · ... spatial axes
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from mlperf_jax.errors import UserError
from mlperf_jax.ops.instance_norm import moments


def layer_norm(
    features: int, epsilon: float, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs
) -> nnx.LayerNorm:
    """Over the last axis; statistics, gain and shift in promote_types(dtype, f32).

    The variance is that of the centred values: E[x^2] - E[x]^2 is wrong where the mean is large.
    """
    return nnx.LayerNorm(
        features,
        epsilon=epsilon,
        dtype=dtype,
        param_dtype=jnp.promote_types(dtype, jnp.float32),
        use_fast_variance=False,
        rngs=rngs,
    )


class BatchNorm(nnx.Module):
    """Batch normalisation with statistics over `span` consecutive rows of the global batch.

    In training, row b is normalised by mean and biased variance of the rows of its group
    `b // span`, whatever the mesh; the running statistics move towards the mean over groups of group
    mean and unbiased group variance (TensorFlow's and torch's convention; Flax feeds the biased
    one). In evaluation, `nnx.view(model, use_running_average=True)`, the running ones are used.

    Padding rows, which a mask tells, count in no statistics; a group of nothing but padding counts in no
    running average. What comes out in their place is finite and means nothing.

    Each row's mean and variance are taken first, in `promote_types(x.dtype, f32)` and one pass over the
    activations (`instance_norm.moments`), as networks with batch norm are bound by memory; a group's variance is
    the mean of its rows' and the variance of their means. So nothing cancels where a channel's mean is far
    larger than its spread (values of 16 bits have lost that themselves: they are neither shifted nor centred), and
    only [B, C] arrays are ever regrouped: where a group lies within a device no
    statistics cross devices, and where it does not only [G, C] sums do.

    >>> norm = BatchNorm(8, span=16, rngs=nnx.Rngs(0))
    >>> norm(jnp.ones([32, 4, 4, 8])).shape
    (32, 4, 4, 8)
    """

    def __init__(
        self,
        features: int,
        *,
        span: int | None = None,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        scale_init: nnx.Initializer = nnx.initializers.ones,
    ):
        """Makes parameters `scale`, `bias` [C] and statistics `mean`, `var` [C].

        Args:
          features: number of channels C, the last axis of the input.
          span: rows that share statistics; None is the whole batch.
          momentum: decay of the running averages (torch's momentum is 1 - this).
          epsilon: added to the variance.
          dtype: of the output. Parameters are kept in at least float32.
          rngs: key of `scale_init`.
          scale_init: `nnx.initializers.zeros` for the last norm of a residual branch (zero-gamma).
        """
        if span is not None and span < 1:
            raise UserError(
                f"batch norm: span is {span}; give a number of rows of at least 1, or None for the whole batch"
            )
        kept = jnp.promote_types(dtype, jnp.float32)
        self.scale = nnx.Param(scale_init(rngs.params(), (features,), kept))
        self.bias = nnx.Param(jnp.zeros((features,), kept))
        self.mean = nnx.BatchStat(jnp.zeros((features,), kept))
        self.var = nnx.BatchStat(jnp.ones((features,), kept))
        self.span = span
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.use_running_average = False

    def set_view(self, use_running_average: bool | None = None):
        """Switches between batch and running statistics; called by `nnx.view`."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Normalises x.

        Args:
          x: [B, ..., C].
          mask: bool [B], False for padding; None: there is none. Only training looks at it.

        Returns:
          [B, ..., C] in `dtype`.

        Raises:
          UserError: in training, if B is less than the span or not a multiple of it.
        """
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        scale, bias = self.scale[...], self.bias[...]
        if self.use_running_average:
            gain = scale * lax.rsqrt(self.var[...] + self.epsilon)  # [C]
            shift = bias - self.mean[...] * gain
        else:
            span = _checked_span(x.shape[0], self.span)
            real = None if mask is None else mask.reshape(-1, span, 1)  # [G, N, 1]
            exact = jnp.finfo(x.dtype).bits > 16
            rows = moments(wide, shift=exact)  # [B, 1, ..., C]
            mean, var = _group_moments(*rows, span, real, exact)  # [G, C]
            self._update(mean, var, span, math.prod(x.shape[1:-1]), real)
            gain = scale * lax.rsqrt(var + self.epsilon)
            gain, shift = (_to_rows(v, span, x.ndim) for v in (gain, bias - mean * gain))
        return (wide * gain + shift).astype(self.dtype)

    def _update(
        self, mean: jax.Array, var: jax.Array, span: int, values: int, real: jax.Array | None
    ):
        """Moves the running statistics towards the mean over groups, of rows of so many values each."""
        keep: float | jax.Array = self.momentum
        if real is None:
            n = span * values
            mean, var = mean.mean(0), var.mean(0) * (n / max(n - 1, 1))
        else:
            n = real.sum(1).astype(mean.dtype) * values  # [G, 1]
            groups = jnp.sum(n > 0).astype(mean.dtype)
            var = var * n / jnp.maximum(n - 1, 1)
            # a group without rows has zeros
            mean, var = (v.sum(0) / jnp.maximum(groups, 1) for v in (mean, var))
            keep = jnp.where(groups > 0, self.momentum, 1)
        mean, var = lax.stop_gradient((mean, var))
        for kept, found in ((self.mean, mean), (self.var, var)):
            kept[...] = (keep * kept[...] + (1 - keep) * found).astype(kept[...].dtype)


def _checked_span(rows: int, span: int | None) -> int:
    if span is None or span == rows:
        return rows
    if rows < span:
        raise UserError(
            f"batch norm: the batch has {rows} rows, fewer than the span of {span} that share "
            "statistics; raise the batch size, or lower bn_span"
        )
    if rows % span:
        raise UserError(
            f"batch norm: the batch of {rows} rows is not a multiple of the span of {span}; "
            "choose a batch size that is, or another bn_span"
        )
    return span


def _group_moments(
    means: jax.Array, variances: jax.Array, span: int, real: jax.Array | None, exact: bool
) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance [G, C] of groups of `span` rows from the rows' own [B, 1, ..., C].

    Exact, the rows' means are taken less the group's, which a group over several devices must sum first.
    """
    means, variances = (v.reshape(-1, span, v.shape[-1]) for v in (means, variances))  # [G, N, C]
    if real is not None:  # padding may be NaN, in gradients too
        means, variances = (jnp.where(real, v, 0) for v in (means, variances))

    def over_rows(v):
        if real is None:
            return v.mean(1)
        return jnp.where(real, v, 0).sum(1) / jnp.maximum(real.sum(1), 1).astype(v.dtype)

    mean = over_rows(means)
    if not exact:
        return mean, jnp.maximum(over_rows(variances + jnp.square(means)) - jnp.square(mean), 0)
    return mean, over_rows(variances + jnp.square(means - mean[:, None]))


def _to_rows(v: jax.Array, span: int, ndim: int) -> jax.Array:
    """Repeats [G, C] over the rows of each group: [B, 1, ..., C], or [C] for a single group."""
    if v.shape[0] == 1:
        return v[0]
    # a broadcast and a reshape stay on their device; jnp.repeat would gather
    rows = jnp.broadcast_to(v[:, None], (v.shape[0], span, v.shape[1]))
    return rows.reshape(-1, *(1,) * (ndim - 2), v.shape[1])

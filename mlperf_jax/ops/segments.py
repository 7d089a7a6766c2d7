"""Sums and softmax over segments: runs or scatterings of rows that go by one number, such as the edges of a node.

Padding, empty segments and numbers beyond the last segment are allowed, forwards and backwards.

E elements · S segments · ... trailing axes, each treated by itself
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def segment_sum(
    values: jax.Array,
    segments: jax.Array,
    count: int,
    *,
    real: jax.Array | None = None,
    ascending: bool = False,
) -> jax.Array:
    """Sums of values by segment, added up in at least float32.

    Args:
      values: [E, ...].
      segments: [E] int, the segment of each element, from 0; S or more is no segment.
      count: S.
      real: [E] bool, what counts; None: everything. What does not count may even be NaN.
      ascending: whether `segments` never falls, padding included. TPUs then skip a sort; if it is
        not so, results are undefined.

    Returns:
      [S, ...] in promote_types(dtype, f32); 0 for an empty segment.

    >>> segment_sum(jnp.array([1.0, 2, 4]), jnp.array([0, 2, 2]), 3).tolist()
    [1.0, 0.0, 6.0]
    """
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    if real is not None:
        values = jnp.where(_beside(real, values), values, 0)
    return jax.ops.segment_sum(values, segments, count, indices_are_sorted=ascending)


def segment_softmax(
    scores: jax.Array,
    segments: jax.Array,
    count: int,
    *,
    real: jax.Array | None = None,
    ascending: bool = False,
) -> jax.Array:
    """Softmax of scores among the elements of the same segment, in at least float32.

    Equal elements count as often as they are there. Gradients are finite whatever the scores are, and 0
    into what does not count.

    Args:
      scores: [E, ...].
      segments, count, real, ascending: as of `segment_sum`.

    Returns:
      [E, ...] in promote_types(dtype, f32), of sum 1 in each segment that has an element; 0 for
      elements that do not count or lie in no segment.

    >>> segment_softmax(jnp.array([3.0, 3.0, 9.0]), jnp.array([0, 0, 2]), 3).tolist()
    [0.5, 0.5, 1.0]
    """
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    inside = segments < count
    inside = _beside(inside if real is None else inside & real, scores)
    masked = jnp.where(inside, lax.stop_gradient(scores), -jnp.inf)
    highest = jax.ops.segment_max(masked, segments, count, indices_are_sorted=ascending)
    # before exp, so that no infinity meets a slope of 0
    scores = jnp.where(inside, scores - _of_segment(highest, segments, ascending), 0)
    weights = jnp.where(inside, jnp.exp(scores), 0)
    totals = jax.ops.segment_sum(weights, segments, count, indices_are_sorted=ascending)
    return weights / jnp.where(inside, _of_segment(totals, segments, ascending), 1)


def _beside(real: jax.Array, values: jax.Array) -> jax.Array:
    return real.reshape(real.shape + (1,) * (values.ndim - 1))


def _of_segment(values: jax.Array, segments: jax.Array, ascending: bool) -> jax.Array:
    """[S, ...] -> [E, ...]."""
    return values.at[segments].get(mode="clip", indices_are_sorted=ascending)

"""Optimizers for embedding tables that touch only the rows a batch used.

A table is a dict: `rows` [R, W] and the optimizer's slots. `update(table, ids, grads)` takes ids of any
shape and gradients [*ids.shape, W]; repeated ids are summed first, as a dense gradient would be, so a
row is updated once per step. Nothing of size [R, W] is made besides the table itself. For sums of rows
spread over a mesh `ops.embedding.update` takes the gradients of the sums and the optimizer's `step`.

A learning rate is a number, or a schedule of the count of updates done before (int32 scalar, 0 at the
first), which is the count that schedules of the other weights' optimizer read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from mlperf_jax.ops import embedding_rows

TableState = dict[str, jax.Array]
Mean = Callable[[jax.Array], jax.Array]
Rate = float | Callable[[jax.Array], jax.typing.ArrayLike]


@dataclass(frozen=True)
class RowOptimizer:
    """A rule for rows; a gradient of zero must change nothing.

    Attributes:
        init: rows [R, W] -> slots, [R, W] or [R] each.
        step: (slots of n rows, their gradients [n, W], mean, count) -> (change of the rows [n, W], new
            slots). `mean` [n, W] -> [n] is over the whole width, also where a device holds some columns;
            `count` is of the updates done before.
        accumulators: slots per weight, for plans.
    """

    init: Callable[[jax.Array], TableState]
    step: Callable[[TableState, jax.Array, Mean, jax.Array], tuple[jax.Array, TableState]]
    accumulators: float = 0.0

    def update(
        self, table: TableState, ids: jax.Array, grads: jax.Array, count: jax.Array
    ) -> TableState:
        """The table after one step; an id of R or more is ignored.

        All look-ups at once and not in chunks: the compiler may spread this over a mesh, and would put
        exchanges into a loop over chunks.
        """
        flat = jnp.asarray(ids).reshape(-1)
        grads = jnp.asarray(grads).reshape(flat.shape[0], -1)
        end = table["rows"].shape[0]
        flat = jnp.where(flat < end, flat, end + jnp.arange(flat.shape[0], dtype=flat.dtype))
        unique, sums = embedding_rows.sum_duplicates(flat, grads, end)
        step = embedding_rows.counted(self.step, count)
        return embedding_rows.step_rows(table, unique, sums, step)


def sgd(learning_rate: Rate) -> RowOptimizer:
    """Plain gradient descent on the rows used.

    >>> halved = sgd(lambda count: 0.5**count)
    >>> change, _ = halved.step({}, jnp.ones((1, 2)), None, jnp.int32(3))
    >>> change.tolist()
    [[-0.125, -0.125]]
    """

    def step(
        slots: TableState, grads: jax.Array, mean: Mean, count: jax.Array
    ) -> tuple[jax.Array, TableState]:
        return -_rate(learning_rate, count, grads) * grads, {}

    return RowOptimizer(lambda rows: {}, step)


def adagrad(learning_rate: Rate, epsilon: float = 1e-8, initial: float = 0.0) -> RowOptimizer:
    """Adagrad with one accumulator per element: a += g²; row -= lr·g / (√a + ε).

    The form of torch.optim.Adagrad: ε outside the root.
    """
    return _adagrad(learning_rate, epsilon, initial, by_row=False)


def rowwise_adagrad(
    learning_rate: Rate, epsilon: float = 1e-8, initial: float = 0.0
) -> RowOptimizer:
    """Adagrad with one accumulator per row, the mean of its squared gradients."""
    return _adagrad(learning_rate, epsilon, initial, by_row=True)


def _adagrad(learning_rate: Rate, epsilon: float, initial: float, by_row: bool) -> RowOptimizer:
    def init(rows: jax.Array) -> TableState:
        return {"accumulator": jnp.full(rows.shape[: 1 if by_row else 2], initial, rows.dtype)}

    def step(
        slots: TableState, grads: jax.Array, mean: Mean, count: jax.Array
    ) -> tuple[jax.Array, TableState]:
        squares = slots["accumulator"] + (mean(grads**2) if by_row else grads**2)
        below = jnp.sqrt(squares) + epsilon
        change = -_rate(learning_rate, count, grads) * grads / (below[:, None] if by_row else below)
        return change, {"accumulator": squares}

    return RowOptimizer(init, step, accumulators=0.0 if by_row else 1.0)


def _rate(learning_rate: Rate, count: jax.Array, like: jax.Array) -> jax.Array:
    return jnp.asarray(
        learning_rate(count) if callable(learning_rate) else learning_rate, like.dtype
    )

"""Sums of table rows by bag, and row updates by bag gradients, on one device.

Neither makes a row or a gradient per look-up beyond a chunk of them: a batch of 65,536 samples with 214
look-ups of width 128 would take 7 GB for each.

M look-ups · G bags · R rows · W width
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mlperf_jax.ops import hints, shard

Table = dict[str, jax.Array]
Step = Callable[..., tuple[jax.Array, Table]]

# Look-ups handled at a time: 2 MB of float32 rows of width 128, which caches hold; on a GPU so many that its threads
# have work, 256 MB: DLRM-DCNv2's 55,296 samples on one take 23 turns and not 2,889.
CHUNK = 4096
GPU_CHUNK = 1 << 19


def counted(step: Step, count: jax.Array) -> Step:
    """A row optimizer's step at this count of updates, as the functions here take it."""
    return lambda *given: step(*given, count)


def mean_of_row(values: jax.Array) -> jax.Array:
    """[M, W] -> [M]: the mean that row-wise optimizers take where a device has whole rows."""
    return jnp.mean(values, -1)


def fixed_bags(rows: jax.Array, ids: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Sums of `sizes[t]` rows for each sample and table.

    Args:
        rows: [R, W].
        ids: [B, sum(sizes)] row numbers, bag after bag.
        sizes: look-ups by table.

    Returns:
        [B, T, W]; a row looked up twice counts twice.
    """
    bags: dict[int, jax.Array] = {}
    for tables, columns in _by_size(sizes):
        sums = _bags(rows, ids[:, columns])
        bags |= {table: sums[:, at] for at, table in enumerate(tables)}
    return jnp.stack([bags[table] for table in range(len(sizes))], 1)


def _bags(rows: jax.Array, ids: jax.Array) -> jax.Array:
    """Sums [B, t, W] for ids [B, t, K]."""

    def one(k: int | jax.Array) -> jax.Array:
        column = lax.dynamic_index_in_dim(ids, k, 2, keepdims=False)
        return rows.at[column].get(mode="promise_in_bounds")

    if shard.platform() == "gpu":  # one kernel: the sum reads the rows where they are
        return rows.at[ids].get(mode="promise_in_bounds").sum(2)
    if ids.shape[2] == 1:
        return one(0)
    # XLA:CPU gathers into a new array before it sums: 3.74 times as long for a bag of 27
    return lax.fori_loop(1, ids.shape[2], lambda k, total: total + one(k), one(0))


def _by_size(sizes: Sequence[int]) -> list[tuple[list[int], np.ndarray]]:
    """Tables of equal bag size, and their columns of ids [t, K]: few programs for many tables."""
    first = np.cumsum([0, *sizes])
    found = []
    for size in dict.fromkeys(sizes):
        tables = [table for table, other in enumerate(sizes) if other == size]
        found.append((tables, first[tables][:, None] + np.arange(size)))
    return found


def loose_bags(rows: jax.Array, ids: jax.Array, bags: jax.Array, count: int) -> jax.Array:
    """Sums of rows by bag number: [count, W].

    Look-ups of a bag that follow one another are summed in the chunk, so a sum is read and written once
    for such a run and not for each row.

    Args:
        rows: [R, W].
        ids: [M] row numbers.
        bags: [M] the bag of each look-up; `count` or more for those that are not to be counted.
        count: G.
    """
    (ids, bags), chunk = _chunked((ids, bags), (0, count))
    places = jnp.arange(chunk, dtype=bags.dtype)

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        at, bag = (lax.dynamic_slice_in_dim(x, i * chunk, chunk) for x in (ids, bags))
        run = jnp.cumsum(bag != jnp.roll(bag, 1).at[0].set(bag[0]), dtype=bag.dtype)
        found = rows.at[at].get(mode="promise_in_bounds")
        sums = jnp.zeros_like(found).at[run].add(found, indices_are_sorted=True)
        where = (count + places).at[run].set(bag, indices_are_sorted=True)
        return total.at[where].add(sums, mode="drop")

    zeros = jnp.zeros((count, rows.shape[1]), rows.dtype)
    return lax.fori_loop(0, ids.shape[0] // chunk, add, zeros)


def update_rows(
    table: Table,
    ids: jax.Array,
    bags: jax.Array,
    grads: jax.Array,
    step: Step,
    mean: Callable[[jax.Array], jax.Array] = mean_of_row,
) -> Table:
    """The table after one step on the rows looked up; the rest stays as it is, bit for bit.

    Look-ups are sorted by row; chunk after chunk, the gradients of equal rows are summed, then each row
    is read, stepped and written once. A row whose look-ups run on into the next chunk waits for it, so
    all duplicates are summed before the step, as a dense gradient would be.

    Args:
        table: "rows" [R, W] and the optimizer's slots, [R, W] or [R].
        ids: [M] row numbers; R or more is no look-up.
        bags: [M] which gradient belongs to a look-up.
        grads: [G, W], of the sums that the bags are.
        step: (slots of rows, gradients [n, W], mean) -> (change of rows [n, W], new slots).
        mean: over the width, also where a device holds some columns only.
    """
    count = table["rows"].shape[0]
    ids, bags = lax.sort((ids, bags), num_keys=1)
    real = jnp.sum(ids < count)
    # at least one place beyond the last look-up, so that no row is left waiting
    (ids, bags), chunk = _chunked((ids, bags), (count, 0), spare=1)
    places = jnp.arange(chunk + 1, dtype=ids.dtype)

    def body(i: jax.Array, carry: tuple[Table, jax.Array, jax.Array]) -> tuple:
        table, waiting, total = carry
        at, bag = (lax.dynamic_slice_in_dim(x, i * chunk, chunk) for x in (ids, bags))
        run = jnp.cumsum(at != jnp.concatenate([waiting[None], at[:-1]]), dtype=ids.dtype)
        found = jnp.where((at < count)[:, None], grads.at[bag].get(mode="promise_in_bounds"), 0)
        # run 0 is the row that waited; what no run fills points past the table's end
        sums = jnp.zeros((chunk + 1, grads.shape[1]), grads.dtype)
        sums = sums.at[0].set(total).at[run].add(found, indices_are_sorted=True)
        row = (count + places).at[0].set(waiting).at[run].set(at, indices_are_sorted=True)
        last = run[-1]
        row = jnp.where((places < last) & (row < count), row, count + places)
        return step_rows(table, row, sums, step, mean), at[-1], sums[last]

    start = (table, ids[0], jnp.zeros_like(grads, shape=grads.shape[1:]))
    with hints.turns(ids.shape[0] // chunk):
        return lax.fori_loop(0, real // chunk + 1, body, start)[0]


def sum_duplicates(ids: jax.Array, grads: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Each used id once, in order, with the sum of its gradients, all look-ups at once.

    Args:
        ids: [M] row numbers.
        grads: [M, W].
        count: R; unused places of the result get ids from R on, which `step_rows` ignores.

    Returns:
        ids [M] and gradients [M, W].
    """
    order = jnp.argsort(ids)
    at = ids[order]
    first = jnp.concatenate([jnp.ones(1, bool), at[1:] != at[:-1]])
    run = jnp.cumsum(first) - 1
    sums = jax.ops.segment_sum(grads[order], run, len(ids), indices_are_sorted=True)
    beyond = count + len(ids) + jnp.arange(len(ids), dtype=ids.dtype)
    unique = beyond.at[run].set(at)
    return unique, sums


def step_rows(table: Table, row: jax.Array, sums: jax.Array, step: Step, mean=mean_of_row) -> Table:
    """The table after a step on these rows [n], each once and in order; R or more is no row."""
    known: Any = {"indices_are_sorted": True, "unique_indices": True}
    slots = {
        name: leaf.at[row].get(mode="fill", fill_value=1, **known)
        for name, leaf in table.items()
        if name != "rows"
    }
    change, new = step(slots, sums, mean)
    written = {n: table[n].at[row].set(x, mode="drop", **known) for n, x in new.items()}
    rows = table["rows"].at[row].add(change.astype(table["rows"].dtype), mode="drop", **known)
    return {"rows": rows, **written}


def update_all(table: Table, grads: jax.Array, step: Step, mean=mean_of_row) -> Table:
    """The table after one step with a gradient for every row [R, W]: for tables smaller than a batch."""
    slots = {name: leaf for name, leaf in table.items() if name != "rows"}
    change, new = step(slots, grads, mean)
    return {"rows": table["rows"] + change.astype(table["rows"].dtype), **new}


def summed_by_row(ids: jax.Array, grads: jax.Array, sizes: Sequence[int], count: int) -> jax.Array:
    """The dense gradient [count, W] of fixed bags with ids [B, sum(sizes)] and gradients [B, T, W]."""
    total = jnp.zeros((count, grads.shape[-1]), grads.dtype)
    for tables, columns in _by_size(sizes):
        part, grad = ids[:, columns], grads[:, np.asarray(tables)]

        def add(k: int | jax.Array, total: jax.Array, part=part, grad=grad) -> jax.Array:
            column = lax.dynamic_index_in_dim(part, k, 2, keepdims=False)
            return total.at[column].add(grad, mode="drop")

        total = lax.fori_loop(0, part.shape[2], add, total)
    return total


def _chunked(arrays, fill, spare: int = 0):
    """The arrays [M] lengthened to whole chunks, and a chunk's length."""
    length = arrays[0].shape[0] + spare
    chunk = min(GPU_CHUNK if shard.platform() == "gpu" else CHUNK, length)
    more = -(-length // chunk) * chunk - arrays[0].shape[0]
    return [jnp.pad(a, (0, more), constant_values=f) for a, f in zip(arrays, fill)], chunk

"""The words a benchmark states itself in: shapes of its examples, targets, losses, tables, start weights.

Shape legend: B rows of the global batch · K ids of a row · T tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.ops.embedding_plan import Store
from mlperf_jax.optimizers.rows import RowOptimizer

Shape = jax.ShapeDtypeStruct
Example = Mapping[str, Shape]
Array = jax.Array | np.ndarray
Batch = Mapping[str, Array]
Reader = Callable[[tuple[slice, ...]], np.ndarray]


def f32(*shape: int) -> Shape:
    """One example's array of float32 of this shape, for `Benchmark.example`."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def i32(*shape: int) -> Shape:
    """One example's array of int32 of this shape, for `Benchmark.example`."""
    return jax.ShapeDtypeStruct(shape, jnp.int32)


@dataclass(frozen=True)
class Target:
    """A bound that one named quality must meet; a run ends when all of its targets are met at once.

    >>> Target("accuracy", at_least=0.759).met({"accuracy": 0.76})
    True
    """

    name: str
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None and self.above is None:
            raise UserError(
                f"target {self.name!r} states no bound: give at_least, at_most or above"
            )

    def met(self, quality: Mapping[str, float]) -> bool:
        """Whether the value of this name is inside the bounds; NaN never is."""
        value = quality[self.name]
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and value == value
        )

    def __str__(self) -> str:
        bounds = ((">=", self.at_least), ("<=", self.at_most), (">", self.above))
        return " and ".join(f"{self.name} {sign} {b:g}" for sign, b in bounds if b is not None)


@dataclass(frozen=True)
class Start:
    """Weights to begin from, read during initialisation straight onto the mesh.

    Attributes:
        weights: path in the state ("params/head/kernel", "frozen/…", "tables/…") to the whole array, or
            to a function of index slices that returns that part, so that no host holds a whole model.
            Paths left out keep their random initialisation.
        optimizer_step: what the optimizer's own count starts from; schedules read it.
        moments: the optimizer's arrays of one per parameter, by their name in its state ("mu" and "nu"
            of Adam) and the parameter's path; a replaced optimizer without that name begins afresh.
    """

    weights: Mapping[str, np.ndarray | Reader]
    optimizer_step: int = 0
    moments: Mapping[str, Mapping[str, np.ndarray | Reader]] = dataclasses.field(
        default_factory=dict
    )


@dataclass(frozen=True)
class Weighted:
    """A loss whose mean runs over something other than rows (tokens, valid labels).

    `Benchmark.loss` returns it instead of a scalar; totals and weights are added over micro-batches
    before the division, so gradient accumulation does not change the mean.
    """

    total: jax.Array
    weight: jax.Array


@dataclass(frozen=True)
class Table:
    """A table whose rows a batch looks up: updated row by row, never through a dense gradient, or never.

    An untrained table (features that belong to the data) has no gradient, optimizer or average, and is in
    no checkpoint and not in `parameters_sha256`: a run, its resumption, and whoever loads it make it by
    `init` and then read what the start weights give as "tables/<name>/rows", each device its own part.

    Attributes:
        rows, width: the table is [rows, width].
        init: (key, shape, dtype) -> initial rows.
        optimizer: a row optimizer of `mlperf_jax.optimizers.rows`; None: the table is not trained.
        dtype: of the rows of an untrained table (float16, int8 …), in which the loss gets them too; a
            trained one is kept in float32, or float64.
        store: None, or the `mlperf_jax.ops.embedding_plan.Store` of bags whose tables share this array.
            The loss then finds the sums [B, T, width] of the rows looked up and not the rows, which
            leave the devices that hold them only as sums; the store says where the array lives.
    """

    rows: int
    width: int
    init: Callable[..., jax.Array]
    optimizer: RowOptimizer | None
    store: Store | None = None
    dtype: jax.typing.DTypeLike | None = None

    def __post_init__(self) -> None:
        if self.optimizer is None and self.store is not None:
            raise UserError(
                "a table without an optimizer has no store, which sums rows: leave it out"
            )
        if self.optimizer is not None and self.dtype is not None:
            raise UserError(
                f"a table with an optimizer is kept in float32, not {jnp.dtype(self.dtype)}, which would "
                "lose its small steps: leave dtype out"
            )

    @property
    def parameters(self) -> int:
        """Trained weights: none of an untrained table, and not those that only fill up a store's bins."""
        if self.optimizer is None:
            return 0
        return self.rows * self.width if self.store is None else self.store.parameters

"""The words a benchmark states itself in: shapes of its examples, targets, losses, tables, start weights,
the games of data that it makes itself.

Shape legend: B rows of the global batch · K ids of a row · T tables · G games of one device's share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.core.fields import Count, Range, check_fields
from mlperf_jax.errors import UserError, did_you_mean
from mlperf_jax.ops.embedding_plan import Store
from mlperf_jax.ops.row_store import RowStore
from mlperf_jax.optimizers.rows import RowOptimizer
from mlperf_jax.results import rules

Shape = jax.ShapeDtypeStruct
Example = Mapping[str, Shape]
Array = jax.Array | np.ndarray
Batch = Mapping[str, Array]
Reader = Callable[[tuple[slice, ...]], np.ndarray]
# records of games, [G, …]; or [G, most, …] with how many of each are real
Generated = Mapping[str, jax.Array] | tuple[Mapping[str, jax.Array], jax.Array]
# what a benchmark's rounds never had: reference convergence points, a ruleset that today's official checker
# has, something to draw, training data in files (the model makes them)
Absence = Literal["recipes", "ruleset", "pictures", "training files"]


def f32(*shape: int) -> Shape:
    """One example's array of float32 of this shape, for `Benchmark.example`."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def i32(*shape: int) -> Shape:
    """One example's array of int32 of this shape, for `Benchmark.example`."""
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def differences(
    found: Mapping[str, Array | Shape], wanted: Mapping[str, Array | Shape]
) -> list[tuple[str, str, str]]:
    """Name, kind found and kind wanted of each array that is missing, one too many or of another kind.

    >>> differences({"x": f32(4), "y": i32()}, {"x": f32(3), "y": i32()})
    [('x', 'float32[4]', 'float32[3]')]
    """
    are, should_be = (
        {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()}
        for leaves in (found, wanted)
    )
    pairs = [
        (name, are.get(name, "nothing"), should_be.get(name, "nothing"))
        for name in sorted({*are, *should_be})
    ]
    return [pair for pair in pairs if pair[1] != pair[2]]


@dataclass(frozen=True)
class Bucket:
    """One of the shapes that batches come in.

    Attributes:
        rows: B of the global batch.
        example: shape and dtype of one row by array.
    """

    rows: int
    example: Example

    @classmethod
    def each(cls, rows: int, examples: Example | tuple[Example, ...]) -> tuple[Bucket, ...]:
        """So many rows of one example, or of each of several."""
        several = (examples,) if isinstance(examples, Mapping) else examples
        return tuple(cls(rows, example) for example in several)


@dataclass(frozen=True)
class Target(rules.Target):
    """Bounds that one named quality must meet; a run ends when all of its targets are met at once.

    >>> Target("accuracy", at_least=0.759).met({"accuracy": 0.76})
    True
    """

    def __post_init__(self) -> None:
        check_fields(self)
        lower = [bound for bound in (self.at_least, self.above) if bound is not None]
        if not lower and self.at_most is None:
            raise UserError(
                f"target {self.name!r} states no bound: give at_least, at_most or above"
            )
        if self.at_most is not None and (
            self.above == self.at_most or any(bound > self.at_most for bound in lower)
        ):
            raise UserError(f"target {self}: no value is inside both bounds")

    def __str__(self) -> str:
        bounds = ((">=", self.at_least), ("<=", self.at_most), (">", self.above))
        return " and ".join(f"{self.name} {sign} {b:g}" for sign, b in bounds if b is not None)


def check_targets(benchmark: str, metric: Any, targets: Sequence[Target]) -> None:
    """Nothing, if each target names a quality that the metric gives, and bounds that it can have."""
    for member in ("mode", "rows", "ranges", "result", "sums"):
        needed = member != "sums" or not metric.rows
        if needed and not hasattr(metric, member):
            raise UserError(
                f"the metric {type(metric).__name__} has no {member}: see Metric in "
                "mlperf_jax/core/protocols.py"
            )
    ranges = metric.ranges
    for target in targets:
        if target.name not in ranges:
            raise UserError(
                f"targets: the metric of {benchmark} gives no {target.name!r}"
                f"{did_you_mean(target.name, list(ranges))}"
            )
        low, high = ranges[target.name]
        bounds = [b for b in (target.at_least, target.at_most, target.above) if b is not None]
        if target.above == high or any(not low <= bound <= high for bound in bounds):
            raise UserError(f"targets: {target} cannot be: {target.name} is {Range(low, high)}")


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

    `Benchmark.loss` returns it instead of a scalar, or several by name, whose means are added: {"masked":
    Weighted(…), "next": Weighted(…)}. Each mean is over the whole batch, as totals and weights are added over
    micro-batches before the division: gradient accumulation changes nothing. Weights that follow from the
    batch alone make several means cost what one costs (`core/gradients.py`).
    """

    total: jax.Array
    weight: jax.Array


Loss = jax.Array | Weighted | Mapping[str, jax.Array | Weighted]


@dataclass(frozen=True)
class Table:
    """A table whose rows a batch looks up: updated row by row, never through a dense gradient, or never.

    An untrained table (features that belong to the data) has no gradient, optimizer or average, and is in
    no checkpoint and not in `parameters_sha256`: a run, its resumption, and whoever loads it make it by
    `init` and then read `data`, each device its own part.

    Attributes:
        rows, width: the table is [rows, width].
        init: (key, shape, dtype) -> initial rows.
        optimizer: a row optimizer of `mlperf_jax.optimizers.rows`; None: the table is not trained.
        dtype: of the rows of an untrained table (float16, int8 …), in which the loss gets them too; a
            trained one is kept in float32, or float64.
        store: None, or what says where the array lives. Of a trained table, the
            `mlperf_jax.ops.embedding_plan.Store` of bags whose tables share this array: the loss then finds the
            sums [B, T, width] of the rows looked up and not the rows, which leave the devices that hold them
            only as sums. Of an untrained one, the `mlperf_jax.ops.row_store.RowStore` of its rows, which are
            sent to the devices that look them up.
        data: the data's folder -> what reads the rows of an untrained table, called when the clock runs (and
            before, to refuse a folder that misses them); None where the start weights have them as
            "tables/<name>/rows", or `init` does.
    """

    rows: int
    width: int
    init: Callable[..., jax.Array]
    optimizer: RowOptimizer | None
    store: Store | RowStore | None = None
    dtype: jax.typing.DTypeLike | None = None
    data: Callable[[str], Reader] | None = None

    def __post_init__(self) -> None:
        wanted = RowStore if self.optimizer is None else Store
        if self.store is not None and not isinstance(self.store, wanted):
            which = "without" if self.optimizer is None else "with"
            raise UserError(
                f"a table {which} an optimizer has a {wanted.__name__} for its store, not a "
                f"{type(self.store).__name__}"
            )
        if self.optimizer is not None and self.data is not None:
            raise UserError("a table with an optimizer has no data: give its rows as start weights")
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
        if isinstance(self.store, Store):
            return self.store.parameters
        return self.rows * self.width


@dataclass(frozen=True)
class Parts:
    """How a generation of self-made data is divided: `count` parts, of `games` games each.

    The games of a part are played at once, spread over the devices, and their records are on the disk
    before the next part begins. So the records of a part, padded, must fit the devices' memory, and a kill
    loses one part.
    """

    count: Count
    games: Count

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Games:
    """What `Benchmark.generate` plays: one device's share of the games of a part.

    Attributes:
        keys: [G] random keys, each a function of the run's seed, the generation and the game's number.
        numbers: [G] int32, the games' numbers within their generation.
        generation: int32, its number, from 0.
        prompts: arrays [G, …] as `Benchmark.prompt` describes them; empty where it describes none.
    """

    keys: jax.Array
    numbers: jax.Array
    generation: jax.Array
    prompts: Batch

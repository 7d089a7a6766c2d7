"""The contract: what a benchmark states, and all that the core may know of it.

A benchmark is a frozen dataclass. Its fields are the rule's hyperparameters and its sizes; its methods
say what is trained, on what, how, and to which quality. It never touches a mesh, jit, a clock or a log.

Shape legend: B rows of the global batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import jax
import numpy as np

from mlperf_jax.core.fields import (
    Count,
    Fraction,
    Positive,
    Range,
    Samples,
    Several,
    check_fields,
    did_you_mean,
)
from mlperf_jax.core.terms import (
    Array,
    Batch,
    Example,
    Shape,
    Start,
    Table,
    Target,
    Weighted,
    f32,
    i32,
)
from mlperf_jax.errors import UserError

__all__ = [
    "Array",
    "Batch",
    "Benchmark",
    "Example",
    "Shape",
    "Start",
    "Table",
    "Target",
    "Weighted",
    "f32",
    "i32",
]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Base of every benchmark: common fields, and a default for what most need not state.

    Subclasses add fields and must give `example`, `model`, `optimizer`, `loss`, `predict`,
    `train_data`, `eval_data`, `eval_steps`, `counts`, `log`, `tiny`.
    """

    # class attributes: what does not vary with a recipe
    name: ClassVar[str]
    ruleset: ClassVar[str]
    metric: ClassVar[Any]
    parameters: ClassVar[int]  # trained ones at full size, as the reference counts them
    frozen: ClassVar[tuple[str, ...]] = ()
    rules: ClassVar[tuple[tuple[str, Any], ...]] = ()
    # whether `train_data(...).ready(seed)` works out the order, from metadata alone, before the clock
    ready_ahead: ClassVar[bool] = False
    # samples of a picture when nobody says how many; 0: there are no pictures of this benchmark
    pictured: ClassVar[int] = 0
    # training records that a core makes a second at full size, as measured; None: nobody has measured
    records_per_core: ClassVar[int | None] = None

    # fields every benchmark has; what each may hold stands in its annotation, see `core.fields`
    size: Literal["full", "tiny"] = "full"
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    batch_size: Samples
    eval_batch_size: Samples | None = None
    gradient_accumulation_steps: Count = 1
    clip_norm: Positive | None = None
    ema_decay: Fraction | None = None
    nonfinite: Literal["abort", "skip"] = "abort"
    train_samples: Samples
    eval_samples: Samples
    sample_limit: Samples | None = None
    targets: Several[Target]

    def __post_init__(self) -> None:
        check_fields(self)
        self._check_targets()
        if self.batch_size % self.gradient_accumulation_steps:
            raise UserError(
                f"batch_size {self.batch_size} is not a multiple of gradient_accumulation_steps "
                f"{self.gradient_accumulation_steps}: choose one that divides it"
            )
        if self.batch_size > self.train_samples:
            raise UserError(
                f"batch_size {self.batch_size} exceeds the {self.train_samples} training samples: "
                "an epoch would have no batch"
            )
        if self.sample_limit is not None and self.sample_limit < self.batch_size:
            raise UserError(
                f"sample_limit {self.sample_limit} is less than one batch of {self.batch_size}"
            )

    def _check_targets(self) -> None:
        """Each target names a quality that the metric gives, and bounds that it can have."""
        ranges = self.metric.ranges
        for target in self.targets:
            if target.name not in ranges:
                raise UserError(
                    f"targets: the metric of {self.name} gives no {target.name!r}"
                    f"{did_you_mean(target.name, list(ranges))}"
                )
            low, high = ranges[target.name]
            bounds = [b for b in (target.at_least, target.at_most, target.above) if b is not None]
            if target.above == high or any(not low <= bound <= high for bound in bounds):
                raise UserError(f"targets: {target} cannot be: {target.name} is {Range(low, high)}")

    # -- what is trained -----------------------------------------------------------------------

    def example(self) -> Example | tuple[Example, ...]:
        """Shape and dtype of one example by name; a tuple where batches come in bucket shapes."""
        raise NotImplementedError

    def eval_example(self) -> Example | tuple[Example, ...]:
        """As `example`, of evaluation's batches, where they are not of training's shape."""
        return self.example()

    def model(self, rngs: Any) -> Any:
        """The Flax NNX module, freshly initialised."""
        raise NotImplementedError

    def optimizer(self, tree: Any) -> Any:
        """An optax transformation for the parameters described by a `ParamTree`."""
        raise NotImplementedError

    def loss(self, model: Any, batch: Batch, key: jax.Array) -> Any:
        """Mean loss over the rows given: a scalar or `Weighted`, optionally `(loss, scalars)`."""
        raise NotImplementedError

    def tables(self) -> Mapping[str, Table]:
        """Embedding tables that are updated row by row; none by default."""
        return {}

    def lookups(self, batch: Batch) -> Mapping[str, jax.Array]:
        """Ids [B, K] by table; the loss finds what was looked up in `batch["rows"][table]`.

        Rows [B, K, width] of a plain table. Of a store's table the ids count within their own tables,
        in the store's order, and the loss finds the sums [B, T, width] of their bags.
        """
        raise NotImplementedError

    def start(self, data_dir: str) -> Start | None:
        """Weights to begin from; None for random initialisation."""
        return None

    # -- quality -------------------------------------------------------------------------------

    def predict(self, model: Any, batch: Batch, key: jax.Array) -> Any:
        """What the metric adds up: arrays with leading axis B. `model` is the evaluation view."""
        raise NotImplementedError

    def diverged(self, quality: Mapping[str, float]) -> bool:
        """Whether an evaluation says that the run is beyond hope; it is then given up."""
        return False

    def eval_steps(self) -> Iterator[int]:
        """Increasing, endless step numbers after which quality is evaluated."""
        raise NotImplementedError

    # -- pictures ------------------------------------------------------------------------------

    def class_names(self, data_dir: str) -> Sequence[str]:
        """Names of the classes as the data have them; empty where they have none.

        Preflight refuses data with more of them than a field `classes`, where there is one, says.
        """
        return ()

    def find(self, model: Any, batch: Batch) -> Any:
        """What the model sees in a batch, to be drawn by `picture`: arrays with leading axis B.

        Unlike `predict` it takes batches of any size, and of training data too.
        """
        raise NotImplementedError

    def picture(self, batch: Batch, names: Sequence[str] = (), found: Any = None) -> Any:
        """A `PIL.Image` of the batch and its labels and, beside them, of what the model found.

        Args:
            batch: NumPy arrays, as `train_data` or `eval_data` give them.
            names: of the classes, as `class_names` gives them.
            found: what `find` gave for this batch; None draws the labels alone.

        Raises:
            UserError: there are no pictures of this benchmark.
        """
        raise UserError(f"{self.name} has no pictures")

    # -- data ----------------------------------------------------------------------------------

    def train_data(self, data_dir: str) -> Any:
        """The training `Examples`."""
        raise NotImplementedError

    def eval_data(self, data_dir: str) -> Any:
        """The evaluation `Examples`."""
        raise NotImplementedError

    def counts(self, data_dir: str) -> Mapping[str, int]:
        """Samples by split ("train", "validation") read from metadata alone; UserError if unusable."""
        raise NotImplementedError

    def prepare(self, data_dir: str, source: str | None = None) -> None:
        """Builds the data set below `data_dir`."""
        raise NotImplementedError

    def check_data(self, data_dir: str) -> list[str]:
        """Reads samples of the prepared data and returns what was found, a line each."""
        raise NotImplementedError

    # data that the model makes itself: `generate` is None unless a benchmark overrides it
    generate: ClassVar[Callable[..., Any] | None] = None

    def generated_data(self, generations: Sequence[Mapping[str, np.ndarray]]) -> Any:
        """Training `Examples` of the current generation from the sealed records, newest last."""
        raise NotImplementedError

    # -- the log and the recipes ---------------------------------------------------------------

    def log(self) -> Mapping[str, Any]:
        """mllog keys and values of this configuration, spelled as the newest ruleset spells them."""
        raise NotImplementedError

    def position(self, step: int) -> dict[str, Any]:
        """Metadata of block and evaluation lines after `step` steps.

        Epochs are counted from 1 in the log, so `epoch_num` here is the number of epochs done.
        """
        per_epoch = max(1, self.train_samples // self.batch_size)
        epochs = step / per_epoch
        return {
            "epoch_num": int(epochs) if epochs.is_integer() else epochs,
            "samples_count": step * self.batch_size,
        }

    def quality_lines(self, quality: Mapping[str, float]) -> list[tuple[Any, dict[str, Any]]]:
        """Values and metadata of the `eval_accuracy` lines of one evaluation; one line by default."""
        return [(quality[self.targets[0].name], {})]

    @property
    def last_sample(self) -> int | None:
        """The run gives up when this many samples were seen; None for never."""
        return self.sample_limit

    @property
    def flops_per_sample(self) -> float:
        """Model FLOPs to train on one sample, for MFU (no recomputation)."""
        raise NotImplementedError

    @classmethod
    def recipes(cls) -> Mapping[int, Self]:
        """Official configurations by global batch size."""
        return {}

    def tiny(self) -> Self:
        """The same code with small numbers; see DESIGN.md §4."""
        raise NotImplementedError

    # -- helpers -------------------------------------------------------------------------------

    def replace(self, **changes: Any) -> Self:
        """A copy with these fields changed.

        Raises:
            UserError: for a field that does not exist, with the nearest name.
        """
        known = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise UserError(f"{self.name} has no field {name!r}{did_you_mean(name, known)}")
        return dataclasses.replace(self, **changes)

    def examples(self) -> tuple[Example, ...]:
        """`example()` as a tuple of bucket shapes."""
        return _as_tuple(self.example())

    def eval_examples(self) -> tuple[Example, ...]:
        """`eval_example()` as a tuple of bucket shapes."""
        return _as_tuple(self.eval_example())

    @property
    def is_tiny(self) -> bool:
        return self.size == "tiny"

    @property
    def eval_batch(self) -> int:
        return self.eval_batch_size or self.batch_size

    def config(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {"benchmark": self.name, **dataclasses.asdict(self)}


def _as_tuple(examples: Example | tuple[Example, ...]) -> tuple[Example, ...]:
    return (examples,) if isinstance(examples, Mapping) else tuple(examples)

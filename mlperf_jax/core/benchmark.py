"""The contract: what a benchmark states, and all that the core may know of it.

A benchmark is a frozen dataclass. Its fields are the rule's hyperparameters and its sizes; its methods
say what is trained, on what, how, and to which quality. It never touches a mesh, jit, a clock or a log.

Shape legend: B rows of the global batch.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import numpy as np

from mlperf_jax.core.fields import check_whole, did_you_mean
from mlperf_jax.core.protocols import Metric
from mlperf_jax.core.terms import (
    Array,
    Batch,
    Bucket,
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
    "Bucket",
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
    metric: ClassVar[Metric]
    parameters: ClassVar[int]  # trained ones at full size, as the reference counts them
    frozen: ClassVar[tuple[str, ...]] = ()
    rules: ClassVar[tuple[tuple[str, Any], ...]] = ()
    # whether `train_data(...).ready(seed)` works out the order, from metadata alone, before the clock
    ready_ahead: ClassVar[bool] = False
    # samples of a picture when nobody says how many; 0: there are no pictures of this benchmark
    pictured: ClassVar[int] = 0
    # training records that a core makes a second at full size, as measured; None: nobody has measured
    records_per_core: ClassVar[int | None] = None

    # fields every benchmark has
    size: str = "full"
    dtype: str = "auto"
    batch_size: int
    eval_batch_size: int | None = None
    gradient_accumulation_steps: int = 1
    clip_norm: float | None = None
    ema_decay: float | None = None
    nonfinite: str = "abort"
    train_samples: int
    eval_samples: int
    sample_limit: int | None = None
    targets: tuple[Target, ...]

    def __post_init__(self) -> None:
        for field in ("batch_size", "gradient_accumulation_steps", "train_samples", "eval_samples"):
            check_whole(field, getattr(self, field))
        for field in ("eval_batch_size", "sample_limit"):
            check_whole(field, getattr(self, field), optional=True)
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UserError(
                f"clip_norm must be positive (None clips nothing), not {self.clip_norm}"
            )
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise UserError(
                f"ema_decay must be in [0, 1) (None averages nothing), not {self.ema_decay}"
            )
        if not self.targets:
            raise UserError("targets is empty: a run needs a quality to reach")
        if self.rows % self.gradient_accumulation_steps:
            what = "batch_size" if self.rows == self.batch_size else "rows"
            raise UserError(
                f"{what} {self.rows} is not a multiple of gradient_accumulation_steps "
                f"{self.gradient_accumulation_steps}: choose one that divides it"
            )
        if self.batch_size > self.train_samples:
            raise UserError(
                f"batch_size {self.batch_size} exceeds the {self.train_samples} training samples: "
                "an epoch would have no batch"
            )
        choices = {
            "size": ("full", "tiny"),
            "nonfinite": ("abort", "skip"),
            "dtype": ("auto", "float32", "bfloat16", "float64"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise UserError(
                    f"{field} must be one of {', '.join(allowed)}, not {getattr(self, field)!r}"
                )

    # -- samples and rows ----------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """Rows of a training array: `batch_size`, unless a row holds several samples."""
        return self.batch_size

    @property
    def eval_rows(self) -> int:
        """Rows of an evaluation array."""
        return self.eval_batch_size or self.rows

    def samples(self, step: int) -> int:
        """Samples seen after `step` steps: 0 before the first, and more after every one.

        Samples are counted in no other way. A benchmark overrides it whose batches do not all hold
        `batch_size` of them: packed rows, bucket shapes, a batch that grows.
        """
        return step * self.batch_size

    def step_of(self, samples: int) -> int:
        """The last step after which no more than so many samples were seen: `samples` inverted."""
        beyond = 1
        while self.samples(beyond) <= samples:
            beyond *= 2
        return bisect.bisect_right(range(beyond), samples, key=self.samples) - 1

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch; what is left of the training samples makes none."""
        return max(1, self.step_of(self.train_samples))

    # -- what is trained -----------------------------------------------------------------------

    def example(self) -> Example | tuple[Example, ...]:
        """Shape and dtype of one example by name; a tuple where batches come in bucket shapes."""
        raise NotImplementedError

    def eval_example(self) -> Example | tuple[Example, ...]:
        """As `example`, of evaluation's batches, where they are not of training's shape."""
        return self.example()

    def buckets(self) -> tuple[Bucket, ...]:
        """The shapes of training batches: `rows` of each example, unless the benchmark states others."""
        return _buckets(self.rows, self.example())

    def eval_buckets(self) -> tuple[Bucket, ...]:
        """As `buckets`, of evaluation's batches."""
        return _buckets(self.eval_rows, self.eval_example())

    def model(self, rngs: Any) -> Any:
        """The Flax NNX module, freshly initialised."""
        raise NotImplementedError

    def optimizer(self, tree: Any) -> Any:
        """An optax transformation for the parameters described by a `ParamTree`."""
        raise NotImplementedError

    def loss(self, model: Any, batch: Batch, key: jax.Array) -> Any:
        """Mean loss over the rows given: a scalar, `Weighted`, or several by name that are added.

        Optionally `(loss, scalars)`; scalars are logged beside the loss, and so are means by their name.
        """
        raise NotImplementedError

    def after_step(self, stats: Mapping[str, Any]) -> Mapping[str, Any]:
        """The model's statistics after an optimizer step, as they are by default.

        Called once a step, whatever the accumulation and unless bad losses skip it. What a model adds up
        from micro-batch to micro-batch, such as the tokens of each expert, is used and set to zero here.

        Args:
            stats: a nested dict of arrays: all variables of the model that are not `nnx.Param`.

        Returns:
            The same arrays with other values; they are evaluated, and the next step begins with them.
        """
        return stats

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

    def metric_from(self, data_dir: str) -> Metric:
        """The metric with what it needs of the data: a vocabulary, references, statistics, polygons.

        `metric` itself where it needs nothing. Otherwise `metric` is one without data, which says its mode,
        whether it takes rows, and its sums: a run is compiled and planned by it. This one gives the
        results, and is made when the first is due, after `run_start`, by the process that computes it.
        """
        return self.metric

    def diverged(self, quality: Mapping[str, float]) -> bool:
        """Whether an evaluation says that the run is beyond hope; it is then given up."""
        return False

    def eval_steps(self) -> Iterator[int]:
        """Increasing, endless step numbers after which quality is evaluated."""
        raise NotImplementedError

    # -- pictures ------------------------------------------------------------------------------

    def class_names(self, data_dir: str) -> Sequence[str]:
        """Names of the classes as the data have them; empty where they have none."""
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

    def capacities(self) -> Mapping[str, int]:
        """Places that the recipe has for what a sample holds any number of: {"boxes": self.max_boxes}.

        They are constants, as shapes never come from the data; preflight refuses data that exceed them.
        """
        return {}

    def maxima(self, data_dir: str) -> Mapping[str, int]:
        """The most of each of `capacities` that a sample holds, as the builder noted in the index."""
        return {}

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
        samples = self.samples(step)
        epochs = samples / self.samples(self.epoch_steps)
        return {
            "epoch_num": int(epochs) if epochs.is_integer() else epochs,
            "samples_count": samples,
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

    @property
    def is_tiny(self) -> bool:
        return self.size == "tiny"

    def config(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {"benchmark": self.name, **dataclasses.asdict(self)}


def _buckets(rows: int, examples: Example | tuple[Example, ...]) -> tuple[Bucket, ...]:
    each = (examples,) if isinstance(examples, Mapping) else examples
    return tuple(Bucket(rows, example) for example in each)

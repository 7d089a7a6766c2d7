"""The contract: what a benchmark states, and all that the core may know of it.

A benchmark is a frozen dataclass. Its fields are the rule's hyperparameters and its sizes; its methods
say what is trained, on what, how, and to which quality. It never touches a mesh, jit, a clock or a log.

Shape legend: B rows of the global batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import numpy as np

from mlperf_jax.core.fields import check_whole, did_you_mean
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
        """Tables looked up by row, and updated by row or never; none by default."""
        return {}

    def lookups(self, batch: Batch) -> Mapping[str, jax.Array]:
        """Ids [B, K] by table; the loss finds what was looked up in `batch["rows"][table]`.

        Rows [B, K, width] of a plain table, in its own dtype. Of a store's table the ids count within their own tables,
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

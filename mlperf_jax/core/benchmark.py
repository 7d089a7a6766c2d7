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
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.core.fields import (
    Count,
    Fraction,
    Positive,
    Samples,
    Several,
    check_fields,
)
from mlperf_jax.core.levers import NONE, Levers
from mlperf_jax.core.mesh import Rules
from mlperf_jax.core.phases import check_levers, steady
from mlperf_jax.core.protocols import DataSet, Metric, Split
from mlperf_jax.core.terms import (
    Absence as Absence,
    Array as Array,
    Batch as Batch,
    Bucket as Bucket,
    Example as Example,
    Games as Games,
    Generated as Generated,
    Loss as Loss,
    Parts as Parts,
    Reader as Reader,
    Shape as Shape,
    Start as Start,
    Table as Table,
    Target as Target,
    Weighted as Weighted,
    check_targets,
    f32 as f32,
    i32 as i32,
)
from mlperf_jax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import optax
    from flax import nnx
    from PIL.Image import Image

    from mlperf_jax.optimizers.tree import ParamTree


# what a run's configuration says besides fields
_MORE = {*"benchmark code division evaluate_every optimizer optimizer_changes transform".split()}


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Base of every benchmark: common fields, and a default for what most need not state.

    Subclasses add fields and must give `example`, `model`, `optimizer`, `loss`, `predict`, `eval_steps`,
    `data`, `flops_per_sample`, `tiny`; a run without one of them is refused before it begins.
    """

    # class attributes: what does not vary with a recipe
    name: ClassVar[str]
    ruleset: ClassVar[str] = ""  # of the last round that ran it; "" if none did
    metric: ClassVar[Metric]
    parameters: ClassVar[int]  # trained ones at full size, as the reference counts them
    frozen: ClassVar[tuple[str, ...]] = ()
    rules: ClassVar[Rules] = ()
    # what it does not have, and never had, said so that nobody takes it for forgotten
    absent: ClassVar[tuple[Absence, ...]] = ()
    # of one that is not this library's: what tells its code from others', set where it is registered
    own_code: ClassVar[str] = ""
    # what its start weights score before any training, by the first target's metric; None: nobody says
    start_quality: ClassVar[float | None] = None
    # what of it smaller and smaller devices are given where speed is measured, see `core/scales.py`
    scales: ClassVar[Sequence[Mapping[str, Any]]] = ()
    pictured: ClassVar[int] = 6  # samples of a picture when nobody says how many
    # training rows that a core makes a second at full size, the least measured; None: nobody has
    records_per_core: ClassVar[float | None] = None
    # what levers can do: whether the loss reads `smoothing`; the field that `size_ramp` changes
    smooths_labels: ClassVar[bool] = False
    sized_by: ClassVar[str] = ""
    cuts_examples: ClassVar[bool] = False  # smaller ones are the beginnings of whole ones

    # fields every benchmark has; what each may hold stands in its annotation, see `core.fields`
    size: Literal["full", "tiny"] = "full"
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    batch_size: Samples
    eval_batch_size: Samples | None = None
    gradient_accumulation_steps: Count = 1
    clip_norm: Positive | None = None
    ema_decay: Fraction | None = None
    nonfinite: Annotated[
        Literal["abort", "skip"],
        "a batch whose loss is not finite ends the run, or changes nothing",
    ] = "abort"
    skip_limit: Annotated[Count, "batches skipped in a row after which the run gives up"] = 10
    train_samples: Samples
    eval_samples: Samples
    sample_limit: Samples | None = None
    targets: Several[Target]
    levers: Annotated[Levers, "what an open run does beside its optimizer"] = NONE

    def __post_init__(self) -> None:
        check_fields(self)
        if hasattr(self, "metric"):  # else preflight names what is missing
            check_targets(self.name, self.metric, self.targets)
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
        first = self.samples(1)
        if self.sample_limit is not None and self.sample_limit < first:
            raise UserError(f"sample_limit {self.sample_limit} is less than one batch of {first}")
        check_levers(self, counts=type(self).samples is not Benchmark.samples)

    # -- samples and rows ----------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """Rows of a training array: `batch_size`, unless a row holds several samples."""
        return self.batch_size

    @property
    def eval_rows(self) -> int:
        """Rows of an evaluation array."""
        return self.eval_batch_size or self.rows

    @property
    def eval_row_samples(self) -> int:
        """Samples that a row of evaluation holds, where it is full."""
        return 1

    def samples(self, step: int) -> int:
        """Samples seen after `step` steps: 0 before the first, and more after every one.

        Samples are counted in no other way. A benchmark overrides it whose batches do not all hold
        `batch_size` of them: packed rows, bucket shapes, a batch that grows.
        """
        return self.levers.samples(step, self.batch_size)

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

    @property
    def ema(self) -> float | None:
        """Decay of the averaged weights; None for none."""
        return self.ema_decay if self.levers.ema_decay is None else self.levers.ema_decay

    @property
    def smoothing(self) -> float:
        """Share of a label that is spread over all classes; for the loss of a benchmark that `smooths_labels`."""
        given = self.levers.label_smoothing
        return getattr(self, "label_smoothing", 0.0) if given is None else given

    def example(self) -> Example | tuple[Example, ...]:
        """Shape and dtype of one example by name; a tuple where batches come in bucket shapes."""
        raise NotImplementedError

    def eval_example(self) -> Example | tuple[Example, ...]:
        """As `example`, of evaluation's batches."""
        return self.example()

    def buckets(self) -> tuple[Bucket, ...]:
        """The shapes of training batches: `rows` of each example, unless the benchmark states others."""
        return Bucket.each(self.rows, self.example())

    def eval_buckets(self) -> tuple[Bucket, ...]:
        """As `buckets`, of evaluation's batches."""
        return Bucket.each(self.eval_rows, self.eval_example())

    def model(self, rngs: nnx.Rngs) -> nnx.Module:
        """The Flax NNX module, freshly initialised."""
        raise NotImplementedError

    def optimizer(self, tree: ParamTree) -> optax.GradientTransformation:
        """An optax transformation for the parameters described by a `ParamTree`."""
        raise NotImplementedError

    def loss(
        self, model: Any, batch: Batch, key: jax.Array
    ) -> Loss | tuple[Loss, Mapping[str, jax.Array]]:
        """Mean loss over the rows given: a scalar, `Weighted`, or several by name that are added.

        Optionally `(loss, scalars)`; scalars are logged beside the loss, and so are means by their name.
        """
        raise NotImplementedError

    def after_step(self, stats: Mapping[str, Any]) -> Mapping[str, Any]:
        """The model's statistics after an optimizer step, as they are by default.

        Called once a step, whatever the accumulation and unless bad losses skip it. What a model adds up
        from micro-batch to micro-batch, such as the tokens of each expert, is used and set to zero here.

        Args:
            stats: a nested dict of arrays: all variables of the model that are not `nnx.Param`. The same with
                other values are returned; they are evaluated, and the next step begins with them.
        """
        return stats

    def tables(self) -> Mapping[str, Table]:
        """Tables looked up by row, and updated by row or never."""
        return {}

    def lookups(self, batch: Batch) -> Mapping[str, jax.Array]:
        """Ids [B, K] by table; the loss finds what was looked up in `batch["rows"][table]`.

        Rows [B, K, width] in the table's own dtype; of a `RowStore` a negative id gets zeros. Of a store of bags the ids
        count within their own tables, in the store's order, and the loss finds the sums [B, T, width] of their bags.
        """
        raise NotImplementedError

    def start(self, data_dir: str) -> Start | None:
        """Weights to begin from; None for random initialisation.

        Called before the run has a folder, to refuse one that misses them: names and shapes may be read.

        Raises:
            UserError: they are missing or damaged.
        """
        return None

    def make_start(self, data_dir: str) -> None:
        """Makes the start weights of tiny, for which there are none to fetch; kept if they are there.

        Called when its data have been built.
        """

    # -- quality -------------------------------------------------------------------------------

    def predict(self, model: Any, batch: Batch, key: jax.Array) -> Any:
        """What the metric adds up: arrays with leading axis B. `model` is the evaluation view.

        A benchmark with `judges` takes them as a fourth argument.
        """
        raise NotImplementedError

    def judges(self, rngs: nnx.Rngs) -> nnx.Module | None:
        """A Flax NNX module of the networks that only judge (Inception, a target player); None for none.

        They are on the devices while an evaluation lasts, and in no state, gradient or checkpoint.
        """
        return None

    def judge_weights(self, data_dir: str) -> Mapping[str, np.ndarray | Reader]:
        """All arrays of `judges`, as `Start.weights` has them: "params/conv/kernel", "stats/norm/mean".

        Raises:
            UserError: a file is missing; nothing else of it need be read here.
        """
        raise NotImplementedError

    def check_judges(self, data_dir: str, mesh: str | None = None) -> str | None:
        """What the judges say of known data, in a sentence, for `data check --score`; None where none is known.

        Raises:
            UserError: they say something else than they must, or the data are missing.
        """
        return None

    def metric_from(self, data_dir: str) -> Metric:
        """The metric with what it needs of the data: a vocabulary, references, statistics, polygons.

        `metric` itself where it needs nothing. Otherwise `metric` is one without data, which says its mode,
        whether it takes rows, and its sums: a run is compiled and planned by it. This one gives the
        results, and is made when the first is due, after `run_start`, by the process that computes it.
        """
        return self.metric

    def samples_in(self, batch: Mapping[str, np.ndarray]) -> int:
        """Samples that an evaluation batch holds: one a row by default."""
        return int(batch["mask"].sum())

    def meets_targets(self, quality: Mapping[str, float]) -> bool:
        """Whether an evaluation meets all targets at once, which ends the run."""
        return all(target.met(quality) for target in self.targets)

    def diverged(self, quality: Mapping[str, float]) -> bool:
        """Whether an evaluation says that the run is beyond hope; it is then given up."""
        return False

    def eval_steps(self) -> Iterator[int]:
        """Increasing, endless step numbers after which quality is evaluated."""
        raise NotImplementedError

    # -- pictures ------------------------------------------------------------------------------

    def find(self, model: Any, batch: Batch) -> Any:
        """What the model sees in a batch, to be drawn by `picture`: arrays with leading axis B.

        Unlike `predict` it takes batches of any size, and of training data too; `judges` are its third argument.
        """
        raise NotImplementedError

    def picture(self, batch: Batch, names: Sequence[str] = (), found: Any = None) -> Image:
        """A `PIL.Image` of the batch and its labels and, beside them, of what the model found.

        Args:
            batch: NumPy arrays, as the data set gives them.
            names: of the classes, as the data set names them.
            found: what `find` gave for this batch; None draws the labels alone.

        Raises:
            UserError: there are no pictures of this benchmark.
        """
        raise UserError(f"{self.name} has no pictures")

    # -- data ----------------------------------------------------------------------------------

    def data(self) -> DataSet:
        """The data set of this configuration."""
        raise NotImplementedError

    def capacities(self) -> Mapping[str, int]:
        """Places that the recipe has for what a sample holds any number of: {"boxes": self.max_boxes}.

        They are constants, as shapes never come from the data; preflight refuses data whose index notes
        more of them (`NotesMaxima`).
        """
        return {}

    # -- data that the model makes itself ------------------------------------------------------

    # `generate(model, games: Games)` plays one device's share of the games of a part, without collectives:
    # no result may depend on how many games it is given. It returns records, arrays [G, …] by name, one
    # per game; or (records [G, most, …], lengths int32 [G]): of each game the first `length` are real.
    # None: training data are read.
    generate: ClassVar[Callable[..., Generated] | None] = None
    # `reward(records) -> records` is called on process 0 with the real records of a part, NumPy arrays in
    # the games' order, and returns what is kept of them: rewards that Python code computes, for instance.
    # It must be deterministic. None: all is kept as it is.
    reward: ClassVar[Callable[..., Mapping[str, np.ndarray]] | None] = None
    # whether evaluations come at the end of each generation, whose records decide after how many steps
    # that is; plans go by `eval_steps()`, epochs are generations
    evaluates_generations: ClassVar[bool] = False

    def parts(self) -> Parts:
        """How many parts a generation has, and how many games each."""
        raise NotImplementedError

    def prompt(self) -> Example:
        """Shape and dtype of what a game is given, by name; the training data are then the prompts.

        Part p of generation g is given batch g * parts + p of them, a row for each game.
        """
        return {}

    def generated_data(self, generations: Sequence[Mapping[str, np.ndarray]]) -> Split:
        """Training `Split` of the current generation, from the records of all, memory-mapped.

        Args:
            generations: arrays by name, a row per record in the games' order; newest last.
        """
        raise NotImplementedError

    # -- the log and the recipes ---------------------------------------------------------------

    def log(self) -> Mapping[str, Any]:
        """mllog keys and values of this configuration, spelled as the newest ruleset spells them.

        What holds whatever the optimizer, `clip_norm` among it; the rest is `optimizer_log`'s.
        """
        return {}

    def optimizer_log(self) -> Mapping[str, Any]:
        """Those of the optimizer and its schedule; of a run with another one they are not logged."""
        return {}

    def tables_log(self) -> Mapping[str, Any]:
        """Those of the tables' optimizers, which a replaced optimizer leaves alone; logged beside one."""
        return {}

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
    def bad_steps(self) -> int:
        """After so many steps in a row whose loss is not finite the run gives up."""
        return self.skip_limit if self.nonfinite == "skip" else 1

    @property
    def schedule_end(self) -> int | None:
        """Samples after which the schedule has nothing more to say; None where it goes on for ever."""
        return None

    @property
    def last_sample(self) -> int | None:
        """The run gives up when this many samples were seen; None for never."""
        return self.sample_limit or steady(self).schedule_end

    @property
    def flops_per_sample(self) -> float:
        """Model FLOPs to train on one sample, for MFU (no recomputation)."""
        raise NotImplementedError

    @classmethod
    def recipes(cls) -> Mapping[int, Self]:
        """Official configurations by global batch size."""
        return {}

    @classmethod
    def recipe_table(cls, head: str, *rows: tuple[Any, ...]) -> Mapping[int, Self]:
        """What `recipes` returns, from the names of the fields that differ and a row for each batch size."""
        made = (cls(**dict(zip(head.split(), row, strict=True))) for row in rows)
        return {recipe.batch_size: recipe for recipe in made}

    def tiny(self) -> Self:
        """The same code with small numbers; see DESIGN.md §4."""
        raise UserError(f"{self.name} states no tiny(): write it, or train the full size")

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

    @property
    def param_dtype(self) -> np.dtype:
        """Of the weights, once `dtype` is decided: float32, and float64 where that is computed in."""
        return jnp.promote_types(self.dtype, jnp.float32)

    def config(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        found = {"benchmark": self.name, **dataclasses.asdict(self), "levers": str(self.levers)}
        return {name: value for name, value in found.items() if value or name != "levers"}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The inverse of `config`, also after JSON; what else a run's configuration says is passed over.

        Raises:
            UserError: it is of a version that has other fields.
        """
        mine = {field.name for field in dataclasses.fields(cls)}
        theirs = {"levers", *config} - _MORE
        if mine != theirs:
            differ = (("has", sorted(theirs - mine)), ("lacks", sorted(mine - theirs)))
            said = " and ".join(f"it {verb} {', '.join(names)}" for verb, names in differ if names)
            raise UserError(
                f"the run's configuration of {cls.name} is of another version of this library: {said}; "
                "use the version that made it (its result.json says which)"
            )
        targets = tuple(Target(**target) for target in config["targets"])
        return cls(**{**{n: config[n] for n in mine & config.keys()}, "targets": targets})

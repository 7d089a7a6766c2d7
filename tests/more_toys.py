"""Toys of rarer kinds: packed rows, a batch that grows, bucket shapes of different rows, a router,
a last batch that is dealt over groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import toys
from flax import nnx
from toy_data import Numbered

from mlperf_jax.core.benchmark import Bucket, Table, Weighted, i32
from mlperf_jax.input_pipelines import pipeline
from mlperf_jax.input_pipelines.dealing import Groups
from mlperf_jax.input_pipelines.orders import BatchPlan
from mlperf_jax.input_pipelines.sources import Arrays
from mlperf_jax.ops.norm import BatchNorm
from mlperf_jax.optimizers import rows

SLOTS = 3  # places for samples in a packed row
IN_ROWS = np.repeat([1, 2, 3], [20, 8, 4])  # how many the 32 rows of a batch hold: 48


@dataclass(frozen=True)
class PackedRows:
    """A split of batches of 48 samples in 32 rows; which row holds how many differs from batch to batch."""

    arrays: dict[str, np.ndarray]

    def batched(self, rows, *, seed=0, share=None):
        assert rows == len(IN_ROWS)
        return Numbered(share, lambda number: self._batch(seed, number))

    def _batch(self, seed, number):
        epoch, index = divmod(number, len(self.arrays["x"]) // IN_ROWS.sum())
        order = np.random.default_rng((seed, epoch)).permutation(len(self.arrays["x"]))
        ids = order[index * IN_ROWS.sum() : (index + 1) * IN_ROWS.sum()]
        held = np.random.default_rng((seed, number)).permutation(IN_ROWS)
        filled = np.arange(SLOTS) < held[:, None]
        x = np.zeros((len(held), SLOTS, toys.FEATURES), self.arrays["x"].dtype)
        label = np.full(filled.shape, -1, np.int32)
        x[filled], label[filled] = self.arrays["x"][ids], self.arrays["label"][ids]
        return {"x": x, "label": label}


@dataclass(frozen=True, kw_only=True)
class Packed(toys.Plain):
    """One to three samples in a row; evaluation's rows hold one each."""

    batch_size: int = 48
    train_samples: int = 240

    @property
    def rows(self):
        return len(IN_ROWS)

    def example(self):
        x = jax.ShapeDtypeStruct((SLOTS, toys.FEATURES), self.array_dtype)
        return {"x": x, "label": i32(SLOTS)}

    def eval_example(self):
        return super().example()

    def loss(self, model, batch, key):
        filled = batch["label"] >= 0
        labels = jnp.maximum(batch["label"], 0)
        losses = optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), labels)
        return Weighted(jnp.where(filled, losses, 0).sum(), filled.sum().astype(losses.dtype))

    def train_data(self, data_dir):
        return PackedRows(self.problem())


# -- a batch that grows --------------------------------------------------------------------------------

SMALL_STEPS = 6  # before the batch is twice as large


@dataclass(frozen=True)
class GrowingBatches:
    """A split whose endless stream of samples is cut where the benchmark's count of them says."""

    arrays: dict[str, np.ndarray]
    samples: Any

    def batched(self, rows, *, seed=0, share=None):
        return Numbered(share, lambda number: self._batch(seed, number))

    def _batch(self, seed, number):
        positions = np.arange(self.samples(number), self.samples(number + 1))
        total = len(self.arrays["x"])
        epochs = np.unique(positions // total)
        orders = {e: np.random.default_rng((seed, e)).permutation(total) for e in epochs}
        ids = [orders[p // total][p % total] for p in positions]
        return {name: values[ids] for name, values in self.arrays.items()}


@dataclass(frozen=True, kw_only=True)
class Growing(toys.Plain):
    """Batches of half the size in the first steps."""

    def samples(self, step):
        return self.batch_size * step - self.batch_size // 2 * min(step, SMALL_STEPS)

    def buckets(self):
        return tuple(Bucket(n, self.example()) for n in (self.batch_size // 2, self.batch_size))

    def train_data(self, data_dir):
        return GrowingBatches(self.problem(), self.samples)


# -- planned batches -----------------------------------------------------------------------------------

ROWS = {1: 32, 3: 16}  # of a batch of examples this long
LONG = 3  # every third record is long, the others are short


def by_length(order):
    """Short and long records apart, each in this order."""
    long = order % LONG == 0
    return order[~long], order[long]


def in_turns(count):
    """Training: (seed, epoch) -> batches of short and long records in turn, whole ones alone."""

    def batches(seed, epoch):
        order = np.random.default_rng((seed, epoch)).permutation(count)
        cut = [
            [ids[at : at + rows] for at in range(0, len(ids) - rows + 1, rows)]
            for ids, rows in zip(by_length(order), ROWS.values())
        ]
        return [(bucket, ids) for pair in zip(*cut) for bucket, ids in enumerate(pair)]

    return batches


def short_first(count):
    """Evaluation: every record once, the last batch of each length padded."""

    def batches(seed, epoch):
        return [
            (
                bucket,
                np.pad(ids[at : at + rows], (0, max(0, at + rows - len(ids))), constant_values=-1),
            )
            for bucket, (ids, rows) in enumerate(zip(by_length(np.arange(count)), ROWS.values()))
            for at in range(0, len(ids), rows)
        ]

    return batches


@dataclass(frozen=True)
class Parted(grain.transforms.Map):
    """A record in parts, as many as its bucket's length, whose sum it is."""

    length: int = 1

    def for_bucket(self, number):
        return Parted(tuple(ROWS)[number])

    def map(self, element):
        parts = np.repeat(element["x"][None] / self.length, self.length, 0)
        return {**element, "x": parts.astype(element["x"].dtype)}


@dataclass(frozen=True, kw_only=True)
class Planned(toys.Plain):
    """Short examples in 32 rows and long ones in 16, in training and in evaluation."""

    def samples(self, step):
        return ROWS[1] * ((step + 1) // 2) + ROWS[3] * (step // 2)

    def example(self):
        x = lambda length: jax.ShapeDtypeStruct((length, toys.FEATURES), self.array_dtype)  # noqa: E731
        return tuple({**super(Planned, self).example(), "x": x(length)} for length in ROWS)

    def buckets(self):
        mask = jax.ShapeDtypeStruct((), bool)
        return tuple(Bucket(b.rows, {**b.example, "mask": mask}) for b in self.eval_buckets())

    def eval_buckets(self):
        return tuple(Bucket(n, e) for n, e in zip(ROWS.values(), self.example(), strict=True))

    def loss(self, model, batch, key):
        return super().loss(model, {**batch, "x": batch["x"].sum(1)}, key)

    def predict(self, model, batch, key):
        return super().predict(model, {**batch, "x": batch["x"].sum(1)}, key)

    def train_data(self, data_dir):
        plan = BatchPlan(tuple(ROWS.values()), in_turns(self.train_samples))
        return pipeline.training(Arrays(self.problem()), Parted(), plan=plan)

    def eval_data(self, data_dir):
        plan = BatchPlan(tuple(ROWS.values()), short_first(self.eval_samples))
        return pipeline.evaluation(super().eval_data(data_dir).source, Parted(), plan=plan)


# -- a router ------------------------------------------------------------------------------------------

EXPERTS = 4


class Router(nnx.Module):
    """Each row goes to one expert; a bias, which no gradient moves, evens out how many get how much."""

    def __init__(self, dtype: Any, rngs: nnx.Rngs) -> None:
        kept = dict(dtype=dtype, param_dtype=jnp.promote_types(dtype, jnp.float32), rngs=rngs)
        self.scores = nnx.Linear(toys.FEATURES, EXPERTS, use_bias=False, **kept)
        self.experts = nnx.Linear(toys.FEATURES, EXPERTS * toys.CLASSES, **kept)
        self.bias = nnx.BatchStat(jnp.zeros(EXPERTS))
        self.load = nnx.BatchStat(jnp.zeros(EXPERTS, jnp.int32))

    def __call__(self, x: jax.Array) -> jax.Array:
        scores = jax.nn.sigmoid(self.scores(x))
        chosen = jax.nn.one_hot((scores + self.bias[...]).argmax(-1), EXPERTS)
        self.load[...] += chosen.sum(0).astype(jnp.int32)
        outputs = self.experts(x).reshape(-1, EXPERTS, toys.CLASSES)
        return ((scores * chosen)[..., None] * outputs).sum(1)


@dataclass(frozen=True, kw_only=True)
class Routed(toys.Plain):
    def model(self, rngs):
        return Router(self.dtype, rngs)

    def optimizer(self, tree):
        return optax.adam(0.05)

    def after_step(self, stats):
        load = stats["load"]
        error = jnp.sign(load.mean() - load)
        return {"bias": stats["bias"] + 0.01 * error, "load": jnp.zeros_like(load)}


# -- a last batch with padding -------------------------------------------------------------------------


class Normed(nnx.Module):
    def __init__(self, dtype: Any, span: int, rngs: nnx.Rngs) -> None:
        kept = dict(dtype=dtype, param_dtype=jnp.promote_types(dtype, jnp.float32), rngs=rngs)
        self.base = nnx.Linear(toys.FEATURES, 16, **kept)
        self.norm = BatchNorm(16, span=span, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(16, toys.CLASSES, **kept)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        return self.head(jax.nn.relu(self.norm(self.base(x), mask)))


@dataclass(frozen=True, kw_only=True)
class Partial(toys.Plain):
    """Three batches an epoch, of 32, 32 and 20 rows, in groups of 8."""

    train_samples: int = 84
    span: int | None = 8

    def samples(self, step):
        epochs, steps = divmod(step, 3)
        return self.train_samples * epochs + 32 * steps

    def example(self):
        return {**super().example(), "mask": jax.ShapeDtypeStruct((), bool)}

    def eval_example(self):
        return super().example()

    def model(self, rngs):
        return Normed(self.dtype, self.span, rngs)

    def loss(self, model, batch, key):
        logits = model(batch["x"], batch["mask"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return Weighted(jnp.where(batch["mask"], losses, 0).sum(), batch["mask"].sum())

    def train_data(self, data_dir):
        groups = Groups(self.span, self.gradient_accumulation_steps)
        return pipeline.training(Arrays(self.problem()), last_batch="keep", groups=groups)


@dataclass(frozen=True, kw_only=True)
class Wide(toys.Toy):
    """A table that a batch touches a few rows of."""

    table_rows: int = 20_000
    table_width: int = 64
    span: int | None = None

    def tables(self):
        def init(key, shape, dtype):
            return 0.1 * jax.random.normal(key, shape, dtype)

        return {"items": Table(self.table_rows, self.table_width, init, rows.adagrad(0.1))}

    def loss(self, model, batch, key):
        logits = model(batch["x"], batch["rows"]["items"][..., :4])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    def predict(self, model, batch, key):
        logits = model(batch["x"], batch["rows"]["items"][..., :4])
        return logits.argmax(-1) == batch["label"]

"""Toys of rarer kinds: packed rows, a batch that grows, bucket shapes of different rows, a router,
a last batch that is dealt over groups."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import toys
from flax import nnx

from mlperf_jax.core.benchmark import Bucket, Weighted, i32
from mlperf_jax.input_pipelines.dealing import Groups
from mlperf_jax.input_pipelines.examples import Arrays, Examples, as_is
from mlperf_jax.ops.norm import BatchNorm

SLOTS = 3  # places for samples in a packed row
IN_ROWS = np.repeat([1, 2, 3], [20, 8, 4])  # how many the 32 rows of a batch hold: 48


@dataclass
class PackedRows(toys.ArrayExamples):
    """Batches of 48 samples in 32 rows; which row holds how many differs from batch to batch."""

    def batches(self, batch_size, *, rows, seed, start, threads):
        assert batch_size == len(IN_ROWS)
        per_epoch = len(self) // IN_ROWS.sum()
        for number in itertools.count(start):
            epoch, index = divmod(number, per_epoch)
            order = np.random.default_rng((seed, epoch)).permutation(len(self))
            ids = order[index * IN_ROWS.sum() : (index + 1) * IN_ROWS.sum()]
            held = np.random.default_rng((seed, number)).permutation(IN_ROWS)
            filled = np.arange(SLOTS) < held[:, None]
            x = np.zeros((len(held), SLOTS, toys.FEATURES), self.arrays["x"].dtype)
            label = np.full(filled.shape, -1, np.int32)
            x[filled], label[filled] = self.arrays["x"][ids], self.arrays["label"][ids]
            yield {"x": x[slice(*rows)], "label": label[slice(*rows)]}


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
        return PackedRows(super().train_data(data_dir).arrays)


# -- a batch that grows --------------------------------------------------------------------------------

SMALL_STEPS = 6  # before the batch is twice as large


@dataclass
class GrowingBatches(toys.ArrayExamples):
    """An endless stream of samples, cut where the benchmark's count of them says."""

    samples: Any = None

    def batches(self, batch_size, *, rows, seed, start, threads):
        for number in itertools.count(start):
            positions = np.arange(self.samples(number), self.samples(number + 1))
            lo, hi = (row * len(positions) // batch_size for row in rows)
            part = positions[lo:hi]
            epochs = {e: np.random.default_rng((seed, e)) for e in np.unique(part // len(self))}
            orders = {e: chance.permutation(len(self)) for e, chance in epochs.items()}
            yield self._rows([orders[p // len(self)][p % len(self)] for p in part])


@dataclass(frozen=True, kw_only=True)
class Growing(toys.Plain):
    """Batches of half the size in the first steps."""

    def samples(self, step):
        return self.batch_size * step - self.batch_size // 2 * min(step, SMALL_STEPS)

    def buckets(self):
        return tuple(Bucket(n, self.example()) for n in (self.batch_size // 2, self.batch_size))

    def train_data(self, data_dir):
        return GrowingBatches(super().train_data(data_dir).arrays, samples=self.samples)


# -- planned batches -----------------------------------------------------------------------------------

ROWS = {1: 32, 3: 16}  # of a batch of examples this long
LONG = 3  # every third record is long, the others are short


@dataclass
class PlannedBatches(toys.ArrayExamples):
    """Batches of one length each, short and long ones in turn; evaluation takes the short ones first."""

    def _by_length(self, order):
        long = np.asarray(order) % LONG == 0
        return {1: np.asarray(order)[~long], 3: np.asarray(order)[long]}

    def _batch(self, ids, length, rows, total):
        """Rows lo..hi, as in a batch of `total`, of what these records make; -1 is padding."""
        lo, hi = (row * ROWS[length] // total for row in rows)
        mask = np.pad(np.ones(len(ids), bool), (0, ROWS[length] - len(ids)))[lo:hi]
        batch = self._rows(np.pad(ids, (0, ROWS[length] - len(ids)))[lo:hi])
        parts = np.repeat(batch["x"][:, None] / length, length, 1)  # whose sum is the record
        return batch | {"x": parts.astype(batch["x"].dtype)}, mask

    def batches(self, batch_size, *, rows, seed, start, threads):
        counts = {length: len(ids) for length, ids in self._by_length(range(len(self))).items()}
        pairs = min(count // ROWS[length] for length, count in counts.items())
        for number in itertools.count(start):
            epoch, index = divmod(number, 2 * pairs)
            length = (1, 3)[index % 2]
            order = np.random.default_rng((seed, epoch)).permutation(len(self))
            first = index // 2 * ROWS[length]
            ids = self._by_length(order)[length][first : first + ROWS[length]]
            yield self._batch(ids, length, rows, batch_size)[0]

    def eval_batches(self, batch_size, *, rows, threads):
        for length, ids in self._by_length(range(len(self))).items():
            for first in range(0, len(ids), ROWS[length]):
                part = ids[first : first + ROWS[length]]
                batch, mask = self._batch(part, length, rows, batch_size)
                yield batch | {"mask": mask}


@dataclass(frozen=True, kw_only=True)
class Planned(toys.Plain):
    """Short examples in 32 rows and long ones in 16, in training and in evaluation."""

    def samples(self, step):
        return ROWS[1] * ((step + 1) // 2) + ROWS[3] * (step // 2)

    def example(self):
        x = lambda length: jax.ShapeDtypeStruct((length, toys.FEATURES), self.array_dtype)  # noqa: E731
        return tuple({**super(Planned, self).example(), "x": x(length)} for length in ROWS)

    def buckets(self):
        return tuple(Bucket(n, e) for n, e in zip(ROWS.values(), self.example(), strict=True))

    def eval_buckets(self):
        return self.buckets()

    def loss(self, model, batch, key):
        return super().loss(model, {**batch, "x": batch["x"].sum(1)}, key)

    def predict(self, model, batch, key):
        return super().predict(model, {**batch, "x": batch["x"].sum(1)}, key)

    def train_data(self, data_dir):
        return PlannedBatches(super().train_data(data_dir).arrays)

    def eval_data(self, data_dir):
        return PlannedBatches(super().eval_data(data_dir).arrays)


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
        arrays = super().train_data(data_dir).arrays
        groups = Groups(self.span, self.gradient_accumulation_steps)
        return Examples(Arrays(arrays), as_is, last_batch="keep", groups=groups)

"""Toys whose samples are not rows: packed rows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import toys

from mlperf_jax.core.benchmark import Weighted, i32

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

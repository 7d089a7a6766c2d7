"""Toys whose data come from games around prompts, and toys that networks judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import toys
from flax import nnx

from mlperf_jax import metrics
from mlperf_jax.core.benchmark import f32
from mlperf_jax.errors import UserError
from mlperf_jax.ops.norm import BatchNorm


@dataclass(frozen=True)
class PointBatches:
    """Batch k of points around which games are played; a function of (seed, k)."""

    rows: int
    seed: int
    share: Any

    def ready(self): ...

    def __getitem__(self, number):
        low, high = self.share(self.rows)
        points = np.random.default_rng((self.seed, number)).normal(size=(self.rows, toys.FEATURES))
        return {"point": points[low:high].astype(np.float32)}


class Points:
    """Prompts."""

    def batched(self, rows, *, seed=0, share=None):
        return PointBatches(rows, seed, share)


@dataclass(frozen=True, kw_only=True)
class Prompted(toys.Endless):
    """Games of none to four records around points from data; the host labels them; a generation, a look."""

    evaluates_generations = True

    def prompt(self):
        return {"point": f32(toys.FEATURES)}

    def train_data(self, data_dir):
        return Points()

    def generate(self, model, games):
        lengths = jax.vmap(lambda key: jax.random.randint(key, (), 0, 5))(games.keys)
        noise = jax.vmap(lambda key: jax.random.normal(key, (4, toys.FEATURES)))(games.keys)
        x = games.prompts["point"][:, None] + noise + model.head.bias[...].sum() * 1e-3
        ids = jnp.stack([games.numbers, games.numbers + games.generation], 1)[:, None] % toys.ROWS
        return {"x": x, "ids": jnp.broadcast_to(ids, (*x.shape[:2], 2))}, lengths

    def reward(self, records):
        return {**records, "label": (records["x"] @ toys.TRUTH).argmax(-1).astype(np.int32)}


class Judge(nnx.Module):
    """Knows the true rule once it has its weights."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.rule = nnx.Linear(toys.FEATURES, toys.CLASSES, use_bias=False, rngs=rngs)
        self.norm = BatchNorm(toys.CLASSES, span=None, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.rule(x)).argmax(-1)


@dataclass(frozen=True, kw_only=True)
class Judged(toys.Toy):
    """A network says which labels are right, in place of the labels."""

    def judges(self, rngs):
        return Judge(rngs)

    def judge_weights(self, data_dir):
        if data_dir == "elsewhere":
            raise UserError("elsewhere/judge.npz is missing")
        one = np.ones(toys.CLASSES, np.float32)
        return {
            "params/rule/kernel": lambda index: toys.TRUTH[index],
            "params/norm/scale": one,
            "params/norm/bias": 0 * one,
            "stats/norm/mean": 0 * one,
            "stats/norm/var": one,
        }

    def predict(self, model, batch, key, judges):
        return model(batch["x"], batch["rows"]["items"]).argmax(-1) == judges(batch["x"])


@dataclass(frozen=True, kw_only=True)
class OfflineJudged(Judged):
    metric = metrics.Mean("accuracy", mode="offline")

"""DLRM-DCNv2 on Criteo's 1 TB click logs, multi-hot: MLPerf Training v3.0 to v6.0.

Train for at most one epoch, until the area under the ROC curve of the 89,137,319 validation samples is
0.80275. 26 embedding tables hold 204,184,588 rows; a sample looks up 214 of them.
Reference: mlcommons/training, recommendation_v2/torchrec_dlrm; reference convergence points of ruleset
6.0.0.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mlperf_jax import metrics
from mlperf_jax.core.benchmark import Benchmark, Example, Table, Target, f32, i32
from mlperf_jax.core.fields import Count, Positive, Rate, Samples, Several, Whole
from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import criteo
from mlperf_jax.metrics import auc
from mlperf_jax.models import dlrm as models
from mlperf_jax.ops import embedding_plan
from mlperf_jax.optimizers import adagrad, rows, schedules

DENSE = 13


@dataclass(frozen=True, kw_only=True)
class DlrmDcnV2(Benchmark):
    """The defaults are the reference convergence point for batch 55,296.

    `placement`, `shards` and `replicate_bytes` say how the tables are spread over the devices, which
    changes no result (`ops/embedding_plan.py`; `print(benchmark.plan())` shows it). The devices of a mesh
    must divide `shards`.
    """

    name = "dlrm_dcnv2"
    ruleset = "6.0.0"
    metric = metrics.Auc("auc")
    parameters = 26_151_671_809
    absent = ("pictures",)
    scales = tuple(
        {"table_rows": tuple(min(rows, most) for rows in criteo.ROWS), "batch_size": batch}
        for most, batch in (
            (40_000_000, 55_296),
            (16_000_000, 55_296),
            (2_000_000, 16_384),
            (100_000, 4096),
        )
    )
    records_per_core = 1_100_000  # scripts/bench_input.py: 1,287,959 (1,143,884 … 1,398,433)

    # hyperparameters; of these the rules leave only batch size and learning rate free
    batch_size: Samples = 55_296
    base_lr: Rate = 0.004
    adagrad_epsilon: Positive = 1e-8
    initial_accumulator: Rate = 0.0
    # where tables live
    placement: Literal["auto", "rows", "tables", "columns", "replicated"] = "auto"
    shards: Count = 64
    replicate_bytes: Whole = embedding_plan.REPLICATE_BYTES
    # sizes: what tiny() shrinks
    table_rows: Several[Count] = criteo.ROWS
    bag_sizes: Several[Count] = criteo.BAGS
    width: Count = 128
    bottom: Several[Count] = (512, 256, 128)
    top: Several[Count] = (1024, 1024, 512, 256)
    cross_layers: Count = 3
    cross_rank: Count = 512
    train_samples: Samples = 4_195_197_692
    eval_samples: Samples = 89_137_319
    targets: Several[Target] = (Target("auc", at_least=0.80275),)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.table_rows) != len(self.bag_sizes):
            raise UserError(
                f"table_rows names {len(self.table_rows)} tables and bag_sizes {len(self.bag_sizes)}: "
                "give one bag size for each table"
            )
        if self.bottom[-1] != self.width:
            raise UserError(
                f"the last bottom layer has {self.bottom[-1]} features and the embeddings {self.width}: "
                "they are concatenated as vectors of one width"
            )
        embedding_plan.check_bins(self.shards)

    def example(self) -> Example:
        return {"dense": f32(DENSE), "ids": i32(sum(self.bag_sizes)), "label": f32()}

    def model(self, rngs: Any) -> models.Dlrm:
        vectors = len(self.table_rows) + 1
        cross = models.CrossInteraction(
            vectors, self.width, self.cross_layers, self.cross_rank, self.dtype, rngs
        )
        return models.Dlrm(DENSE, self.bottom, self.top, cross, self.dtype, rngs=rngs)

    def optimizer(self, tree: Any) -> Any:
        return adagrad.adagrad(self.base_lr, self.adagrad_epsilon, self.initial_accumulator)

    # -- tables --------------------------------------------------------------------------------

    def plan(self) -> embedding_plan.TablePlan:
        """Which table lives where."""
        bags = tuple(zip(self.table_rows, self.bag_sizes, strict=True))
        return _plan(bags, self.width, self.shards, self.placement, self.replicate_bytes)

    def tables(self) -> Mapping[str, Table]:
        optimizer = rows.adagrad(self.base_lr, self.adagrad_epsilon, self.initial_accumulator)
        return {
            name: Table(
                store.rows, store.width, functools.partial(_uniform, store), optimizer, store
            )
            for name, store in self.plan().stores.items()
        }

    def lookups(self, batch: Any) -> Mapping[str, jax.Array]:
        ends = list(itertools.accumulate(self.bag_sizes, initial=0))
        columns = {f"cat_{i}": np.arange(*ends[i : i + 2]) for i in range(len(self.bag_sizes))}
        return {
            name: batch["ids"][:, np.concatenate([columns[p.bag.name] for p in store.places])]
            for name, store in self.plan().stores.items()
        }

    def _bags(self, batch: Any) -> jax.Array:
        """Sums [B, T, W] of all tables in their own order."""
        stores = self.plan().stores
        names = [place.bag.name for store in stores.values() for place in store.places]
        order = np.argsort([int(name.removeprefix("cat_")) for name in names])
        return jnp.concatenate([batch["rows"][name] for name in stores], 1)[:, order]

    # -- training and quality ------------------------------------------------------------------

    def loss(self, model: Any, batch: Any, key: Any) -> Any:
        logits = model(batch["dense"], self._bags(batch))  # [B]
        labels = batch["label"].astype(logits.dtype)
        return optax.losses.sigmoid_binary_cross_entropy(logits, labels).mean()

    def predict(self, model: Any, batch: Any, key: Any) -> Any:
        scores = jax.nn.sigmoid(model(batch["dense"], self._bags(batch)))
        return auc.signed(scores, batch["label"])

    def eval_steps(self) -> Iterator[int]:
        """20 times in the one epoch, the last partial batch of which is dropped."""
        return schedules.every_steps(max(1, self.train_samples // (20 * self.batch_size)))

    @property
    def schedule_end(self) -> int:
        """One epoch: the rules allow no more."""
        return self.samples(self.epoch_steps)

    @property
    def flops_per_sample(self) -> float:
        """Three passes of the dense layers; no gradient goes to the dense features."""
        sizes = (self.bottom, self.top, self.cross_layers, self.cross_rank)
        passes = models.multiply_adds(DENSE, len(self.table_rows), *sizes)
        return 2.0 * (3 * passes - DENSE * self.bottom[0])

    # -- data ----------------------------------------------------------------------------------

    def data(self) -> criteo.Criteo:
        return criteo.Criteo(self.table_rows, self.bag_sizes, tiny=self.is_tiny)

    # -- the log and the recipes ---------------------------------------------------------------

    def optimizer_log(self) -> Mapping[str, Any]:
        return {
            "opt_name": "adagrad",
            "opt_base_learning_rate": self.base_lr,
            "opt_adagrad_learning_rate_decay": 0,
            "opt_adagrad_initial_accumulator_value": self.initial_accumulator,
            "opt_adagrad_epsilon": self.adagrad_epsilon,
            "opt_weight_decay": 0,
            "opt_learning_rate_warmup_steps": 0,
            "opt_learning_rate_decay_start_step": 0,
            "opt_learning_rate_decay_steps": 0,
        }

    def tables_log(self) -> Mapping[str, Any]:
        """Under the keys that dlrmv4's rules have for them."""
        return {"opt_sparse_name": "adagrad", "opt_sparse_base_learning_rate": self.base_lr}

    @classmethod
    def recipes(cls) -> Mapping[int, Self]:
        """The reference convergence points of ruleset 6.0.0."""
        return cls.recipe_table(
            "batch_size base_lr",
            (32_768, 0.004),
            (55_296, 0.004),
            (65_536, 0.004),
            (102_400, 0.004),
            (135_168, 0.0034),
            (160_000, 0.004),
        )

    def tiny(self) -> Self:
        """Clicks of a planted model in the same files: half a minute on two cores."""
        return self.replace(
            size="tiny",
            table_rows=criteo.TINY_ROWS,
            bag_sizes=criteo.TINY_BAGS,
            width=16,
            bottom=(64, 32, 16),
            top=(64, 32),
            cross_layers=2,
            cross_rank=32,
            shards=8,
            replicate_bytes=1024,
            train_samples=criteo.COUNTS[criteo.TINY_NAME]["train"],
            eval_samples=criteo.COUNTS[criteo.TINY_NAME]["validation"],
            batch_size=256,
            base_lr=0.02,
            targets=(Target("auc", at_least=0.73),),
        )


@functools.cache
def _plan(
    bags: tuple[tuple[int, int], ...], width: int, shards: int, way: Any, replicate_bytes: int
) -> embedding_plan.TablePlan:
    named = [embedding_plan.Bag(f"cat_{i}", *bag) for i, bag in enumerate(bags)]
    return embedding_plan.make_plan(
        named, width=width, bins=shards, way=way, replicate_bytes=replicate_bytes
    )


def _uniform(store: Any, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """U(-1/sqrt(n), 1/sqrt(n)) for a table of n rows, whichever pieces it is in; spare rows are 0."""
    row = jnp.arange(shape[0])
    bin_, within = row // store.capacity, row % store.capacity
    bound = jnp.zeros(shape[0], dtype)
    for place in store.places:
        inside = (within >= place.offset) & (within < place.offset + place.length)
        inside &= bin_ % place.stride == place.first
        bound = jnp.where(inside, place.bag.rows**-0.5, bound)
    return jax.random.uniform(key, shape, dtype, -1, 1) * bound[:, None]

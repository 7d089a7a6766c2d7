"""Toy benchmarks: every seat of the state and every mode of evaluation, in milliseconds."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from toy_data import Altered, InMemory, arrays, asks_to_stop, failing, fails, poisoned  # noqa: F401 (tests know them from here)

from mlperf_jax import metrics
from mlperf_jax.core import launch, mesh as meshes, state as states, step as train
from mlperf_jax.core.benchmark import (
    Benchmark,
    Parts,
    Start,
    Table,
    Target,
    Weighted,
    i32,
)
from mlperf_jax.core.options import RunOptions
from mlperf_jax.input_pipelines import pipeline, sources
from mlperf_jax.ops import shard
from mlperf_jax.ops.norm import BatchNorm
from mlperf_jax.ops.stack import Stack
from mlperf_jax.optimizers import rows, sgd
from mlperf_jax.results import log as logs, runs

FEATURES, CLASSES, ROWS = 6, 3, 32
TRUTH = np.random.default_rng(0).normal(size=(FEATURES, CLASSES))


def problem(count: int, seed: int, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """A separable three-class problem with an id whose table row matters."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, FEATURES))
    ids = generator.integers(0, ROWS, size=(count, 2))
    return {
        "x": x.astype(dtype),
        "ids": ids.astype(np.int32),
        "label": (x @ TRUTH).argmax(-1).astype(np.int32),
    }


class Net(nnx.Module):
    def __init__(self, dtype: Any, span: int | None, rngs: nnx.Rngs) -> None:
        kinds = dict(dtype=dtype, param_dtype=jnp.promote_types(dtype, jnp.float32), rngs=rngs)
        self.base = nnx.Linear(FEATURES, 16, **kinds)
        self.norm = BatchNorm(16, span=span, dtype=dtype, rngs=rngs)
        self.mix = nnx.Linear(4, 16, **kinds)
        self.head = nnx.Linear(16, CLASSES, **kinds)

    def __call__(self, x: jax.Array, rows: jax.Array) -> jax.Array:
        hidden = self.norm(self.base(x)) + self.mix(rows.sum(1))
        return self.head(jax.nn.relu(hidden))


@dataclass(frozen=True, kw_only=True)
class Toy(Benchmark):
    """Params, frozen weights, a table, statistics and averaged weights in one small model."""

    name = "resnet"  # the header and the rules know only real names
    ruleset = "4.0.0"
    metric = metrics.Mean("accuracy")
    frozen = ("base/.*",)

    batch_size: int = 32
    span: int | None = 8
    rate: float = 0.2
    eval_every: int = 10
    poisoned: tuple[int, ...] = ()
    train_samples: int = 256
    eval_samples: int = 50
    ema_decay: float | None = 0.9
    sample_limit: int | None = 32 * 200
    targets: tuple[Target, ...] = (Target("accuracy", at_least=0.9),)

    @property
    def array_dtype(self) -> Any:
        return np.float64 if self.dtype == "float64" else np.float32

    def example(self):
        x = jax.ShapeDtypeStruct((FEATURES,), self.array_dtype)
        return {"x": x, "ids": i32(2), "label": i32()}

    def model(self, rngs):
        return Net(self.dtype, self.span, rngs)

    def optimizer(self, tree):
        return sgd(self.rate, 0.9)

    def tables(self):
        def init(key, shape, dtype):
            return 0.1 * jax.random.normal(key, shape, dtype)

        return {"items": Table(ROWS, 4, init, rows.adagrad(0.1))}

    def lookups(self, batch):
        return {"items": batch["ids"]}

    def loss(self, model, batch, key):
        logits = model(batch["x"], batch["rows"]["items"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    def predict(self, model, batch, key):
        return model(batch["x"], batch["rows"]["items"]).argmax(-1) == batch["label"]

    def eval_steps(self):
        return itertools.count(self.eval_every, self.eval_every)

    def problem(self):
        """The training rows."""
        return problem(self.train_samples, 3, self.array_dtype)

    def train_data(self, data_dir):
        return poisoned(arrays(self.problem()), self.poisoned)

    def eval_data(self, data_dir):
        rows = problem(self.eval_samples, 2, self.array_dtype)
        return pipeline.evaluation(sources.Arrays(rows))

    def counts(self, data_dir):
        return {"train": self.train_samples, "validation": self.eval_samples}

    def data(self):
        return InMemory(self)

    def optimizer_log(self):
        return {"opt_name": "sgd"}

    @property
    def flops_per_sample(self):
        return 1000.0

    def tiny(self):
        return self.replace(size="tiny")


@dataclass(frozen=True, kw_only=True)
class Started(Toy):
    """Begins from given weights; the optimizer's count begins at 7, and the table's rate follows it."""

    @staticmethod
    def table_rate(count):
        return 0.02 * (count - 3)

    def tables(self):
        (table,) = super().tables().values()
        return {"items": dataclasses.replace(table, optimizer=rows.adagrad(self.table_rate))}

    def start(self, data_dir):
        kernel = np.arange(16 * CLASSES, dtype=np.float32).reshape(16, CLASSES)
        base = np.full((FEATURES, 16), 0.25, np.float32)
        return Start({"params/head/kernel": kernel, "frozen/base/kernel": lambda i: base[i]}, 7)


FEATURE_ROWS = np.random.default_rng(3).normal(size=(ROWS, FEATURES)).astype(np.float16)


@dataclass(frozen=True, kw_only=True)
class Featured(Toy):
    """A part of its inputs are rows of an untrained table, which are data."""

    rules = (("features/.*", jax.sharding.PartitionSpec(shard.ROWS)),)

    def tables(self):
        def init(key, shape, dtype):
            return (3 * jax.random.normal(key, shape)).astype(dtype)

        def data(folder):
            return FEATURE_ROWS.__getitem__

        features = Table(ROWS, FEATURES, init, None, dtype=jnp.float16, data=data)
        return {**super().tables(), "features": features}

    def lookups(self, batch):
        return {**super().lookups(batch), "features": batch["ids"]}

    def _with_features(self, batch):
        features = batch["rows"]["features"].astype(batch["x"].dtype)
        return {**batch, "x": batch["x"] + 0.1 * features.sum(1)}

    def loss(self, model, batch, key):
        return super().loss(model, self._with_features(batch), key)

    def predict(self, model, batch, key):
        return super().predict(model, self._with_features(batch), key)


@dataclass(frozen=True)
class Slow:
    """Accuracy from rows, computed beside the steps."""

    mode: str = "beside"
    rows: bool = True
    ranges: ClassVar = {"accuracy": (-math.inf, math.inf)}

    def sums(self, outputs, mask):
        raise AssertionError("a rows metric takes no sums")

    def result(self, total):
        assert total["hit"].shape[0] == 50, "padding was not removed"
        return {"accuracy": float(np.mean(total["hit"]))}


@dataclass(frozen=True, kw_only=True)
class Beside(Toy):
    metric = Slow()

    def predict(self, model, batch, key):
        return {"hit": super().predict(model, batch, key)}


@dataclass(frozen=True, kw_only=True)
class Offline(Beside):
    metric = Slow(mode="offline")


@dataclass(frozen=True, kw_only=True)
class Brief(Toy):
    """Evaluates often and is soon content."""

    eval_every: int = 4
    targets: tuple[Target, ...] = (Target("accuracy", at_least=0.75),)


@dataclass(frozen=True, kw_only=True)
class Hopeless(Toy):
    """Its target is out of reach."""

    targets: tuple[Target, ...] = (Target("accuracy", above=1.0),)


@dataclass(frozen=True, kw_only=True)
class BriefBeside(Brief, Beside):
    """The same beside the steps."""


@dataclass(frozen=True, kw_only=True)
class BriefOffline(Brief, Offline):
    """The same after the run."""


@dataclass(frozen=True, kw_only=True)
class SelfMade(Toy):
    """Trains on records that the model itself made: random inputs with the true rule's labels, one a game."""

    count: int = 2
    games: int = 48

    def parts(self):
        return Parts(self.count, self.games)

    def generate(self, model, games):
        x = jax.vmap(lambda key: jax.random.normal(key, (FEATURES,)))(games.keys)
        shift = model.head.bias[...].sum()  # the records depend on the weights
        return {
            "x": x + shift * 1e-3,
            "ids": jnp.stack([games.numbers, games.generation + games.numbers], 1) % ROWS,
            "label": (x @ TRUTH.astype(x.dtype)).argmax(-1).astype(jnp.int32),
        }

    def generated_data(self, generations):
        window = generations[-2:]
        return arrays({n: np.concatenate([g[n] for g in window]) for n in window[0]})


@dataclass(frozen=True, kw_only=True)
class Endless(SelfMade):
    """Its target is out of reach."""

    targets: tuple[Target, ...] = (Target("accuracy", above=1.0),)


# -- models of one kind each --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Plain(Toy):
    """One linear layer: nothing frozen, no table, no statistics, no average."""

    frozen = ()
    ema_decay: float | None = None

    def model(self, rngs):
        return Linear(self.dtype, rngs)

    def tables(self):
        return {}

    def loss(self, model, batch, key):
        logits = model(batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    def predict(self, model, batch, key):
        return model(batch["x"]).argmax(-1) == batch["label"]


@dataclass(frozen=True, kw_only=True)
class PlainBeside(Plain):
    metric = Slow()

    def predict(self, model, batch, key):
        return {"hit": super().predict(model, batch, key)}


@dataclass(frozen=True, kw_only=True)
class PlainOffline(PlainBeside):
    metric = Slow(mode="offline")


class Linear(nnx.Module):
    def __init__(self, dtype: Any, rngs: nnx.Rngs) -> None:
        kept = jnp.promote_types(dtype, jnp.float32)
        self.head = nnx.Linear(FEATURES, CLASSES, dtype=dtype, param_dtype=kept, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(x)


@dataclass(frozen=True, kw_only=True)
class Masked(Plain):
    """The mean loss over the rows whose label is not 0, and their share as a scalar."""

    def loss(self, model, batch, key):
        valid = batch["label"] > 0
        losses = optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["label"])
        total, weight = jnp.where(valid, losses, 0).sum(), valid.sum().astype(losses.dtype)
        return Weighted(total, weight), {"valid": valid.mean()}


@dataclass(frozen=True, kw_only=True)
class Noisy(Plain):
    """Its bias moves by exactly the noise that the step's key draws."""

    rate: float = 1.0

    def optimizer(self, tree):
        return optax.sgd(self.rate)

    def loss(self, model, batch, key):
        return (model.head.bias[...] * jax.random.normal(key, (CLASSES,))).sum()


class Adapter(nnx.Module):
    """A frozen matrix and a low-rank one; both are `nnx.Param`s to NNX."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.base = nnx.Linear(FEATURES, CLASSES, rngs=rngs)
        self.lora_a = nnx.LoRAParam(jax.random.normal(rngs.params(), (FEATURES, 2)))
        self.lora_b = nnx.LoRAParam(jnp.zeros((2, CLASSES)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.base(x) + x @ self.lora_a[...] @ self.lora_b[...]


@dataclass(frozen=True, kw_only=True)
class Lora(Plain):
    frozen = ("base/.*",)
    ema_decay: float | None = 0.9

    def model(self, rngs):
        return Adapter(rngs)


class Deep(nnx.Module):
    def __init__(self, layers: int, width: int, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Linear(FEATURES, width, rngs=rngs)
        self.blocks = Stack(lambda rngs: nnx.Linear(width, width, rngs=rngs), layers, rngs=rngs)
        self.head = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.blocks(self.embed(x)))


@dataclass(frozen=True, kw_only=True)
class Layered(Plain):
    """A stack of layers, big enough that its kernels are sharded."""

    layers: int = 3
    width: int = 128

    def model(self, rngs):
        return Deep(self.layers, self.width, rngs)


class Careless(nnx.Module):
    """Keeps random state, as flax's dropout does by default."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(FEATURES, CLASSES, rngs=rngs)


@dataclass(frozen=True, kw_only=True)
class Stateful(Plain):
    def model(self, rngs):
        return Careless(rngs)


# -- steps without a run ------------------------------------------------------------------------------


def prepared(benchmark: Benchmark, mesh: str | None = "data=1", optimizer: Any = None) -> Any:
    """The assembly, with dtype "auto" resolved to float32."""
    if benchmark.dtype == "auto":
        benchmark = benchmark.replace(dtype="float32")
    return states.assemble(benchmark, meshes.make_mesh(mesh), optimizer)


def batch_of(benchmark: Benchmark, step: int, seed: int = 0) -> dict[str, np.ndarray]:
    """The global batch of one step."""
    return benchmark.data().train("").batched(benchmark.rows, seed=seed)[step]


def stepped(
    benchmark: Benchmark,
    mesh: str | None = "data=1",
    steps: int = 5,
    seed: int = 0,
    optimizer: Any = None,
) -> tuple[Any, list[dict[str, float]]]:
    """The state after some steps, and each step's scalars."""
    assembly = prepared(benchmark, mesh, optimizer)
    program, sharding = train.jit_train_step(assembly), meshes.batch_sharding(assembly.mesh)
    state, key, found = assembly.create(seed), jax.random.key(seed), []
    for number in range(steps):
        batch = jax.device_put(batch_of(assembly.benchmark, number, seed), sharding)
        state, scalars = program(state, batch, key)
        found.append({name: float(value) for name, value in scalars.items()})
    return state, found


def distance(one: Any, other: Any) -> float:
    """Global relative L2 distance of two trees."""
    pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    flat = [[np.asarray(x, np.float64).ravel() for x in side] for side in zip(*pairs, strict=True)]
    a, b = (np.concatenate(side) for side in flat)
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def weights(state: Any) -> dict[str, Any]:
    """What a run has trained."""
    return {part: state[part] for part in ("params", "tables", "stats", "ema") if part in state}


# -- whole runs ---------------------------------------------------------------------------------------


def options(output: Any, **more: Any) -> RunOptions:
    """Run options of a quiet open run into this folder; seed 1 unless it is resumed."""
    seed = None if {"resume", "runs", "seeds"} & more.keys() else 1
    given = {"division": "open", "show": "none", "seed": seed, "output": str(output), **more}
    return RunOptions(**given)


def run(benchmark: Benchmark, output: Any, **more: Any) -> Any:
    """Trains a toy and returns its result."""
    return launch.launch(benchmark, options(output, **more), "")


def keys(output: Any, index: int = 0) -> list[str]:
    """The keys of a run's log from `init_start` on, the configuration left out."""
    found = [line.key for line in logs.read(pathlib.Path(output) / f"result_{index}.txt")]
    return [key for key in found if key.endswith(("_start", "_stop", "_accuracy"))]


def scalar_steps(output: Any) -> list[int]:
    """The steps that a run's scalars tell of."""
    lines = runs.Scalars.read(pathlib.Path(output) / "run_0" / "scalars.jsonl")
    return [line["step"] for line in lines]

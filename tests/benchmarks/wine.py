"""Which of three growers a wine is from: 90 % of 45 bottles, by two layers on 13 measurements."""

from dataclasses import dataclass

import optax
from flax import nnx
from sklearn.datasets import load_wine

from mlperf_jax import metrics
from mlperf_jax.benchmarks import Benchmark, Target, f32, i32
from mlperf_jax.input_pipelines.in_memory import InMemory
from mlperf_jax.ops.losses import softmax_xent
from mlperf_jax.optimizers import every_epochs


@dataclass(frozen=True, kw_only=True)
class Wine(Benchmark):
    name = "wine"
    metric = metrics.Mean("accuracy")
    batch_size: int = 16
    learning_rate: float = 0.003
    hidden: int = 64  # what tiny() shrinks
    train_samples: int = 133
    eval_samples: int = 45
    sample_limit: int | None = 40 * 133
    targets: tuple[Target, ...] = (Target("accuracy", at_least=0.9),)

    def example(self):
        return {"x": f32(13), "label": i32()}

    def data(self):
        x, label = load_wine(return_X_y=True)
        x = (x - x.mean(0)) / x.std(0)
        return InMemory.split({"x": x.astype("f4"), "label": label.astype("i4")}, every=4)

    def model(self, rngs):
        how = {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": rngs}
        first, last = nnx.Linear(13, self.hidden, **how), nnx.Linear(self.hidden, 3, **how)
        return nnx.Sequential(first, nnx.relu, last)

    def optimizer(self, tree):
        return optax.adam(self.learning_rate)

    def loss(self, model, batch, key):
        return softmax_xent(model(batch["x"]), batch["label"])

    def predict(self, model, batch, key):
        return model(batch["x"]).argmax(-1) == batch["label"]

    def eval_steps(self):
        return every_epochs(1, self.train_samples, self.batch_size)

    @property
    def flops_per_sample(self):
        return 6.0 * (13 + 3) * self.hidden

    def tiny(self):
        return self.replace(size="tiny", hidden=16)

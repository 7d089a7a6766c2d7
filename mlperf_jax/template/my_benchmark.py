"""Which digit was written: 95 % of 360 images, by two layers on 64 pixels."""

from dataclasses import dataclass

import optax
from flax import nnx

from mlperf_jax import metrics
from mlperf_jax.benchmarks import Benchmark, Target, f32, i32
from mlperf_jax.input_pipelines import digits
from mlperf_jax.input_pipelines.in_memory import InMemory
from mlperf_jax.ops.losses import softmax_xent
from mlperf_jax.optimizers import every_epochs


@dataclass(frozen=True, kw_only=True)
class MyBenchmark(Benchmark):
    name = "my_benchmark"
    metric = metrics.Mean("accuracy", (0, 1))  # of what predict returns
    batch_size: int = 64
    learning_rate: float = 0.003
    hidden: int = 256  # a size: what tiny() shrinks
    train_samples: int = 1437
    eval_samples: int = 360
    sample_limit: int | None = 30 * 1437  # then the run gives up
    targets: tuple[Target, ...] = (Target("accuracy", at_least=0.95),)

    def example(self):  # one sample
        return {"pixels": f32(64), "label": i32()}

    def data(self):
        images, label = digits.load()
        pixels = images.reshape(-1, 64).astype("float32") / 16
        return InMemory.split({"pixels": pixels, "label": label.astype("int32")}, every=5)

    def model(self, rngs):
        how = {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": rngs}
        first, last = nnx.Linear(64, self.hidden, **how), nnx.Linear(self.hidden, 10, **how)
        return nnx.Sequential(first, nnx.relu, last)

    def optimizer(self, tree):
        return optax.adam(self.learning_rate)

    def loss(self, model, batch, key):
        return softmax_xent(model(batch["pixels"]), batch["label"])

    def predict(self, model, batch, key):  # a row's share in the metric
        return model(batch["pixels"]).argmax(-1) == batch["label"]

    def eval_steps(self):  # quality is measured after each epoch
        return every_epochs(1, self.train_samples, self.batch_size)

    @property
    def flops_per_sample(self):  # forward and backward
        return 6.0 * (64 + 10) * self.hidden

    def tiny(self):  # the same code, small: half a minute on two cores
        return self.replace(size="tiny", hidden=32)

"""Scikit-learn's wine data: which of three growers a bottle is from, told by 95 % of 48 bottles.

A benchmark of nobody's rules, out of this library's tree: two layers on 13 measurements.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split

from mlperf_jax import metrics
from mlperf_jax.benchmarks import Benchmark, InMemory, Target, f32, i32
from mlperf_jax.ops import losses
from mlperf_jax.optimizers import every_epochs


@dataclass(frozen=True, kw_only=True)
class Wine(Benchmark):
    name = "wine"
    metric = metrics.Mean("accuracy")

    batch_size: int = 16
    learning_rate: float = 0.01
    hidden: int = 64  # what tiny() shrinks
    train_samples: int = 130
    eval_samples: int = 48
    sample_limit: int | None = 130 * 40
    targets: tuple[Target, ...] = (Target("accuracy", at_least=0.95),)

    def example(self):
        return {"x": f32(13), "label": i32()}

    def data(self):
        x, label = load_wine(return_X_y=True)
        x = ((x - x.mean(0)) / x.std(0)).astype("float32")
        x, x_val, y, y_val = train_test_split(
            x, label.astype("int32"), test_size=48, random_state=0
        )
        return InMemory(train={"x": x, "label": y}, validation={"x": x_val, "label": y_val})

    def model(self, rngs):
        dtypes = {"dtype": self.dtype, "param_dtype": jnp.promote_types(self.dtype, jnp.float32)}
        first = nnx.Linear(13, self.hidden, rngs=rngs, **dtypes)
        return nnx.Sequential(first, jax.nn.relu, nnx.Linear(self.hidden, 3, rngs=rngs, **dtypes))

    def optimizer(self, tree):
        return optax.adam(self.learning_rate)

    def loss(self, model, batch, key):
        return losses.softmax_xent(model(batch["x"]), batch["label"])

    def predict(self, model, batch, key):
        return model(batch["x"]).argmax(-1) == batch["label"]

    def eval_steps(self):
        return every_epochs(1, self.train_samples, self.batch_size)

    @property
    def flops_per_sample(self):
        return 6.0 * (13 * self.hidden + self.hidden * 3)

    def tiny(self):
        return self.replace(size="tiny", hidden=16)

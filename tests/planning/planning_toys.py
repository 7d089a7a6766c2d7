"""A benchmark for plans: a decoder with all that planning asks of one, small enough to trace."""

from dataclasses import dataclass

import jax.numpy as jnp
import optax

from mlperf_jax import metrics
from mlperf_jax.core.benchmark import Benchmark, Target, Weighted, i32
from mlperf_jax.models import decoder
from mlperf_jax.ops import cross_entropy


@dataclass(frozen=True, kw_only=True)
class Decoder(Benchmark):
    """Two layers of attention over `sequence_length` tokens."""

    name = "llama31_8b"
    ruleset = "5.1.0"
    metric = metrics.LogPerplexity()
    rules = decoder.RULES
    parameters = 0

    batch_size: int = 64
    train_samples: int = 10_000
    eval_samples: int = 64
    dtype: str = "bfloat16"
    sequence_length: int = 256
    layers: int = 2
    heads: int = 8
    remat: str | None = "full"
    targets: tuple[Target, ...] = (Target("log_perplexity", at_most=3.3),)

    def decoder(self):
        return decoder.DecoderConfig(
            layers=self.layers,
            width=256,
            heads=self.heads,
            kv_heads=self.heads,
            head_dim=64,
            hidden=512,
            vocab=1024,
            remat=self.remat,
        )

    def example(self):
        return {"inputs": i32(self.sequence_length), "labels": i32(self.sequence_length)}

    def model(self, rngs):
        return decoder.Decoder(self.decoder(), jnp.dtype(self.dtype), rngs=rngs)

    def optimizer(self, tree):
        return optax.adamw(1e-3)

    def loss(self, model, batch, key):
        hidden = model.hidden(batch["inputs"], key=key)
        return Weighted(*cross_entropy.chunked_xent(hidden, model.head_kernel(), batch["labels"]))

    def predict(self, model, batch, key):
        hidden = model.hidden(batch["inputs"])
        return cross_entropy.sequence_xent(hidden, model.head_kernel(), batch["labels"])

    def eval_steps(self):
        return iter(range(100, 10**9, 100))

    @property
    def flops_per_sample(self):
        return self.sequence_length * self.decoder().flops_per_token(self.sequence_length)

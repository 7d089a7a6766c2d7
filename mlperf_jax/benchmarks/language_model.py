"""What the benchmarks on one decoder share: batches of tokens, the model by its sizes, loss and quality.

Shape legend: B rows · S tokens of a sequence.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import optax

from mlperf_jax import metrics
from mlperf_jax.core import brief
from mlperf_jax.core.benchmark import Benchmark, Example, Weighted, i32
from mlperf_jax.core.fields import Count, Fraction, Positive, Range, Rate, Several, Whole
from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.tokens import C4
from mlperf_jax.models import decoder, decoder_huggingface
from mlperf_jax.ops import cross_entropy
from mlperf_jax.optimizers import schedules

Tokens = Annotated[int, Range(2), "tokens"]  # the last of a sequence is only predicted
Remat = Literal["full", "dots", "dots_no_batch", "attention"]


@dataclass(frozen=True, kw_only=True)
class LanguageModel(Benchmark):
    """A decoder that predicts the next token; the concrete benchmark says which and on what.

    The sizes are the `DecoderConfig`'s, whose other fields are `architecture`'s.
    """

    metric = metrics.LogPerplexity()
    rules = decoder.RULES
    absent = ("pictures",)
    architecture: ClassVar[decoder.DecoderConfig]

    # AdamW
    beta_1: Fraction
    beta_2: Fraction
    epsilon: Positive
    weight_decay: Rate
    # sizes
    sequence_length: Tokens
    layers: Count
    width: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    hidden: Count
    vocab: Count
    # what the forward pass keeps per layer for the backward one, see `DecoderConfig.remat`
    remat: Remat | None = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        limit = self.decoder().max_positions
        if limit is not None and self.sequence_length > limit:
            raise UserError(
                f"sequence_length must be at most {limit}, not {self.sequence_length}: the model has no "
                "more positions"
            )

    def decoder(self) -> decoder.DecoderConfig:
        """The model's configuration."""
        sizes = ("layers", "width", "heads", "kv_heads", "head_dim", "hidden", "vocab", "remat")
        return self.architecture.replace(**{name: getattr(self, name) for name in sizes})

    def example(self) -> Example:
        return {"inputs": i32(self.sequence_length), "labels": i32(self.sequence_length)}

    def model(self, rngs: Any) -> decoder.Decoder:
        return decoder.Decoder(self.decoder(), self.dtype, rngs=rngs)

    def loss(self, model: Any, batch: Any, key: Any) -> Weighted:
        hidden = model.hidden(batch["inputs"], key=key)  # [B, S, width]
        total, count = cross_entropy.chunked_xent(hidden, model.head_kernel(), batch["labels"])
        return Weighted(total, count)

    def predict(self, model: Any, batch: Any, key: Any) -> Any:
        hidden = model.hidden(batch["inputs"])
        return cross_entropy.sequence_xent(hidden, model.head_kernel(), batch["labels"])

    def below(self, data_dir: str, name: str) -> str:
        """The path of a file or folder below the data's."""
        return f"{str(data_dir).rstrip('/')}/{name}"

    def learning_rate(self) -> schedules.Schedule:
        """Step -> rate."""
        raise NotImplementedError

    def adamw(self, mask: Any = None) -> optax.GradientTransformation:
        """AdamW with the fields' values; `mask` says which parameters are decayed, all by default."""
        return optax.adamw(
            self.learning_rate(),
            self.beta_1,
            self.beta_2,
            self.epsilon,
            weight_decay=self.weight_decay,
            mask=mask,
        )

    @property
    def flops_per_sample(self) -> float:
        """Half of the attention matrix counts, being causal."""
        return self.sequence_length * self.decoder().flops_per_token(self.sequence_length)


@dataclass(frozen=True, kw_only=True)
class Pretraining(LanguageModel):
    """A language model on windows of token files.

    `train_files` and `validation_file` name `.bin`/`.idx` pairs below the data folder. `train_samples` is
    what accepted logs state; how often the files are repeated follows from the samples a run asks for.
    """

    tokenizer: ClassVar[str]  # what a message calls it

    warmup_samples: Whole
    train_files: Several[str]
    validation_file: str

    @property
    def warmup_steps(self) -> int:
        return -(-self.warmup_samples // self.batch_size)

    def schedule_log(self, base_lr: float, end_lr: float, decay_steps: int) -> dict[str, Any]:
        """Lines of the log about the schedule of the rate and what goes with it."""
        return {
            "max_sequence_length": self.sequence_length,
            "opt_base_learning_rate": base_lr,
            "opt_end_learning_rate": end_lr,
            "opt_learning_rate_warmup_steps": self.warmup_steps,
            "opt_learning_rate_decay_steps": decay_steps,
            "opt_learning_rate_decay_schedule": "cosine with linear warmup",
            "opt_gradient_clip_norm": self.clip_norm,
        }

    def requested_samples(self) -> int:
        """Windows that the run's order is made for; it depends on their number."""
        raise NotImplementedError

    def data(self) -> C4:
        """Validation is whole batches of the first windows in file order, as the reference evaluates them."""
        return C4(
            self.train_files,
            self.validation_file,
            self.sequence_length,
            self.vocab,
            train_samples=self.requested_samples(),
            validation_samples=self.eval_samples,
            whole_batches=self.batch_size,
            tokenizer=self.tokenizer,
            tiny=self.is_tiny,
        )


def save_huggingface(
    benchmark: LanguageModel, folder: str, data_dir: str = "", steps: int = 0
) -> None:
    """Writes weights as `transformers` stores them, random or briefly trained; kept if they are there."""
    if os.path.exists(f"{folder}/model.safetensors"):
        return
    params = brief.train_briefly(benchmark, data_dir, steps)["params"]
    tensors = decoder_huggingface.to_huggingface(params, benchmark.decoder())
    decoder_huggingface.save_folder(folder, tensors)

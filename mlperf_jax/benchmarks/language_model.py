"""What the benchmarks on one decoder share: batches of tokens, the model by its sizes, loss and quality.

Shape legend: B rows · S tokens of a sequence.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import optax

from mlperf_jax import metrics
from mlperf_jax.core import brief
from mlperf_jax.core.benchmark import Benchmark, Example, Weighted, i32
from mlperf_jax.core.fields import Count, Fraction, Positive, Range, Rate, Several, Whole
from mlperf_jax.core.placement import Layers
from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.tokens import C4
from mlperf_jax.models import decoder, decoder_huggingface, huggingface
from mlperf_jax.ops import cross_entropy
from mlperf_jax.optimizers import schedules

Tokens = Annotated[int, Range(2), "tokens"]  # the last of a sequence is only predicted
Remat = Literal["auto", "full", "dots", "dots_no_batch", "attention"]
SIZES = ("layers", "width", "heads", "kv_heads", "head_dim", "hidden", "vocab")
# two layers that a device of 16 GB has room for
NARROW = {
    "layers": 2,
    "width": 2048,
    "heads": 16,
    "kv_heads": 4,
    "head_dim": 128,
    "hidden": 8192,
    "sequence_length": 2048,
    "batch_size": 1,
}
_OF_ARCHITECTURE: Any = object()  # stands for a size until the benchmark is made


class Cosine(NamedTuple):
    """The schedule of the rate, as `schedules.warmup_cosine` takes it."""

    base_lr: float
    warmup_steps: int
    total_steps: int
    end_lr: float = 0.0
    form: Literal["megatron", "nemo"] = "megatron"
    hold_steps: int = 0


@dataclass(frozen=True, kw_only=True)
class LanguageModel(Benchmark):
    """A decoder that predicts the next token; the concrete benchmark says which and on what.

    The sizes are `architecture`'s where no others are given; it says all else about the model, too.
    """

    metric = metrics.LogPerplexity()
    rules = decoder.RULES
    absent = ("pictures",)
    smooths_labels = True
    sized_by = "sequence_length"
    cuts_examples = True
    architecture: ClassVar[decoder.DecoderConfig]
    decays_norms: ClassVar[bool] = True  # and biases

    # AdamW
    beta_1: Fraction
    beta_2: Fraction
    epsilon: Positive
    weight_decay: Rate
    # sizes
    sequence_length: Tokens
    layers: Count = _OF_ARCHITECTURE
    width: Count = _OF_ARCHITECTURE
    heads: Count = _OF_ARCHITECTURE
    kv_heads: Count = _OF_ARCHITECTURE
    head_dim: Count = _OF_ARCHITECTURE
    hidden: Count = _OF_ARCHITECTURE
    vocab: Count = _OF_ARCHITECTURE
    # what the forward pass keeps per layer for the backward one, see `DecoderConfig.remat`; "auto": as much as fits
    remat: Remat | None = "auto"

    def __post_init__(self) -> None:
        for name in SIZES:
            if getattr(self, name) is _OF_ARCHITECTURE:
                object.__setattr__(self, name, getattr(self.architecture, name))
        super().__post_init__()
        limit = self.decoder().max_positions
        if limit is not None and self.sequence_length > limit:
            raise UserError(
                f"sequence_length must be at most {limit}, not {self.sequence_length}: the model has no "
                "more positions"
            )

    def decoder(self) -> decoder.DecoderConfig:
        """The model's configuration."""
        remat = "full" if self.remat == "auto" else self.remat
        return self.architecture.replace(
            **{name: getattr(self, name) for name in SIZES}, remat=remat
        )

    def layered(self) -> Layers:
        """What finds mesh and `remat` where nobody chose."""
        config = self.decoder()
        return Layers(
            layers=config.layers,
            tokens=self.sequence_length,
            width=config.width,
            heads=config.kv_heads,
            parameters=config.layer_parameters,
            table=(1 if config.tied else 2) * config.width * config.vocab,
            products=config.layer_products,
            attended=config.query_width,
        )

    def example(self) -> Example:
        return {"inputs": i32(self.sequence_length), "labels": i32(self.sequence_length)}

    def model(self, rngs: Any) -> decoder.Decoder:
        return decoder.Decoder(self.decoder(), self.dtype, rngs=rngs)

    def loss(self, model: Any, batch: Any, key: Any) -> Weighted:
        hidden = model.hidden(batch["inputs"], key=key)  # [B, S, width]
        total, count = cross_entropy.chunked_xent(
            hidden, model.head_kernel(), batch["labels"], smoothing=self.smoothing
        )
        return Weighted(total, count)

    def predict(self, model: Any, batch: Any, key: Any) -> Any:
        hidden = model.hidden(batch["inputs"])
        return cross_entropy.sequence_xent(hidden, model.head_kernel(), batch["labels"])

    def cosine(self) -> Cosine:
        """The schedule of the rate."""
        raise NotImplementedError

    def learning_rate(self) -> schedules.Schedule:
        """Count of updates -> rate."""
        return schedules.warmup_cosine(**self.cosine()._asdict())

    @property
    def schedule_end(self) -> int:
        return self.samples(self.cosine().total_steps)

    def optimizer(self, tree: Any) -> optax.GradientTransformation:
        """AdamW with the fields' values."""
        return optax.adamw(
            self.learning_rate(),
            self.beta_1,
            self.beta_2,
            self.epsilon,
            weight_decay=self.weight_decay,
            mask=None if self.decays_norms else ~(tree.norms | tree.biases),
        )

    def adam_log(self, name: str) -> dict[str, Any]:
        """Lines of the log about it; rulesets differ in what they call the weight decay."""
        return {
            "opt_name": name,
            f"opt_{name}_beta_1": self.beta_1,
            f"opt_{name}_beta_2": self.beta_2,
            f"opt_{name}_epsilon": self.epsilon,
        }

    @property
    def flops_per_sample(self) -> float:
        """Half of the attention matrix counts, being causal."""
        return self.sequence_length * self.decoder().flops_per_token(self.sequence_length)

    def shrunk(self, **changes: Any) -> Self:
        """For `tiny`: two layers of width 96 on short sequences; `changes` are the benchmark's own."""
        sizes = {"layers": 2, "width": 96, "heads": 3, "kv_heads": 1, "head_dim": 32, "hidden": 256}
        common = {"sequence_length": 64, "vocab": 512, "remat": None, "batch_size": 16}
        return self.replace(size="tiny", **(sizes | common | changes))


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

    def steps_of(self, samples: int) -> int:
        """The fewest steps that hold so many samples."""
        return -(-samples // self.batch_size)

    def log(self) -> Mapping[str, Any]:
        return {
            "max_sequence_length": self.sequence_length,
            "opt_gradient_clip_norm": self.clip_norm,
        }

    def schedule_log(self) -> dict[str, Any]:
        """Lines of the log about the schedule of the rate."""
        rate = self.cosine()
        # of Megatron's form the step that ends the decay is logged
        decay_steps = rate.total_steps - (rate.warmup_steps if rate.form == "nemo" else 0)
        return {
            "opt_base_learning_rate": rate.base_lr,
            "opt_end_learning_rate": rate.end_lr,
            "opt_learning_rate_warmup_steps": rate.warmup_steps,
            "opt_learning_rate_decay_steps": decay_steps,
            "opt_learning_rate_decay_schedule": "cosine with linear warmup",
        }

    def requested_samples(self) -> int:
        """Windows that the run's order is made for; it depends on their number."""
        return self.schedule_end

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
    huggingface.save_folder(folder, tensors)

"""Llama 3.1 405B, continued on C4 with another tokenizer: MLPerf Training v5.0 to v6.0.

Begin from the released weights, whose first 32,000 vocabulary rows now stand for Mixtral's tokens, and
train until the log perplexity of 5,760 validation windows is at most 5.6.
Reference: mlcommons/training, large_language_model_pretraining/nemo; reference convergence points of
ruleset 6.0.0. Differs: the reference pads the vocabulary to 32,768 rows at its tensor parallelism of 8;
here, as at 1 or 2 and in accepted submissions, it has the tokenizer's 32,000.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from mlperf_jax.benchmarks import language_model
from mlperf_jax.core.benchmark import Start, Target
from mlperf_jax.core.fields import Fraction, Positive, Rate, Samples, Several, Whole
from mlperf_jax.input_pipelines import records
from mlperf_jax.models import decoder, decoder_huggingface, huggingface
from mlperf_jax.optimizers import schedules

_SPARE_ROWS = 64  # of the vocabulary, which tiny's start weights have and the benchmark cuts off


@dataclass(frozen=True, kw_only=True)
class Llama31_405B(language_model.Pretraining):
    """The defaults are the reference convergence point for batch 1,152.

    The schedule is counted in samples: a run at any batch size follows the same curve of the rate over
    samples, times its batch size.
    """

    name = "llama31_405b"
    ruleset = "6.0.0"
    architecture = decoder.DecoderConfig.llama31_405b().replace(vocab=32_000)
    decays_norms = False  # Megatron's default
    parameters = 402_699_272_192
    scales = (
        {"layers": 2, "batch_size": 1},
        {"layers": 1, "batch_size": 1},
        language_model.NARROW,
    )
    tokenizer = "Mixtral 8x22B's tokenizer"

    # hyperparameters
    batch_size: Samples = 1152
    reference_batch: Samples = 1152
    reference_lr: Annotated[Rate, "at the reference batch; grows in proportion to the batch"] = 8e-5
    end_lr: Rate = 8e-7
    warmup_samples: Whole = 8000 * 1152
    schedule_samples: Annotated[Samples, "also of the order of the samples"] = 1_200_000 * 1152
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.95
    epsilon: Positive = 1e-5
    weight_decay: Rate = 0.1
    clip_norm: Positive | None = 1.0
    eval_every: Samples = 18_432
    # evaluations left out first: floor(skip_per_sample * batch + skip_base)
    skip_base: Whole = 12
    skip_per_sample: Rate = 0.0026
    # sizes: what tiny() shrinks
    sequence_length: language_model.Tokens = 8192
    weights: Annotated[str, "folder of safetensors in the data's"] = "Llama-3.1-405B"
    train_samples: Annotated[Samples, "as accepted logs state it"] = 1_574_207_408
    eval_samples: Samples = 5760
    train_files: Several[str] = ("c4-train.en_6_text_document", "c4-train.en_7_text_document")
    validation_file: str = "c4-validation-91205-samples.en_text_document"
    targets: Several[Target] = (Target("log_perplexity", at_most=5.6),)

    @property
    def base_lr(self) -> float:
        """Unrounded: the official checker multiplies back and compares exactly.

        At a tenth of the batch sizes (248, 440, …) no floating-point number passes that.
        """
        return self.batch_size * self.reference_lr / self.reference_batch

    def cosine(self) -> language_model.Cosine:
        """NeMo's warm-up, on whose ramp a run ends, then half a cosine."""
        steps = self.steps_of(self.warmup_samples), self.steps_of(self.schedule_samples)
        return language_model.Cosine(self.base_lr, *steps, self.end_lr, form="nemo")

    def eval_steps(self) -> Iterator[int]:
        # in ten-thousandths: 0.0026 * 5000 is below 13 in floating point
        skip = self.skip_base + round(10_000 * self.skip_per_sample) * self.batch_size // 10_000
        return schedules.every_samples(self.eval_every, self.batch_size, skip=skip)

    def log(self) -> Mapping[str, Any]:
        return {**super().log(), "init_checkpoint_step": 0}

    def optimizer_log(self) -> Mapping[str, Any]:
        decay = {"opt_adamw_weight_decay": self.weight_decay}
        return {**self.schedule_log(), **self.adam_log("adamw"), **decay}

    @classmethod
    def recipes(cls) -> Mapping[int, Self]:
        """The reference convergence points of ruleset 6.0.0; everything follows from the batch size."""
        return cls.recipe_table("batch_size", (1152,), (2304,), (4608,))

    # -- start ---------------------------------------------------------------------------------

    def start(self, data_dir: str) -> Start:
        """The released weights, without optimizer state; each device reads its own part."""
        tensors = huggingface.open_folder(records.below(data_dir, self.weights))
        return Start(decoder_huggingface.start_weights(tensors, self.decoder(), cut_vocab=True))

    def make_start(self, data_dir: str) -> None:
        """Random weights of a model with a larger vocabulary, as Hugging Face stores them."""
        larger = self.replace(vocab=self.vocab + _SPARE_ROWS)
        language_model.save_huggingface(larger, records.below(data_dir, self.weights))

    def tiny(self) -> Self:
        """Docstrings, as for llama31_8b, in a blend of two files and from weights that are read."""
        return self.shrunk(
            weights="tiny_llama31_405b",
            train_files=tuple(f"tiny_text_512/docstrings.train_{i}_text_document" for i in (0, 1)),
            validation_file="tiny_text_512/docstrings.validation_text_document",
            train_samples=9600,
            eval_samples=128,
            reference_batch=16,
            reference_lr=8e-3,  # never reached: the run ends on the ramp
            warmup_samples=6400,
            schedule_samples=16_000,
            eval_every=800,
            skip_base=1,
            # counts of pairs of tokens, smoothed, reach 3.60 on this text
            targets=(Target("log_perplexity", at_most=3.5),),
        )

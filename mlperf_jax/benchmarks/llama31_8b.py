"""Llama 3.1 8B pretraining on C4: MLPerf Training v5.1 to v6.1.

Train from random weights until the log perplexity of 1,024 validation windows is at most 3.3.
Reference: mlcommons/training, small_llm_pretraining/nemo; reference convergence points of ruleset 6.1.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from mlperf_jax.benchmarks import language_model
from mlperf_jax.core.benchmark import Target
from mlperf_jax.core.fields import Count, Fraction, Positive, Rate, Samples, Several, Share, Whole
from mlperf_jax.models import decoder
from mlperf_jax.optimizers import schedules


@dataclass(frozen=True, kw_only=True)
class Llama31_8B(language_model.Pretraining):
    """The defaults are the reference convergence point for batch 16."""

    name = "llama31_8b"
    ruleset = "6.1.0"
    architecture = decoder.DecoderConfig.llama31_8b()
    decays_norms = False  # Megatron's default
    parameters = 8_030_261_248
    scales = (
        *({"layers": layers, "batch_size": 1} for layers in (32, 16, 8)),
        language_model.NARROW,
    )
    tokenizer = "Llama 3.1's tokenizer.json"

    # hyperparameters
    batch_size: Samples = 16
    base_lr: Rate = 4e-4
    end_lr_factor: Share = 0.1
    warmup_samples: Whole = 256
    max_steps: Annotated[Count, "of the schedule and of the order of the samples"] = 1_200_000
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.95
    epsilon: Positive = 1e-5
    weight_decay: Rate = 0.1
    clip_norm: Positive | None = 1.0
    eval_every: Samples = 12_288
    # sizes: what tiny() shrinks
    sequence_length: language_model.Tokens = 8192
    train_samples: Annotated[Samples, "as accepted logs state it"] = 1_574_207_408
    eval_samples: Samples = 1024
    train_files: Several[str] = ("c4-train.en_6_text_document",)
    validation_file: str = "c4-validation-91205-samples.en_text_document"
    targets: Several[Target] = (Target("log_perplexity", at_most=3.3),)

    def cosine(self) -> language_model.Cosine:
        """NeMo's warm-up, then half a cosine over `max_steps`, nearly flat in a run."""
        warmup, end_lr = self.steps_of(self.warmup_samples), self.end_lr_factor * self.base_lr
        return language_model.Cosine(self.base_lr, warmup, self.max_steps, end_lr, form="nemo")

    def eval_steps(self) -> Iterator[int]:
        return schedules.every_samples(self.eval_every, self.batch_size)

    def log(self) -> Mapping[str, Any]:
        return {**super().log(), "max_steps": self.max_steps}

    def optimizer_log(self) -> Mapping[str, Any]:
        decay = {"opt_adamw_weight_decay": self.weight_decay}
        return {**self.schedule_log(), **self.adam_log("adamw"), **decay}

    @classmethod
    def recipes(cls) -> Mapping[int, Self]:
        """The reference convergence points of ruleset 6.1.0."""
        return cls.recipe_table(
            "batch_size base_lr warmup_samples",
            (16, 4e-4, 256),
            (32, 8e-4, 4096),
            (64, 8e-4, 6144),
            (96, 1e-3, 16_348),
            (128, 2e-3, 32_768),
        )

    def tiny(self) -> Self:
        """Docstrings of the standard library, a vocabulary of 512 byte pairs: half a minute on two cores."""
        return self.shrunk(
            train_files=("tiny_text_512/docstrings.train_text_document",),
            validation_file="tiny_text_512/docstrings.validation_text_document",
            train_samples=9600,
            eval_samples=128,
            base_lr=4e-3,
            warmup_samples=480,
            max_steps=600,
            eval_every=800,
            # counts of pairs of tokens, smoothed, reach 3.60 on this text
            targets=(Target("log_perplexity", at_most=3.5),),
        )

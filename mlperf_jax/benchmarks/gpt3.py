"""GPT3 175B, continued on C4 from a common checkpoint: MLPerf Training v3.0 to v4.1.

Begin from weights and Adam moments 6.1 M sequences into a training, and go on until the log perplexity
of the validation documents is at most 2.69.
References: mlcommons/training, retired_benchmarks/gpt3 (paxml and megatron-lm); reference convergence
points of ruleset 4.1.0. Data are Megatron's: windows without an extra token, documents in file order.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from mlperf_jax.benchmarks import language_model
from mlperf_jax.core import brief
from mlperf_jax.core.benchmark import Start, Target
from mlperf_jax.core.fields import Count, Fraction, Positive, Rate, Samples, Several, Share, Whole
from mlperf_jax.input_pipelines import records
from mlperf_jax.input_pipelines.tokens import C4
from mlperf_jax.models import decoder, decoder_paxml
from mlperf_jax.optimizers import schedules, tree

_GPT3 = decoder.DecoderConfig.gpt3_175b()
_TINY_STEPS = 40  # that the tiny start checkpoint is trained for


@dataclass(frozen=True, kw_only=True)
class Gpt3(language_model.Pretraining):
    """The defaults are the reference convergence point for batch 1,536; the schedule counts samples."""

    name = "gpt3"
    ruleset = "4.1.0"  # last round that ran it
    architecture = _GPT3
    parameters = 174_615_846_912
    scales = (
        {"layers": 3, "batch_size": 2},
        {"layers": 1, "batch_size": 1},
        language_model.NARROW | {"kv_heads": 16},
    )
    tokenizer = "c4_en_301_5Mexp2_spm.model, and c4-validation_24567exp.json"

    # hyperparameters
    batch_size: Samples = 1536
    base_lr: Rate = 2e-5
    end_lr_factor: Share = 0.1
    warmup_samples: Whole = 265 * 1536
    schedule_samples: Samples = 108_600 * 1536
    start_samples: Annotated[Whole, "where in the schedule the checkpoint stands"] = 4000 * 1536
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.95
    epsilon: Positive = 1e-8
    weight_decay: Rate = 0.1
    clip_norm: Positive | None = 1.0
    eval_every: Samples = 24_576
    # 400 evaluations, some twelve times the expected; the order of the samples is made for them
    sample_limit: Samples | None = 400 * 24_576
    # sizes: what tiny() shrinks
    sequence_length: language_model.Tokens = 2048
    max_positions: language_model.Tokens = 2048
    init_std: Annotated[Rate, "of random weights, in a training from scratch"] = _GPT3.init_std
    weights: Annotated[str, "folder of paxml's arrays in the data's"] = "checkpoint_00004000"
    train_samples: Samples = 108_600 * 1536
    eval_samples: Annotated[Samples, "windows of 2,048 tokens"] = 5662
    eval_documents: Annotated[Count, "what accepted logs state as eval_samples"] = 24_567
    train_files: Several[str] = (
        "c4_en_6_c4_spm_text_document",
        "c4_en_7_c4_spm_text_document",
    )
    validation_file: str = "c4_en_validation_subset_c4_spm_text_document"
    targets: Several[Target] = (Target("log_perplexity", at_most=2.69, above=2.6),)

    def decoder(self) -> decoder.DecoderConfig:
        return super().decoder().replace(max_positions=self.max_positions, init_std=self.init_std)

    def cosine(self) -> language_model.Cosine:
        """The count of updates goes on from the start checkpoint's, where the rate is 0.997 of base."""
        steps = self.steps_of(self.warmup_samples), self.steps_of(self.schedule_samples)
        end_lr = self.end_lr_factor * self.base_lr
        return language_model.Cosine(self.base_lr, *steps, end_lr, hold_steps=1)

    def requested_samples(self) -> int:
        assert self.last_sample is not None
        return self.samples(self.step_of(self.last_sample - 1) + 1)

    def data(self) -> C4:
        """Windows share no token, documents are not shuffled, and every validation token is taken once."""
        return dataclasses.replace(
            super().data(),
            validation_samples=None,
            extra_token=False,
            shuffle_documents=False,
            validation_texts=("c4-validation_24567exp.json",),
        )

    def eval_steps(self) -> Iterator[int]:
        return schedules.every_samples(self.eval_every, self.batch_size)

    @property
    def schedule_end(self) -> int:
        return self.schedule_samples - self.start_samples

    @property
    def flops_per_sample(self) -> float:
        """The whole attention matrix counts, as published figures of GPT3 have it."""
        tokens = self.sequence_length
        return tokens * self.decoder().flops_per_token(tokens, causal=False)

    def log(self) -> Mapping[str, Any]:
        return {
            **super().log(),
            "eval_samples": self.eval_documents,
            "init_checkpoint_step": self.steps_of(self.start_samples),
        }

    def optimizer_log(self) -> Mapping[str, Any]:
        decay = {"opt_weight_decay": self.weight_decay}
        return {**self.schedule_log(), **self.adam_log("adam"), **decay}

    @classmethod
    def recipes(cls) -> Mapping[int, Self]:
        """The reference convergence points of ruleset 4.1.0; schedules follow from the batch size."""
        return cls.recipe_table(
            "batch_size base_lr",
            (1536, 2e-5),
            (2048, 2e-5),
            (3072, 2e-5),
            (4096, 3e-5),
            (6144, 3e-5),
            (8192, 3e-5),
        )

    # -- start ---------------------------------------------------------------------------------

    def start(self, data_dir: str) -> Start:
        """Weights and moments of paxml's checkpoint; the update count is that of this batch size."""
        folder = records.below(data_dir, self.weights)
        return Start(
            decoder_paxml.start_weights(folder, self.decoder()),
            self.steps_of(self.start_samples),
            decoder_paxml.start_moments(folder, self.decoder()),
        )

    def make_start(self, data_dir: str) -> None:
        """A checkpoint in paxml's form from a brief training of this model."""
        folder = records.below(data_dir, self.weights)
        if os.path.exists(f"{folder}/step/.zarray"):
            return
        state = brief.train_briefly(self.replace(start_samples=0), data_dir, _TINY_STEPS)
        adam = next(part for part in state["opt"][1] if hasattr(part, "mu"))
        params, mu, nu = map(tree.flatten_paths, (state["params"], adam.mu, adam.nu))
        decoder_paxml.save(folder, params, {"mu": mu, "nu": nu}, self.decoder(), _TINY_STEPS)

    def tiny(self) -> Self:
        """Docstrings, as for llama31_8b, from a checkpoint that was trained for 40 steps."""
        return self.shrunk(
            kv_heads=3,
            hidden=384,
            max_positions=64,
            init_std=0.05,
            weights="tiny_gpt3/checkpoint_00000040",
            train_files=tuple(f"tiny_text_512/docstrings.train_{i}_text_document" for i in (0, 1)),
            validation_file="tiny_text_512/docstrings.cut_text_document",
            train_samples=9600,
            eval_samples=120,
            eval_documents=120,
            base_lr=4e-3,
            warmup_samples=480,
            schedule_samples=32_000,
            start_samples=_TINY_STEPS * 16,
            sample_limit=9600,
            eval_every=800,
            # counts of pairs of tokens, smoothed, reach 3.60 on this text
            targets=(Target("log_perplexity", at_most=3.55),),
        )

"""Llama 2 70B fine-tuned with LoRA on GovReport: MLPerf Training v4.0 to v6.1.

Train adapters on the attention projections until the validation loss of 173 packed sequences is at most
0.925, each sequence's mean counting once.
References: mlcommons/training, llama2_70b_lora; reference convergence points of ruleset 6.1.0.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from mlperf_jax import metrics
from mlperf_jax.benchmarks import language_model
from mlperf_jax.core.benchmark import Start, Target
from mlperf_jax.core.fields import Count, Fraction, Path, Positive, Rate, Samples, Several, Share
from mlperf_jax.core.protocols import DataSet
from mlperf_jax.input_pipelines import records
from mlperf_jax.input_pipelines.govreport import TINY_ROWS, GovReport
from mlperf_jax.input_pipelines.tokens import C4, TINY_FILES
from mlperf_jax.models import decoder, decoder_huggingface, huggingface, lora_peft
from mlperf_jax.optimizers import schedules

_TINY_STEPS = 400  # that the tiny base is trained for


@dataclass(frozen=True, kw_only=True)
class Llama2Lora(language_model.LanguageModel):
    """The defaults are the reference convergence point for batch 8."""

    name = "llama2_70b_lora"
    ruleset = "6.1.0"
    architecture = decoder.DecoderConfig.llama2_70b()
    metric = metrics.LogPerplexity("eval_loss", by="sequences")
    parameters = 44_564_480  # of the adapters
    frozen = decoder.FROZEN
    scales = (
        *({"layers": layers, "batch_size": 1} for layers in (48, 24, 8)),
        language_model.NARROW,
    )

    # hyperparameters
    batch_size: Samples = 8
    base_lr: Rate = 4e-4
    warmup_ratio: Annotated[Share, "of the training steps"] = 0.0
    training_steps: Annotated[Count, "of the cosine, whatever the batch size"] = 1024
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Positive = 1e-8
    weight_decay: Rate = 1e-4
    clip_norm: Positive | None = 0.3
    lora_rank: Count = 16
    lora_alpha: Count = 32
    lora_dropout: Fraction = 0.1
    base_bits: Annotated[Literal[8] | None, "8: the base in int8, by blocks (open division)"] = None
    adapter: Annotated[
        Path | None, "a folder of PEFT's, in the data's or absolute, to begin from (open division)"
    ] = None
    eval_every: Samples = 384
    # sizes: what tiny() shrinks
    sequence_length: language_model.Tokens = 8192
    weights: Annotated[str, "folder of safetensors in the data's"] = "llama2-70b-fused-qkv-mlperf"
    train_samples: Samples = 3901
    eval_samples: Samples = 173
    targets: Several[Target] = (Target("eval_loss", at_most=0.925),)

    def decoder(self) -> decoder.DecoderConfig:
        lora = decoder.Lora(
            rank=self.lora_rank,
            alpha=self.lora_alpha,
            dropout=self.lora_dropout,
            base_bits=self.base_bits,
        )
        return super().decoder().replace(lora=lora)

    def cosine(self) -> language_model.Cosine:
        """Half a cosine to zero over `training_steps`, from the base rate at once."""
        warmup = round(self.warmup_ratio * self.training_steps)
        return language_model.Cosine(self.base_lr, warmup, self.training_steps)

    def eval_steps(self) -> Iterator[int]:
        # the first floor(0.125 batch + 2) evaluations are left out
        skip = self.batch_size // 8 + 2
        return schedules.every_samples(self.eval_every, self.batch_size, skip=skip)

    def log(self) -> Mapping[str, Any]:
        return {
            "lora_rank": self.lora_rank,
            "lora_alpha": self.lora_alpha,
            "opt_gradient_clip_norm": self.clip_norm,
        }

    def optimizer_log(self) -> Mapping[str, Any]:
        return {
            "opt_name": "adamw",
            "opt_base_learning_rate": self.base_lr,
            "opt_learning_rate_training_steps": self.training_steps,
            "opt_learning_rate_warmup_factor": self.warmup_ratio,
            "opt_adamw_weight_decay": self.weight_decay,
        }

    @classmethod
    def recipes(cls) -> Mapping[int, Self]:
        """The reference convergence points of ruleset 6.1.0."""
        return cls.recipe_table(
            "batch_size base_lr", (8, 4e-4), (16, 4e-4), (32, 4e-4), (128, 1e-3)
        )

    # -- data and start ------------------------------------------------------------------------

    def data(self) -> DataSet:
        return GovReport(self.sequence_length, self.vocab, tiny=self.is_tiny)

    def start(self, data_dir: str) -> Start:
        """The base, whose query, key and value may be fused or apart; adapters start fresh, or from `adapter`."""
        tensors = huggingface.open_folder(records.below(data_dir, self.weights))
        weights = dict(decoder_huggingface.start_weights(tensors, self.decoder()))
        if self.adapter is not None:
            folder = os.path.join(data_dir, self.adapter)
            weights |= lora_peft.start_weights(folder, self.decoder())
        return Start(weights)

    def save_adapter(
        self, params: Any, folder: str | os.PathLike, base: str | None = None
    ) -> pathlib.Path:
        """Writes trained adapters as Hugging Face `peft` does, over the release where no other base is named."""
        release = (
            None if self.is_tiny else "meta-llama/Llama-2-70b-hf"
        )  # query, key and value apart
        return lora_peft.save(folder, params, self.decoder(), base=base or release)

    def make_start(self, data_dir: str) -> None:
        """The tiny base: trained on the docstrings themselves, never on a prompt or summary."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        base = _TinyBase(**fields).replace(
            sequence_length=64,
            batch_size=16,
            base_lr=4e-3,
            training_steps=2 * _TINY_STEPS,
            clip_norm=1.0,
            adapter=None,
        )
        folder = records.below(data_dir, self.weights)
        language_model.save_huggingface(base, folder, data_dir, _TINY_STEPS)

    def tiny(self) -> Self:
        """Docstrings and their first lines as reports and summaries, packed; a base made by the build."""
        return self.shrunk(
            sequence_length=256,
            weights=f"tiny_llama2_70b_lora_{_TINY_STEPS}",
            train_samples=TINY_ROWS["train"],
            eval_samples=TINY_ROWS["validation"],
            batch_size=8,
            base_lr=1.5e-2,
            training_steps=200,
            eval_every=160,
            # the base reaches 3.92 on the docstrings of Python 3.11, 3.66 on 3.12, 3.43 on 3.13
            targets=(Target("eval_loss", at_most=3.38),),
        )


@dataclass(frozen=True, kw_only=True)
class _TinyBase(Llama2Lora):
    """The tiny model without adapters, on windows of plain text; only the data build trains it."""

    frozen = ()

    def decoder(self) -> decoder.DecoderConfig:
        return super().decoder().replace(lora=None)

    def data(self) -> C4:
        names = [f"tiny_text_{self.vocab}/{TINY_FILES[split]}" for split in ("train", "validation")]
        samples = self.training_steps * self.batch_size
        return C4((names[0],), names[1], self.sequence_length, self.vocab, samples, tiny=True)

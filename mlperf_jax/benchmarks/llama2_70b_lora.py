"""Llama 2 70B fine-tuned with LoRA on GovReport: MLPerf Training v4.0 to v6.1.

Train adapters on the attention projections until the validation loss of 173 packed sequences is at most
0.925, each sequence's mean counting once.
References: mlcommons/training, llama2_70b_lora; reference convergence points of ruleset 6.1.0.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import optax

from mlperf_jax import metrics
from mlperf_jax.benchmarks import language_model
from mlperf_jax.core.benchmark import Start, Target
from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import megatron, packed, text
from mlperf_jax.models import decoder, decoder_huggingface
from mlperf_jax.optimizers import schedules

_LLAMA = decoder.DecoderConfig.llama2_70b()
_TINY_STEPS = 400  # that the tiny base is trained for


@dataclass(frozen=True, kw_only=True)
class Llama2Lora(language_model.LanguageModel):
    """The defaults are the reference convergence point for batch 8."""

    name = "llama2_70b_lora"
    ruleset = "6.1.0"
    architecture = _LLAMA
    metric = metrics.LogPerplexity("eval_loss", by="sequences")
    parameters = 44_564_480  # of the adapters
    frozen = decoder.FROZEN

    # hyperparameters
    batch_size: int = 8
    base_lr: float = 4e-4
    warmup_ratio: float = 0.0  # of the training steps
    training_steps: int = 1024  # of the cosine, whatever the batch size
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 1e-4
    clip_norm: float | None = 0.3
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.1
    base_bits: int | None = None  # 8 keeps the base's matrices as int8 in blocks (open division)
    eval_every: int = 384  # sequences
    # sizes: what tiny() shrinks
    sequence_length: int = 8192
    layers: int = _LLAMA.layers
    width: int = _LLAMA.width
    heads: int = _LLAMA.heads
    kv_heads: int = _LLAMA.kv_heads
    head_dim: int = _LLAMA.head_dim
    hidden: int = _LLAMA.hidden
    vocab: int = _LLAMA.vocab
    weights: str = "llama2-70b-fused-qkv-mlperf"  # folder of safetensors below the data's
    row_files: str = packed.NAME  # the stem of the packed rows below the data folder
    train_samples: int = 3901
    eval_samples: int = 173
    targets: tuple[Target, ...] = (Target("eval_loss", at_most=0.925),)

    def decoder(self) -> decoder.DecoderConfig:
        lora = decoder.Lora(
            rank=self.lora_rank,
            alpha=self.lora_alpha,
            dropout=self.lora_dropout,
            base_bits=self.base_bits,
        )
        return super().decoder().replace(lora=lora)

    @property
    def warmup_steps(self) -> int:
        return round(self.warmup_ratio * self.training_steps)

    def learning_rate(self) -> schedules.Schedule:
        """Step -> rate: half a cosine to zero over `training_steps`, from the base rate at once."""
        return schedules.warmup_cosine(self.base_lr, self.warmup_steps, self.training_steps)

    def optimizer(self, tree: Any) -> optax.GradientTransformation:
        return self.adamw()

    def eval_steps(self) -> Iterator[int]:
        # the first floor(0.125 batch + 2) evaluations are left out
        skip = self.batch_size // 8 + 2
        return schedules.every_samples(self.eval_every, self.batch_size, skip=skip)

    @property
    def last_sample(self) -> int:
        return self.sample_limit or self.samples(self.training_steps)

    def log(self) -> Mapping[str, Any]:
        return {
            "lora_rank": self.lora_rank,
            "lora_alpha": self.lora_alpha,
            "opt_name": "adamw",
            "opt_base_learning_rate": self.base_lr,
            "opt_learning_rate_training_steps": self.training_steps,
            "opt_learning_rate_warmup_factor": self.warmup_ratio,
            "opt_gradient_clip_norm": self.clip_norm,
            "opt_adamw_weight_decay": self.weight_decay,
        }

    @classmethod
    def recipes(cls) -> Mapping[int, Self]:
        """The reference convergence points of ruleset 6.1.0."""
        rates = {8: 4e-4, 16: 4e-4, 32: 4e-4, 128: 1e-3}
        return {size: cls(batch_size=size, base_lr=rate) for size, rate in rates.items()}

    # -- start ---------------------------------------------------------------------------------

    def start(self, data_dir: str) -> Start:
        """The base, whose query, key and value may be fused or apart; adapters start fresh."""
        tensors = decoder_huggingface.open_folder(f"{str(data_dir).rstrip('/')}/{self.weights}")
        return Start(decoder_huggingface.start_weights(tensors, self.decoder()))

    # -- data ----------------------------------------------------------------------------------

    def _rows(self, data_dir: str) -> tuple[str, str]:
        """Folder and stem of the packed rows."""
        folder, _, name = f"{str(data_dir).rstrip('/')}/{self.row_files}".rpartition("/")
        return folder, name

    def train_data(self, data_dir: str) -> Any:
        folder, name = self._rows(data_dir)
        return packed.train(folder, vocabulary=self.vocab, name=name)

    def eval_data(self, data_dir: str) -> Any:
        folder, name = self._rows(data_dir)
        return packed.validation(folder, vocabulary=self.vocab, name=name)

    def counts(self, data_dir: str) -> dict[str, int]:
        """Rows of both splits; the base's names and shapes are checked too.

        Raises:
            UserError: a file is missing or damaged, or its rows have another length.
        """
        folder, name = self._rows(data_dir)
        found = {}
        for split in ("train", "validation"):
            rows = packed.PackedRows(folder, split, name)
            if rows.length != self.sequence_length:
                raise UserError(
                    f"{rows.paths[0]} has rows of {rows.length} tokens, not {self.sequence_length}: build "
                    "it again"
                )
            found[split] = len(rows)
        self.start(data_dir)
        return found

    def check_data(self, data_dir: str) -> list[str]:
        """Reads rows of both splits; ids beyond the vocabulary are named by file, row and byte."""
        found = []
        for split, data in (
            ("train", self.train_data(data_dir)),
            ("validation", self.eval_data(data_dir)),
        ):
            found.append(f"{split}: {len(data):,} rows of {self.sequence_length} tokens")
            for index in range(0, len(data), max(1, len(data) // 64)):
                try:
                    data.decode(data.source[index])
                except UserError as error:
                    found.append(f"problem: {error}")
        return found

    def prepare(self, data_dir: str, source: str | None = None) -> None:
        """Packs GovReport into rows, or takes the rows that the organisers packed.

        Args:
            data_dir: where the rows go.
            source: a folder with the organisers' train*.parquet and validation*.parquet; or with
                SCROLLS' train.jsonl and validation.jsonl and Llama 2's tokenizer.
        """
        if self.is_tiny:
            packed.build_tiny(data_dir, self.vocab, self.sequence_length)
            self._write_base(data_dir)
            return
        if source is None:
            raise UserError(
                f"{self.name} is made from SCROLLS GovReport: give --source, a folder with the organisers' "
                "parquet files, or with train.jsonl, validation.jsonl and Llama 2's tokenizer; Llama 2 70B "
                f"itself (a licence must be accepted) belongs into {data_dir}/{self.weights}"
            )
        if any(name.endswith(".parquet") for name in os.listdir(source)):
            packed.build_from_parquet(data_dir, source)
        else:
            packed.build(data_dir, source, source)

    def _write_base(self, data_dir: str) -> None:
        """The tiny base: trained on the docstrings themselves, never on a prompt or summary."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        base = _TinyBase(**fields).replace(
            sequence_length=64,
            batch_size=16,
            base_lr=4e-3,
            training_steps=2 * _TINY_STEPS,
            clip_norm=1.0,
        )
        folder = f"{str(data_dir).rstrip('/')}/{self.weights}"
        language_model.save_huggingface(base, folder, data_dir, _TINY_STEPS)

    def tiny(self) -> Self:
        """Docstrings and their first lines as reports and summaries, packed; a base made by the build."""
        return self.replace(
            size="tiny",
            sequence_length=256,
            layers=2,
            width=96,
            heads=3,
            kv_heads=1,
            head_dim=32,
            hidden=256,
            vocab=512,
            remat=None,
            weights=f"tiny_llama2_70b_lora_{_TINY_STEPS}",
            row_files=f"{packed.TINY_NAME}_512_256/{packed.TINY_NAME}",
            train_samples=packed.TINY_ROWS["train"],
            eval_samples=packed.TINY_ROWS["validation"],
            batch_size=8,
            base_lr=1.5e-2,
            training_steps=200,
            eval_every=160,
            # the base reaches 3.92 on the docstrings of Python 3.11, 3.66 on 3.12, 3.43 on 3.13
            targets=(Target("eval_loss", at_most=3.36),),
        )


@dataclass(frozen=True, kw_only=True)
class _TinyBase(Llama2Lora):
    """The tiny model without adapters, on windows of plain text; only the data build trains it."""

    frozen = ()

    def decoder(self) -> decoder.DecoderConfig:
        return super().decoder().replace(lora=None)

    def train_data(self, data_dir: str) -> Any:
        paths = text.build_tiny(data_dir, self.vocab)
        samples = self.samples(self.training_steps)
        return megatron.GptTraining(
            (paths["train"],), self.sequence_length, samples, vocabulary=self.vocab
        )

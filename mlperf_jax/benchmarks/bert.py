"""BERT-large on English Wikipedia: MLPerf Training v0.7 to v5.0.

Go on from given weights, on pairs of up to 512 tokens, until 0.720 of the masked tokens of 10,000 pairs are found.
Reference: mlcommons/training, retired_benchmarks/bert (TF1); reference convergence points of ruleset 5.0.0.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

import jax
import numpy as np

from mlperf_jax import metrics
from mlperf_jax.core import brief
from mlperf_jax.core.benchmark import (
    Benchmark,
    Bucket,
    Example,
    Start,
    Target,
    Weighted,
    f32,
    i32,
)
from mlperf_jax.core.fields import (
    Count,
    Fraction,
    Positive,
    Range,
    Rate,
    Samples,
    Several,
    Whole,
)
from mlperf_jax.input_pipelines import records
from mlperf_jax.input_pipelines.wikipedia import Wikipedia
from mlperf_jax.models import bert, bert_huggingface
from mlperf_jax.ops import losses
from mlperf_jax.optimizers import lamb, schedules

_LEAST_ROWS = 8  # that the rows of a packed batch are a multiple of
_TINY_STEPS = 120  # that the tiny start weights are trained for


@dataclass(frozen=True, kw_only=True)
class Bert(Benchmark):
    """The defaults are the reference convergence point for batch 448.

    A sample is a sequence, a pair of texts. Packed, a row of the training arrays holds several, which do not see
    each other: a batch has `batch_size` of them and the least of `row_counts()` that is enough. LAMB's rate is
    counted in updates. Differs: with micro-batches the reference's counts those, and clips each.
    """

    name = "bert"
    ruleset = "5.0.0"  # last round that ran it
    metric = metrics.WeightedAccuracy("mlm_accuracy")
    rules = bert.RULES
    parameters = 336_226_108
    smooths_labels = True
    start_quality = 0.34085
    scales = (
        {"gradient_accumulation_steps": 4},
        {"gradient_accumulation_steps": 8},
        {"batch_size": 28},
    )
    records_per_core = 27_000  # scripts/bench_bert_data.py: 38,518 (27,836 … 43,566)
    absent = ("pictures",)

    # hyperparameters
    batch_size: Samples = 448
    base_lr: Rate = 4.25e-4
    training_steps: Annotated[Count, "after which the rate is 0"] = 6700
    num_warmup_steps: Whole = 0
    start_warmup_step: Annotated[int, Range(most=0), "what the warm-up counts from"] = 0
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Positive = 1e-6
    weight_decay: Rate = 0.01
    clip_norm: Positive | None = 1.0
    dropout: Fraction = 0.1
    # how training sequences lie in rows, which changes no result but for rounding and dropout's draws
    packed: Annotated[bool, "several sequences a row, or one"] = True
    row_sequences: Annotated[Count, "of a packed row at most"] = 8
    # what the forward pass keeps per layer for the backward one, see `ops.stack.Stack`
    remat: str | None = "dots_no_batch"
    # sizes: what tiny() shrinks
    weights: Annotated[str, "folder of safetensors and config.json in the data's"] = (
        "bert-large-uncased-mlperf"
    )
    layers: Count = 24
    width: Count = 1024
    heads: Count = 16
    hidden: Count = 4096
    vocab: Count = 30_522
    sequence_length: Annotated[int, Range(5), "tokens"] = 512
    mean_length: Annotated[Count, "tokens of a sequence on average"] = 256
    predictions: Annotated[Count, "masked tokens of a sequence at most"] = 76
    train_samples: Samples = 156_725_653
    eval_samples: Samples = 10_000
    eval_every: Annotated[
        Samples | None, "samples; by default what the rules derive from the batch size"
    ] = None
    targets: Several[Target] = (Target("mlm_accuracy", at_least=0.72),)

    # -- samples and rows ----------------------------------------------------------------------

    def row_counts(self) -> tuple[int, ...]:
        """The rows that a batch may have, ascending; one a sequence where they are not packed.

        B sequences of mean length m fill 1.01 B m / L rows of length L, a hundredth of that being what packing
        leaves empty, and batches deviate from it by sqrt(B) / 3. So many, with one and two deviations more and for
        whatever may come a quarter more, are rounded up to a multiple of a power of two: the largest that B / 64
        holds, and 8 at least. Devices times micro-batches may be any power of two up to that.
        """
        if not self.packed:
            return (self.batch_size,)
        full = 1.01 * self.batch_size * self.mean_length / self.sequence_length
        deviation = math.sqrt(self.batch_size) / 3
        multiple = max(_LEAST_ROWS, 1 << (self.batch_size // 64).bit_length() >> 1)
        wanted = (full, full + deviation, full + 2 * deviation, 1.25 * full)
        rounded = (multiple * math.ceil(rows / multiple) for rows in wanted)
        # as many rows as sequences are always enough
        return tuple(sorted({min(rows, self.batch_size) for rows in rounded}))

    @property
    def rows(self) -> int:
        return self.row_counts()[-1]

    def buckets(self) -> tuple[Bucket, ...]:
        mask = jax.ShapeDtypeStruct((), np.dtype(bool))  # of rows that hold anything
        return tuple(Bucket(rows, {**self.example(), "mask": mask}) for rows in self.row_counts())

    def example(self) -> Example:
        return self._row(self.row_sequences if self.packed else 1, self.data().places)

    def eval_example(self) -> Example:
        return self._row(1, self.predictions)

    def _row(self, sequences: int, places: int) -> Example:
        length = self.sequence_length
        return {
            "tokens": i32(length),
            "types": i32(length),  # first or second text
            "sequences": i32(length),  # number within the row, 0 for padding
            "positions": i32(length),
            "masked_positions": i32(places),
            "masked_ids": i32(places),
            "masked_weights": f32(places),
            "cls_positions": i32(sequences),
            "next_sentence": i32(sequences),
            "next_sentence_weights": f32(sequences),
        }

    # -- what is trained -----------------------------------------------------------------------

    def architecture(self) -> bert.BertConfig:
        """The model's configuration."""
        names = ("layers", "width", "heads", "hidden", "vocab", "dropout", "remat")
        sizes = {name: getattr(self, name) for name in names}
        return bert.BertConfig(**sizes, max_positions=self.sequence_length)

    def model(self, rngs: Any) -> bert.Bert:
        return bert.Bert(self.architecture(), self.dtype, rngs=rngs)

    def loss(self, model: Any, batch: Any, key: Any) -> Mapping[str, Weighted]:
        hidden = _hidden(model, batch, key)
        masked = model.masked_logits(hidden, batch["masked_positions"])
        following = model.next_logits(hidden, batch["cls_positions"])
        labels = batch["next_sentence"], batch["next_sentence_weights"]
        return {
            "masked": Weighted(
                *losses.weighted_xent(
                    masked, batch["masked_ids"], batch["masked_weights"], self.smoothing
                )
            ),
            "next": Weighted(*losses.weighted_xent(following, *labels, self.smoothing)),
        }

    def learning_rate(self) -> schedules.Schedule:
        """Count of updates -> rate."""
        return schedules.linear_decay(
            self.base_lr,
            self.num_warmup_steps,
            self.training_steps,
            start_warmup_step=self.start_warmup_step,
        )

    def optimizer(self, tree: Any) -> Any:
        return lamb(self.learning_rate(), self.beta_1, self.beta_2, self.epsilon, self.weight_decay)

    @property
    def schedule_end(self) -> int:
        return self.samples(self.training_steps)

    @property
    def flops_per_sample(self) -> float:
        """Of a packed sequence its real tokens count, by their mean; of one that is padded the padding, too."""
        if not self.packed:
            return self.architecture().flops(self.sequence_length, self.predictions)
        return self.architecture().flops(self.mean_length, round(0.15 * self.mean_length))

    # -- quality -------------------------------------------------------------------------------

    def predict(self, model: Any, batch: Any, key: Any) -> Any:
        logits = model.masked_logits(_hidden(model, batch), batch["masked_positions"])
        return losses.weighted_hits(logits, batch["masked_ids"], batch["masked_weights"])

    def eval_steps(self) -> Iterator[int]:
        """Every floor(0.05 (230.23 batch + 3,000,000) / 25,000) 25,000 samples, each rounded up to a step."""
        # times 100 in numerator and denominator, as 230.23 is no floating-point number
        parts = (23_023 * self.batch_size + 300_000_000) // (100 * 20 * 25_000)
        every = self.eval_every or 25_000 * parts
        return schedules.every_samples(every, self.batch_size, round_each=True)

    # -- the log and the recipes ---------------------------------------------------------------

    def log(self) -> Mapping[str, Any]:
        return {"max_predictions_per_seq": self.predictions}

    def optimizer_log(self) -> Mapping[str, Any]:
        return {
            "opt_base_learning_rate": self.base_lr,
            "opt_lamb_epsilon": self.epsilon,
            "opt_lamb_beta_1": self.beta_1,
            "opt_lamb_beta_2": self.beta_2,
            "opt_lamb_weight_decay_rate": self.weight_decay,
            "opt_learning_rate_training_steps": self.training_steps,
            "opt_learning_rate_warmup_steps": self.num_warmup_steps,
            "num_warmup_steps": self.num_warmup_steps,
            "start_warmup_step": self.start_warmup_step,
        }

    @classmethod
    def recipes(cls) -> Mapping[int, Self]:
        """The reference convergence points of ruleset 5.0.0."""
        return cls.recipe_table(
            "batch_size base_lr training_steps num_warmup_steps start_warmup_step beta_1 beta_2 weight_decay",
            (256, 3.5e-4, 13_700, 0, 0, 0.9, 0.999, 0.01),
            (448, 4.25e-4, 6700, 0, 0, 0.9, 0.999, 0.01),
            (1536, 2e-3, 2254, 0, 0, 0.66, 0.996, 0.01),
            (3072, 2e-3, 1141, 100, 0, 0.66, 0.998, 0.01),
            (4096, 2.4e-3, 855, 0, 0, 0.66, 0.998, 0.01),
            (4608, 3.5e-3, 700, 0, 0, 0.62, 0.9, 0.01),
            (6144, 2.9293e-3, 700, 0, -700, 0.7206, 0.78921, 0.001),
            (6912, 2.9293e-3, 700, 0, -700, 0.7206, 0.78921, 0.001),
            (8192, 2.88293e-3, 600, 287, -76, 0.88, 0.88, 0.0166629),
            (8704, 2.971656225e-3, 600, 287, -76, 0.88, 0.88, 0.0166629),
            (12_288, 3.1e-3, 500, 300, -100, 0.8, 0.925, 0.0166629),
            (13_056, 3.19540686e-3, 500, 300, -100, 0.8, 0.925, 0.0166629),
            (16_384, 3.3e-3, 600, 290, -100, 0.75, 0.9, 0.0166629),
        )

    # -- data and start ------------------------------------------------------------------------

    def data(self) -> Wikipedia:
        return Wikipedia(
            self.batch_size,
            self.row_counts() if self.packed else (),
            self.row_sequences,
            self.sequence_length,
            self.predictions,
            self.vocab,
            self.eval_samples,
            tiny=self.is_tiny,
        )

    def start(self, data_dir: str) -> Start:
        """The weights alone: LAMB's moments and count begin at 0, as does the step."""
        return Start(bert_huggingface.start_weights(self._weights(data_dir), self.architecture()))

    def make_start(self, data_dir: str) -> None:
        """Weights of the tiny model in the same form, from a brief training: its phase 1."""
        folder = self._weights(data_dir)
        if os.path.exists(f"{folder}/config.json"):
            return
        unpacked = self.replace(packed=False)  # one shape to compile
        params = brief.train_briefly(unpacked, data_dir, _TINY_STEPS)["params"]
        bert_huggingface.save_folder(folder, params, self.architecture())

    def _weights(self, data_dir: str) -> str:
        return records.below(data_dir, self.weights)

    def tiny(self) -> Self:
        """Docstrings as pairs of up to 64 tokens in the same files, and start weights made by the build."""
        return self.replace(
            size="tiny",
            weights=f"tiny_bert_{_TINY_STEPS}",
            layers=2,
            width=64,
            heads=2,
            hidden=256,
            vocab=512,
            sequence_length=64,
            mean_length=46,
            predictions=10,
            remat=None,
            train_samples=14_016,
            eval_samples=256,
            batch_size=32,
            base_lr=2e-2,
            training_steps=600,
            eval_every=1600,
            targets=(Target("mlm_accuracy", at_least=0.11),),
        )


def _hidden(model: Any, batch: Any, key: Any = None) -> Any:
    return model.hidden(
        batch["tokens"],
        batch["types"],
        segments=batch["sequences"],
        positions=batch["positions"],
        key=key,
    )

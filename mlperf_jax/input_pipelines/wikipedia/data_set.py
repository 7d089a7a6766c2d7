"""English Wikipedia of 2020-01-01 as masked sentence pairs, for BERT: packed rows to train, 10,000 pairs to evaluate.

Tiny are the standard library's docstrings, in the same files.
Reference: mlcommons/training, retired_benchmarks/bert.

Shape legend: L tokens of a row, S sequences of it at most.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import pipeline, records
from mlperf_jax.input_pipelines.sources import Batch
from mlperf_jax.input_pipelines.wikipedia import builder, drawing, files, tiny
from mlperf_jax.input_pipelines.wikipedia.packing import Packer, masked_places
from mlperf_jax.input_pipelines.wikipedia.rows import Rows

_MOST_SHAPES = 4  # each is compiled


@dataclasses.dataclass(frozen=True)
class Wikipedia:
    """The data set: every method takes the folder below which it lies.

    Attributes:
        batch_size: sequences of a training batch.
        row_counts: rows that a training batch may have, ascending, at most four; none for a sequence a row.
        sequences: S, of packed rows.
        sequence_length: L.
        predictions: masked tokens of a sequence at most.
        vocabulary: ids lie below it.
        eval_samples: sequences that are evaluated.
        tiny: the docstrings in place of Wikipedia.
    """

    batch_size: int
    row_counts: tuple[int, ...] = ()
    sequences: int = 8
    sequence_length: int = 512
    predictions: int = 76
    vocabulary: int = 30_522
    eval_samples: int = 10_000
    tiny: bool = False

    def __post_init__(self) -> None:
        counts = self.row_counts
        if len(counts) > _MOST_SHAPES or list(counts) != sorted({*counts}):
            raise UserError(
                f"row_counts is {counts}: give at most {_MOST_SHAPES} different ones, ascending"
            )
        if self.vocabulary > 1 << 16:
            raise UserError(f"vocabulary is {self.vocabulary}: ids are stored in 16 bits")

    @property
    def places(self) -> int:
        """Masked tokens of a training row at most: none is ever left out."""
        if not self.row_counts:
            return self.predictions
        return masked_places(self.sequence_length, self.sequences)

    def train(self, folder: records.Folder) -> pipeline.Split:
        """Training batches in an endless shuffled order; rows that hold nothing are padding.

        Raises:
            UserError: a file is missing or damaged, or of other lengths or another vocabulary.
        """
        examples = self._examples(folder, "train")
        counts = self.row_counts or (self.batch_size,)
        sequences = self.sequences if self.row_counts else 1
        packer = Packer(examples, self.batch_size, counts, sequences, self.sequence_length)
        rows = Rows(examples, self.sequence_length, self.places, packer)
        return pipeline.training(rows, plan=packer.plan())

    def validation(self, folder: records.Folder) -> pipeline.Split:
        """Evaluation's sequences in order, one a row; raises as `train`."""
        examples = self._examples(folder, "validation")
        return pipeline.evaluation(Rows(examples, self.sequence_length, self.predictions))

    def drawn(self, rows: int, example: Mapping[str, Any], rng: np.random.Generator) -> Batch:
        """All of a row: sequences as long as Wikipedia's, packed where training's are; see `DrawsBatches`."""
        sequences, places = (example[k].shape[0] for k in ("cls_positions", "masked_positions"))
        size = self.sequence_length
        if sequences == 1:
            sizes = drawing.lengths(rows, rng, size)
        else:
            sizes = drawing.fitting(self.batch_size, rows, sequences, rng, size)
        limits = self.predictions, self.vocabulary
        made = [drawing.example(rng, length, *limits) for length in sizes.tolist()]
        found = drawing.batch(rows, places, sequences, made, size)
        return {**found, "mask": found["sequences"][:, 0] > 0}

    def counts(self, folder: records.Folder) -> dict[str, int]:
        """Evaluation's sequences; those of training are repeated as a run asks; raises as `train`."""
        self._examples(folder, "train")
        return {"validation": len(self._examples(folder, "validation"))}

    def build(self, folder: records.Folder, source: records.Folder | None = None) -> None:
        """Makes the examples from text, or rewrites those of TFRecords; what is there is kept.

        Args:
            folder: below which they go.
            source: the organisers' text with vocab.txt, or their TFRecords with eval_10k.

        Raises:
            UserError: files are missing, damaged or other ones, or there is no room on the disk.
        """
        target = self._folder(folder)
        sizes = builder.Sizes(
            self.sequence_length, self.predictions, self.vocabulary, self.eval_samples
        )
        if self.tiny:
            if not os.path.exists(target):
                with tempfile.TemporaryDirectory() as made:
                    tiny.write_text(made, self.vocabulary)
                    builder.build(target, made, sizes)
            return
        if os.path.exists(target):
            return
        if source is None:
            raise UserError(
                "the examples are made from the organisers' text or TFRecords: give --source, a folder with "
                "part-00000-of-00500 and so on, and with eval.txt and vocab.txt, or with eval_10k"
            )
        source = records.local(source)
        if os.path.exists(f"{source}/{builder.TEXT}"):
            builder.check_official(source)
        builder.build(target, source, sizes, pipeline.usable_cores(), print)

    def check(self, folder: records.Folder) -> list[str]:
        """Reads the index of every part, and some examples of each."""
        found = []
        for split in files.SPLITS:
            examples = self._examples(folder, split)
            lengths = examples.lengths
            found.append(
                f"{split}: {len(examples):,} sequences in {len(examples.parts)} parts, of {lengths.mean():.1f} "
                f"tokens ({lengths.min()} to {lengths.max()})"
            )
            for part in examples.parts:
                try:
                    for index in range(0, len(part), max(1, len(part) // 64)):
                        part[index]
                except UserError as error:
                    found.append(f"problem: {error}")
        return found

    def _folder(self, folder: records.Folder) -> str:
        sizes = f"{self.vocabulary}_{self.sequence_length}_{self.predictions}_{self.eval_samples}"
        return f"{records.mapped(folder)}/{f'tiny_wikipedia_{sizes}' if self.tiny else 'wikipedia'}"

    def _examples(self, folder: records.Folder, split: str) -> files.Examples:
        path = self._folder(folder)
        if self.tiny and records.listing(path) is None:
            raise UserError(records.missing_tiny("docstrings as Wikipedia", "bert", str(folder)))
        return files.Examples(path, split, self.sequence_length, self.vocabulary)

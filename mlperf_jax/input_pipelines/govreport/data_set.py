"""GovReport packed into rows of 8,192 tokens, for LoRA fine-tuning of Llama 2 70B: 3,901 to train, 173 to validate.

A document is its report in a prompt, its summary, EOS; `govreport.builder` says how rows are made of them.
Tiny are docstrings as reports, their first lines as summaries.
Reference: mlcommons/training, llama2_70b_lora, scripts/utils.py.

Shape legend: L tokens of a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import drawing, pipeline, records
from mlperf_jax.input_pipelines.govreport import builder, files
from mlperf_jax.input_pipelines.sources import Batch
from mlperf_jax.input_pipelines.tokens.megatron import IGNORED


@dataclasses.dataclass(frozen=True)
class ShiftedRows:
    """Rows as a source of whole batches, {"inputs": i32 [B, L], "labels": i32 [B, L]}: a label is the next token's.

    The last position of a row has none, so 8,191 of 8,192 are scored in training.

    Attributes:
        rows: inputs, and labels at the positions of their tokens: each is its input or, where `masked`, `IGNORED`.
        vocabulary: ids must lie below it; None to leave them unchecked.
        masked: some tokens have no label, as in validation.
    """

    rows: files.PackedRows
    vocabulary: int | None
    masked: bool = True
    rows_at_once: int = 64

    def __len__(self) -> int:
        return len(self.rows)

    def begin(self, ids: np.ndarray) -> Batch:
        return {n: np.zeros((len(ids), self.rows.length), np.int32) for n in ("inputs", "labels")}

    def read(self, ids: np.ndarray, out: Batch) -> None:
        for row, index in enumerate(ids.tolist()):
            inputs, labels = self.rows[index]
            if self.vocabulary is not None:
                wrong = (inputs < 0) | (inputs >= self.vocabulary)
                self._refuse(0, index, wrong, f"outside the vocabulary of {self.vocabulary}")
            other = labels != inputs
            if self.masked:
                other &= labels != IGNORED
            self._refuse(1, index, other, "not its input's")
            out["inputs"][row] = inputs
            out["labels"][row, :-1], out["labels"][row, -1] = labels[1:], IGNORED

    def describe(self, index: int) -> str:
        return self.rows.describe(index)

    def _refuse(self, which: int, index: int, wrong: np.ndarray, what: str) -> None:
        if not wrong.any():
            return
        rows, at = self.rows.arrays[which], int(np.argmax(wrong))
        offset = getattr(rows, "offset", 0) + (index * rows.shape[1] + at) * rows.itemsize
        raise UserError(
            f"{self.rows.paths[which]}, row {index}: token id {rows[index, at]} at byte {offset} (position {at}) is "
            f"{what}; build it again with the model's tokenizer"
        )


@dataclasses.dataclass(frozen=True)
class GovReport:
    """The data set: every method takes the folder of the packed rows.

    Attributes:
        sequence_length: L.
        vocabulary: ids must lie below it.
        tiny: the docstrings in place of GovReport.
    """

    sequence_length: int = 8192
    vocabulary: int | None = None
    tiny: bool = False

    def _source(self, folder: records.Folder, split: str) -> ShiftedRows:
        tiny = f"{self.vocabulary}_{self.sequence_length}" if self.tiny else ""
        rows = files.PackedRows(files.stem(folder, tiny), split)
        if rows.length != self.sequence_length:
            raise UserError(
                f"{rows.paths[0]} has rows of {rows.length} tokens, not {self.sequence_length}: build "
                "it again"
            )
        return ShiftedRows(rows, self.vocabulary, masked=split != "train")

    def train(self, folder: records.Folder) -> pipeline.Split:
        """Training examples, in a fresh permutation each epoch; batches run on across epochs.

        Raises:
            UserError: a file is missing or damaged, or its rows have another length.
        """
        return pipeline.training(self._source(folder, "train"), last_batch="mix")

    def validation(self, folder: records.Folder) -> pipeline.Split:
        """Validation examples, each row once; only the summaries' tokens have labels; raises as `train`."""
        return pipeline.evaluation(self._source(folder, "validation"))

    def drawn(self, rows: int, example: Mapping[str, Any], rng: np.random.Generator) -> Batch:
        """{"inputs", "labels"}: full rows, the last position without a label; see `DrawsBatches`."""
        if self.vocabulary is None:
            return {}
        found = drawing.windows(rng, rows, example["inputs"].shape[0], self.vocabulary)
        found["labels"][:, -1] = IGNORED
        return found

    def counts(self, folder: records.Folder) -> dict[str, int]:
        """Rows of both splits, from headers alone; raises as `train`."""
        return {split: len(self._source(folder, split)) for split in files.SPLITS}

    def build(self, folder: records.Folder, source: records.Folder | None = None) -> None:
        """Packs GovReport into rows, or takes the rows that the organisers packed.

        Args:
            folder: where the rows go.
            source: a folder with the organisers' train*.parquet and validation*.parquet; or with
                SCROLLS' train.jsonl and validation.jsonl and Llama 2's tokenizer.

        Raises:
            UserError: a file is missing or damaged, or there is no room on the disk.
        """
        if self.tiny:
            builder.build_tiny(folder, self.vocabulary or 512, self.sequence_length)
            return
        if source is None:
            raise UserError(
                "the rows are made from SCROLLS GovReport: give --source, a folder with the organisers' "
                "parquet files, or with train.jsonl, validation.jsonl and Llama 2's tokenizer, for which a "
                "licence must be accepted"
            )
        if any(name.endswith(".parquet") for name in records.listing(records.local(source)) or ()):
            builder.build_from_parquet(files.stem(folder), source)
        else:
            builder.build(files.stem(folder), source, source, length=self.sequence_length)

    def check(self, folder: records.Folder) -> list[str]:
        """Reads rows of both splits; ids beyond the vocabulary are named by file, row and byte."""
        found = []
        for split in files.SPLITS:
            rows = self._source(folder, split)
            found.append(f"{split}: {len(rows):,} rows of {self.sequence_length} tokens")
            for index in range(0, len(rows), max(1, len(rows) // 64)):
                try:
                    rows.read(np.array([index]), rows.begin(np.array([index])))
                except UserError as error:
                    found.append(f"problem: {error}")
        return found

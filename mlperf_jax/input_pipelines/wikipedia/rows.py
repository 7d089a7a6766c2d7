"""Rows of a batch: sequences one after the other, each with positions of its own.

Shape legend: R rows, L tokens of a row, P masked places of it, S sequences of it at most.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable

import numpy as np

from mlperf_jax.input_pipelines.sources import Batch
from mlperf_jax.input_pipelines.wikipedia.files import Examples
from mlperf_jax.input_pipelines.wikipedia.instances import Example
from mlperf_jax.input_pipelines.wikipedia.packing import Packer


def blank(rows: int, length: int, places: int, sequences: int) -> Batch:
    """Rows that hold nothing, as arrays; weights are float32, all others int32.

    Returns:
        "tokens", "types" (0 first part, 1 second), "sequences" (number of the sequence within its row from 1 on, 0
        for padding) and "positions" (within the sequence), [R, L]; "masked_positions" (within the row),
        "masked_ids" and "masked_weights", [R, P]; "cls_positions" (where each sequence begins), "next_sentence"
        (0 it follows, 1 it is from elsewhere) and "next_sentence_weights", [R, S].
    """
    widths = (
        (length, ("tokens", "types", "sequences", "positions")),
        (places, ("masked_positions", "masked_ids", "masked_weights")),
        (sequences, ("cls_positions", "next_sentence", "next_sentence_weights")),
    )
    return {
        name: np.zeros((rows, width), np.float32 if name.endswith("_weights") else np.int32)
        for width, names in widths
        for name in names
    }


def place(out: Batch, row: int, examples: Iterable[Example]) -> None:
    """Writes examples into a blank row, one behind the other; they must fit."""
    at = masked = 0
    for number, example in enumerate(examples):
        end, last = at + len(example.tokens), masked + len(example.ids)
        out["tokens"][row, at:end] = example.tokens
        out["types"][row, at + example.split : end] = 1
        out["sequences"][row, at:end] = number + 1
        out["positions"][row, at:end] = np.arange(end - at)
        out["masked_positions"][row, masked:last] = example.positions
        out["masked_positions"][row, masked:last] += at
        out["masked_ids"][row, masked:last] = example.ids
        out["masked_weights"][row, masked:last] = 1
        out["cls_positions"][row, number] = at
        out["next_sentence"][row, number] = example.random
        out["next_sentence_weights"][row, number] = 1
        at, masked = end, last


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows as a source of whole batches: as a packer has them, or without one a sequence each.

    Attributes:
        examples: the sequences.
        length: L.
        places: P.
        packer: numbers rows from batch to batch, by seed.
        seed: of the run.
    """

    examples: Examples
    length: int
    places: int
    packer: Packer | None = None
    seed: int = 0
    rows_at_once: int = 32

    def for_seed(self, seed: int) -> Rows:
        return dataclasses.replace(self, seed=seed)

    def __len__(self) -> int:
        return len(self.examples) if self.packer is None else sys.maxsize

    def begin(self, ids: np.ndarray) -> Batch:
        sequences = 1 if self.packer is None else self.packer.sequences
        return blank(len(ids), self.length, self.places, sequences)

    def read(self, ids: np.ndarray, out: Batch) -> None:
        for row, index in enumerate(ids.tolist()):
            place(out, row, (self.examples[number] for number in self._held(index)))

    def describe(self, index: int) -> str:
        return self.examples.describe(self._held(index)[0])

    def _held(self, index: int) -> list[int]:
        return [index] if self.packer is None else self.packer.row_of(self.seed, index).tolist()

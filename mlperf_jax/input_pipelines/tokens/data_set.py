"""C4 as the organisers tokenized it for GPT3 and Llama 3.1: pairs of `.bin` and `.idx` of Megatron's form.

Which files, and how windows of S tokens are taken from them, differs between the benchmarks, hence fields.
Tiny is the standard library's docstrings in the same form. `megatron` makes the samples.

Shape legend: S tokens of a window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import drawing, pipeline, records
from mlperf_jax.input_pipelines.sources import Batch
from mlperf_jax.input_pipelines.tokens import builder, megatron
from mlperf_jax.input_pipelines.tokens.megatron_file import TokenFile

_GROUPS = (6, 7)  # of C4's training files, which the organisers train on


@dataclasses.dataclass(frozen=True)
class C4:
    """The data set: every method takes the folder of the token files.

    Attributes:
        train_files: names of training pairs without their ending; several are blended in equal parts.
        validation_file: name of the validation pair.
        sequence_length: S.
        vocabulary: ids must lie below it.
        train_samples: windows that the run asks for; the order depends on their number.
        validation_samples: windows evaluated, the first ones in file order; None takes every token once,
            with a short window at the end (GPT3).
        whole_batches: windows evaluated are filled up to a multiple of this, on into a second pass.
        extra_token: windows share a token with the next, see `megatron.GptTraining`.
        shuffle_documents: see there.
        validation_texts: JSON lines of the validation documents, for `build`; by default the first 91,205
            of C4's own files.
        tokenizer: what messages call it.
        tiny: the docstrings in place of C4.
    """

    train_files: tuple[str, ...]
    validation_file: str
    sequence_length: int
    vocabulary: int
    train_samples: int
    validation_samples: int | None = None
    whole_batches: int = 1
    extra_token: bool = True
    shuffle_documents: bool = True
    validation_texts: tuple[str, ...] = ()
    tokenizer: str = "its tokenizer"
    tiny: bool = False

    def train(self, folder: records.Folder) -> pipeline.Split:
        """Training examples {"inputs": i32 [S], "labels": i32 [S]} in an order that follows the run's seed.

        Raises:
            UserError: a file is missing or damaged.
        """
        windows = megatron.GptTraining(
            tuple(_prefix(folder, name) for name in self.train_files),
            self.sequence_length,
            self.train_samples,
            vocabulary=self.vocabulary,
            extra_token=self.extra_token,
            shuffle_documents=self.shuffle_documents,
        )
        return pipeline.training(windows, shuffle=False)

    def validation(self, folder: records.Folder) -> pipeline.Split:
        """Validation examples, never shuffled; raises as `train`."""
        samples = self.validation_samples
        windows = megatron.FileOrder(
            TokenFile(_prefix(folder, self.validation_file), self.vocabulary),
            self.sequence_length,
            samples and -(-samples // self.whole_batches) * self.whole_batches,
            int(self.extra_token),
        )
        return pipeline.evaluation(megatron.TokenWindows(windows, self.sequence_length))

    def drawn(self, rows: int, example: Mapping[str, Any], rng: np.random.Generator) -> Batch:
        """{"inputs", "labels"}: tokens as frequent as words; see `DrawsBatches`."""
        return drawing.windows(rng, rows, example["inputs"].shape[0], self.vocabulary)

    def counts(self, folder: records.Folder) -> dict[str, int]:
        """Windows of the validation file, at most those evaluated; training repeats its files; raises as `train`."""
        for name in self.train_files:
            TokenFile(_prefix(folder, name))
        if self.validation_samples is None:
            return {"validation": len(self.validation(folder))}
        tokens = TokenFile(_prefix(folder, self.validation_file)).tokens - self.extra_token
        return {"validation": min(tokens // self.sequence_length, self.validation_samples)}

    def build(self, folder: records.Folder, source: records.Folder | None = None) -> None:
        """Tokenizes C4: groups of 128 training files, one for each pair, and the validation documents.

        Args:
            folder: where the token files go; the organisers' own may lie there instead.
            source: folder with C4's json.gz files and the tokenizer.

        Raises:
            UserError: files are missing or damaged, or there is no room on the disk.
        """
        if self.tiny:
            builder.build_tiny(folder, self.vocabulary)
            return
        if source is None:
            names = ", ".join((*self.train_files, self.validation_file))
            raise UserError(
                f"the token files are made from C4: give --source, a folder with its en/*.json.gz and "
                f"{self.tokenizer}; or put the organisers' own ({names}: .bin and .idx) into {folder}"
            )
        groups = dict(zip(self.train_files, _GROUPS))
        builder.build_c4(source, folder, groups, self.validation_file, self.validation_texts)

    def check(self, folder: records.Folder) -> list[str]:
        """Reads the index of every file, and some windows; ids beyond the vocabulary are named by file and byte."""
        found = []
        for name in (*self.train_files, self.validation_file):
            file = TokenFile(_prefix(folder, name), self.vocabulary)
            found.append(f"{name}: {file.documents:,} documents, {file.tokens:,} tokens")
            windows = megatron.FileOrder(file, self.sequence_length, None)
            try:
                file.check()
                for index in range(0, len(windows), max(1, len(windows) // 64)):
                    windows[index]
            except UserError as error:
                found.append(f"problem: {error}")
        return found


def _prefix(folder: records.Folder, name: str) -> str:
    """The path of a token file without its ending."""
    return f"{records.local(folder)}/{name}"

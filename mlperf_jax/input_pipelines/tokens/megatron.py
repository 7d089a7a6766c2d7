"""Training and validation samples made of Megatron token files.

A sample is a window of S + 1 tokens; its labels are its inputs one token later. Files are read and
written by `megatron_file`, the order of training is `megatron_index`'s.
Reference: Megatron-core r0.11, datasets/gpt_dataset.py and blended_dataset.py; the 405B reference's
patch that leaves validation unshuffled; retired_benchmarks/gpt3 for `extra_token` and
`shuffle_documents`.

Shape legend: T tokens of a file, S tokens of a window.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.sources import Batch
from mlperf_jax.input_pipelines.tokens import megatron_index
from mlperf_jax.input_pipelines.tokens.megatron_file import TokenFile

IGNORED = -100  # the label of a position that is not scored
_SURPLUS = 1.005  # the reference asks each file of a blend for half a per cent more


@dataclasses.dataclass(frozen=True)
class TokenWindows:
    """Windows as a source of whole batches, {"inputs": i32 [B, S], "labels": i32 [B, S]}.

    Labels are the inputs one token later. A position without a following token has the label IGNORED; what
    a short window lacks is padded with inputs 0 and labels IGNORED.
    """

    windows: Blend | FileOrder
    length: int
    rows_at_once: int = 256

    def __len__(self) -> int:
        return len(self.windows)

    def begin(self, ids: np.ndarray) -> Batch:
        return {name: np.zeros((len(ids), self.length), np.int32) for name in ("inputs", "labels")}

    def read(self, ids: np.ndarray, out: Batch) -> None:
        for inputs, labels, index in zip(out["inputs"], out["labels"], ids.tolist()):
            tokens = self.windows[index]
            count = min(len(tokens), self.length)
            inputs[:count] = tokens[:count]
            following = tokens[1 : self.length + 1]
            labels[: len(following)], labels[len(following) :] = following, IGNORED

    def describe(self, index: int) -> str:
        return self.windows.describe(index)

    def ready(self) -> None:
        """Computes the order, from the documents' lengths alone: ten seconds for 46 M of them."""
        for source in getattr(self.windows, "sources", ()):
            source.order()


@dataclasses.dataclass(frozen=True)
class ShuffledWindows:
    """Windows of one file in Megatron's training order: item k is the k-th sample.

    The order is computed when the first item is asked for: 4 bytes a document and epoch, 4 a window.
    """

    file: TokenFile
    length: int
    samples: int
    seed: int
    extra: int
    shuffle_documents: bool
    _lock: Any = dataclasses.field(default_factory=threading.Lock, init=False, repr=False)

    def __reduce__(self) -> Any:  # a worker process computes the order anew
        given = [getattr(self, field.name) for field in dataclasses.fields(self) if field.init]
        return ShuffledWindows, tuple(given)

    def order(self) -> tuple[megatron_index.Stream, np.ndarray]:
        """Returns the stream of documents and the order of its windows, made once."""
        with self._lock:
            return self._order

    @functools.cached_property
    def _order(self) -> tuple[megatron_index.Stream, np.ndarray]:
        file, random = self.file, np.random.RandomState(self.seed)
        reach = megatron_index.extent(file.tokens, self.length, self.samples, self.extra)
        index = megatron_index.document_index(file.documents, reach, random, self.shuffle_documents)
        stream = megatron_index.Stream(index, file.lengths)
        return stream, megatron_index.shuffle_index(reach, random)

    def __getitem__(self, index: int) -> np.ndarray:
        stream, windows = self.order()
        at = int(windows[index]) * self.length
        documents, offsets, counts = stream.pieces(at, self.length + self.extra)
        return self.file.read(self.file.starts(documents) + offsets, counts)


@dataclasses.dataclass(frozen=True)
class FileOrder:
    """Windows of one file as they lie in it, never shuffled, its documents repeated as often as need be.

    Attributes:
        length: S.
        samples: windows; None takes every token once, with the short window at the end (GPT3).
        extra: tokens that a window has beyond S, shared with the next window: 1, or 0 for GPT3.
    """

    file: TokenFile
    length: int
    samples: int | None
    extra: int = 1

    def __len__(self) -> int:
        if self.samples is not None:
            return self.samples
        return -(-(self.file.tokens - self.extra) // self.length)

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, total = index * self.length, self.file.tokens
        stop = start + self.length + self.extra
        if self.samples is None:
            stop = min(stop, total)
        cuts = [start, *range(total * (start // total + 1), stop, total), stop]
        return self.file.read([at % total for at in cuts[:-1]], np.diff(cuts))

    def describe(self, index: int) -> str:
        return f"{self.file.prefix}.bin, window {index}"


@dataclasses.dataclass(frozen=True)
class Blend:
    """Sources that take turns: the reference's blend with equal weights.

    Sample j goes to the file that is furthest behind its share, ties to the first: files in turn.
    """

    sources: tuple[ShuffledWindows, ...]
    samples: int

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> np.ndarray:
        item, number = divmod(index, len(self.sources))
        return self.sources[number][item]

    def describe(self, index: int) -> str:
        item, number = divmod(index, len(self.sources))
        return f"{self.sources[number].file.prefix}.bin, sample {item}"


@dataclasses.dataclass(frozen=True)
class GptTraining:
    """Training windows whose order follows the run's seed, which is known when batches are asked for.

    The source of what `C4.train` returns. The files are opened, and their indices compared with them, at
    once; the order is computed at the first batch or by `ready`.

    Attributes:
        prefixes: of one file, or of several that are blended in equal parts.
        sequence_length: S.
        samples: of the whole run, steps times batch size; the order depends on it.
        vocabulary: ids must lie below it.
        extra_token: windows share a token with the next, so that all S labels are scored. False as
            in the GPT3 reference: the last label of each window is IGNORED.
        shuffle_documents: False as in the GPT3 reference: only windows are shuffled.

    Raises:
        UserError: a file is missing or damaged, or a number is out of range.
    """

    prefixes: tuple[str, ...]
    sequence_length: int
    samples: int
    vocabulary: int | None = None
    extra_token: bool = True
    shuffle_documents: bool = True

    def __post_init__(self):
        if not self.prefixes or self.sequence_length < 1 or self.samples < 1:
            raise UserError(
                f"training needs a token file, a sequence length and samples of at least 1, got "
                f"{len(self.prefixes)} files, {self.sequence_length} and {self.samples}"
            )
        self.for_seed(0)

    def __len__(self) -> int:
        return self.samples

    def for_seed(self, seed: int) -> TokenWindows:
        """The windows of a run with this seed: example k is the run's k-th sample."""
        if not 0 <= seed < 1 << 32:
            raise UserError(f"the seed of a sample order is in 0 .. 2**32 - 1, got {seed}")
        each, files = self.samples, len(self.prefixes)
        if files > 1:
            each = math.ceil(math.ceil(each / files) * _SURPLUS)
        order = self.sequence_length, each, seed, int(self.extra_token), self.shuffle_documents
        opened = (TokenFile(path, self.vocabulary) for path in self.prefixes)
        sources = tuple(ShuffledWindows(file, *order) for file in opened)
        return TokenWindows(Blend(sources, self.samples), self.sequence_length)

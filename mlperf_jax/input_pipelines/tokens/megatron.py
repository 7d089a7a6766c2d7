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
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import pipeline
from mlperf_jax.input_pipelines.sources import Batch
from mlperf_jax.input_pipelines.tokens import megatron_index
from mlperf_jax.input_pipelines.tokens.megatron_file import TokenFile, Writer

__all__ = ["IGNORED", "GptTraining", "TokenFile", "Writer", "gpt_validation", "gpt_windows"]

IGNORED = -100  # the label of a position that is not scored
_SURPLUS = 1.005  # the reference asks each file of a blend for half a per cent more


@dataclasses.dataclass(frozen=True)
class TokenWindows:
    """Windows as a source of whole batches, {"inputs": i32 [B, S], "labels": i32 [B, S]}.

    Labels are the inputs one token later. A position without a following token has the label IGNORED; what
    a short window lacks is padded with inputs 0 and labels IGNORED.
    """

    windows: ShuffledWindows | FileOrder | Blend
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
        for part in getattr(self.windows, "sources", (self.windows,)):
            if isinstance(part, ShuffledWindows):
                part.order()


class ShuffledWindows:
    """Windows of one file in Megatron's training order: item k is the k-th sample.

    The order is computed when the first item is asked for: 4 bytes a document and epoch, 4 a window.
    """

    def __init__(
        self,
        file: TokenFile,
        length: int,
        samples: int,
        seed: int,
        *,
        extra: int = 1,
        shuffle_documents: bool = True,
    ):
        self.file, self.length, self.samples, self.seed = file, length, samples, seed
        self.extra, self.shuffle_documents = extra, shuffle_documents
        self._lock, self._made = threading.Lock(), None

    def __reduce__(self) -> Any:  # a worker process computes the order anew
        how = {"extra": self.extra, "shuffle_documents": self.shuffle_documents}
        given = self.file, self.length, self.samples, self.seed
        return functools.partial(ShuffledWindows, *given, **how), ()

    def __len__(self) -> int:
        return self.samples

    def __repr__(self) -> str:
        return f"ShuffledWindows({self.file!r}, {self.samples:,} samples)"

    def order(self) -> tuple[megatron_index.Stream, np.ndarray]:
        """Returns the stream of documents and the order of its windows, made once."""
        with self._lock:
            if self._made is None:
                file, random = self.file, np.random.RandomState(self.seed)
                reach = megatron_index.extent(file.tokens, self.length, self.samples, self.extra)
                index = megatron_index.document_index(
                    file.documents, reach, random, self.shuffle_documents
                )
                stream = megatron_index.Stream(index, file.lengths)
                self._made = stream, megatron_index.shuffle_index(reach, random)
            return self._made

    def __getitem__(self, index: int) -> np.ndarray:
        stream, windows = self.order()
        at = int(windows[index]) * self.length
        documents, offsets, counts = stream.pieces(at, self.length + self.extra)
        return self.file.read(self.file.starts(documents) + offsets, counts)

    def describe(self, index: int) -> str:
        return f"{self.file.prefix}.bin, sample {index}"


class FileOrder:
    """Windows of one file as they lie in it, the file repeated as often as need be.

    Args:
        samples: windows; None for one pass with the short window at its end.
    """

    def __init__(self, file: TokenFile, length: int, samples: int | None, *, extra: int = 1):
        self.file, self.length, self.extra = file, length, extra
        self.once = samples is None
        self.samples = -(-(file.tokens - extra) // length) if samples is None else samples

    def __len__(self) -> int:
        return self.samples

    def __repr__(self) -> str:
        return f"FileOrder({self.file!r}, {self.samples:,} samples)"

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < self.samples:
            raise IndexError(index)
        start, total = index * self.length, self.file.tokens
        stop = start + self.length + self.extra
        if self.once:
            stop = min(stop, total)
        cuts = [start, *range(total * (start // total + 1), stop, total), stop]
        return self.file.read([at % total for at in cuts[:-1]], np.diff(cuts))

    def describe(self, index: int) -> str:
        return f"{self.file.prefix}.bin, window {index}"


class Blend:
    """Sources that take turns: the reference's blend with equal weights.

    Sample j goes to the file that is furthest behind its share, ties to the first: files in turn.
    """

    def __init__(self, sources: Sequence[ShuffledWindows], samples: int):
        self.sources, self.samples = tuple(sources), samples

    def __len__(self) -> int:
        return self.samples

    def __repr__(self) -> str:
        return f"Blend({', '.join(map(repr, self.sources))})"

    def _at(self, index: int) -> tuple[ShuffledWindows, int]:
        item, number = divmod(index, len(self.sources))
        return self.sources[number], item

    def __getitem__(self, index: int) -> np.ndarray:
        source, item = self._at(index)
        return source[item]

    def describe(self, index: int) -> str:
        source, item = self._at(index)
        return source.describe(item)


def gpt_windows(
    prefixes: str | os.PathLike | Sequence[str | os.PathLike],
    sequence_length: int,
    samples: int,
    seed: int,
    *,
    vocabulary: int | None = None,
    extra_token: bool = True,
    shuffle_documents: bool = True,
) -> TokenWindows:
    """Training examples {"inputs": i32 [S], "labels": i32 [S]}: example k is the run's k-th sample.

    Args:
        prefixes: of one file, or of several that are blended in equal parts.
        sequence_length: S.
        samples: of the whole run, steps times batch size; the order depends on it.
        seed: the run's.
        vocabulary: ids must lie below it.
        extra_token: windows share a token with the next, so that all S labels are scored. False as
            in the GPT3 reference: the last label of each window is IGNORED.
        shuffle_documents: False as in the GPT3 reference: only windows are shuffled.

    Raises:
        UserError: a file is missing or damaged, or a number is out of range.
    """
    paths = [prefixes] if isinstance(prefixes, str | os.PathLike) else list(prefixes)
    if not paths or sequence_length < 1 or samples < 1:
        raise UserError(
            f"training needs a token file, a sequence length and samples of at least 1, got {len(paths)} "
            f"files, {sequence_length} and {samples}"
        )
    if not 0 <= seed < 1 << 32:
        raise UserError(f"the seed of a sample order is in 0 .. 2**32 - 1, got {seed}")
    each = samples
    if len(paths) > 1:
        each = math.ceil(math.ceil(samples / len(paths)) * _SURPLUS)
    sources = [
        ShuffledWindows(
            TokenFile(path, vocabulary),
            sequence_length,
            each,
            seed,
            extra=int(extra_token),
            shuffle_documents=shuffle_documents,
        )
        for path in paths
    ]
    source = sources[0] if len(sources) == 1 else Blend(sources, samples)
    return TokenWindows(source, sequence_length)


def gpt_validation(
    prefix: str | os.PathLike,
    sequence_length: int,
    samples: int | None = None,
    *,
    vocabulary: int | None = None,
    extra_token: bool = True,
) -> pipeline.Split:
    """Validation examples: the first windows of a file in file order, never shuffled.

    Beyond the end of the file its documents begin again, as in the reference.

    Args:
        samples: windows; None takes every token once, with the short window at the end (GPT3).
        prefix, sequence_length, vocabulary, extra_token: as for `gpt_windows`.
    """
    file = TokenFile(prefix, vocabulary)
    source = FileOrder(file, sequence_length, samples, extra=int(extra_token))
    return pipeline.evaluation(TokenWindows(source, sequence_length))


@dataclasses.dataclass(frozen=True)
class GptTraining:
    """Training windows whose order follows the run's seed, which is known when batches are asked for.

    The source of what `C4.train` returns. The files are opened, and their indices compared with them, at
    once; the order is computed at the first batch or by `ready`. Arguments as for `gpt_windows`.
    """

    prefixes: tuple[str, ...]
    sequence_length: int
    samples: int
    vocabulary: int | None = None
    extra_token: bool = True
    shuffle_documents: bool = True

    def __post_init__(self):
        self.for_seed(0)

    def __len__(self) -> int:
        return self.samples

    def for_seed(self, seed: int) -> TokenWindows:
        """The windows of a run with this seed."""
        return gpt_windows(
            self.prefixes,
            self.sequence_length,
            self.samples,
            seed,
            vocabulary=self.vocabulary,
            extra_token=self.extra_token,
            shuffle_documents=self.shuffle_documents,
        )

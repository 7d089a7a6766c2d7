"""Rows of batches: moments with a caption's tokens, or with its embedding, and evaluation's prompts.

Shape legend: T tokens of a caption, S side of a latent, C its channels, W width of the text encoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.laion import files
from mlperf_jax.input_pipelines.laion.embeddings import Embeddings
from mlperf_jax.input_pipelines.laion.prompts import Prompts
from mlperf_jax.input_pipelines.sources import Batch

_ENDS = 2  # tokens that begin and end a caption


class Tokenizer(Protocol):
    """CLIP's byte pairs. Worker processes are given a copy."""

    def __call__(self, text: str, /) -> np.ndarray:
        """The tokens of a caption, int32 [T]: begin, those of the text as far as they fit, end, zeros."""
        ...

    def encode(self, text: str, /) -> Sequence[int]:
        """All tokens of the text alone, however many."""
        ...


def tokens(tokenizer: Tokenizer, text: str, length: int) -> np.ndarray:
    """The tokens of a caption, int32 [T].

    Raises:
        UserError: the tokenizer gives another number of them.
    """
    found = np.asarray(tokenizer(text))
    if found.shape != (length,) or found.dtype.kind not in "iu":
        raise UserError(
            f"the tokenizer gives {found.dtype}{list(found.shape)} for a caption, not int32[{length}]: take one of "
            "that length"
        )
    return found


def is_cut(tokenizer: Tokenizer, text: str, length: int) -> bool:
    """Whether a caption has more tokens than fit between the two that begin and end it."""
    return len(tokenizer.encode(text)) > length - _ENDS


@dataclasses.dataclass(frozen=True)
class CaptionedMoments:
    """Training rows as a source of whole batches.

    {"moments": f32 [S, S, 2C], means and then logarithms of variances, "tokens": i32 [T]}, or in the place of
    tokens {"embedding": f16 [T, W]}.

    Attributes:
        samples: of the shards.
        tokenizer: of the captions.
        length: T.
        width: W of embeddings.
        embeddings: of the captions; None to read their tokens.
    """

    samples: files.Samples
    tokenizer: Tokenizer
    length: int
    width: int = 0
    embeddings: Embeddings | None = None
    rows_at_once: int = 32

    def __len__(self) -> int:
        return len(self.samples)

    def begin(self, ids: np.ndarray) -> Batch:
        channels, side = self.samples.form
        batch = {"moments": np.zeros((len(ids), side, side, channels), np.float32)}
        if self.embeddings is None:
            return batch | {"tokens": np.zeros((len(ids), self.length), np.int32)}
        return batch | {"embedding": np.zeros((len(ids), self.length, self.width), np.float16)}

    def read(self, ids: np.ndarray, out: Batch) -> None:
        places = self.samples.at(ids)
        ranges = [shard.array(index) for shard, index in places]
        if self.embeddings is None:
            ranges += [shard.member(index) for shard, index in places]
        found = self.samples.files.read(ranges)
        for row, ((shard, index), raw) in enumerate(zip(places, found)):
            planes = shard.moments(index, raw)  # [2C, S, S]
            shard.check_finite(index, planes)
            # written in place, 1.5 times as fast as by NumPy
            cv2.transpose(
                planes.reshape(len(planes), -1), out["moments"][row].reshape(-1, len(planes))
            )
        if self.embeddings is not None:
            self.embeddings.read(places, out["embedding"])
            return
        for row, ((shard, index), raw) in enumerate(zip(places, found[len(places) :])):
            out["tokens"][row] = tokens(self.tokenizer, shard.caption(index, raw), self.length)

    def describe(self, index: int) -> str:
        return self.samples.describe(index)


@dataclasses.dataclass(frozen=True)
class PromptRows:
    """Evaluation's rows: {"tokens": i32 [T], "image_id": i32, "id": i32}, the ids of the table.

    Attributes:
        prompts: in the order of their table.
        tokenizer: of the captions.
        length: T.
    """

    prompts: Prompts
    tokenizer: Tokenizer
    length: int
    rows_at_once: int = 64

    def __len__(self) -> int:
        return len(self.prompts.captions)

    def begin(self, ids: np.ndarray) -> Batch:
        blank = {name: np.zeros(len(ids), np.int32) for name in ("image_id", "id")}
        return {"tokens": np.zeros((len(ids), self.length), np.int32), **blank}

    def read(self, ids: np.ndarray, out: Batch) -> None:
        out["image_id"][...], out["id"][...] = self.prompts.numbers[ids].T
        for row, index in enumerate(ids.tolist()):
            out["tokens"][row] = tokens(self.tokenizer, self.prompts.captions[index], self.length)

    def describe(self, index: int) -> str:
        return f"{self.prompts.path}, line {self.prompts.lines[index]}"

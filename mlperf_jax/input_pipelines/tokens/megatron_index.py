"""The order in which Megatron's GPT data set takes windows out of one token file.

Documents are shuffled, all epochs as one array; what they hold, one after the other, is the stream; the
stream is cut into windows; the windows are shuffled. One legacy NumPy generator, seeded by the run's
seed, serves both shuffles, documents first, so that the order is the reference's to the last window.
Reference: Megatron-core r0.11, datasets/gpt_dataset.py and helpers.cpp.

Differs: the reference writes out where each window starts, 16 bytes a window and a pass over every
document that it caches on disk. Here the stream's length is summed over blocks of documents, and a
window is found within its block when it is asked for.

Shape legend: D documents of the file, E epochs, T tokens of the file, S tokens of a window, M windows.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mlperf_jax.errors import UserError

_BLOCK = 256  # documents summed up in one entry
_CHUNK = 1 << 20  # documents summed at once: keeps temporaries at a few megabytes
_SEPARATE_BELOW = 0.8  # share of an epoch: a last epoch that gives fewer windows is shuffled apart
_MOST_ENTRIES = 1 << 31  # document entries, 8 GiB


@dataclasses.dataclass(frozen=True)
class Extent:
    """How far a request reaches into a file that is repeated.

    Args:
        epochs: E, passes over the documents.
        windows: M, whole windows in the stream of E epochs.
        first: windows that are shuffled among themselves before the last epoch's; M if the last
            epoch is not kept apart.
    """

    epochs: int
    windows: int
    first: int

    @property
    def separate(self) -> bool:
        """Whether the last epoch's documents and windows are shuffled on their own."""
        return self.first < self.windows


def extent(tokens: int, length: int, samples: int, extra: int = 1) -> Extent:
    """Returns how many epochs hold `samples` windows, and whether the last is kept apart.

    Args:
        tokens: T.
        length: S.
        samples: windows asked for.
        extra: tokens that a window has beyond S, shared with the next window: 1, or 0 for GPT3.

    >>> extent(29, 8, 8)
    Extent(epochs=3, windows=10, first=7)
    """
    epochs = max(1, -(-(samples * length + extra) // tokens))
    windows = (epochs * tokens - extra) // length
    if epochs == 1:
        return Extent(epochs, windows, windows)
    before_last = ((epochs - 1) * tokens - extra) // length
    per_epoch = (tokens - extra) // length
    separate = samples - before_last < int(_SEPARATE_BELOW * per_epoch)
    return Extent(epochs, windows, before_last if separate else windows)


def document_index(
    documents: int, reach: Extent, random: np.random.RandomState, shuffle: bool = True
) -> np.ndarray:
    """Returns the documents in the order of the stream: int32 [E * D].

    Args:
        documents: D.
        reach: epochs, and whether the last is kept apart.
        random: is advanced by one shuffle, or two.
        shuffle: False for file order.

    Raises:
        UserError: the index would have more than 2**31 entries.
    """
    if documents * reach.epochs > _MOST_ENTRIES:
        raise UserError(
            f"{reach.epochs} epochs of {documents:,} documents are more than can be shuffled as one "
            "array; ask for fewer training samples"
        )
    index = np.tile(np.arange(documents, dtype=np.int32), reach.epochs)
    if shuffle:
        last = (reach.epochs - 1) * documents
        for part in (index[:last], index[last:]) if reach.separate else (index,):
            random.shuffle(part)
    return index


def shuffle_index(reach: Extent, random: np.random.RandomState) -> np.ndarray:
    """Returns the windows in the order in which they are taken: uint32 [M]; advances `random`."""
    dtype = np.uint32 if reach.windows < np.iinfo(np.uint32).max - 1 else np.int64
    index = np.arange(reach.windows, dtype=dtype)
    for part in (index[: reach.first], index[reach.first :]) if reach.separate else (index,):
        random.shuffle(part)
    return index


class Stream:
    """The documents of an index one after the other, as a stream of tokens that can be looked up.

    Args:
        index: documents in order, int32 [E * D].
        lengths: tokens of each document of the file, int32 [D].
    """

    def __init__(self, index: np.ndarray, lengths: np.ndarray):
        self.index, self.lengths = index, lengths
        sums = [
            _block_sums(lengths[index[at : at + _CHUNK]]) for at in range(0, len(index), _CHUNK)
        ]
        self._starts = np.concatenate([[0], np.cumsum(np.concatenate(sums))])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def pieces(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns what lies at stream tokens start .. start + count - 1.

        Returns:
            Documents, first token within each, and tokens taken of each: int64 [pieces].
        """
        blocks = np.searchsorted(self._starts, [start, start + count - 1], side="right") - 1
        low, high = int(blocks[0]) * _BLOCK, (int(blocks[1]) + 1) * _BLOCK
        documents = self.index[low:high]
        ends = self._starts[blocks[0]] + np.cumsum(self.lengths[documents], dtype=np.int64)
        first, last = np.searchsorted(ends, [start, start + count - 1], side="right")
        documents, ends = documents[first : last + 1].astype(np.int64), ends[first : last + 1]
        begins = ends - self.lengths[documents]
        offsets = np.maximum(start - begins, 0)
        taken = np.minimum(ends, start + count) - begins - offsets
        return documents[taken > 0], offsets[taken > 0], taken[taken > 0]


def _block_sums(lengths: np.ndarray) -> np.ndarray:
    """Sums of _BLOCK entries each, int64; the last sum may cover fewer."""
    return np.add.reduceat(lengths, np.arange(0, len(lengths), _BLOCK), dtype=np.int64)

"""What the core needs of data sets and metrics, whoever wrote them.

Nothing is inherited: a class that has these members fits, and the type checker says where one does not.

Shape legend: B rows of a global batch, lo..hi the rows of it that this process reads.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import numpy as np

HostBatch = dict[str, np.ndarray]
# rows B of a global batch -> (lo, hi), the rows of it that are read here
Share = Callable[[int], tuple[int, int]]


class Batches(Protocol):
    """Batches by their number: batch k depends on the seed and on k, and on nothing else.

    Training's go on without end; evaluation's hold every sample once and carry "mask", bool [hi - lo],
    False for padding.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> HostBatch:
        """Batch `number`, read in the calling thread."""
        ...

    def ready(self) -> None:
        """Works out the order of the samples, from metadata alone, where that takes long."""
        ...

    def stream(
        self, start: int = 0, *, threads: int | None = None, workers: int = 0
    ) -> Iterator[HostBatch]:
        """Batches `start`, `start + 1`, …, read ahead; closing the iterator stops its threads.

        Args:
            start: the first batch's number: the step to resume at.
            threads: that read and decode; one per usable core by default, 0 to do without.
            workers: processes that read and decode, for transforms that hold the interpreter; 0 for none.
        """
        ...


class Split(Protocol):
    """The samples of one split, and how they become batches."""

    def __len__(self) -> int: ...

    def steps_per_epoch(self, rows: int) -> int:
        """Batches of so many rows in one epoch."""
        ...

    def transformed(self, transforms: Sequence[Any]) -> Split:
        """The split with these transforms of Grain behind its own, over one example each."""
        ...

    def batched(self, rows: int, *, seed: int = 0, share: Share | None = None) -> Batches:
        """The batches of so many rows.

        Args:
            rows: B. Where batches are planned into bucket shapes the plan says it for each.
            seed: of order and augmentation, at least 0; evaluation takes none of them.
            share: which rows are read here; all by default.

        Raises:
            UserError: the rows do not fit the data.
        """
        ...


class DataSet(Protocol):
    """A data set: how its folder is built, checked and read. Every method takes that folder."""

    def train(self, folder: str) -> Split: ...

    def validation(self, folder: str) -> Split: ...

    def counts(self, folder: str) -> Mapping[str, int]:
        """Samples by split ("train", "validation") from metadata alone; UserError if unusable.

        Training data that are repeated as often as a run asks are not counted.
        """
        ...

    def build(self, folder: str, source: str | None = None) -> None:
        """Builds it, from `source` where it is made from files the user has; kept if it is there."""
        ...

    def check(self, folder: str) -> list[str]:
        """Reads samples and returns what was found, a line each; "problem: …" for what is wrong."""
        ...


@runtime_checkable
class NamesClasses(Protocol):
    """A data set whose classes have names, for pictures."""

    def class_names(self, folder: str) -> Sequence[str]:
        """Names of the classes by label; empty where the folder does not say."""
        ...


@runtime_checkable
class NotesMaxima(Protocol):
    """A data set whose builder notes in its index how much a sample holds at most, for `capacities`."""

    def maxima(self, folder: str) -> Mapping[str, int]:
        """The most that one sample holds, by what it is: {"boxes": 743}; no record is read."""
        ...


@runtime_checkable
class DrawsBatches(Protocol):
    """A data set that draws batches such as its own without its files, to measure speed with."""

    def drawn(
        self, rows: int, example: Mapping[str, Any], rng: np.random.Generator
    ) -> Mapping[str, np.ndarray]:
        """Arrays [B, ...] by name: labels and ids in range and as frequent as the data's, lengths, padding.

        What is left out is drawn at random by the core; what the example does not have is passed over.

        Args:
            rows: B.
            example: name -> shape and dtype of a row's array, of training or of evaluation.
            rng: draws; the same batch comes of equal ones.
        """
        ...


@runtime_checkable
class SavesAdapter(Protocol):
    """A benchmark that trains an adapter over a base, which other libraries read."""

    def save_adapter(
        self, params: Any, folder: str | os.PathLike, base: str | None = None
    ) -> pathlib.Path:
        """Writes the trained parameters as such a library does into a new folder, and returns it.

        Args:
            params: as a run trained them.
            folder: made by this.
            base: name or path of the base, to be noted; by default what is known of it.
        """
        ...


class Metric(Protocol):
    """How predictions become quality.

    The core runs `predict` on every evaluation batch. A metric that takes no rows turns what it gave into
    a few sums on the device, which the core adds up; one that takes rows is given every row, padding
    removed, in the order of the data.

    Attributes:
        mode: "inline" (training waits), "beside" (`result` runs while training goes on; the evaluated
            state is the one that counts), or "offline" (sealed checkpoints are scored after the run).
        rows: whether `result` gets rows instead of sums.
        ranges: the qualities that a target may name, each with the least and the most it can be.
    """

    @property
    def mode(self) -> str: ...

    rows: ClassVar[bool]

    @property
    def ranges(self) -> Mapping[str, tuple[float, float]]: ...

    def sums(self, outputs: Any, mask: jax.Array) -> Any:
        """Sums over the rows of one batch whose mask [B] is true; traced under jit."""
        ...

    def result(self, total: Any) -> Mapping[str, float]:
        """Quality by name, on the host, process 0.

        Args:
            total: NumPy arrays: the added sums in float64, exact for counts up to 2**53, or the rows.
        """
        ...

"""The data set of the toys in `toys.py`, and batches to which something happens."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import pipeline, sources


@dataclass(frozen=True)
class InMemory:
    """The data set of a toy: what its methods of such names give, whatever the folder."""

    toy: Any

    def train(self, folder):
        return self.toy.train_data(folder)

    def validation(self, folder):
        return self.toy.eval_data(folder)

    def counts(self, folder):
        return self.toy.counts(folder)

    def build(self, folder, source=None):
        """There is nothing to build."""

    def check(self, folder):
        return []


def arrays(rows: dict[str, np.ndarray]) -> pipeline.Split:
    """Training rows from memory; whole batches, so that a step costs no time of its own."""
    return pipeline.training(sources.Arrays(rows))


@dataclass(frozen=True)
class Altered:
    """A split whose batches pass through `alter` as they are read ahead: (step, batch) -> batch.

    None ends them.
    """

    split: Any
    alter: Callable[[int, dict[str, np.ndarray]], dict[str, np.ndarray] | None]

    def __len__(self) -> int:
        return len(self.split)

    def steps_per_epoch(self, rows: int) -> int:
        return self.split.steps_per_epoch(rows)

    def transformed(self, transforms):
        return Altered(self.split.transformed(transforms), self.alter)

    def running_on(self):
        return Altered(self.split.running_on(), self.alter)

    def batched(self, rows, *, seed=0, share=None):
        return AlteredBatches(self.split.batched(rows, seed=seed, share=share), self.alter)


@dataclass(frozen=True)
class AlteredBatches:
    batches: pipeline.Batches
    alter: Callable[[int, dict[str, np.ndarray]], dict[str, np.ndarray] | None]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number):
        return self.alter(number, self.batches[number])

    def ready(self):
        self.batches.ready()

    def stream(self, start=0, *, threads=None, workers=0):
        given = self.batches.stream(start, threads=threads, workers=workers)
        for step, batch in enumerate(given, start):
            altered = self.alter(step, batch)
            if altered is None:
                return
            yield altered


@dataclass(frozen=True)
class Numbered:
    """Batches that are made whole, by their number."""

    share: Callable[[int], tuple[int, int]] | None
    make: Callable[[int], dict[str, np.ndarray]]

    def __getitem__(self, number):
        batch = self.make(number)
        rows = len(next(iter(batch.values())))
        low, high = self.share(rows) if self.share else (0, rows)
        return {name: values[low:high] for name, values in batch.items()}

    def ready(self): ...

    def stream(self, start=0, *, threads=None, workers=0):
        return map(self.__getitem__, itertools.count(start))


def poisoned(split: Any, steps: Container[int]) -> Altered:
    """The batches of these steps hold NaN."""

    def alter(step, batch):
        return batch | {"x": np.full_like(batch["x"], np.nan)} if step in steps else batch

    return Altered(split, alter)


def asks_to_stop(split: Any, at: int, number: int = signal.SIGTERM) -> Altered:
    """Sends a signal to its own process when the batch of this step is read."""

    def alter(step, batch):
        if step == at:
            os.kill(os.getpid(), number)
        return batch

    return Altered(split, alter)


def fails(split: Any, at: int, message: str = "damaged") -> Altered:
    """Fails at the batch of this step, as a damaged record does."""

    def alter(step, batch):
        if step == at:
            raise UserError(message)
        return batch

    return Altered(split, alter)


@contextlib.contextmanager
def failing(toy: type, at: int) -> Iterator[None]:
    """Meanwhile the toy's training data fail at the batch of this step; a subclass would be other code."""
    given = toy.train_data
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(toy, "train_data", lambda self, folder: fails(given(self, folder), at))
        yield

"""A data set that is made, not read: NumPy arrays of a benchmark that needs no files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import numpy.typing as npt

from mlperf_jax.input_pipelines import pipeline
from mlperf_jax.input_pipelines.sources import Arrays


class InMemory:
    """Arrays as a data set: its folder does not matter, and nothing is built in it.

    Args:
        train: name -> array [N, ...], a row for each training sample.
        validation: the same of the samples that quality is measured on.

    Raises:
        UserError: the arrays of a split have different numbers of rows.

    >>> InMemory(train={"x": np.arange(3)}, validation={"x": np.arange(2)}).counts()
    {'train': 3, 'validation': 2}
    """

    def __init__(
        self, *, train: Mapping[str, np.ndarray], validation: Mapping[str, np.ndarray]
    ) -> None:
        self._train = Arrays(train, "the training data")
        self._validation = Arrays(validation, "the validation data")

    @classmethod
    def split(cls, arrays: Mapping[str, npt.ArrayLike], *, every: int) -> Self:
        """Of one table each `every`-th row, from the first on, for validation, and the others to train on.

        >>> InMemory.split({"x": np.arange(10)}, every=5).counts()
        {'train': 8, 'validation': 2}
        """
        train, validation = {}, {}
        for name, given in arrays.items():
            rows = np.asarray(given)
            held = np.arange(len(rows)) % every == 0
            train[name], validation[name] = rows[~held], rows[held]
        return cls(train=train, validation=validation)

    def train(self, folder: str = "") -> pipeline.Split:
        """The training samples, reshuffled in every epoch."""
        return pipeline.training(self._train)

    def validation(self, folder: str = "") -> pipeline.Split:
        """The samples that quality is measured on."""
        return pipeline.evaluation(self._validation)

    def counts(self, folder: str = "") -> dict[str, int]:
        """Samples by split."""
        return {"train": len(self._train), "validation": len(self._validation)}

    def build(self, folder: str = "", source: str | None = None) -> None:
        """Nothing: the arrays are there."""

    def check(self, folder: str = "") -> list[str]:
        """The arrays of both splits, and which of them hold values that are not finite."""
        found = []
        for split in (self._train, self._validation):
            for name, array in split.arrays.items():
                found.append(f"{split.name}: {name} {array.dtype}{list(array.shape)}")
                if array.dtype.kind == "f" and not np.isfinite(array).all():
                    found.append(f"problem: {name!r} in {split.name} holds NaN or infinity")
        return found

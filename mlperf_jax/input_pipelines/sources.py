"""Sources: what a pipeline reads, one record or a run of rows at a time.

Nothing is inherited: a class that has these members fits. A source may have `ready()`, which works out its
order from metadata alone; one whose records differ by the shape of their batch has `for_bucket(number)`. Worker
processes are given a copy: whoever maps or opens files pickles as their paths.

Shape legend: N records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mlperf_jax.errors import UserError

Batch = dict[str, np.ndarray]


class Source(Protocol):
    """Random access to records, each of which can be named in an error message."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...

    def describe(self, index: int, /) -> str: ...


@runtime_checkable
class BatchSource(Protocol):
    """Rows of under 100 us (tokens, clicks), which are read many at a time, straight into the batch.

    A call of Python for each would cost more: with one of Grain's maps a row takes 6.85 times its copying.

    Attributes:
        rows_at_once: most rows of one call of `read`; a thread stops only between two.
    """

    @property
    def rows_at_once(self) -> int: ...

    def __len__(self) -> int: ...

    def begin(self, ids: np.ndarray, /) -> Batch:
        """Arrays for the rows of these records; zeros where `ids`, int [rows], is -1."""
        ...

    def read(self, ids: np.ndarray, out: Batch, /) -> None:
        """Writes these records, int [rows], into the arrays [rows, …] of `out`.

        Raises:
            UserError: one of them is damaged; it names the record itself.
        """
        ...

    def describe(self, index: int, /) -> str: ...


class Seeded(Protocol):
    """Records in an order that follows the run's seed."""

    def __len__(self) -> int: ...

    def for_seed(self, seed: int, /) -> Source | BatchSource:
        """The source of a run with this seed."""
        ...


@dataclasses.dataclass(frozen=True)
class Arrays:
    """A data set that is already in memory: a dict of arrays with the same number of rows.

    >>> Arrays({"x": np.arange(3)})[2]
    {'x': np.int64(2)}
    """

    arrays: Mapping[str, np.ndarray]
    name: str = "arrays"

    def __post_init__(self):
        rows = {key: len(value) for key, value in self.arrays.items()}
        if len(set(rows.values())) != 1:
            raise UserError(f"{self.name}: every array needs the same number of rows, got {rows}")

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value[index] for key, value in self.arrays.items()}

    def describe(self, index: int) -> str:
        return f"{self.name}, row {index}"


def single(source: BatchSource, index: int) -> dict[str, Any]:
    """One row of such a source as an example, for a transform that takes one."""
    ids = np.array([index])
    out = source.begin(ids)
    source.read(ids, out)
    return {name: rows[0] for name, rows in out.items()}

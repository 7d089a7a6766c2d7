"""Examples: what a benchmark's `train_data` and `eval_data` return, and how it becomes batches.

A batch is a function of its number: the rows of batch k depend on (seed, k, batch_size) and on nothing
else. How many processes read it, which rows each of them takes, and how many threads decode them
change only who does the work. So the whole position in the data is one integer, the step.

Shape legend: B rows of a global batch, N examples in the source, lo..hi the rows one process takes.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol

import grain
import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.dealing import Groups

Batch = dict[str, np.ndarray]
Plan = Callable[[int, int], np.ndarray]

_PADDING = -1  # a row of a batch that holds no record
_CHUNK_ROWS = 32  # most rows a thread decodes before it hands back: keeps stopping prompt
_ENDLESS = 1 << 62
_KEPT_EPOCHS = 3  # orders kept in memory: batches that are read ahead may lie in the next epoch
_SHUFFLE = 1  # sets the seeds of the order apart from those of the augmentation
_BUGS = (TypeError, AttributeError, NameError, AssertionError)  # never the data's fault


class Source(Protocol):
    """Random access to records, each of which can be named in an error message."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def describe(self, index: int) -> str: ...


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


def as_is(record: Any) -> dict[str, Any]:
    """Returns the record: the `decode` of a source whose records are already examples."""
    return record


@dataclasses.dataclass(frozen=True)
class Examples:
    """A data set, how one record becomes an example, and in which order records are taken.

    Args:
        source: the records.
        decode: record -> example (dict of arrays), deterministic; used for evaluation, and for
            training where there is no `augment`.
        augment: (record, generator) -> example, for training. The generator is seeded by (seed,
            position in the endless stream of examples), so an example differs from epoch to epoch.
        shuffle: reshuffle the records in every epoch of training.
        last_batch: what happens to the N mod B records at the end of a training epoch. "drop": they
            are left out, an epoch has floor(N/B) batches. "mix": batches run on across epochs, as
            with a stream that repeats before it is batched. "keep": ceil(N/B) batches, the last is
            padded. Whatever can have padding carries the array "mask", bool [B], False for padding.
        groups: over which the rows of such a last batch are dealt; None leaves them at its front.
        plan: (seed, epoch) -> record ids, int [batches, B], -1 for padding: for batches that depend
            on lengths. It replaces `shuffle` and `last_batch`, and fixes B.

    >>> data = Examples(Arrays({"x": np.arange(10)}), as_is, shuffle=False, last_batch="mix")
    >>> [b["x"].tolist() for b in itertools.islice(data.batches(4, seed=0), 3)]
    [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]
    """

    source: Source
    decode: Callable[[Any], dict[str, Any]]
    augment: Callable[[Any, np.random.Generator], dict[str, Any]] | None = None
    shuffle: bool = True
    last_batch: Literal["drop", "keep", "mix"] = "drop"
    groups: Groups | None = None
    plan: Plan | None = None

    def __post_init__(self):
        if self.last_batch not in ("drop", "keep", "mix"):
            raise UserError(f"last_batch is {self.last_batch!r}; it is 'drop', 'keep' or 'mix'")

    def __len__(self) -> int:
        return len(self.source)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches in one training epoch: rounded up for "keep", down for "drop" and "mix"."""
        if self.plan is not None:
            return len(self.plan(0, 0))
        n = len(self.source)
        return -(-n // batch_size) if self.last_batch == "keep" else n // batch_size

    def batches(
        self,
        batch_size: int,
        *,
        rows: tuple[int, int] | None = None,
        seed: int,
        start: int = 0,
        threads: int | None = None,
    ) -> Iterator[Batch]:
        """Yields rows lo..hi of the global training batches start, start + 1, ... without end.

        Closing or dropping the iterator stops its threads.

        Args:
            batch_size: B, rows of the global batch.
            rows: (lo, hi), the rows wanted here; all of them by default.
            seed: of order and augmentation, at least 0.
            start: number of the first batch: the step to resume at.
            threads: that read and decode; one per usable core by default, 0 to do without.

        Raises:
            UserError: the arguments do not fit the data (at once), or a record is damaged (when its
                batch is asked for; names the record).
        """
        lo, hi = self._check(batch_size, rows)
        if seed < 0 or start < 0:
            raise UserError(f"seed and start are at least 0, got {seed} and {start}")
        order = _plan_order(self, batch_size, seed) if self.plan else _order(self, batch_size, seed)
        work = _Work(self, order, self._train_row(seed), lo, hi)
        masked = self.plan is not None or self.last_batch == "keep"
        return _run(work, itertools.count(start), start, _threads(threads), masked)

    def eval_batches(
        self,
        batch_size: int,
        *,
        rows: tuple[int, int] | None = None,
        threads: int | None = None,
    ) -> Iterator[Batch]:
        """Yields rows lo..hi of ceil(N/B) batches that hold every record once, in the source's order.

        Each batch carries "mask", bool [hi - lo]: False for the padding (zeros) of the last one.
        """
        lo, hi = self._check(batch_size, rows, evaluation=True)
        n = len(self.source)

        def order(number: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
            at = number * batch_size + np.arange(first, last)
            return np.where(at < n, at, _PADDING), at

        work = _Work(self, order, lambda record, position: self.decode(record), lo, hi)
        return _run(work, range(-(-n // batch_size)), 0, _threads(threads), masked=True)

    def _check(
        self, batch_size: int, rows: tuple[int, int] | None, evaluation: bool = False
    ) -> tuple[int, int]:
        n = len(self.source)
        if n == 0:
            raise UserError(f"the data set is empty ({self.source!r}); build or fetch it first")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it is at least 1")
        lo, hi = rows or (0, batch_size)
        if not 0 <= lo < hi <= batch_size:
            raise UserError(f"rows ({lo}, {hi}) do not lie within a batch of {batch_size}")
        if not evaluation and not self.plan and self.last_batch == "drop" and batch_size > n:
            raise UserError(
                f"batch_size {batch_size} is larger than the {n} training examples; take at most {n}"
            )
        return lo, hi

    def _train_row(self, seed: int) -> Callable[[Any, int], dict[str, Any]]:
        augment = self.augment
        if augment is None:
            return lambda record, position: self.decode(record)
        return lambda record, position: augment(record, np.random.default_rng([seed, position]))


def _threads(threads: int | None) -> int:
    if threads is not None:
        return threads
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


# An order: (batch number, first row, last row) -> record ids (-1 for padding) and positions in the
# endless stream of examples, both int [last - first].
_Order = Callable[[int, int, int], tuple[np.ndarray, np.ndarray]]


def _order(examples: Examples, batch_size: int, seed: int) -> _Order:
    """The order of training: index arithmetic over global batches, then a shuffle per epoch."""
    n = len(examples.source)
    steps = examples.steps_per_epoch(batch_size)
    shuffle = _Shuffle(n, seed) if examples.shuffle else None

    def order(number: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        within = np.arange(first, last)
        if examples.last_batch == "mix":
            positions, real = number * batch_size + within, np.ones(last - first, bool)
        else:
            epoch, batch = divmod(number, steps)
            left = n - batch * batch_size
            if examples.groups is not None and left < batch_size:
                within = examples.groups.dealt(left, batch_size)[first:last]
            real = (within >= 0) & (within < left)
            positions = epoch * n + batch * batch_size + within
        ids = np.where(real, positions % n, _PADDING)
        if shuffle:
            for epoch in np.unique(positions[real] // n):
                here = real & (positions // n == epoch)
                ids[here] = shuffle.records(int(epoch))[ids[here]]
        return ids, positions

    return order


class _Shuffle:
    """The order of the records in each epoch: a permutation from (seed, epoch).

    Grain's own shuffle needs no table, but 33 microseconds a row, a third of what a row costs besides
    decoding; and it shuffles epoch e of seed s as epoch 0 of seed s + e.
    """

    def __init__(self, n: int, seed: int):
        self._n, self._seed = n, seed
        self._kept: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def records(self, epoch: int) -> np.ndarray:
        with self._lock:
            return _recall(self._kept, epoch, self._permutation)

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch, _SHUFFLE]).permutation(self._n)


def _recall(
    kept: dict[int, np.ndarray], epoch: int, make: Callable[[int], np.ndarray]
) -> np.ndarray:
    """Returns kept[epoch], made if need be, and forgets all but the latest few."""
    value = kept.pop(epoch, None)
    kept[epoch] = make(epoch) if value is None else value
    while len(kept) > _KEPT_EPOCHS:
        del kept[next(iter(kept))]
    return kept[epoch]


def _plan_order(examples: Examples, batch_size: int, seed: int) -> _Order:
    """The order a plan gives; the plan of an epoch is computed when its first batch is asked for."""
    plan = examples.plan
    assert plan is not None
    ends: list[int] = []  # ends[e]: number of batches in epochs 0..e
    kept: dict[int, np.ndarray] = {}  # plans of the latest epochs
    lock = threading.Lock()

    def make(epoch: int) -> np.ndarray:
        ids = np.asarray(plan(seed, epoch))
        _check_plan(ids, epoch, batch_size, len(examples.source))
        return ids

    def order(number: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        with lock:
            while not ends or ends[-1] <= number:
                ends.append((ends[-1] if ends else 0) + len(_recall(kept, len(ends), make)))
            epoch = int(np.searchsorted(ends, number, side="right"))
            ids = _recall(kept, epoch, make)[number - (ends[epoch - 1] if epoch else 0)]
        return ids[first:last], number * batch_size + np.arange(first, last)

    return order


def _check_plan(ids: np.ndarray, epoch: int, batch_size: int, n: int) -> None:
    if ids.ndim != 2 or ids.shape[1] != batch_size or not len(ids):
        raise UserError(
            f"the plan of epoch {epoch} has shape {ids.shape}; batch_size {batch_size} needs "
            f"[batches, {batch_size}] with at least one batch"
        )
    if ids.min() < _PADDING or ids.max() >= n:
        raise UserError(
            f"the plan of epoch {epoch} has record ids {ids.min()}..{ids.max()}; allowed are 0..{n - 1} "
            f"and {_PADDING} for padding"
        )


class _Work:
    """Rows lo..hi of any batch, decoded by whichever thread comes by, into one array per batch.

    Threads write their rows in place, so a batch is copied nowhere and a batch of 3,264 images needs
    neither a second copy of itself nor one batch per thread. Untouched rows stay zeros: the padding.
    """

    def __init__(
        self,
        examples: Examples,
        order: _Order,
        row: Callable[[Any, int], dict[str, Any]],
        lo: int,
        hi: int,
    ):
        self.examples, self.order, self.row, self.lo, self.hi = examples, order, row, lo, hi
        self.stop = threading.Event()
        self._arrays: dict[int, Batch] = {}
        self._lock = threading.Lock()

    def decode_rows(self, number: int, first: int, last: int) -> None:
        """Decodes rows first..last (numbered within the global batch) of a batch."""
        ids, positions = self.order(number, first, last)
        for at, index, position in zip(range(first - self.lo, last - self.lo), ids, positions):
            if self.stop.is_set():
                return
            if index != _PADDING:
                self._store(number, at, int(index), self._example(int(index), int(position)))

    def take(self, number: int, masked: bool) -> Batch:
        """Hands a finished batch over and forgets it."""
        batch = self._arrays.pop(number, None)
        if batch is None:  # nothing but padding here: the shapes come from a row above
            ids = self.order(number, 0, self.hi)[0]
            real = ids[ids != _PADDING]
            batch = _zeros(self._example(int(real[0]) if len(real) else 0, 0), self.hi - self.lo)
        if masked:
            batch["mask"] = self.order(number, self.lo, self.hi)[0] != _PADDING
        return batch

    def _example(self, index: int, position: int) -> dict[str, Any]:
        try:
            return self.row(self.examples.source[index], position)
        except Exception as error:
            where = self.examples.source.describe(index)
            if isinstance(error, _BUGS):
                error.add_note(f"while reading {where}")
                raise
            if isinstance(error, UserError) and where in str(error):
                raise
            raise UserError(f"{where}: {error or type(error).__name__}") from error

    def _store(self, number: int, at: int, index: int, example: dict[str, Any]) -> None:
        with self._lock:
            batch = self._arrays.get(number)
            if batch is None:
                batch = self._arrays[number] = _zeros(example, self.hi - self.lo)
        for name, array in batch.items():
            value = np.asarray(example[name])
            if value.shape != array.shape[1:]:
                raise UserError(
                    f"{self.examples.source.describe(index)}: {name!r} has shape {value.shape}, "
                    f"other rows of its batch have {array.shape[1:]}"
                )
            array[at] = value


def _zeros(example: dict[str, Any], rows: int) -> Batch:
    values = {name: np.asarray(value) for name, value in example.items()}
    return {name: np.zeros((rows, *v.shape), v.dtype) for name, v in values.items()}


class _Chunks:
    """The work cut into pieces of a few rows, numbered, as a random-access source for Grain."""

    def __init__(self, work: _Work, first_batch: int, batches: int, rows: int):
        self.work, self.first_batch, self.rows = work, first_batch, rows
        self.per_batch = -(-(work.hi - work.lo) // rows)
        self.length = min(batches * self.per_batch, _ENDLESS)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        batch, chunk = divmod(index, self.per_batch)
        first = self.work.lo + chunk * self.rows
        self.work.decode_rows(self.first_batch + batch, first, min(first + self.rows, self.work.hi))
        return index


def _run(
    work: _Work, numbers: Any, first_batch: int, threads: int, masked: bool
) -> Iterator[Batch]:
    """Yields the batches of `numbers`, decoded ahead of the consumer by at most about one batch."""
    batches = len(numbers) if isinstance(numbers, range) else _ENDLESS
    # Small enough that all threads work on the first batch, large enough that Grain's cost for an
    # element (some 50 microseconds) stays below one per cent.
    rows = max(1, min(_CHUNK_ROWS, (work.hi - work.lo) // max(1, 2 * threads)))
    chunks = _Chunks(work, first_batch, batches, rows)
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=(chunks.per_batch + 2 * threads) if threads else 0
    )
    ready = iter(grain.MapDataset.source(chunks).to_iter_dataset(options))
    try:
        for number in numbers:
            for _ in range(chunks.per_batch):
                next(ready)
            yield work.take(number, masked)
    finally:
        work.stop.set()
        ready.close()

"""A split and its batches: Grain's rows, written in place into batches that are known by their number.

A batch is a function of its number: the rows of batch k depend on (seed, k, B) and on nothing else. How many
processes read it, which rows each of them takes, and how many threads or worker processes decode them
change only who does the work. So the whole position in the data is one integer, the step.

Rows are a `grain.MapDataset`: `source(…).seed(s)`, their order, then transforms of `grain.transforms`. What Grain
lacks is here: the order of reproducible global batches, an epoch's last batch and planned batches (in
`orders`), and chunks of at most 32 rows that threads write straight into the batch. Grain's own `batch`
has each thread build a whole one: more memory, and a later first batch (`scripts/compare_loaders.py`).

Shape legend: B rows of a global batch, N records, lo..hi the rows that are read here.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import grain
import numpy as np

from mlperf_jax.errors import DataError, UserError
from mlperf_jax.input_pipelines import orders
from mlperf_jax.input_pipelines.dealing import Groups
from mlperf_jax.input_pipelines.orders import PADDING, BatchPlan, LastBatch
from mlperf_jax.input_pipelines.sources import Batch, BatchSource, Seeded, Source, single

Transform = grain.transforms.Map | grain.transforms.RandomMap
Share = Callable[[int], tuple[int, int]]

_CHUNK_ROWS = 32  # most rows a thread decodes before it hands back: keeps stopping prompt
_BUGS = (TypeError, AttributeError, NameError, AssertionError)  # never the data's fault


@dataclasses.dataclass(frozen=True)
class Split:
    """Records, the transforms that make them examples, and their order; from `training` or `evaluation`.

    Attributes:
        source: the records.
        transforms: record -> example, a dict of arrays. One that has `for_bucket(number)` is replaced by what
            that gives, in batches of that bucket. A `RandomMap` is seeded by (seed, position in the
            endless stream of rows), so an example differs from epoch to epoch.
        shuffle: reshuffle the records in every epoch.
        last_batch: what happens to the N mod B records at the end of an epoch. "drop": they are left out, an
            epoch has floor(N/B) batches. "mix": batches run on across epochs, as with a stream that
            repeats before it is batched. "keep": ceil(N/B) batches, the last is padded.
        plan: takes the place of `shuffle` and `last_batch`, and says B.
        groups: over which the rows of a last batch that is kept are dealt; None leaves them at its front.
        evaluation: one epoch instead of endless ones.
        added: a user's transforms; see `transformed`.
    """

    source: Source | BatchSource | Seeded
    transforms: tuple[Transform, ...] = ()
    shuffle: bool = True
    last_batch: LastBatch = "drop"
    plan: BatchPlan | None = None
    groups: Groups | None = None
    evaluation: bool = False
    added: tuple[Transform, ...] = ()

    def __post_init__(self) -> None:
        if self.last_batch not in ("drop", "keep", "mix"):
            raise UserError(f"last_batch is {self.last_batch!r}; it is 'drop', 'keep' or 'mix'")
        if self.transforms and isinstance(self.source, BatchSource):
            raise TypeError(
                "a BatchSource gives examples and takes no transforms of the split's own"
            )

    def __len__(self) -> int:
        return len(self.source)

    def steps_per_epoch(self, rows: int) -> int:
        """Batches in one epoch."""
        if self.plan is not None:
            return len(self.plan.batches(0, 0))
        return orders.steps_per_epoch(len(self), rows, self.last_batch)

    def transformed(self, transforms: Sequence[Transform]) -> Split:
        """The split with more transforms behind its own, from one example to one of the same arrays.

        A `Map` with the attribute `batched = True` is given rows as they lie in the batch, arrays [rows, …] of any
        number of rows, after all others. Any other has a `BatchSource` read row by row, a call of Python
        for each.
        """
        return dataclasses.replace(self, added=(*self.added, *transforms))

    def running_on(self) -> Split:
        """The split whose batches run on from epoch to epoch, so that batch k of B rows begins at row k * B.

        Raises:
            UserError: a plan says which records make a batch, or an epoch's last one is padded.
        """
        if self.plan is not None or self.last_batch == "keep":
            how = "planned" if self.plan else "padded at the end of an epoch"
            raise UserError(
                f"batches that run on need rows in a row, and those of these data are {how}"
            )
        return dataclasses.replace(self, last_batch="mix")

    def batched(self, rows: int, *, seed: int = 0, share: Share | None = None) -> Batches:
        """The batches of so many rows.

        Args:
            rows: B, unless a plan says it.
            seed: of order and transforms, at least 0.
            share: B -> (lo, hi), the rows that are read here; all by default.

        Raises:
            UserError: the data are empty, or the arguments do not fit them.
        """
        return Batches(self, rows, seed, share)


def training(
    source: Source | BatchSource | Seeded,
    *transforms: Transform,
    shuffle: bool = True,
    last_batch: LastBatch = "drop",
    plan: BatchPlan | None = None,
    groups: Groups | None = None,
) -> Split:
    """A split whose batches go on without end; arguments as `Split` has them.

    >>> from mlperf_jax.input_pipelines.sources import Arrays
    >>> split = training(Arrays({"x": np.arange(10)}), shuffle=False, last_batch="mix")
    >>> [split.batched(4)[k]["x"].tolist() for k in range(3)]
    [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]
    """
    return Split(source, transforms, shuffle, last_batch, plan, groups)


def evaluation(
    source: Source | BatchSource, *transforms: Transform, plan: BatchPlan | None = None
) -> Split:
    """A split whose batches hold every record once: in the source's order, or as a plan has them."""
    return Split(source, transforms, False, "keep", plan, evaluation=True)


# -- batches -----------------------------------------------------------------------------------


class Batches:
    """Batches by their number, dicts of arrays [hi - lo, …]; `Split.batched` makes them.

    What can have padding (an evaluation, a plan, a last batch that is kept) carries "mask", bool [hi - lo]:
    False for padding, whose rows are zeros.

    Attributes:
        rows: the examples by position, as Grain's users know them: a `grain.MapDataset` for each bucket.
        spans: (lo, hi) of each bucket.
        rows_at_once: most rows of one chunk of work.
    """

    def __init__(self, split: Split, rows: int, seed: int, share: Share | None):
        if not len(split):
            raise UserError(f"the data set is empty ({split.source!r}); build or fetch it first")
        if seed < 0:
            raise UserError(f"the seed of an order is at least 0, got {seed}")
        self._split, self._seed = split, seed
        source = _made_for(split.source, "for_seed", seed)
        if split.plan is None:
            self._order: orders.CountedOrder | orders.PlannedOrder = orders.CountedOrder(
                len(split),
                rows,
                seed if split.shuffle else None,
                split.last_batch,
                split.evaluation,
                split.groups,
            )
        else:
            self._order = orders.PlannedOrder(split.plan, source, seed, split.evaluation)
        self.spans = [share(b) if share else (0, b) for b in self._order.rows]
        for b, (lo, hi) in zip(self._order.rows, self.spans):
            if not 0 <= lo < hi <= b:
                raise UserError(f"rows ({lo}, {hi}) do not lie within a batch of {b}")
        self._masked = split.plan is not None or split.last_batch == "keep"
        maps = [t for t in split.added if isinstance(t, grain.transforms.Map)]
        self._batched = [t for t in maps if getattr(t, "batched", False)]
        by_row = [t for t in split.added if t not in self._batched]
        self._sources = [_made_for(source, "for_bucket", b) for b in range(len(self.spans))]
        self._in_runs = isinstance(source, BatchSource) and not by_row
        self.rows_at_once: int = self._sources[0].rows_at_once if self._in_runs else _CHUNK_ROWS
        self._own = [self._examples(bucket) for bucket in range(len(self.spans))]
        self.rows = [own.apply(by_row) for own in self._own]

    def _examples(self, bucket: int) -> grain.MapDataset:
        """Before the transforms that were added."""
        source = self._sources[bucket]
        one = (
            functools.partial(single, source)
            if isinstance(source, BatchSource)
            else source.__getitem__
        )
        transforms = [_made_for(t, "for_bucket", bucket) for t in self._split.transforms]
        return grain.MapDataset.source(self._order).seed(self._seed).map(one).apply(transforms)

    def __len__(self) -> int:
        return self._order.batches

    def __getitem__(self, number: int) -> Batch:
        """Batch `number`, read in the calling thread."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        part = self.part(number, *self.span(number))
        self.fill(part, part.first, part.last)
        return self._finished(part)

    def span(self, number: int) -> tuple[int, int]:
        """(lo, hi) of a batch."""
        return self.spans[self._order.bucket(number)]

    def part(self, number: int, first: int, last: int) -> Part:
        """Rows first..last of a batch, to be filled."""
        return Part(number, first, self._order.positions(number, first, last))

    def ready(self) -> None:
        """Works out the order of the records, from metadata alone, where that takes long."""
        self._order.bucket(0)
        for source in self._sources:
            if hasattr(source, "ready"):
                source.ready()

    def stream(
        self, start: int = 0, *, threads: int | None = None, workers: int = 0
    ) -> Iterator[Batch]:
        """Batches `start`, `start + 1`, …, read ahead of the consumer by about one batch.

        Closing or dropping the iterator stops its threads and processes.

        Args:
            start: the first batch's number: the step to resume at.
            threads: that read and decode; one per usable core by default, 0 to do without.
            workers: processes that do it instead of threads, for transforms that hold the interpreter. Each
                takes seconds to start and gets a copy of source and transforms; the rows travel back. A
                script then needs the guard `if __name__ == "__main__":`.

        Raises:
            UserError: a record is damaged (when its batch is asked for; names the record).
        """
        if start < 0 or workers < 0:
            raise UserError(f"start and workers are at least 0, got {start} and {workers}")
        return self._stream(start, usable_cores() if threads is None else threads, workers)

    def _stream(self, start: int, threads: int, workers: int) -> Iterator[Batch]:
        stop = threading.Event()
        chunks = _Chunks(self, start, workers or threads, stop, travel=workers > 0)
        ready = _read_ahead(chunks, threads, workers)
        try:
            for number in range(start, len(self)):
                for chunk in range(chunks.per_batch):
                    given = next(ready)
                    if workers:
                        self._store(chunks.part(number), chunks.span(number, chunk)[0], given)
                yield self._finished(chunks.parts.pop(number))
        finally:
            stop.set()
            ready.close()

    # -- filling them --------------------------------------------------------------------------

    def fill(self, part: Part, first: int, last: int, stop: threading.Event | None = None) -> None:
        """Writes rows first..last, numbered within the global batch, into the arrays of a part."""
        bucket, positions = self._order.bucket(part.number), part.positions_of(first, last)
        runs = _runs(positions != PADDING)
        begin = functools.partial(self._begun, part)
        if self._in_runs:
            ids = self._order.records(positions)
            for a, b in runs:
                self._read(bucket, ids[a:b], part.views(first + a, first + b, begin))
        else:
            for row, position in enumerate(positions.tolist(), first):
                if stop is not None and stop.is_set():
                    return
                if position != PADDING:
                    self._store(part, row, self._example(bucket, position))
        for transform in self._batched:
            for a, b in runs:
                rows: Any = dict(part.views(first + a, first + b, begin))
                made: Any = transform.map(rows)
                for name, given in made.items():
                    if len(given) != b - a:
                        raise UserError(
                            f"{type(transform).__name__} gives {len(given)} rows of {name!r} for {b - a}: it "
                            "must give as many as it gets"
                        )
                self._store(part, first + a, made)

    def _store(self, part: Part, first: int, rows: Mapping[str, np.ndarray]) -> None:
        """Copies rows, arrays [rows, …], to row `first` and on; nothing where all are padding."""
        if not rows:
            return
        last = first + len(next(iter(rows.values())))
        out = part.views(first, last, lambda: _zeros(rows, len(part.positions)))
        for name in rows.keys() | out.keys():
            have, want = rows.get(name), out.get(name)
            if have is None or want is None or have.shape != want.shape or have.dtype != want.dtype:
                where = self._describe(_first_real(part.positions_of(first, last)))
                raise UserError(
                    f"{where}: {name!r} is {_form(have)}, other rows of its batch have {_form(want)}"
                )
            want[...] = have

    def _finished(self, part: Part) -> Batch:
        batch = part.views(part.first, part.last, lambda: self._begun(part))
        if self._masked:
            batch["mask"] = part.positions != PADDING
        return batch

    def _begun(self, part: Part) -> Batch:
        """Arrays for a part: of a `BatchSource`, or of padding alone."""
        bucket = self._order.bucket(part.number)
        if self._in_runs:
            return self._sources[bucket].begin(self._order.records(part.positions))
        # the shapes come from another row
        batch = self._order.positions(part.number, 0, self._order.rows[bucket])
        return _zeros(self._example(bucket, _first_real(batch)), len(part.positions))

    def _read(self, bucket: int, ids: np.ndarray, out: Batch) -> None:
        source = self._sources[bucket]
        try:
            source.read(ids, out)
        except UserError as error:  # it names the record
            raise DataError(str(error)) from error
        except Exception:
            for row, record in enumerate(ids.tolist()):  # which one is it?
                try:
                    source.read(ids[row : row + 1], _slice(out, row, row + 1))
                except Exception as error:
                    self._blame(error, source.describe(record))
            raise

    def _example(self, bucket: int, position: int) -> Batch:
        """The row at a position, arrays [1, …]."""
        try:
            example: Any = self.rows[bucket][position]
        except Exception as error:
            where = self._describe(position)
            if self._split.added and _works(self._own[bucket], position):
                error.add_note(f"in a transform that was added, on {where}")
                raise
            self._blame(error, where)
        if not isinstance(example, Mapping):
            raise TypeError(
                f"the transforms make {type(example).__name__} of {self._describe(position)}"
            )
        return {name: np.asarray(value)[None] for name, value in example.items()}

    def _describe(self, position: int) -> str:
        return self._sources[0].describe(self._order[position])

    def _blame(self, error: Exception, where: str) -> NoReturn:
        if isinstance(error, _BUGS):
            error.add_note(f"while reading {where}")
            raise error
        named = where in str(error) or isinstance(self._sources[0], BatchSource)
        said = str(error) or type(error).__name__
        raise DataError(
            said if isinstance(error, UserError) and named else f"{where}: {said}"
        ) from error


def _made_for(thing: Any, method: str, argument: int) -> Any:
    make = getattr(thing, method, None)
    return thing if make is None else make(argument)


def _works(examples: grain.MapDataset, position: int) -> bool:
    try:
        examples[position]
    except Exception:
        return False
    return True


def _runs(wanted: np.ndarray) -> list[tuple[int, int]]:
    """(first, last) of each run of neighbours that are wanted."""
    edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


def _first_real(positions: np.ndarray) -> int:
    return int(positions[positions != PADDING][0])


def _slice(batch: Batch, first: int, last: int) -> Batch:
    return {name: array[first:last] for name, array in batch.items()}


def _zeros(like: Mapping[str, np.ndarray], rows: int) -> Batch:
    return {name: np.zeros((rows, *some.shape[1:]), some.dtype) for name, some in like.items()}


def _form(rows: np.ndarray | None) -> str:
    return "missing" if rows is None else f"{rows.dtype}{list(rows.shape[1:])}"


# -- threads and processes ---------------------------------------------------------------------


class Part:
    """Rows of a batch, by their positions, in arrays that are made when the first of them is known.

    Threads write their rows in place, so a batch is copied nowhere, and one of 3,264 images needs neither a
    second copy of itself nor one batch per thread. Untouched rows stay zeros: the padding.
    """

    def __init__(self, number: int, first: int, positions: np.ndarray):
        self.number, self.positions = number, positions
        self.first, self.last = first, first + len(positions)
        self.arrays: Batch = {}
        self._lock = threading.Lock()

    def positions_of(self, first: int, last: int) -> np.ndarray:
        """Of rows first..last, numbered within the global batch."""
        return self.positions[first - self.first : last - self.first]

    def views(self, first: int, last: int, make: Callable[[], Batch]) -> Batch:
        """Rows first..last, numbered within the global batch, of the arrays that `make` made."""
        if not self.arrays:
            with self._lock:
                if not self.arrays:
                    self.arrays = make()
        return _slice(self.arrays, first - self.first, last - self.first)


class _Chunks(grain.MapDataset[Any]):
    """The rows to read, in pieces of a few, numbered in the order they are needed; Grain runs them.

    The thread that takes a piece writes it where it belongs and gives back nothing of note; a worker
    process gives back the rows (`travel`).
    """

    def __init__(
        self, batches: Batches, start: int, readers: int, stop: threading.Event, *, travel: bool
    ):
        super().__init__(batches.rows)
        self._batches, self._start, self._travel = batches, start, travel
        self._stop: threading.Event | None = stop
        # Small enough that all readers work on the first batch, large enough that Grain's cost for an
        # element says little beside it.
        most = max(hi - lo for lo, hi in batches.spans)
        self.per_batch = -(-most // max(1, min(batches.rows_at_once, most // max(1, 2 * readers))))
        self.parts: dict[int, Part] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stop": None, "parts": {}}

    def __len__(self) -> int:
        batches = max(0, len(self._batches) - self._start)
        return min(batches * self.per_batch, sys.maxsize)

    def span(self, number: int, chunk: int) -> tuple[int, int]:
        """First and last row of a piece, numbered within the global batch."""
        lo, hi = self._batches.span(number)
        rows = -(-(hi - lo) // self.per_batch)
        return min(lo + chunk * rows, hi), min(lo + (chunk + 1) * rows, hi)

    def part(self, number: int) -> Part:
        """Where the rows of a batch go."""
        if number not in self.parts:
            self.parts.setdefault(number, self._batches.part(number, *self._batches.span(number)))
        return self.parts[number]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        ahead, chunk = divmod(index, self.per_batch)
        number = self._start + ahead
        first, last = self.span(number, chunk)
        part = self._batches.part(number, first, last) if self._travel else self.part(number)
        self._batches.fill(part, first, last, self._stop)
        return part.arrays if self._travel else index


def _read_ahead(chunks: _Chunks, threads: int, workers: int) -> Any:
    """What the threads or the worker processes give, in order; closing it stops them."""
    if not workers:
        ahead = chunks.per_batch + 2 * threads if threads else 0
        return iter(chunks.to_iter_dataset(grain.ReadOptions(threads, ahead)))
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain asks for flags, which our commands have none of
        flags.FLAGS.mark_as_parsed()
    one = chunks.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    return iter(one.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=2)))


def usable_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1

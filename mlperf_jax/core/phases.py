"""Phases of a training whose batches or examples change their size, as its levers say, and the batches of all of them.

Each phase is a benchmark of its own for the step: another batch size, another size of its examples. All read one
stream of samples, in which a phase goes on where the one before it ended.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grain

from mlperf_jax.core.levers import RAMPS
from mlperf_jax.core.protocols import Batches, HostBatch, Split
from mlperf_jax.core.terms import Bucket, Example
from mlperf_jax.errors import UserError

if TYPE_CHECKING:
    from mlperf_jax.core.benchmark import Benchmark


@dataclass(frozen=True)
class Phase:
    """Steps of one kind.

    Attributes:
        step: the number of steps before it.
        samples: seen before it.
        benchmark: what those steps train: its batch size, its examples.
        reads: whose data they are: as above, but of the whole run's batch size, as the order of the samples is.
    """

    step: int
    samples: int
    benchmark: Benchmark
    reads: Benchmark


def phases(benchmark: Benchmark) -> tuple[Phase, ...]:
    """The phases of a training, in order; one where nothing changes its size.

    Raises:
        UserError: a batch or an example of a ramp does not fit the benchmark.
    """
    if not benchmark.levers.ramped:
        return (Phase(0, 0, benchmark, benchmark),)
    found = []
    for step, samples, batch, size in benchmark.levers.segments(benchmark.batch_size):
        smaller = {} if size is None else {benchmark.sized_by: size}
        one = _fitting(benchmark, batch_size=batch, **smaller)
        reads = _fitting(benchmark, **({} if benchmark.cuts_examples else smaller))
        found.append(Phase(step, samples, one, reads))
    return tuple(found)


def check_levers(benchmark: Benchmark, *, counts: bool) -> None:
    """Nothing, if a benchmark can do what its levers say.

    Args:
        benchmark: with its levers.
        counts: whether it counts its samples in a way of its own.

    Raises:
        UserError: it cannot; names the lever.
    """
    levers, name = benchmark.levers, benchmark.name
    if not levers:
        return
    if levers.transform is not None:
        raise UserError("transform is given to a run, as --transform or among the levers of `run`")
    if levers.label_smoothing is not None and not benchmark.smooths_labels:
        raise UserError(
            f"{name} has no label_smoothing: its loss has no classes to spread a label over"
        )
    if levers.size_ramp and not benchmark.sized_by:
        raise UserError(f"{name} has no size_ramp: its examples have one size")
    if levers.batch_ramp and (
        benchmark.generate or counts or benchmark.rows != benchmark.batch_size
    ):
        raise UserError(f"{name} has no batch_ramp: it counts its samples in its own way")
    full = getattr(benchmark, benchmark.sized_by) if benchmark.sized_by else 0
    for size, _ in levers.size_ramp:
        if size >= full:
            raise UserError(
                f"size_ramp: {size} is no smaller than {benchmark.sized_by} {full}, the size that follows"
            )
    for batch, _ in levers.batch_ramp:  # by itself: how they follow one another is asked later
        _fitting(benchmark, batch_size=batch)
    phases(benchmark)


def _fitting(benchmark: Benchmark, **fields: Any) -> Benchmark:
    """The benchmark without its ramps and with other sizes.

    Raises:
        UserError: it cannot have these; says what was asked for.
    """
    try:
        return benchmark.replace(levers=benchmark.levers.without(*RAMPS), **fields)
    except UserError as error:
        raise UserError(f"{benchmark.levers}: {error}") from error


def steady(benchmark: Benchmark) -> Benchmark:
    """The benchmark without ramps: what its schedules and evaluations count by."""
    return _fitting(benchmark) if benchmark.levers.ramped else benchmark


def buckets(benchmark: Benchmark) -> tuple[Bucket, ...]:
    """The shapes of training batches in all phases."""
    return tuple(bucket for phase in phases(benchmark) for bucket in phase.benchmark.buckets())


def eval_steps(benchmark: Benchmark) -> Iterator[int]:
    """The steps after which quality is evaluated: where a batch grows, the first behind as many samples as without that."""
    if not benchmark.levers.batch_ramp:
        return benchmark.eval_steps()
    plain = steady(benchmark)
    moved = (benchmark.step_of(plain.samples(step) - 1) + 1 for step in plain.eval_steps())
    return (step for step, _ in itertools.groupby(moved))


def flops(benchmark: Benchmark, step: int) -> float:
    """Model FLOPs per sample, on average over so many steps."""
    total = 0.0
    every = phases(benchmark)
    for phase, following in itertools.zip_longest(every, every[1:]):
        end = benchmark.samples(step if following is None else min(step, following.step))
        total += max(0, end - phase.samples) * phase.benchmark.flops_per_sample
    seen = benchmark.samples(step)
    return total / seen if seen else benchmark.flops_per_sample


def check_steady(benchmark: Benchmark, command: str) -> None:
    """Nothing, if all batches are alike.

    Raises:
        UserError: they are not, and the command knows one kind of batch.
    """
    if benchmark.levers.ramped:
        raise UserError(
            f"{command} looks at one kind of batch, and {benchmark.levers} has several: leave the ramps out, and give "
            "batch_size or the size itself"
        )


# -- batches ---------------------------------------------------------------------------------------


class Cut(grain.transforms.Map):
    """Leaves the beginning of each array of an example, as long as a shorter example has it."""

    def __init__(self, example: Example) -> None:
        self._parts = {name: tuple(map(slice, leaf.shape)) for name, leaf in example.items()}

    def map(self, element: Any) -> Any:
        return {name: value[self._parts.get(name, ...)] for name, value in element.items()}


def read(benchmark: Benchmark, folder: str) -> list[tuple[Phase, Split]]:
    """The phases with their training data, of which nothing but metadata is read.

    Raises:
        UserError: the batch size changes, and the data's batches are planned.
    """
    found = []
    for phase in phases(benchmark):
        data: Any = phase.reads.data().train(folder)
        if benchmark.levers.batch_ramp:
            if not hasattr(data, "running_on"):
                raise UserError(
                    f"batch_ramp: {type(data).__name__} has no running_on: see pipeline.Split.running_on"
                )
            try:
                data = data.running_on()
            except UserError as error:
                raise UserError(f"{benchmark.name} has no batch_ramp: {error}") from error
        found.append((phase, data))
    return found


def batches_of(
    benchmark: Benchmark,
    folder: str,
    batched: Callable[[Split, Benchmark, Sequence[Any]], Batches],
) -> Batches:
    """The training batches of all phases.

    Args:
        benchmark: with its levers.
        folder: of its data.
        batched: makes the batches of a phase from its data, its benchmark and transforms that come before others.
    """
    if not benchmark.levers.ramped:
        return batched(benchmark.data().train(folder), benchmark, ())
    found = []
    for phase, data in read(benchmark, folder):
        one, example = phase.benchmark, phase.benchmark.example()
        cut = [Cut(example)] if benchmark.cuts_examples and isinstance(example, Mapping) else []
        first = phase.samples // one.batch_size if benchmark.levers.batch_ramp else phase.step
        found.append((phase.step, first, batched(data, one, cut)))
    return Phased(found)


class Phased:
    """Batches of several phases by their number.

    Args:
        parts: of each phase the first step, the number of its first batch in its own batches, and those.
    """

    def __init__(self, parts: Sequence[tuple[int, int, Batches]]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return len(self._parts[-1][2])

    def __getitem__(self, number: int) -> HostBatch:
        step, first, batches = next(p for p in reversed(self._parts) if p[0] <= max(number, 0))
        return batches[number - step + first]

    def ready(self) -> None:
        """Works out the order of the samples."""
        for *_, batches in self._parts:
            batches.ready()

    def stream(
        self, start: int = 0, *, threads: int | None = None, workers: int = 0
    ) -> Iterator[HostBatch]:
        """Batches `start`, `start + 1`, …; the readers of a phase end with it."""
        for (step, first, batches), following in itertools.zip_longest(
            self._parts, self._parts[1:]
        ):
            begin, end = max(step, start), following[0] if following else None
            if end is not None and begin >= end:
                continue
            stream: Any = batches.stream(begin - step + first, threads=threads, workers=workers)
            try:
                yield from itertools.islice(stream, None if end is None else end - begin)
            finally:
                stream.close()

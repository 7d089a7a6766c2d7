"""What measuring every benchmark found: a table, and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlperf_jax.core.bench_report import NOTICE, figure
from mlperf_jax.core.profiling import Operation

OURS, TWIN = "ours", "twin"
_HEAD = ("", "", "batch", "ms a step", "samples/s", "times ours", "MFU", "GiB", "compile s")


@dataclass(frozen=True)
class Measured:
    """One row: a benchmark, who measured it in which way, and what was found or why nothing was.

    Attributes:
        benchmark: its name.
        side: `OURS`, `TWIN`, or the name of another way to run ours.
        found: figures of a `BenchReport`, as JSON has them, or as many of them as a twin gives; None after an error.
        error: why there are none.
        seconds: of the whole process.
    """

    benchmark: str
    side: str
    found: Mapping[str, Any] | None
    error: str | None
    seconds: float

    @property
    def rate(self) -> float | None:
        """Samples a second."""
        return (self.found or {}).get("examples_per_second")

    def cells(self, ours: float | None) -> Iterator[str]:
        """What the table's row says, `ours` being our rate; without figures it is the error alone."""
        yield from (self.benchmark if self.side == OURS else "", self.side)
        if self.found is None or self.rate is None:
            yield self.error or "it gave no rate"
            return
        memory, mfu = self.found.get("memory_bytes"), self.found.get("mfu")
        compiling = self.found.get("compile_seconds_train")
        yield f"{self.found['batch_size']:,}"
        yield figure(1e3 * self.found["step_seconds"])
        yield figure(self.rate)
        yield "" if self.side == OURS or not ours else f"{self.rate / ours:.2f}"
        yield "-" if mfu is None else f"{100 * mfu:.1f} %"
        yield "-" if memory is None else f"{memory / 2**30:.1f}"
        yield "-" if compiling is None else f"{compiling:.0f}"


@dataclass(frozen=True, repr=False)
class Suite:
    """The rows in the order in which they were measured.

    Attributes:
        rows: of each benchmark ours first.
        minutes: that it was allowed to take.
        seconds: that it took.
        date: when it ended.
    """

    rows: Sequence[Measured]
    minutes: float
    seconds: float
    date: str

    @property
    def failed(self) -> list[Measured]:
        """Rows of ours that have no figures."""
        return [row for row in self.rows if row.side == OURS and row.rate is None]

    def to_dict(self) -> dict[str, Any]:
        """Everything, reports included, as plain JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        ours = {row.benchmark: row for row in self.rows if row.side == OURS}
        order = {name: number for number, name in enumerate(ours)}
        rows = sorted(self.rows, key=lambda row: order[row.benchmark])
        cells = [list(_HEAD), *(list(row.cells(ours[row.benchmark].rate)) for row in rows)]
        full = [row for row in cells if len(row) == len(_HEAD)]
        widths = [max(len(row[column]) for row in full) for column in range(len(_HEAD))]
        widths[:2] = [max(len(row[column]) for row in cells) for column in (0, 1)]
        table = [_line(row, widths) for row in cells]
        more = [line for row in rows for line in _more(row)]
        first = next((row.found for row in rows if row.found and "device" in row.found), None)
        where = f"{first['device_count']} x {first['device']}, {first['dtype']}, " if first else ""
        commit = f", commit {first['commit']}" if first and first.get("commit") else ""
        head = f"{where}{self.seconds / 60:.1f} of {self.minutes:g} minutes, {self.date}{commit}"
        return "\n".join([head, *table, "", *more, NOTICE])

    __repr__ = __str__


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Names to the left, figures to the right, a sentence as long as it is."""
    names = [f"{cell:{width}}" for cell, width in zip(cells[:2], widths, strict=False)]
    if len(cells) < len(widths):
        return "  ".join([*names, *cells[2:]])
    rest = (f"{cell:>{width}}" for cell, width in zip(cells[2:], widths[2:], strict=True))
    return "  ".join([*names, *rest]).rstrip()


def _more(row: Measured) -> Iterator[str]:
    """What a row of ours was changed to, and what took its time; what a twin does in another way."""
    if row.found is None:
        return
    if row.side != OURS:
        if note := row.found.get("note"):
            yield f"  {row.side}: {note}"
        return
    changed = row.found.get("changed") or {}
    said = ", ".join(f"{name} {_short(value)}" for name, value in changed.items())
    yield f"{row.benchmark}: {said or 'as the recipe has it'}"
    operations = [Operation(**each) for each in row.found.get("operations") or ()]
    if operations:
        yield "  most time: " + ", ".join(map(str, operations[:5]))


def _short(value: Any) -> str:
    """A value in a few words; of many numbers the largest alone."""
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 8:
        return f"up to {max(value):,}"
    return str(value)

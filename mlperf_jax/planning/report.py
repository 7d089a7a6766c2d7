"""A plan as people and programs read it: text, a notebook's HTML, JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlperf_jax.planning.programs import Program, mesh_text, worst
from mlperf_jax.results.result import html_table

COARSE = (
    "GPUs: a coarser estimate, from the program that the CPU's compiler partitions over fake devices; "
    "fusion, and so temporary memory, differs"
)
CAUTION = "the compiler's bytes; a run may differ by some percent"


@dataclass(frozen=True)
class Candidate:
    """One row of a search.

    Attributes:
        mesh: as `--mesh` takes it.
        settings: what else was varied, as options.
        outcome: "fits", "too big", "compiler failed" or "refused".
        total: bytes on a device of the largest program, where known.
        step_seconds: the estimated step, where it fits.
        reason: why it was refused.
    """

    mesh: str
    settings: dict[str, Any]
    outcome: str
    total: int | None = None
    step_seconds: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """What is to be expected of a benchmark on given devices. `fits` is True only when all of it does.

    Attributes:
        benchmark, tiny, batch_size, micro_batches, remat, dtype: what runs; `remat` is "" where the
            benchmark has no such field.
        on, devices, chips: where, as asked and in words.
        estimated: whether the figures are the coarser ones of GPUs.
        mesh, mesh_chosen: axis sizes, and whether the planner chose them.
        room: bytes that a program may use on one device.
        state: bytes on one device by part.
        programs: of training, evaluation and generation.
        advice: what to try when it does not fit.
        time: the estimated step, also of a program that is too big, or None.
        to_target: samples, minutes and price up to the target, or None.
        search: the ranked rows of a search.
        notes: what else to know.
    """

    benchmark: str
    tiny: bool
    on: str
    devices: str
    chips: int
    estimated: bool
    mesh: dict[str, int]
    mesh_chosen: bool
    batch_size: int
    micro_batches: int
    remat: str | None
    dtype: str
    room: int
    state: dict[str, int]
    programs: tuple[Program, ...]
    advice: tuple[str, ...] = ()
    time: Any = None
    to_target: Any = None
    search: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """ "fits", "does not fit" or "compiler failed", the worst of the programs."""
        return worst(self.programs).replace("too big", "does not fit")

    @property
    def fits(self) -> bool:
        return self.outcome == "fits"

    @property
    def mesh_text(self) -> str:
        """As `--mesh` takes it."""
        return mesh_text(self.mesh)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON knows it."""
        found = dataclasses.asdict(self)
        for program in found["programs"]:
            del program["work"]
        return {"outcome": self.outcome, "fits": self.fits, "mesh_text": self.mesh_text, **found}

    def to_json(self) -> str:
        """All of it as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        head, *rest = self._sections()
        return html_table(head[1][0], {name: "\n".join(lines) for name, lines in rest})

    # -- the text ------------------------------------------------------------------------------

    def _lines(self) -> Iterator[str]:
        head, *rest = self._sections()
        yield head[1][0]
        width = max(len(name) for name, _ in rest) + 2
        for name, lines in rest:
            for index, line in enumerate(lines):
                yield f"  {name if index == 0 else '':{width}}{line}".rstrip()

    def _sections(self) -> list[tuple[str, list[str]]]:
        tiny = " (tiny)" if self.tiny else ""
        found = [
            ("", [f"{self.benchmark}{tiny} on {self.devices} ({self.on}): {self.verdict()}"]),
            ("program", [self._setting()]),
            ("state", [self._state()]),
            *((program.name, list(_program_lines(program))) for program in self.programs),
        ]
        if self.advice:
            found.append(("try", list(self.advice)))
        step = "step" if self.fits else "with room"
        for name, part in ((step, self.time), ("target", self.to_target)):
            if part is not None:
                found.append((name, list(part.lines())))
        if self.search:
            found.append(("search", list(_search_lines(self.search))))
        notes = [*self.notes, COARSE if self.estimated else CAUTION]
        return [*found, ("note", notes)]

    def verdict(self) -> str:
        """The outcome in a few words, with its margin."""
        sizes = [program.total for program in self.programs if program.total is not None]
        if self.outcome == "compiler failed":
            return "the compiler failed, which is no verdict on memory"
        if not sizes:
            return "does not fit"
        most = max(sizes)
        if self.outcome == "fits":
            free = 1 - most / self.room
            return f"fits, {gib(most)} of {gib(self.room)} GiB a device, {free:.0%} free"
        return f"does not fit, {gib(max(0, most - self.room))} GiB a device too many"

    def _setting(self) -> str:
        parts = [f"mesh {self.mesh_text}{' (chosen)' if self.mesh_chosen else ''}"]
        parts.append(f"batch {self.batch_size:,}")
        if self.micro_batches > 1:
            parts.append(f"in {self.micro_batches} micro-batches")
        if self.remat != "":
            parts.append(f"remat {self.remat or 'none'}")
        return ", ".join([*parts, self.dtype])

    def _state(self) -> str:
        parts = [f"{name} {gib(size)}" for name, size in self.state.items() if size]
        return f"{' · '.join(parts)} GiB a device" if parts else "empty"


def gib(size: float) -> str:
    """GiB with as many decimals as are worth reading.

    >>> gib(3 * 2**30), gib(2**27), gib(2**20)
    ('3.0', '0.12', '0.00098')
    """
    value = size / 2**30
    if value >= 1:
        return f"{value:,.1f}"
    return f"{value:.2g}" if value >= 1e-4 else "0"


def _program_lines(program: Program) -> Iterator[str]:
    if program.outcome == "compiler failed":
        yield "the compiler failed; that says nothing about memory:"
        yield from program.message.splitlines()
        return
    cached = f", compiled in {program.seconds:.0f} s" if program.seconds else ""
    if program.arguments is not None and program.total is not None:
        parts = [
            f"{gib(program.total)} GiB",
            f"state and batch {gib(program.arguments)}",
            f"temporaries {gib(program.temporaries or 0)}",
            f"results and code {gib(program.outputs or 0)}",
        ]
        verdict = "" if program.fits else f": {gib(program.over)} too many"
        yield f"{parts[0]} = {' + '.join(parts[1:])}{verdict}{cached}"
    else:
        total = "unknown" if program.total is None else f"{gib(program.total)} GiB"
        yield f"{total} of {gib(program.room)} GiB: {gib(program.over)} GiB too many{cached}"
        if program.message:
            yield program.message
    if not program.fits:
        for size, what in program.largest:
            yield f"{gib(size):>7} GiB  {what}"


def _search_lines(rows: tuple[Candidate, ...]) -> Iterator[str]:
    for row in rows:
        settings = " ".join(f"{name}={value}" for name, value in row.settings.items())
        size = "" if row.total is None else f"{gib(row.total)} GiB"
        step = "" if row.step_seconds is None else f"{row.step_seconds:.3g} s a step"
        words = [row.mesh, settings, row.outcome, size, step, row.reason]
        yield "  ".join(word for word in words if word)

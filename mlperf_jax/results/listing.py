"""The benchmarks that a round had, and which of them this library trains, as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mlperf_jax.results import rules
from mlperf_jax.results.result import rows_table
from mlperf_jax.results.score_view import columns

HEADER = ("benchmark", "model", "data", "target", "rounds", "status")
HERE, PLANNED, YOURS = "tiny, full", "planned", "yours"  # how far a benchmark is


class Listing:
    """Benchmarks as rows, those that can be trained first; a notebook shows them as a table.

    Args:
        here: names of those that can be trained.
        ruleset: the round whose benchmarks and targets are listed; by default all, each with its last.
        own: rows of benchmarks that no round had, as `own_row` gives them.

    Attributes:
        rows: one for each, as `describe` has them.

    Raises:
        UserError: there is no such round.
    """

    def __init__(
        self,
        here: Collection[str],
        ruleset: str | None = None,
        own: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        entries = rules.in_round(ruleset) if ruleset else list(rules.entries().values())
        rows = [*own, *(describe(e, HERE if e.name in here else PLANNED, ruleset) for e in entries)]
        self.rows = sorted(rows, key=lambda row: row["status"] == PLANNED)

    @property
    def cells(self) -> list[list[str]]:
        """The texts of the table, a list for each row, in the order of `HEADER`."""
        return [cells(row) for row in self.rows]

    def __str__(self) -> str:
        return "\n".join(columns([HEADER, *self.cells]))

    def __repr__(self) -> str:
        planned = sum(row["status"] == PLANNED for row in self.rows)
        return f"<{len(self.rows) - planned} benchmarks, {planned} more are planned>"

    def _repr_html_(self) -> str:
        return rows_table("", HEADER, self.cells)


def describe(entry: rules.Entry, status: str, ruleset: str | None = None) -> dict[str, Any]:
    """A row of the table, as `mlperf-jax list --json` has it."""
    official = rules.resolve(entry.name, ruleset)
    return {
        "benchmark": entry.name,
        "suite": entry.suite,
        "task": entry.task,
        "model": entry.model,
        "data": entry.dataset,
        "targets": _stated(official.targets),
        "rounds": list(entry.rounds),
        "runs": official.runs,
        "status": status,
    }


def own_row(name: str, about: str, targets: Sequence[rules.Target]) -> dict[str, Any]:
    """The same of a benchmark that no round had.

    Args:
        name: the benchmark's.
        about: what it is, in a line.
        targets: its own.
    """
    row = {"benchmark": name, "suite": "", "model": about, "data": ""}
    return {**row, "targets": _stated(targets), "rounds": [], "status": YOURS}


def _stated(targets: Sequence[Any]) -> list[dict[str, Any]]:
    every = map(dataclasses.asdict, targets)
    return [{k: v for k, v in target.items() if v not in (None, "")} for target in every]


def cells(row: Mapping[str, Any]) -> list[str]:
    """What the table says of a row, in the order of `HEADER`."""
    suite = row["suite"]
    told = {
        "target": " and ".join(str(rules.OfficialTarget(**target)) for target in row["targets"]),
        "rounds": rounds(row["rounds"], rules.rounds_of(suite), suite) if suite else "none",
    }
    return [{**row, **told}[name] for name in HEADER]


def rounds(present: Sequence[str], every: Sequence[str], suite: str) -> str:
    """Rounds as spans: "0.5-4.0", or "0.7, 1.1-2.1" with a gap; those of HPC say so."""
    spans: list[list[str]] = []
    for previous, name in zip([None, *every], every, strict=False):
        if name not in present:
            continue
        if spans and previous in present:
            spans[-1][1:] = [name]
        else:
            spans.append([name])
    text = ", ".join("-".join(span) for span in spans)
    return text if suite == "training" else f"{suite.upper()} {text}"

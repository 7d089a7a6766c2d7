"""The command that lists the benchmarks: list."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from mlperf_jax.cli import options
from mlperf_jax.cli.options import Option

HEADER = ("benchmark", "model", "data", "target", "rounds", "status")


def table(about: str, words: Sequence[str]) -> int:
    """Prints a table of the benchmarks, or JSON."""
    own = [
        Option("round", help="only the benchmarks of a round, with its targets", metavar="5.1"),
        Option("json", bool, help="as JSON, with every round's numbers"),
    ]
    mine = Option(
        "mine", tuple[str, ...], (), "benchmarks of your own: my_file.py:Wine", "[FILE.py:CLASS...]"
    )
    about = f"{about}; and those of your own that are named"
    given = options.parse("list", about, words, [mine], own)
    from mlperf_jax import benchmarks
    from mlperf_jax.results import rules

    ruleset = given.get("round")
    entries = rules.in_round(ruleset) if ruleset else list(rules.entries().values())
    rows = [describe_own(benchmarks.get(name)) for name in given["mine"]]
    rows += [describe(entry, status(entry.name), ruleset) for entry in entries]
    if given.get("json"):
        print(json.dumps(rows, indent=2))
        return 0
    rows.sort(key=lambda row: row["status"] == "planned")
    print_table(HEADER, [cells(row) for row in rows])
    return 0


def status(name: str) -> str:
    """How far an official benchmark is: "tiny, full" where it is here, else "planned"."""
    from mlperf_jax import benchmarks

    return "tiny, full" if name in benchmarks.names() else "planned"


def cells(row: dict[str, Any]) -> list[str]:
    """What the table says of a row that `describe` or `describe_own` gave, in the order of `HEADER`."""
    from mlperf_jax.results import rules

    suite = row["suite"]
    told = {
        "target": " and ".join(str(rules.OfficialTarget(**target)) for target in row["targets"]),
        "rounds": rounds(row["rounds"], rules.rounds_of(suite), suite) if suite else "none",
    }
    return [{**row, **told}[name] for name in HEADER]


def describe_own(benchmark: Any) -> dict[str, Any]:
    """The row of a benchmark that no round had: the first line of its file says what it is."""
    text = sys.modules[type(benchmark).__module__].__doc__ or ""
    return {
        "benchmark": benchmark.name,
        "suite": "",
        "model": text.strip().partition("\n")[0],
        "data": "",
        "targets": _stated(benchmark.targets),
        "rounds": [],
        "status": "yours",
    }


def describe(entry: Any, status: str, ruleset: str | None = None) -> dict[str, Any]:
    """A row of the table, as `list --json` has it."""
    from mlperf_jax.results import rules

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


def _stated(targets: Sequence[Any]) -> list[dict[str, Any]]:
    every = map(dataclasses.asdict, targets)
    return [{k: v for k, v in target.items() if v not in (None, "")} for target in every]


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


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table: drawn on a terminal, plain aligned columns in a pipe."""
    if sys.stdout.isatty():
        import rich.box
        import rich.console
        import rich.table

        table = rich.table.Table(*header, box=rich.box.SIMPLE_HEAD, pad_edge=False)
        for row in rows:
            table.add_row(*row, style="dim" if row[-1] == "planned" else None)
        rich.console.Console(highlight=False).print(table)
        return
    from mlperf_jax.results.score_view import columns

    print(*columns([header, *rows]), sep="\n")

"""The commands about results: list, check, score, package, report."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from mlperf_jax.cli import options
from mlperf_jax.cli.options import Option
from mlperf_jax.errors import UserError

PROG = "mlperf-jax"


def list_command(words: Sequence[str]) -> int:
    own = [
        Option("round", help="only the benchmarks of a round, with its targets", metavar="5.1"),
        Option("json", bool, help="as JSON, with every round's numbers"),
    ]
    about = "Lists the benchmarks, and those of your own that are named: my_file.py:Wine."
    mine, typed = options.split(words, own)
    rest = [word for flag, values in typed.items() for word in (flag, *values)]
    given = options.parse(f"{PROG} list [FILE.py:CLASS...]", about, rest, [], {"list": own})
    from mlperf_jax import benchmarks
    from mlperf_jax.results import rules

    ruleset = given.get("round")
    entries = rules.in_round(ruleset) if ruleset else list(rules.entries().values())
    here = benchmarks.names()
    rows = [describe_own(benchmarks.get(name)) for name in mine]
    rows += [
        describe(entry, "tiny, full" if entry.name in here else "planned", ruleset)
        for entry in entries
    ]
    if given.get("json"):
        print(json.dumps(rows, indent=2))
        return 0
    header = ("benchmark", "model", "data", "target", "rounds", "status")
    rows.sort(key=lambda row: row["status"] == "planned")
    for row in rows:
        suite = row["suite"]
        row["target"] = " and ".join(
            str(rules.OfficialTarget(**target)) for target in row["targets"]
        )
        row["rounds"] = rounds(row["rounds"], rules.rounds_of(suite), suite) if suite else "none"
    print_table(header, [[row[name] for name in header] for row in rows])
    return 0


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


def check_command(words: Sequence[str]) -> int:
    own = [
        Option(
            "ruleset", help="the rules to apply, such as 4.0.0; default: the last round that ran it"
        ),
        Option("division", help="closed or open, when the log must be of that division"),
    ]
    path = Option("path", help="a log or the output folder of a run", metavar="PATH")
    about = (
        "Asks the official compliance checker about a log, and repeats its findings in plain words."
    )
    given = options.parse(f"{PROG} check", about, words, [path], {"check": own})
    from mlperf_jax.results import check

    report = check(**given)
    print(report)
    return 0 if report.success else 1


def score_command(words: Sequence[str]) -> int:
    own = [
        Option("ruleset", help="the round whose rules apply; by default what the runs say"),
        Option("scaling", str, "rcp", "rcp: by the reference; file: by scaling.json; none"),
        Option("official", bool, help="also run the official checker on every log (0.1 s each)"),
        Option("bert_train_samples", bool, help="bert's samples are in its train_samples lines"),
        Option("json", help="write the scores as JSON to this file, - for the output"),
    ]
    path = Option("dir", help="a set's folder, or any folder of sets", metavar="DIR")
    about = "Scores sets of runs: unverified minutes, samples to the target, the RCP test."
    given = options.parse(f"{PROG} score", about, words, [path], {"score": own})
    from mlperf_jax.results.score import scores

    target = json_target(given)
    found = scores(given.pop("dir"), **given)
    if target != "-":
        print(found)
    if target:
        write_json(target, found.to_dict())
    return 0 if all(score.valid for score in found.scores) else 1


def package_command(words: Sequence[str]) -> int:
    own = [
        Option("org", help="the organisation; names a folder"),
        Option("system", help="the system; names its files"),
        Option("output", help="the folder that is to hold the organisation's", metavar="DIR"),
        Option("submitter", help="who submits, in words; the organisation by default"),
        Option("status", help="onprem, cloud, preview or research; what the runs say by default"),
        Option("division", help="closed or open, to be sure"),
        Option("ruleset", help="the round; the one the runs were made for by default"),
        Option("implementation", help="names the folder of the code pointer"),
        Option("machine", help="JSON with fields of the system file; see docs", metavar="FILE"),
        Option("code", help="a folder of source code to copy along", metavar="DIR"),
        Option("url", help="public https address of the code"),
        Option("commit", help="git commit of the code"),
        Option("allow_tiny", bool, help="make a rehearsal of tiny runs, marked as such"),
    ]
    path = Option("dir", help="the output folder of the runs", metavar="DIR")
    about = (
        "Builds the official submission folder of a set and asks the official checkers about it."
    )
    given = options.parse(f"{PROG} package", about, words, [path], {"package": own})
    for needed in ("org", "system"):
        if needed not in given:
            raise UserError(f"package needs --{needed} NAME")
    from mlperf_jax.results import durable
    from mlperf_jax.results.package import package

    if "machine" in given:
        file = given["machine"]
        given["machine"] = durable.read_json(pathlib.Path(file))
        if not isinstance(given["machine"], dict):
            raise UserError(f"{file} holds no JSON object")

    made = package(given.pop("dir"), **{"output": "submission", **given})
    print(made)
    return 0 if made.success else 1


def report_command(words: Sequence[str]) -> int:
    own = [
        Option("out", str, "report.html", "the page to write", metavar="FILE"),
        Option("ruleset", help="the round of logs that do not say it"),
    ]
    about = "Writes one self-contained page about the runs and submissions in DIR..."
    folders, typed = options.split(words, own)
    rest = [word for flag, values in typed.items() for word in (flag, *values)]
    given = options.parse(f"{PROG} report DIR...", about, rest, [], {"report": own})
    from mlperf_jax.results.report import report

    made = report(folders, given.get("out", "report.html"), ruleset=given.get("ruleset"))
    print(made)
    return 0


def json_target(given: dict[str, Any]) -> str | None:
    """Takes `json` out of the typed options: where JSON goes, if anywhere; "-" is the output.

    Raises:
        UserError: no file can be written there, which is said before the work and not after it.
    """
    target = given.pop("json", None)
    if target not in (None, "-"):
        path = pathlib.Path(target)
        if path.is_dir() or not os.access(
            path if path.exists() else path.absolute().parent, os.W_OK
        ):
            raise UserError(f"cannot write {target}: give a file in a folder that is there")
    return target


def write_json(target: str, document: Any) -> None:
    text = json.dumps(document, indent=2)
    if target == "-":
        print(text)
        return
    try:
        pathlib.Path(target).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from error

"""A folder of logs, read for what a score needs, whatever state the logs are in.

`log.read` parses every line and refuses a damaged log. A submission has thousands of logs of
megabytes of which a score needs some fifty lines each, and one bad log must not hide the others: so
here the others are only looked at, and what is wrong with a log becomes a finding.
"""

import contextlib
import dataclasses
import json
import math
import mmap
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.results import durable, early, log, sane
from mlperf_jax.results.finding import Finding

_KEY = re.compile(rb'"key"\s*:\s*"(\w+)"')
_ENDLESS = re.compile(rb"\d{1000}")
_TIME = re.compile(rb'"time_ms"\s*:\s*\d{1,14}(\.\d*)?\s*[,}]')  # one that can be

# The keys whose lines are parsed. The official checkers search for some of them as text, so they do
# not occur within other lines of a log that passes.
_TEXTS = {
    "submission_benchmark": "benchmark",
    "submission_division": "division",
    "submission_org": "org",
    "submission_platform": "platform",
}
_NUMBERS = {
    "global_batch_size": "batch_size",
    "train_samples": "train_samples",
    "number_of_nodes": "nodes",
    "accelerators_per_node": "chips_per_node",
}
_EVALUATIONS = ("eval_accuracy", "eval_error")
_CLOCK = ("init_start", "init_stop", "run_start", "run_stop")
_SINGLE = ("seed", "target_accuracy", "opt_name", "optimizer_changed", "levers")
_ALIASES = {"mask": "maskrcnn"}  # as the official summary has it
_PASSED_AT = "eval_result"  # how v0.6 ends a run whose models are evaluated afterwards
_NEWEST = "lowest_numerical_precision_in_linear"  # logged since 6.1, and in no earlier round
_WANTED = {
    key.encode()
    for key in (*_TEXTS, *_NUMBERS, *_EVALUATIONS, *_CLOCK, _NEWEST, *_SINGLE, *sane.JUDGED)
}

# Lines that say what happened, not how the run was set up.
_EVENTS = {
    "init_start", "init_stop", "run_start", "run_stop", "block_start", "block_stop", "epoch_start",
    "epoch_stop", "eval_start", "eval_stop", "staging_start", "staging_stop", "eval_accuracy",
    "eval_error", "tracked_stats", "cache_clear", "trained_samples", "weights_initialization",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation line.

    Attributes:
        time_ms: when it was logged, in milliseconds since 1970.
        value: a number, or numbers by name where a benchmark has several qualities in one line.
        metric: the quality's name, where a benchmark logs each in a line of its own, or "".
        counts: `epoch_num`, `samples_count` and `step_num`, as far as logged.
    """

    time_ms: float
    value: float | dict[str, float]
    metric: str
    counts: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunLog:
    """What one log says of its run. What it does not say is None, "" or empty.

    Attributes:
        path: the log.
        benchmark: the official name, as logged.
        division: "closed" or "open".
        org, platform: who and where.
        batch_size, train_samples: as logged; the last one counts.
        nodes, chips_per_node: of one model's training, in HPC.
        seeds: (source file, source line, seed), as the official seed checker tells them apart.
        init_ms: from the first `init_start` to `init_stop`.
        start_ms, stop_ms: the clock, since 1970.
        status: of `run_stop`: "success", "aborted" or what else it says; "" without that line.
        evaluations: in the order of the lines.
        ended_after: how many of the evaluations come before `run_stop`; the others do not count.
        targets: what `target_accuracy` lines say.
        programs: of the optimizers that replaced the recipe's, as our own logs tell them apart.
        optimizer: the name of the first of these; "" where nothing replaced the recipe's.
        levers: what it did beside its optimizer, as logged; "" for nothing.
        settings: logged key -> last value, without those that are events; empty unless asked for.
        newest: whether it has the keys that only logs of v6.1 have.
        notes: the lines whose values `sane` judges once the set and its round are known.
        round: "0.5" or "0.6" where its lines have the form of that round, which no other had; else "".
        broken: whether a line cannot be read, so that the official tools reject the log.
        findings: what is wrong with it; a warning where the run merely does not count for it.
    """

    path: pathlib.Path
    benchmark: str = ""
    division: str = ""
    org: str = ""
    platform: str = ""
    batch_size: int | None = None
    train_samples: int | None = None
    nodes: int | None = None
    chips_per_node: int | None = None
    seeds: tuple[tuple[str, int, Any], ...] = ()
    init_ms: float | None = None
    start_ms: float | None = None
    stop_ms: float | None = None
    status: str = ""
    evaluations: tuple[Evaluation, ...] = ()
    ended_after: int = 0
    targets: tuple[float, ...] = ()
    programs: tuple[str, ...] = ()
    optimizer: str = ""
    levers: str = ""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    newest: bool = False
    notes: tuple[sane.Note, ...] = ()
    round: str = ""
    broken: bool = False
    findings: tuple[Finding, ...] = ()

    @property
    def seconds(self) -> float | None:
        """From `run_start` to `run_stop`."""
        if self.start_ms is None or self.stop_ms is None:
            return None
        return (self.stop_ms - self.start_ms) / 1000


def in_order(name: str) -> tuple[bool, int, str]:
    """What sorts the `*` of `result_*.txt`: by number, then by name."""
    return not name.isdecimal(), int(name) if name.isdecimal() else 0, name


def logs(folder: pathlib.Path) -> list[pathlib.Path]:
    """The `result_*.txt` of a folder, in order; what is no file under such a name is one that is spoilt."""
    found = folder.glob("result_*.txt")
    return sorted(found, key=lambda path: in_order(path.stem.removeprefix("result_")))


def folders(root: pathlib.Path) -> list[pathlib.Path]:
    """The folders below `root`, itself included, that hold logs of results, in the order of names.

    Code, power measurements and logs that were set aside by an HPC submission are passed over.

    Raises:
        UserError: there is no such folder, or no log in it.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise UserError(
            f"{root} {what}; give the output folder of a set of runs, or a submission's results"
        )
    found = []
    for folder, below, files in os.walk(root):
        below[:] = sorted(
            name
            for name in below
            if not name.startswith(".")
            and name not in ("benchmarks", "power", "pruned_results", "checkpoints")
        )
        if any(name.startswith("result_") and name.endswith(".txt") for name in files):
            found.append(pathlib.Path(folder))
    if not found:
        raise UserError(
            f"there is no result_*.txt in {root} or below; give the output folder of a set of runs"
        )
    return found


def read(path: pathlib.Path, *, settings: bool = False) -> RunLog:
    """Reads what a score needs of one log. Damage becomes a finding; nothing is raised for it.

    As the official reader does, a line is cut at its last token, so what a launcher put in front of
    it (a rank, a time, half a progress bar) is ignored, and bytes are taken as Latin-1.

    Args:
        path: the log.
        settings: keep the settings too, which no score needs.
    """
    reader = _Reader(path, settings)
    if unusual := durable.not_a_file(path):
        reader.find("", f"is {unusual}, which no run leaves.", "Put the log in its place.")
        reader.broken = True
        return reader.log()
    try:
        with open(path, "rb") as file, _mapped(file.fileno()) as content:
            reader.form = early.form(content)
            for start, end in _lines(content, f"{reader.form} ".encode()):
                reader.line(content, start, end)
        if not reader.lines:
            reader.find("", f"is {log.no_log(path)}.", "Put the log in its place.")
            reader.broken = True
    except OSError as error:
        reader.find("", f"cannot be read ({error.strerror}).", "Restore it.")
        reader.broken = True
    return reader.log()


@contextlib.contextmanager
def _mapped(file: int) -> Iterator[Any]:
    """The bytes of a file, without holding them in memory; b"" for an empty one."""
    if os.fstat(file).st_size == 0:
        yield b""
        return
    with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as content:
        yield content


def _lines(content: Any, token: bytes) -> Iterator[tuple[int, int]]:
    """Where each line's text starts and ends: from after its last token to the end of the line."""
    start, newline = content.find(token) if token.strip() else -1, -1
    while start >= 0:
        if newline < start:
            newline = content.find(b"\n", start)
            newline = len(content) if newline < 0 else newline
        again = content.find(b"\r", start, newline)  # ends a line too
        end = newline if again < 0 else again
        yield content.rfind(token, start, end) + len(token), end
        start = content.find(token, end)


def _looks_whole(text: bytes) -> bool:
    """Whether a line of no interest may go unparsed: 0.15 of the time that parsing it takes.

    The official reader rejects a log for any line that is not JSON. Lines are spoilt by being cut, or
    by another process writing into them; both leave a brace or a quote without its partner. A time that
    cannot be is judged, and of two members named "key" the last one counts.
    """
    return (
        text.rstrip().endswith(b"}")
        and _TIME.search(text) is not None
        and text.count(b'"key"') == 1
        and text.count(b"{") == text.count(b"}")
        and text.count(b'"') % 2 == 0
    )


class _Reader:
    """Gathers one log's values line by line."""

    def __init__(self, path: pathlib.Path, settings: bool):
        self.path = path
        self.with_settings, self.settings = settings, {}
        self.values: dict[str, Any] = {}
        self.times: dict[str, list[float]] = {key: [] for key in _CLOCK}
        self.evaluations: list[Evaluation] = []
        self.seeds: list[tuple[str, int, Any]] = []
        self.targets: list[float] = []
        self.programs: list[str] = []
        self.findings: list[Finding] = []
        self.notes: list[sane.Note] = []
        self.lines = 0
        self.newest = self.broken = False
        self.counted = (0, 1)  # an offset, and the number of the line there
        self.form = ""  # of the lines
        self.passed_after: float | None = None  # seconds

    def find(self, key: str, expected: str, advice: str, **more: Any) -> None:
        if len(self.findings) < 20:  # a log may be wrong in every line
            self.findings.append(Finding(str(self.path), key, expected, advice, **more))

    def number_of(self, content: Any, offset: int) -> int:
        """The number of the line at an offset, not before the one that was asked for last."""
        before, number = self.counted
        self.counted = (offset, number + content[before:offset].count(b"\n"))
        return self.counted[1]

    def line(self, content: Any, start: int, end: int) -> None:
        self.lines += 1
        text = content[start:end]
        found = _KEY.search(text) if self.form == early.TODAY else None
        long = len(text) > log.LONGEST
        if not long and found is not None and not self.wants(found[1]) and _looks_whole(text):
            return
        number = self.number_of(content, start)
        try:
            if long:
                raise ValueError(log.too_long(len(text)))
            members = early.members(self.form, text.decode("latin-1"))
            key, value, metadata = members["key"], members["value"], members["metadata"]
            time_ms = members["time_ms"]
        except log.DAMAGE as error:
            self.broken = True
            cut = end == len(content) and not long
            why = "ends in the middle" if cut else f"cannot be read ({log.reason(error)})"
            advice = "The official tools reject the whole log for it."
            # a line that was cut, or mixed with another process's, is a run that does not count; this nobody logs:
            endless = long or isinstance(error, RecursionError) or _ENDLESS.search(text) is not None
            self.find("", f"the line {why}.", advice, line=number, warning=not endless)
            return
        metadata = metadata if isinstance(metadata, dict) else {}
        self.notes.append(sane.Note(number, key, value, metadata, time_ms))
        if sane.time_fault(time_ms):
            self.broken = True
            if key in _CLOCK or key in _EVALUATIONS:
                return
            time_ms = 0  # of no interest
        try:
            self.take(key, value, metadata, float(time_ms))
        except (ValueError, TypeError, OverflowError) as error:
            stops = key in ("global_batch_size", "seed", *_EVALUATIONS)  # they calculate with it
            self.find(
                str(key),
                f"has the value {sane.shown(value)}, which is not what the key means ({error}).",
                "The official tools would stop at it." if stops else "It was not taken.",
                line=number,
                warning=not stops,
            )

    def wants(self, key: bytes) -> bool:
        return key in _WANTED or (self.with_settings and key.decode() not in _EVENTS)

    def take(self, key: Any, value: Any, metadata: dict[str, Any], time_ms: float) -> None:
        """Keeps the value of one line."""
        if not isinstance(key, str):
            return
        if self.with_settings and key not in _EVENTS:
            self.settings[key] = value
        if "benchmark" in metadata and self.form == early.V05:
            self.values["benchmark"] = metadata["benchmark"]
        if key in _TEXTS:
            self.values[_TEXTS[key]] = _ALIASES.get(str(value), str(value))
        elif key in _NUMBERS:
            self.values[_NUMBERS[key]] = int(self.number(key, value))
        elif key in _CLOCK:
            self.times[key].append(time_ms)
            if key == "run_stop":
                self.values["status"] = str(metadata.get("status", ""))
                self.values["ended_after"] = len(self.evaluations)
        elif key == _PASSED_AT and self.form == early.V06:
            self.passed_after = self.number(key, metadata.get("timestamp"))
        elif key in _EVALUATIONS:
            self.evaluations.append(self.evaluation(key, value, metadata, time_ms))
        elif key == "seed":
            where = (str(metadata.get("file", "")), metadata.get("lineno", 0))
            self.seeds.append((*where, json.dumps(value)))
        elif key == "opt_name":
            if "program" in metadata:
                self.programs.append(str(metadata["program"]))
                self.values["optimizer"] = str(value)
        elif key == "levers":
            self.values["levers"] = str(value)
        elif key == "optimizer_changed":
            self.programs.append(str(value))
        elif key == "target_accuracy":
            self.targets.append(self.number(key, value))
        elif key == _NEWEST:
            self.newest = True

    def evaluation(
        self, key: str, value: Any, metadata: dict[str, Any], time_ms: float
    ) -> Evaluation:
        if isinstance(value, dict):
            value = {str(name): self.number(key, number) for name, number in value.items()}
        else:
            value = self.number(key, value)
        counts = {
            name: self.number(f"{name} of {key}", metadata[name])
            for name in ("epoch_num", "samples_count", "step_num")
            if metadata.get(name) is not None
        }
        return Evaluation(time_ms, value, str(metadata.get("metric", "")), counts)

    def number(self, key: str, value: Any) -> float:
        """A finite number; text that spells one is taken as it, with a finding."""
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise TypeError("not a number")
        if isinstance(value, str):
            number = float(value)
            self.find(
                key,
                f'has the text "{value}" for a number.',
                "Log numbers as numbers; the official tools do not convert them.",
                line=self.counted[1],
            )
            return number
        if not math.isfinite(value) and key not in _EVALUATIONS:
            raise ValueError("not a finite number")
        return value

    def end_early(self) -> None:
        """Ends a run of the first two rounds by what its log says instead of `run_stop` and a status."""
        if self.passed_after is not None and self.times["run_start"] and not self.times["run_stop"]:
            self.times["run_stop"].append(self.times["run_start"][-1] + 1000 * self.passed_after)
            self.values |= {"status": "success", "ended_after": len(self.evaluations)}
        if self.form == early.V05 and not self.values.get("status") and self.times["run_stop"]:
            reached = self.values["ended_after"] and self.targets
            last = self.evaluations[self.values["ended_after"] - 1].value if reached else math.nan
            met = isinstance(last, int | float) and reached and last >= self.targets[-1]
            self.values["status"] = "success" if met else "aborted"

    def log(self) -> RunLog:
        """What was found, with a finding for each line that ought to be there once and is not."""
        for key in ("run_start", "run_stop"):
            if len(self.times[key]) > 1:
                self.find(
                    key,
                    f"is there {len(self.times[key])} times: the file holds several runs, or one twice.",
                    "Keep one run per file; the official checker rejects it.",
                    warning=True,
                )
                self.broken = True
        if len(set(self.targets)) > 1:
            known = " and ".join(f"{target:g}" for target in sorted(set(self.targets)))
            self.find(
                "target_accuracy",
                f"names different targets, {known}.",
                "The round's own target is applied.",
                warning=True,
            )
        self.end_early()
        starts, stops = self.times["init_start"], self.times["init_stop"]
        return RunLog(
            path=self.path,
            **self.values,
            seeds=tuple(self.seeds),
            init_ms=stops[0] - min(starts) if starts and stops else None,
            start_ms=self.times["run_start"][-1] if self.times["run_start"] else None,
            stop_ms=self.times["run_stop"][0] if self.times["run_stop"] else None,
            evaluations=tuple(self.evaluations),
            targets=tuple(dict.fromkeys(self.targets)),
            programs=tuple(self.programs),
            settings=self.settings,
            newest=self.newest,
            notes=tuple(self.notes),
            round=early.ROUNDS.get(self.form, ""),
            broken=self.broken,
            findings=tuple(self.findings),
        )

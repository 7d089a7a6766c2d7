"""Whether what a log says can be true at all: times, seeds, sizes, qualities, and their order.

`score`, `report` and `check` ask here, because the official tools look at few of these values: an accuracy
of 75.9, an evaluation before the run's start or a second seed passes them. What a line says that cannot be
is a finding that no warning is, and so a set with it is not valid.

Differs: what accepted logs of the first rounds hold all the same is a warning in those rounds: clocks that disagree,
a division that is not the others', and, where every log of the set has them, other seeds; these in HPC too. Read
were 23,610 logs of 14 rounds: none of training since v1.1 has any of it, but for a seed of each rank in SSD and
Stable Diffusion, of which the official seed checker warns, and so does this where all logs have them.
"""

import collections
import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from mlperf_jax.results.finding import Finding
from mlperf_jax.results.rules import Round, Target

LAST_MS = 1e14  # in the year 5138: what is later was not counted in milliseconds
_YEAR_MS = 366 * 24 * 3600 * 1000
_SLACK_MS = 1000  # by which clocks of several hosts may disagree

# The rounds of which some accepted logs have seeds that are no whole numbers, or clocks that disagree.
_LENIENT = ("0.7", "1.0")
# Those whose lines had another form, and whose values other units.
_OTHER_FORM = ("0.5", "0.6")
# Their models are evaluated after the run, and the lines are put in wherever there is room.
_EVALUATED_AFTERWARDS = ("stable_diffusion", "minigo")

_SIZES = (
    "global_batch_size", "train_samples", "eval_samples", "gradient_accumulation_steps",
    "number_of_nodes", "accelerators_per_node",
)  # fmt: skip
_COUNTS = ("epoch_num", "samples_count", "step_num")
_DIVISIONS = ("closed", "open")
_EVALUATIONS = ("eval_accuracy", "eval_error")
_BELOW_ZERO = ("CLIP",)  # a cosine

# the keys whose lines are judged, beside every line with a time that cannot be
JUDGED = frozenset(
    (*_SIZES, *_EVALUATIONS, "seed", "submission_division", "init_start", "init_stop", "run_start", "run_stop")
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Note:
    """One line of a log, as it is: nothing in it need be of the type that it should.

    Attributes:
        line: its number, from 1.
        key, value, metadata, time_ms: its members.
    """

    line: int
    key: Any
    value: Any
    metadata: dict[str, Any]
    time_ms: Any


class Noted(Protocol):
    """A log of which the lines that are judged were kept."""

    @property
    def path(self) -> pathlib.Path: ...
    @property
    def status(self) -> str: ...
    @property
    def notes(self) -> Sequence[Note]: ...


@dataclasses.dataclass(frozen=True)
class _Fault:
    """What is wrong with a line; `habit` names what programs of lenient rounds did in all logs of a set."""

    note: Note
    key: str
    says: str
    advice: str
    habit: str = ""
    warning: bool = False


def time_fault(time_ms: Any) -> str:
    """What is wrong with a line's time, or "".

    >>> time_fault(1700000001000), time_fault("soon")
    ('', 'has the time_ms "soon", which is not milliseconds since 1970')
    """
    if _is_number(time_ms) and 0 <= time_ms < LAST_MS:
        return ""
    return f"has the time_ms {shown(time_ms)}, which is not milliseconds since 1970"


def shown(value: Any) -> str:
    """A value as the log spells it, or its beginning."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:36]} …"


def findings(logs: Sequence[Noted], official: Round | None) -> list[Finding]:
    """All that the logs of a set say and that cannot be, by log and line; of a kind the first line of each log.

    Args:
        logs: of one set.
        official: the rules that apply; None where no round had the benchmark.
    """
    found = {log.path: _first_of_each(_faults(log, official)) for log in logs}
    habits = collections.Counter(
        fault.habit for faults in found.values() for fault, _ in faults if fault.habit
    )
    hpc = official is not None and official.suite == "hpc"
    early = official is not None and not hpc and official.round in _LENIENT
    lenient = {"seed": early or hpc, "seeds": True, "early": early, "clock": early}
    told: set[str] = set()
    listed = []
    for log in logs:
        for fault, more in found[log.path]:
            everywhere = habits[fault.habit] == len(logs) or fault.habit == "clock"
            if everywhere and lenient.get(fault.habit, False):
                if fault.habit not in told:
                    told.add(fault.habit)
                    listed.append(_finding(log.path, fault, 0, True))
            else:
                listed.append(_finding(log.path, fault, more, fault.warning))
    return listed + _divisions(logs, early)


def _finding(path: pathlib.Path, fault: _Fault, more: int, warning: bool) -> Finding:
    advice = fault.advice
    if more:
        advice = f"So {'does' if more == 1 else 'do'} {more} more line{'s' * (more > 1)}. {advice}"
    return Finding(
        str(path), fault.key, f"{fault.says}.", advice, line=fault.note.line, warning=warning
    )


def _first_of_each(faults: Iterator[_Fault]) -> list[tuple[_Fault, int]]:
    """The first fault of each key and advice, and how many more there are: a log may be wrong in every line."""
    first: dict[tuple[str, str], _Fault] = {}
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for fault in faults:
        kind = (fault.key, fault.advice)
        counts[kind] += 1
        first.setdefault(kind, fault)
    return [(fault, counts[kind] - 1) for kind, fault in first.items()]


def _faults(log: Noted, official: Round | None) -> Iterator[_Fault]:
    for note in log.notes:
        if said := time_fault(note.time_ms):
            key = note.key if isinstance(note.key, str) else ""
            yield _Fault(note, key, said, "Restore what the run logged.")
    if official is not None and official.round in _OTHER_FORM:
        return
    for note in log.notes:
        if not isinstance(note.key, str):
            yield _Fault(note, "", f"has the key {shown(note.key)}, which is no name", "Mend it.")
        elif note.key in _SIZES and _is_number(note.value):
            least = 0 if note.key == "accelerators_per_node" else 1  # some machines have none
            if not _is_size(note.value, least):
                says = f"is {shown(note.value)}, which is no whole number from {least} on"
                yield _Fault(note, note.key, says, "Log the size as an integer.")
        elif note.key in _EVALUATIONS:
            yield from _evaluation(note, official, log.status == "success")
    yield from _seeds(log)
    yield from _order(log, official)


def _seeds(log: Noted) -> Iterator[_Fault]:
    seeds = [note for note in log.notes if note.key == "seed"]
    for note in seeds:
        if not _is_integer(note.value) or note.value < 0:
            says = f"is {shown(note.value)}, which is no whole number from 0 on"
            yield _Fault(note, "seed", says, "Log the seed that the run drew.", "seed")
    others = [note for note in seeds if note.value != seeds[0].value]
    if others:
        one, two = shown(seeds[0].value), shown(others[0].value)
        says = f"is {two} here and {one} before: one run has one seed"
        yield _Fault(others[0], "seed", says, "Log the one that the others follow from.", "seeds")


def _evaluation(note: Note, official: Round | None, success: bool) -> Iterator[_Fault]:
    value = note.value
    for name in _COUNTS:
        count = note.metadata.get(name)
        if count is not None and not (_is_number(count) and 0 <= count < math.inf):
            says = f"has the {name} {shown(count)}, which is no number from 0 on"
            yield _Fault(note, note.key, says, f"Log {name} as a number.")
    target = official.targets[0].name if official is not None and official.targets else ""
    named = (
        value
        if isinstance(value, dict)
        else {str(note.metadata.get("metric", "") or target): value}
    )
    targets = {target.name: target for target in official.targets} if official else {}
    for name, number in named.items():
        if not _is_number(number):
            continue  # its reader has said so
        low, high = _range(targets.get(name))
        words = name or "the quality"
        if not _is_finite(number):
            says = f"is {shown(number)}, which is no {words}"
            advice = "A run whose quality is not finite has not converged."
            yield _Fault(note, note.key, says, advice, warning=not success)
        elif not low <= number <= high:
            within = f"between {low:g} and {high:g}" if high < math.inf else f"at least {low:g}"
            says = f"is {shown(number)}; {words} is {within}"
            yield _Fault(note, note.key, says, "Log it in the unit of the target.")


def _range(target: Target | None) -> tuple[float, float]:
    """What a quality can be: the rules' qualities that shall be large are fractions, the others losses."""
    if target is None:
        return -math.inf, math.inf
    if target.at_most is not None:
        return 0, math.inf
    if target.at_least is None and target.above is None:
        return -math.inf, math.inf
    return (-1 if target.name in _BELOW_ZERO else 0), 1


def _order(log: Noted, official: Round | None) -> Iterator[_Fault]:
    """What comes before that which it follows from, and runs that last for years."""
    at: dict[str, Note] = {}
    for note in log.notes:
        if isinstance(note.key, str) and not time_fault(note.time_ms):
            at.setdefault(note.key, note)
    for before, after in (("init_start", "init_stop"), ("init_stop", "run_start")):
        if before in at and after in at and at[after].time_ms < at[before].time_ms - _SLACK_MS:
            says = f"is {_span(at[before].time_ms - at[after].time_ms)} earlier than {before}"
            yield _Fault(at[after], after, says, "Log each with the time it happened at.", "clock")
    start, stop = at.get("run_start"), at.get("run_stop")
    if start is None:
        return
    if stop is not None and stop.time_ms < start.time_ms:
        says = f"is {_span(start.time_ms - stop.time_ms)} earlier than run_start"
        yield _Fault(stop, "run_stop", says, "Log each with the time it happened at.")
    if stop is not None and stop.time_ms - start.time_ms > _YEAR_MS:
        says = f"is {_span(stop.time_ms - start.time_ms)} later than run_start"
        yield _Fault(stop, "run_stop", says, "Restore what the run logged.")
    if official is not None and official.benchmark in _EVALUATED_AFTERWARDS:
        return
    for note in log.notes:
        if note.key in _EVALUATIONS and not time_fault(note.time_ms):
            early = start.time_ms - note.time_ms
            if early > _SLACK_MS:
                says = f"is {_span(early)} earlier than run_start"
                yield _Fault(note, note.key, says, "Nothing is evaluated before the run.", "early")


def _divisions(logs: Sequence[Noted], early: bool) -> list[Finding]:
    """One division a set, and one that there is."""
    said = [
        (log.path, note) for log in logs for note in log.notes if note.key == "submission_division"
    ]
    usual = collections.Counter(str(note.value) for _, note in said if note.value in _DIVISIONS)
    most, count = next(iter(usual.most_common(1)), ("", 0))
    found = []
    for path, note in said:
        if (known := note.value in _DIVISIONS) and note.value == most:
            continue
        says = f"{shown(most)} in {count} logs" if known else 'it is "closed" or "open"'
        says, warning = f"is {shown(note.value)}; {says}.", known and early
        advice = "A set is of one division."
        found.append(Finding(str(path), note.key, says, advice, line=note.line, warning=warning))
    return found


def _span(ms: float) -> str:
    for unit, size in (("days", 24 * 3600_000), ("hours", 3600_000), ("minutes", 60_000)):
        if ms >= 2 * size:
            return f"{ms / size:,.0f} {unit}"
    return f"{ms / 1000:,.3g} seconds"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: float) -> bool:
    return -math.inf < value < math.inf  # also of integers that no float can hold


def _is_size(value: float, least: int) -> bool:
    return _is_finite(value) and value >= least and value == int(value)

"""One run of a set: whether it counts, how long it took, what it reached."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mlperf_jax.results import rules
from mlperf_jax.results.logset import Evaluation, RunLog


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a set.

    Attributes:
        log: what its log says.
        minutes: from `run_start` to `run_stop`, or None where the log lacks one of them.
        length: how long it took to the target in the benchmark's unit, or None: it did not get there.
        samples: the same in training samples (tokens for gpt3), or None where it cannot be told.
        quality: the last evaluation before the end, by name.
        flaw: why it counts as not converged, or "".
        same: whether it is of the set's benchmark; one that is not is left out altogether.
    """

    log: RunLog
    minutes: float | None
    length: float | None = None
    samples: float | None = None
    quality: dict[str, float] = dataclasses.field(default_factory=dict)
    flaw: str
    same: bool = True

    @property
    def counted(self) -> bool:
        """Whether its time enters the score."""
        return not self.flaw

    def to_dict(self) -> dict[str, Any]:
        """What a table or a plot needs; the evaluations stay in `log`."""
        return {
            "file": self.log.path.name,
            "minutes": self.minutes,
            "length": self.length,
            "samples": self.samples,
            "quality": self.quality,
            "status": self.log.status,
            "flaw": self.flaw,
            "seeds": [seed for _, _, seed in self.log.seeds[:1]],
        }


def flaw(log: RunLog, official: rules.Round | None, division: str) -> str:
    """Why a run counts as not converged, or "".

    Differs: the official summary goes by the compliance checker, which looks at the values and not at
    the status, so in open it counts runs that gave up. The rules and the RCP checker do not; nor we.
    """
    if log.broken:
        return "the log is damaged"
    if log.start_ms is None:
        return "the log has no run_start"
    if log.stop_ms is None:
        return "the run did not end: the log has no run_stop"
    if log.stop_ms < log.start_ms:
        return "run_stop is earlier than run_start"
    if log.status != "success":
        return f"its status is {log.status!r}" if log.status else "run_stop has no status"
    limit = _init_limit(official.ruleset if official else "", division)
    if log.init_ms is not None and log.init_ms >= limit * 60_000:
        return f"initialisation took {log.init_ms / 60_000:.0f} minutes, {limit} are allowed"
    if official is not None and division == "closed" and not _reached(log, official.targets):
        return "it says success, but no evaluation meets the target"
    return ""


def _init_limit(ruleset: str, division: str) -> int:
    """Minutes from the first init_start to init_stop, as the official checkers of the rounds have it."""
    if ruleset in ("0.5.0", "0.6.0", "0.7.0"):
        return 20
    early = ruleset in ("", "1.0.0", "1.1.0")
    return 30 if division == "closed" or early else 240


def _reached(log: RunLog, targets: Sequence[rules.OfficialTarget]) -> bool:
    """Whether some evaluation meets all targets. Those with a note are more than a number: not tested."""
    if any(target.note for target in targets):
        return True
    if any(evaluation.metric for evaluation in log.evaluations) and len(targets) > 1:
        fields = {field for e in log.evaluations for field in e.counts}
        return any(first_passing(log.evaluations, field, targets) is not None for field in fields)
    return any(_met(targets, _named(evaluation, targets)) for evaluation in log.evaluations)


def first_passing(
    evaluations: Sequence[Evaluation], field: str, targets: Sequence[rules.Target]
) -> float | None:
    """The smallest count at which every target is met, where each quality has a line of its own."""
    at: dict[float, dict[str, float]] = {}
    for evaluation in evaluations:
        if field in evaluation.counts and not isinstance(evaluation.value, dict):
            at.setdefault(evaluation.counts[field], {})[evaluation.metric] = evaluation.value
    return min((count for count, values in at.items() if _met(targets, values)), default=None)


def _met(targets: Sequence[rules.Target], values: Mapping[str, float]) -> bool:
    return all(target.name in values and target.met(values) for target in targets)


def _named(evaluation: Evaluation, targets: Sequence[rules.Target]) -> dict[str, float]:
    if isinstance(evaluation.value, dict):
        return evaluation.value
    return {evaluation.metric or targets[0].name: evaluation.value}


def quality(log: RunLog, official: rules.Round | None) -> dict[str, float]:
    """The values of the last evaluation before the end, one per quality."""
    quality: dict[str, float] = {}
    targets: Sequence[rules.Target] = official.targets if official else (rules.Target("quality"),)
    for evaluation in log.evaluations[: log.ended_after or None][-len(targets) :]:
        quality |= _named(evaluation, targets)
    return quality

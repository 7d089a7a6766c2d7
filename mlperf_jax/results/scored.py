"""The scores of sets of runs as values: which runs count and why, what was found, shown and exported."""

import dataclasses
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mlperf_jax.results import durable, rcp, rules, score_view
from mlperf_jax.results.compliance import Finding
from mlperf_jax.results.logset import Evaluation, RunLog
from mlperf_jax.results.optimizer_labels import Used
from mlperf_jax.results.result import MARKS
from mlperf_jax.results.system import System


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
    if not log.benchmark:
        return "the log does not say which benchmark it is of"
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


def olympic_mean(values: Sequence[float | None], drop: int) -> float | None:
    """Mean without the smallest and the largest; None stands for a run that failed, the largest of all.

    >>> olympic_mean([3.0, 9.0, None, 4.0], 1), olympic_mean([3.0, None, None, 4.0], 1)
    (6.5, None)

    Args:
        values: of the runs.
        drop: how many are left out at either end.

    Returns:
        None where more failed than may be left out, or nothing remains.
    """
    known = sorted(value for value in values if value is not None)
    kept = known[drop : len(values) - drop] if len(values) - len(known) <= drop else []
    return statistics.fmean(kept) if kept else None


# ---- the set


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Score:
    """The score of one set of runs, and all that is to be said against it.

    Attributes:
        folder: where the logs are.
        benchmark: our name, or the logged one when no round had it.
        ruleset: the round whose rules were applied, such as "4.0.0"; "" for an unknown benchmark.
        suite: "training" or "hpc".
        division: "closed" or "open".
        tiny: whether it is the small stand-in: not comparable with anything official.
        system: who and where.
        runs: every log of the folder.
        required, drop: how many runs make a score, and how many are left out at either end.
        unit: what the lengths count: "epochs", "samples", "steps" or "tokens".
        batch_size: global, or None where the logs disagree.
        raw_minutes: olympic mean of the counted runs, or None where there are too few. For weak
            scaling (HPC): from the first model's start to the last one's stop.
        models: for weak scaling, how many models were trained; else None.
        factor: what `raw_minutes` is multiplied by, and `factor_source` where it is from: "scaling.json",
            "reference" or "".
        submitted: whether it is a submission's: its minutes are then by default what the official summary
            makes of these logs.
        verdict: of the comparison with the reference; None where there is none (see `rcp_note`).
        findings: what is wrong; those that are not warnings make the score invalid.
    """

    folder: pathlib.Path
    benchmark: str
    ruleset: str
    suite: str
    division: str
    tiny: bool
    system: System
    runs: tuple[Run, ...]
    required: int
    drop: int
    unit: str
    batch_size: int | None
    raw_minutes: float | None
    models: int | None = None
    factor: float = 1.0
    factor_source: str = ""
    submitted: bool = False
    verdict: rcp.Verdict | None = None
    rcp_note: str = ""
    findings: tuple[Finding, ...] = ()

    @property
    def optimizer(self) -> Used:
        """The one that replaced the recipe's, by the logs; its name is "" where nothing did."""
        replaced = [run.log for run in self.runs if run.same and run.log.programs]
        name = next((log.optimizer for log in replaced if log.optimizer), "")
        program = " then ".join(replaced[0].programs) if replaced else ""
        levers = next((run.log.levers for run in self.runs if run.same and run.log.levers), "")
        return Used((self.benchmark, self.tiny), name, program, levers=levers)

    @property
    def minutes(self) -> float | None:
        """The score, scaled; None where there is none."""
        return None if self.raw_minutes is None else self.raw_minutes * self.factor

    @property
    def reference_minutes(self) -> float | None:
        """The score as the comparison with the reference would scale it, where `minutes` is another."""
        if self.raw_minutes is None or self.verdict is None:
            return None
        if math.isclose(self.factor, self.verdict.scaling_factor, rel_tol=1e-6):
            return None
        return self.raw_minutes * self.verdict.scaling_factor

    @property
    def valid(self) -> bool:
        """Whether nothing we know of speaks against it. Only a review can make a result official."""
        return (
            self.minutes is not None
            and all(finding.warning for finding in self.findings)
            and (self.verdict is None or self.verdict.passed)
        )

    @property
    def mean_minutes(self) -> float | None:
        """Plain mean of the counted runs, for a set that is too small for a score."""
        times = [run.minutes for run in self.runs if run.counted and run.minutes is not None]
        return statistics.fmean(times) if times else None

    @property
    def length(self) -> float | None:
        """Olympic mean of the lengths to the target, in `unit`; None where too few converged."""
        return olympic_mean([run.length for run in self.runs if run.same], self.drop)

    @property
    def samples_per_second(self) -> float | None:
        """Mean over the counted runs, evaluations included; None where the samples are not known."""
        rates = [
            run.samples / (run.minutes * 60)
            for run in self.runs
            if run.counted and run.samples and run.minutes
        ]
        return statistics.fmean(rates) if rates else None

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON knows it, with the notices that go with any score."""
        fields = {
            "folder": str(self.folder),
            "benchmark": self.benchmark,
            "ruleset": self.ruleset,
            "suite": self.suite,
            "division": self.division,
            "tiny": self.tiny,
            "system": dataclasses.asdict(self.system),
            "batch_size": self.batch_size,
            "optimizer": self.optimizer.name,
            "minutes": self.minutes,
            "raw_minutes": self.raw_minutes,
            "mean_minutes": self.mean_minutes,
            "models": self.models,
            "submitted": self.submitted,
            "scaling_factor": self.factor,
            "scaling_source": self.factor_source,
            "reference_minutes": self.reference_minutes,
            "length": self.length,
            "unit": self.unit,
            "samples_per_second": self.samples_per_second,
            "required_runs": self.required,
            "dropped_each_side": self.drop,
            "runs": [run.to_dict() for run in self.runs],
            "rcp": None if self.verdict is None else self.verdict.to_dict(),
            "rcp_note": self.rcp_note,
            "valid": self.valid,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            **MARKS,
        }
        return durable.plain(fields, "the score")

    def __repr__(self) -> str:
        return f"<{score_view.title(self)}: {score_view.outcome(self)}>"

    def __str__(self) -> str:
        return score_view.text(self)

    def _repr_html_(self) -> str:
        return score_view.page([self])


@dataclasses.dataclass(frozen=True, repr=False)
class Scores(Sequence):
    """The scores of every set below a folder, in the order of the folders."""

    root: pathlib.Path
    scores: tuple[Score, ...]

    def __getitem__(self, index: Any) -> Any:
        return self.scores[index]

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def valid(self) -> bool:
        """Whether every one of them is."""
        return all(score.valid for score in self.scores)

    def to_dict(self) -> dict[str, Any]:
        """All of them as JSON knows it, with the notices that go with any score."""
        return {"scores": [score.to_dict() for score in self.scores], **MARKS}

    def __repr__(self) -> str:
        return f"<{len(self)} scores below {self.root} (unverified)>"

    def __str__(self) -> str:
        return score_view.text(self.scores[0]) if len(self) == 1 else score_view.table(self)

    def _repr_html_(self) -> str:
        return score_view.page(self.scores)

"""The score of a set of runs as a value: what was found, shown and exported."""

import dataclasses
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from mlperf_jax.results import durable, rcp, score_view
from mlperf_jax.results.compliance import Finding
from mlperf_jax.results.result import MARKS
from mlperf_jax.results.scored_run import Run
from mlperf_jax.results.system import System


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
        factor: what `raw_minutes` is multiplied by, and `factor_source` where it is from.
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
    verdict: rcp.Verdict | None = None
    rcp_note: str = ""
    findings: tuple[Finding, ...] = ()

    @property
    def minutes(self) -> float | None:
        """The score, scaled; None where there is none."""
        return None if self.raw_minutes is None else self.raw_minutes * self.factor

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
        lengths = [run.length for run in self.runs if run.same]
        known = [length for length in lengths if length is not None]
        if len(lengths) - len(known) > self.drop or len(lengths) <= 2 * self.drop:
            return None
        return statistics.fmean(sorted(known)[self.drop : len(lengths) - self.drop])

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
            "minutes": self.minutes,
            "raw_minutes": self.raw_minutes,
            "mean_minutes": self.mean_minutes,
            "models": self.models,
            "scaling_factor": self.factor,
            "scaling_source": self.factor_source,
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

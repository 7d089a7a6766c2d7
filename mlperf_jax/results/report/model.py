"""What the report knows of a run and of a set of runs: plain data, with everything wrong listed."""

import dataclasses
from typing import Any, Literal

from mlperf_jax.results.compliance import Finding
from mlperf_jax.results.optimizer_labels import Used
from mlperf_jax.results.rules import Target

Size = Literal["official", "tiny", "reduced"]


@dataclasses.dataclass(frozen=True)
class Curve:
    """One quality over a run; the lists are equally long.

    Attributes:
        name: of the quality; "" where the log has only one and does not name it.
        seconds: since `run_start`, or empty where no time is known.
        lengths: samples or epochs trained so far, in the run's unit.
        values: the quality.
    """

    name: str
    seconds: tuple[float, ...]
    lengths: tuple[float, ...]
    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class RunData:
    """One run, as its log and its folder tell it; None is what they do not tell.

    Attributes:
        name: "run 3".
        log: path of the log.
        status: "success", "aborted", "unfinished" or "unreadable".
        seconds: from `run_start` to `run_stop`.
        init_seconds: from the first `init_start` to `init_stop`.
        length: samples or epochs of the last evaluation before `run_stop`.
        unit: of the lengths: "samples", "epochs", "tokens" or "steps".
        ending: `samples_count` and `epoch_num` of that evaluation, as far as it has them.
        seed: the logged seed.
        curves: one per quality.
        settings: logged key -> value, without those that are events.
        result: the run's `result.json`, {} when there is none.
        config: the benchmark's fields of `config.json`, {} when there is none.
        used: whether the score's mean contains it.
    """

    name: str
    log: str
    status: str
    seconds: float | None = None
    init_seconds: float | None = None
    length: float | None = None
    unit: str = "samples"
    ending: dict[str, float] = dataclasses.field(default_factory=dict)
    seed: Any = None
    curves: tuple[Curve, ...] = ()
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    result: dict[str, Any] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    used: bool = False


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a set stands against the reference's convergence.

    Attributes:
        sentence: for people.
        accepted: the test's verdict; None when it could not be made.
        mean: the set's mean length, extremes left out.
        reference: the reference's mean at this batch size, in the same unit.
        bound: the smallest mean that is accepted.
        lengths: the reference's own runs; empty between two batch sizes.
        own: the set's runs in the same unit; None for one that did not converge.
        unit: of all of these.
    """

    sentence: str
    accepted: bool | None = None
    mean: float | None = None
    reference: float | None = None
    bound: float | None = None
    lengths: tuple[float, ...] = ()
    own: tuple[float | None, ...] = ()
    unit: str = ""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the score of a set is, or why it has none.

    Attributes:
        status: "scored"; "too fast" for the reference; "flawed" when something speaks against the
            score; and without one "incomplete", "not converged" or "broken".
        reason: a sentence when it is not "scored", or what to know about the score.
        minutes: the olympic mean, normalised; None without a score.
        needed: runs that make a score.
        used: the runs (positions in the set) whose mean it is.
        rate: training samples per second of the clock, or None.
        position: against the reference, or None where there is none.
    """

    status: str
    reason: str = ""
    minutes: float | None = None
    needed: int | None = None
    used: tuple[int, ...] = ()
    rate: float | None = None
    position: Position | None = None


@dataclasses.dataclass(frozen=True)
class SetData:
    """Runs of one benchmark on one system, which are scored together.

    Attributes:
        folder: relative to what the user gave.
        path: the folder itself.
        benchmark: our name, or the logged one where no round had it.
        suite: "training" or "hpc".
        round: such as "5.1"; "" when unknown.
        assumed: whether the round is a guess (the last that ran the benchmark).
        division: "closed", "open" or "" when no log says.
        org, system, accelerator: names; "" when unknown.
        chips: accelerators used, or None.
        size: whether it is the benchmark itself, or a small stand-in that is never compared with it.
        batch: global batch size.
        runs: by number.
        targets: all must be met.
        hardware: the submission's system file, {} when there is none.
        unit: of the runs' lengths.
        verdict: the score.
        findings: what is wrong with it or its runs.
    """

    folder: str
    path: str
    benchmark: str
    suite: str = "training"
    round: str = ""
    assumed: bool = True
    division: str = ""
    org: str = ""
    system: str = ""
    accelerator: str = ""
    chips: int | None = None
    size: Size = "official"
    batch: int | None = None
    runs: tuple[RunData, ...] = ()
    targets: tuple[Target, ...] = ()
    hardware: dict[str, Any] = dataclasses.field(default_factory=dict)
    unit: str = "samples"
    verdict: Verdict = Verdict("broken")
    findings: tuple[Finding, ...] = ()

    @property
    def optimizer(self) -> Used:
        """What its runs trained with, as their folders and logs tell it."""
        results = (run.result.get("optimizer") for run in self.runs)
        replaced = next((str(name) for name in results if name), "")
        programs = (run.config.get("optimizer") for run in self.runs)
        program = next((str(program) for program in programs if program), replaced)
        settings = next((run.settings for run in self.runs if run.settings), {})
        return Used(
            (self.benchmark, self.size),
            replaced or str(settings.get("opt_name") or ""),
            program,
            {k: v for k, v in settings.items() if k.startswith("opt_") and k != "opt_name"},
            str(settings.get("levers") or ""),
        )

    @property
    def label(self) -> str:
        """The benchmark's name with its size, as it may be shown."""
        return (
            self.benchmark + {"official": "", "tiny": " (tiny)", "reduced": " (reduced)"}[self.size]
        )

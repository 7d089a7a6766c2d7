"""The score of a set of runs: minutes to the target, as the official tools would calculate them.

A score is the mean time of a benchmark's runs without the fastest and the slowest. A run that did not
reach the target counts as slowest. A closed result that converged in fewer samples than the reference
is scaled as if it had taken as many (see `rcp.py`).

    score("output/resnet-1a2b3c4d")               one set of runs, ours or anyone's
    scores("submission/")                         every set below a folder
"""

import functools
import math
import os
import pathlib
from collections import Counter
from typing import Literal, get_args

from mlperf_jax.errors import UserError
from mlperf_jax.paths import check_path
from mlperf_jax.results import compliance, durable, logset, rcp, rules, sane, scored
from mlperf_jax.results.compliance import Finding
from mlperf_jax.results.logset import RunLog
from mlperf_jax.results.scored import Run, Score, Scores
from mlperf_jax.results.system import file_of, find_system, most_frequent, own_runs

Scaling = Literal["auto", "rcp", "file", "none"]

# The round of which no official tool reads the logs, so that there is no score that could be official.
_UNSCORED = "0.5.0"


def scores(
    root: os.PathLike | str,
    ruleset: str | None = None,
    *,
    scaling: Scaling = "auto",
    official: bool = False,
    bert_train_samples: bool = False,
) -> Scores:
    """The scores of all sets of runs in a folder and below it.

    Args:
        root: a set's folder, a folder of them, an organisation's submission, a whole round's tree.
        ruleset, scaling, official, bert_train_samples: see `score`.

    Raises:
        UserError: no such folder or ruleset, or no log in it.
    """
    each = functools.partial(
        score,
        ruleset=ruleset,
        scaling=scaling,
        official=official,
        bert_train_samples=bert_train_samples,
    )
    root = check_path(root, "the folder")
    return Scores(root, tuple(map(each, logset.folders(root))))


def score(
    folder: os.PathLike | str,
    ruleset: str | None = None,
    *,
    scaling: Scaling = "auto",
    official: bool = False,
    bert_train_samples: bool = False,
    settings: bool = False,
) -> Score:
    """The score of the runs whose logs lie in one folder.

    Args:
        folder: with `result_*.txt`: our output, or `results/<system>/<benchmark>` of a submission.
        ruleset: the round whose rules apply. By default what our runs say, then what the name of a
            round's repository above the folder says, then the benchmark's last round (with a warning).
        scaling: what the time is multiplied by: "rcp" what the comparison with the reference gives,
            "file" what the folder's `scaling.json` says, as in the official summary, "none" nothing.
            "auto" is "file" for a submission and wherever there is such a file, else "rcp". What the
            reference gives instead is the score's `reference_minutes`.
        official: also run the official compliance checker on every log; one that fails counts as not
            converged, as in the official summary. Without it only the flaws we look for ourselves do
            (status, target, time of initialisation, unreadable lines), which is faster.
        bert_train_samples: take bert's samples to the target from `train_samples`, as some submitters
            log them, instead of from the evaluation.
        settings: keep in the runs' logs what else they were set up with.

    Raises:
        UserError: there is no log in the folder, or no such ruleset or scaling.
    """
    folder = pathlib.Path(folder)
    if scaling not in get_args(Scaling):
        raise UserError(f"scaling is {scaling!r}; give 'auto', 'rcp', 'file' or 'none'")
    if ruleset is not None:
        rules.in_round(ruleset)
    paths = logset.logs(folder)
    if not paths:
        raise UserError(f"there is no result_*.txt in {folder}; give the output folder of a set")
    logs = [logset.read(path, settings=settings) for path in paths]
    return _Set(folder, logs, ruleset, bert_train_samples).score(scaling, official)


class _Set:
    """The logs of a folder while they are judged; each method adds to `findings`."""

    def __init__(
        self,
        folder: pathlib.Path,
        logs: list[RunLog],
        ruleset: str | None,
        bert_train_samples: bool,
    ):
        self.folder = folder
        self.logs = logs
        self.findings = [finding for log in logs for finding in log.findings]
        self.own = own_runs(folder, [log.path for log in logs])
        self.system = find_system(folder, logs, self.own, self.find)
        self.submitted = file_of(folder) is not None and not self.own
        self.bert_train_samples = bert_train_samples
        self.name = most_frequent(log.benchmark for log in logs)
        self.outside = False  # of a benchmark of the user's own, which no rule binds
        self.round = self._round(ruleset)
        self.ruleset = self.round.ruleset if self.round else ""
        self.findings += sane.findings(logs, self.round)
        self.tiny = any(run.tiny for run in self.own.values())
        said = most_frequent(log.division for log in logs)
        unsaid = "" if self.ruleset == _UNSCORED else "open"
        self.division = self.system.division or said or unsaid
        if said and self.division != said:
            self.find(
                "submission_division",
                f"is {said!r}, the system's file says {self.division!r}.",
                True,
            )

    def find(self, key: str, expected: str, warning: bool = False, advice: str = "") -> None:
        """Adds a finding about the whole set."""
        self.findings.append(Finding(str(self.folder), key, expected, advice, warning=warning))

    def _round(self, given: str | None) -> rules.Round | None:
        """The rules to apply; None where no round had the benchmark."""
        if not self.name:
            self.find("submission_benchmark", "is in no log: which benchmark is this?")
            return None
        known = rules.by_log_name(self.name)
        if not known:
            self.outside = len(self.own) == len(self.logs) and all(
                run.outside for run in self.own.values()
            )
            says = f"is {self.name!r}, which no round had: there are no official rules"
            said = ", so this is the plain mean." if self.outside else "."
            self.find("submission_benchmark", says + said, self.outside)
            return None
        own = sorted({run.ruleset for run in self.own.values() if run.ruleset})
        if len(own) > 1:
            self.find("", f"holds runs of different rulesets, {' and '.join(own)}; a set has one.")
        newest = [log.newest for log in self.logs if log.benchmark == self.name]
        if any(newest) and not all(newest):
            self.find(
                "",
                f"holds logs of different rulesets: {sum(newest)} of {len(newest)} have the keys that "
                "only v6.1 wants.",
            )
        above = rules.round_above(self.folder)
        form = most_frequent(log.round for log in self.logs)
        wanted = given or (own[0] if own else "") or above or form
        if wanted:
            found = rules.by_log_name(self.name, wanted)
            if found:
                return found[0]
            self.find(
                "submission_benchmark",
                f"is {self.name!r}, which was not in round {wanted} as such.",
            )
        if not wanted:
            self.find(
                "",
                f"does not say of which round it is; the rules of {known[-1].ruleset} were applied.",
                True,
                "Give the ruleset if that is not it.",
            )
        return known[-1]

    # ---- the runs

    def score(self, scaling: Scaling, official: bool) -> Score:
        runs = tuple(self._run(log, official) for log in self.logs)
        same = [run for run in runs if run.same]
        known = self.round
        drop, required = (known.drop, known.runs) if known else (0 if self.outside else 1, 0)
        weak = self.folder.parent.name == "weak" and known is not None and known.suite == "hpc"
        self._count(same, required, drop, weak)
        self._seeds(same)
        self._optimizers(same)
        batch_size = self._batch_size(same)
        verdict, note = self._verdict(same, batch_size, drop, weak)
        raw = (
            _weak_minutes(same, required)
            if weak
            else scored.olympic_mean([run.minutes if run.counted else None for run in same], drop)
        )
        if self.ruleset == _UNSCORED:
            raw, note = None, "there is no official score of logs of v0.5"
        factor, source = self._factor(scaling, verdict)
        return Score(
            folder=self.folder,
            benchmark=known.benchmark if known else self.name,
            ruleset=self.ruleset,
            suite=known.suite if known else "training",
            division=self.division,
            tiny=self.tiny,
            system=self.system,
            runs=runs,
            required=required,
            drop=drop,
            unit=known.length_unit if known else "samples",
            batch_size=batch_size,
            raw_minutes=raw,
            models=sum(run.counted for run in same) if weak else None,
            factor=factor,
            factor_source=source,
            submitted=self.submitted,
            verdict=verdict,
            rcp_note=note,
            findings=tuple(self.findings),
        )

    def _run(self, log: RunLog, official: bool) -> Run:
        minutes = None if log.seconds is None else log.seconds / 60
        if log.benchmark and log.benchmark != self.name:
            says = f"it is of {log.benchmark!r}, the set of {self.name!r}"
            self.find("submission_benchmark", f"{log.path.name} is left out: {says}.")
            return Run(log=log, minutes=minutes, flaw=says, same=False)
        length = self._length(log) if log.status == "success" else None
        flaw = scored.flaw(log, self.round, self.division) or (
            self._official_flaw(log) if official and self.round else ""
        )
        if flaw:
            self.find("", f"{log.path.name} counts as not converged: {flaw}.", True)
        return Run(
            log=log,
            minutes=minutes,
            length=length,
            samples=self._samples(length, log),
            quality=scored.quality(log, self.round),
            flaw=flaw,
        )

    def _length(self, log: RunLog) -> float | None:
        """What the official checker takes for the length of a run that ended with success."""
        before = log.evaluations[: log.ended_after]
        if self.round is None:
            return before[-1].counts.get("samples_count") if before and self.outside else None
        if self.bert_train_samples and self.round.benchmark == "bert":
            return log.train_samples
        field = self.round.length_field
        if self.round.benchmark == "stable_diffusion":  # evaluated afterwards, in any order
            length = scored.first_passing(before, field, self.round.targets)
        else:
            length = before[-1].counts.get(field) if before else None
            length = length if length is None or field != "epoch_num" else round(length, 3)
        if length is None:
            self.find(
                field,
                f"is not in the last evaluation of {log.path.name}, so its way to the target is unknown.",
            )
        return length

    def _samples(self, length: float | None, log: RunLog) -> float | None:
        if length is None or self.round is None:
            return length
        scales = {"epochs": log.train_samples, "steps": log.batch_size}
        scale = scales.get(self.round.length_unit, 1)
        return None if scale is None else length * scale

    def _official_flaw(self, log: RunLog) -> str:
        try:
            report = compliance.check(log.path, self.ruleset)
        except UserError as error:
            return f"the official compliance checker cannot be run on it ({error})"
        wrong = [found for found in report.findings if found.official and not found.warning]
        if not wrong:
            return ""
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return (
            f"the official compliance checker rejects it: {wrong[0].key} {wrong[0].expected}{more}"
        )

    # ---- the set

    def _count(self, same: list[Run], required: int, drop: int, weak: bool) -> None:
        if required and (len(same) < required if weak else len(same) != required):
            few = len(same) < required
            self.find(
                "",
                f"holds {len(same)} of the {required} runs that make a score."
                if few
                else f"holds {len(same)} runs; a score is made of {required}, and not of the best.",
                self.tiny,
                "Run the missing ones with the same output folder."
                if few
                else "Of more runs than needed, those in the order of launch count that give the median.",
            )
        failed = sum(not run.counted for run in same)
        if failed > drop and not weak:
            self.find("", f"{failed} of {len(same)} runs did not converge; {drop} may.")

    def _seeds(self, same: list[Run]) -> None:
        """As the official seed checker: a line of code must not log the same seed in two runs.

        Before v1.0 nobody asked for it.
        """
        early = self.ruleset in ("0.5.0", "0.6.0", "0.7.0")
        closed = self.division == "closed" and not early
        without = [run.log.path.name for run in same if not run.log.seeds and not run.log.broken]
        if closed and without:
            more = f" and {len(without) - 1} more" if len(without) > 1 else ""
            self.find(
                "seed",
                f"is not in {without[0]}{more}; the official package checker asks for it.",
                True,
            )
        seen: dict[tuple, str] = {}
        for run in same:
            for seed in set(run.log.seeds):
                if seed in seen:
                    self.find(
                        "seed",
                        f"{seed[2]} is in {seen[seed]} and in {run.log.path.name}; every run of a set "
                        "needs its own.",
                        not closed,
                    )
                seen.setdefault(seed, run.log.path.name)

    def _optimizers(self, same: list[Run]) -> None:
        """One optimizer a set; of replaced ones our own logs say what they compute."""
        programs = Counter(" then ".join(run.log.programs) or "the recipe's" for run in same)
        if len(programs) > 1:
            listed = ", ".join(f"{program} in {n} logs" for program, n in programs.items())
            self.find("opt_name", f"stands for different optimizers ({listed}).")

    def _batch_size(self, same: list[Run]) -> int | None:
        sizes = Counter(run.log.batch_size for run in same if run.log.batch_size is not None)
        without = [run.log.path.name for run in same if run.log.batch_size is None]
        if len(sizes) > 1:
            listed = ", ".join(f"{size} in {n} logs" for size, n in sizes.items())
            self.find("global_batch_size", f"differs between the runs of the set ({listed}).")
        if without:
            needed = self.division == "closed" and self._has_reference()
            more = f" and {len(without) - 1} more" if len(without) > 1 else ""
            where = f"not in {without[0]}{more}" if sizes else "in no log"
            self.find("global_batch_size", f"is {where}.", not needed)
        return next(iter(sizes)) if len(sizes) == 1 and not without else None

    def _has_reference(self) -> bool:
        try:
            return self.round is not None and bool(
                rcp.points_of(self.round.benchmark, self.ruleset)
            )
        except UserError:
            return False

    def _verdict(
        self, same: list[Run], batch_size: int | None, drop: int, weak: bool
    ) -> tuple[rcp.Verdict | None, str]:
        if self.tiny:
            return None, "a tiny set is not compared with the reference"
        if self.division != "closed":
            return None, "only closed results are compared with the reference"
        if weak:
            return None, "weak scaling is not compared with the reference here"
        if self.round is None or batch_size is None:
            return (
                None,
                "without benchmark and batch size there is no comparison with the reference",
            )
        if len(same) <= 2 * drop:
            return None, "there are too few runs for a comparison with the reference"
        try:
            lengths = [run.length for run in same]
            verdict = rcp.judge(self.round.benchmark, batch_size, lengths, self.ruleset)
            if not verdict.passed and self.round.benchmark == "bert":
                self._elsewhere(same, batch_size)
            return verdict, ""
        except UserError as error:
            return None, str(error)

    def _elsewhere(self, same: list[Run], batch_size: int) -> None:
        """Says so where bert's samples to the target look as if they were in `train_samples`."""
        lengths = [run.log.train_samples if run.counted else None for run in same]
        other = rcp.judge("bert", batch_size, lengths, self.ruleset)
        known = other.reference
        # where they are the data set's, as they should, they are dozens of times as many
        if other.passed and known and other.mean is not None and other.mean < 3 * known.mean:
            self.find(
                "train_samples",
                "seems to hold the samples to the target, as with some submitters.",
                True,
                "Take them from there: --bert-train-samples (bert_train_samples=True in Python).",
            )

    def _factor(self, scaling: Scaling, verdict: rcp.Verdict | None) -> tuple[float, str]:
        own = 1.0 if verdict is None else verdict.scaling_factor
        path = self.folder / "scaling.json"
        if scaling == "auto":
            scaling = "file" if self.submitted or path.exists() else "rcp"
        filed = None
        if path.exists():
            try:
                filed = float(durable.read_json(path)["scaling_factor"])
                if not 0 < filed < math.inf:
                    raise ValueError(f"{filed} is not a factor")
            except (UserError, ValueError, TypeError, KeyError) as error:
                self.find("", f"scaling.json cannot be used ({error}).", scaling != "file")
                filed = None
        applied = {"none": 1.0, "file": filed or 1.0, "rcp": own}[scaling]
        if filed is not None and verdict is not None and not math.isclose(filed, own, rel_tol=1e-6):
            which = {"file": "the file's", "rcp": "the latter"}.get(scaling, "neither")
            self.find(
                "",
                f"scaling.json says {filed:.6g}, the comparison with the reference gives {own:.6g}; "
                f"{which} was applied.",
                True,
            )
        if scaling == "file":
            return applied, "" if filed is None else "scaling.json"
        return applied, "reference" if applied != 1 else ""


# ---- the mean


def _weak_minutes(same: list[Run], required: int) -> float | None:
    """From the first model's start to the last one's stop, of those that converged."""
    logs = [run.log for run in same if run.counted]
    if len(logs) < required:
        return None
    start = min(log.start_ms for log in logs if log.start_ms is not None)
    stop = max(log.stop_ms for log in logs if log.stop_ms is not None)
    return (stop - start) / 60_000

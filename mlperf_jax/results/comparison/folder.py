"""The folder of a comparison: what is to be compared, and which of its runs are done.

`core/comparison/compare.py` draws the folder.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
import shutil
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.paths import MARK
from mlperf_jax.results import durable
from mlperf_jax.results.result import config_hash
from mlperf_jax.results.rules import Target
from mlperf_jax.results.runs import RunFolder, RunSet, config_changes

NAME = "comparison.json"
TUNING, CRASHED = "tuning", "crashed"  # folders beside those of the entries


@dataclass(frozen=True)
class Plan:
    """What is compared, as `comparison.json` keeps it.

    Attributes:
        benchmark: its name.
        tiny: whether it is the small stand-in.
        config: its fields, resolved, and `evaluate_every`.
        budget: samples that each run may see.
        seeds: of the runs of each entry.
        tuning_seed: of the runs that try settings; None where nothing is tuned.
        entries: by label: `optimizer`, `folder`, `space` in words, and `trials`, each a `setting` and the
            `optimizer` with it; one without a setting where nothing is tuned.
    """

    benchmark: str
    tiny: bool
    config: Mapping[str, Any]
    budget: int
    seeds: tuple[int, ...]
    tuning_seed: int | None
    entries: Mapping[str, Mapping[str, Any]]

    @property
    def labels(self) -> tuple[str, ...]:
        """The entries in their order, of which the first is what the others are compared with."""
        return tuple(self.entries)

    @property
    def name(self) -> str:
        """The default name of the folder."""
        size = "-tiny" if self.tiny else ""
        return f"compare-{self.benchmark}{size}-{config_hash(dataclasses.asdict(self))}"

    def folder(self, label: str) -> str:
        """The name of an entry's folder."""
        return self.entries[label]["folder"]


@dataclass(frozen=True)
class Task:
    """One run of a comparison.

    Attributes:
        label: the entry's.
        seed: the run's.
        setting: of the entry's optimizer.
        trial: which of the settings that are tried; None of a run that is compared.
    """

    label: str
    seed: int
    setting: Mapping[str, float]
    trial: int | None = None

    @property
    def name(self) -> str:
        """What it is called while it goes on."""
        if self.trial is None:
            return f"{self.label}, seed {self.seed}"
        said = ", ".join(f"{name} {value:g}" for name, value in self.setting.items())
        return f"{self.label}, trial {self.trial + 1} ({said})"


class Files:
    """The files of one comparison.

    Args:
        root: its folder.
    """

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root

    @property
    def path(self) -> pathlib.Path:
        """The file that says what is compared."""
        return self.root / NAME

    def check(self, plan: Plan, *, resume: bool) -> None:
        """Nothing, if the comparison may begin or go on here.

        Raises:
            UserError: it holds something else, another comparison, or this one, which nobody asked to go on with; or it
                holds none to go on with.
        """
        if not self.path.exists():
            if resume:
                raise UserError(
                    f"{self.root} holds no comparison to go on with: leave --resume out to begin one"
                )
            if self.root.is_dir() and any(self.root.iterdir()):
                raise UserError(
                    f"{self.root} holds something else than a comparison: give another --output"
                )
            return
        changes = config_changes(*map(_told_apart, (self.plan, plan)))
        if not changes and durable.plain(self.plan.entries) != durable.plain(plan.entries):
            changes = ["an entry is another"]
        if changes:
            raise UserError(
                f"{self.root} holds another comparison ({changes[0]}): give another --output, or ask for the same"
            )
        if not resume:
            raise UserError(
                f"{self.root} holds this comparison already: add --resume to train what it lacks, or give another "
                "--output"
            )

    def begin(self, plan: Plan) -> None:
        """Makes the folder, if it is not there.

        Raises:
            UserError: it cannot be written.
        """
        if self.path.exists():
            for label in plan.labels:
                _sweep(self.root / plan.folder(label))
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise durable.cannot_write(self.root, error) from error
        durable.write_json(self.path, {"made by": MARK, **dataclasses.asdict(plan)})

    @functools.cached_property
    def plan(self) -> Plan:
        """What is compared.

        Raises:
            UserError: the file is missing, damaged or not of a comparison.
        """
        document = durable.read_json(self.path)
        names = [each.name for each in dataclasses.fields(Plan)]
        if not isinstance(document, dict) or any(name not in document for name in names):
            raise UserError(
                f"{self.path} does not say what is compared: restore it, or give the folder of a comparison"
            )
        found = {name: document[name] for name in names}
        return Plan(**{**found, "seeds": tuple(found["seeds"])})

    def set_of(self, task: Task) -> pathlib.Path:
        """The folder of the set that a run belongs to."""
        folder = self.plan.folder(task.label)
        if task.trial is None:
            return self.root / folder
        return self.root / TUNING / folder / f"trial_{task.trial}"

    def _crash(self, task: Task) -> pathlib.Path:
        folder = self.plan.folder(task.label)
        what = f"seed_{task.seed}" if task.trial is None else f"trial_{task.trial}"
        return self.root / CRASHED / folder / what

    def run_of(self, task: Task) -> RunFolder | None:
        """The run, if it has begun."""
        runs = RunSet(self.set_of(task)).runs()
        return next((run for run in runs if run.seed == task.seed), None)

    def trained(self, task: Task) -> RunFolder | None:
        """The run, if it is trained and waits for its score."""
        run = self.run_of(task)
        return run if run and run.trained_path.exists() and not run.finished else None

    def error_of(self, task: Task) -> str | None:
        """The sentence of the error that ended a run, if one did."""
        path = self._crash(task) / "error.json"
        return str(durable.read_json(path)["error"]) if path.exists() else None

    def done(self, task: Task) -> bool:
        """Whether a run has ended, by an error or otherwise."""
        run = self.run_of(task)
        return bool(run and run.finished) or self.error_of(task) is not None

    def crashed(self, task: Task, error: Exception) -> str:
        """Puts a run that an error ended aside, with the error, and says so in a line."""
        place, run = self._crash(task), self.run_of(task)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        said = lines[0] if isinstance(error, UserError) else f"{type(error).__name__}: {lines[0]}"
        try:
            shutil.rmtree(place, ignore_errors=True)  # of one that was killed between these lines
            place.mkdir(parents=True)
            if run is not None:
                os.rename(run.path, place / "run_0")
                if run.log_path.exists():
                    os.rename(run.log_path, place / "result_0.txt")
        except OSError as problem:
            raise durable.cannot_write(place, problem) from problem
        told = "".join(traceback.format_exception(error))
        durable.write_json(place / "error.json", {"error": said, "traceback": told})
        return f"crashed: {said}"

    # -- which runs there are ------------------------------------------------------------------

    def trials(self, label: str | None = None) -> list[Task]:
        """The runs that try settings: the first trial of each entry, then the second; all, or those of one entry."""
        plan, seed = self.plan, self.plan.tuning_seed
        if seed is None:
            return []
        given = {
            each: plan.entries[each]["trials"] for each in plan.labels if label in (None, each)
        }
        return [
            Task(each, seed, found[number]["setting"], number)
            for number in range(max(map(len, given.values())))
            for each, found in given.items()
        ]

    def runs(self) -> list[Task]:
        """The runs that are compared, seed by seed; without those of an entry all of whose trials crashed."""
        found = {label: self.chosen(label) for label in self.plan.labels}
        return [
            Task(label, seed, one["setting"])
            for seed in self.plan.seeds
            for label, one in found.items()
            if one is not None
        ]

    # -- tuning --------------------------------------------------------------------------------

    def chosen(self, label: str) -> Mapping[str, Any] | None:
        """The `setting` that an entry competes with, and its `optimizer`; None where all trials crashed.

        The best is the one that met the targets after the fewest samples; where none did, the one whose last quality
        is nearest to them. Of equal ones it is the first.
        """
        given = self.plan.entries[label]["trials"]
        if self.plan.tuning_seed is None:
            return given[0]
        rank, best = min((_rank(self, task), task.trial) for task in self.trials(label))
        return None if math.isinf(rank[1]) else given[best]


def _told_apart(plan: Plan) -> dict[str, Any]:
    """What tells comparisons apart: the configuration, and of each entry what it trains with and what is searched."""
    found = durable.plain(dataclasses.asdict(plan))
    entries = {
        f"the entry {label}": "; ".join(
            filter(None, [*(trial["optimizer"] for trial in entry["trials"]), entry["space"]])
        )
        for label, entry in found.pop("entries").items()
    }
    return {**found.pop("config"), **found, **entries}


def _sweep(folder: pathlib.Path) -> None:
    """Removes the folders of runs that were killed before they had a seed: they hold nothing but a lock."""
    for run in RunSet(folder).runs():
        if run.path.is_dir() and run.seed is None and not run.log_path.exists():
            held = {path.name for path in run.path.iterdir()} - {"lock", ".config.json.tmp"}
            if not held:
                with run.acquire():
                    shutil.rmtree(run.path)


def _rank(files: Files, task: Task) -> tuple[float, float]:
    """(samples to the targets, how far the last quality is from them), the smaller the better."""
    run = files.run_of(task)
    if run is None or not run.finished:
        return math.inf, math.inf
    result = run.result()
    if result.reached:
        return result.samples, 0.0
    targets = [Target(**target) for target in files.plan.config["targets"]]
    missing = [_missing(target, result.quality) for target in targets]
    return math.inf, max(missing, default=0.0)


def _missing(target: Target, quality: Mapping[str, float]) -> float:
    """How far a quality is from its bound, in units of the bound; a huge number where there is none."""
    value = quality.get(target.name)
    if value is None or not math.isfinite(value):
        return 1e300
    gaps = [
        (bound - value) * sign / (abs(bound) or 1)
        for bound, sign in ((target.at_least, 1), (target.above, 1), (target.at_most, -1))
        if bound is not None
    ]
    return max([0.0, *gaps])

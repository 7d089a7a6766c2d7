"""What a comparison found, read from its folder."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterable

from mlperf_jax.errors import UserError
from mlperf_jax.paths import check_path
from mlperf_jax.results.comparison.folder import NAME, Files, Task
from mlperf_jax.results.comparison.model import Comparison, Entrant, Outcome, Tuning
from mlperf_jax.results.rules import Target
from mlperf_jax.results.story import Story


def find(paths: Iterable[os.PathLike | str]) -> list[Comparison]:
    """The comparisons at some folders and right below them, in the order of their names."""
    found: dict[pathlib.Path, Comparison] = {}
    for path in map(pathlib.Path, paths):
        below = sorted(path.iterdir()) if path.is_dir() else []
        for folder in (path, *below):
            if (folder / NAME).is_file() and folder.resolve() not in found:
                found[folder.resolve()] = read(folder)
    return list(found.values())


def read(folder: os.PathLike | str) -> Comparison:
    """What a comparison found so far.

    Raises:
        UserError: the folder holds none, or its files are damaged.
    """
    root = check_path(folder, "the folder of a comparison").expanduser()
    files = Files(root)
    if not files.path.exists():
        raise UserError(f"{root} holds no comparison: give the folder that `compare` wrote")
    plan = files.plan
    devices: list[str] = []
    entrants = tuple(_entrant(files, label, devices) for label in plan.labels)
    return Comparison(
        benchmark=plan.benchmark,
        tiny=plan.tiny,
        targets=tuple(Target(**target) for target in plan.config["targets"]),
        budget=plan.budget,
        seeds=plan.seeds,
        entrants=entrants,
        folder=str(root),
        device=" and ".join(dict.fromkeys(devices)),
    )


def _entrant(files: Files, label: str, devices: list[str]) -> Entrant:
    plan, tuning = files.plan, None
    given, chosen, tried = plan.entries[label], files.chosen(label), files.trials(label)
    if tried:
        seen = [
            run.result().samples for task in tried if (run := files.run_of(task)) and run.finished
        ]
        tuning = Tuning(given["space"], len(tried), sum(seen), chosen["setting"] if chosen else {})
    if chosen is None:
        reasons = [files.error_of(task) for task in tried]
        reason = next((one for one in reasons if one), "no trial was made")
        lost = tuple(
            Outcome(seed, "crashed", f"every trial crashed: {reason}") for seed in plan.seeds
        )
        return Entrant(label, given["optimizer"], lost if all(reasons) else (), tuning)
    tasks = [Task(label, seed, chosen["setting"]) for seed in plan.seeds]
    outcomes = [_outcome(files, task, devices) for task in tasks]
    return Entrant(
        label, chosen["optimizer"], tuple(each for each in outcomes if each is not None), tuning
    )


def _outcome(files: Files, task: Task, devices: list[str]) -> Outcome | None:
    """How a run ended; None where it did not yet."""
    if (said := files.error_of(task)) is not None:
        return Outcome(task.seed, "crashed", said)
    run = files.run_of(task)
    if run is None or not run.finished:
        return None
    result = run.result()
    devices.append(f"{result.device_count} x {result.device}")
    curves = {}
    with contextlib.suppress(UserError):  # a damaged curve is no reason to tell nothing of the run
        curves = {name: tuple(points) for name, points in Story.read(run).points.items()}
    if result.reached:
        return Outcome(
            task.seed,
            "reached",
            "",
            result.samples,
            result.steps,
            result.seconds,
            result.samples,
            curves,
        )
    seen, batch = result.samples, int(files.plan.config.get("batch_size", 1))
    if seen + batch > files.plan.budget:
        return Outcome(task.seed, "limit", "", seen=seen, curves=curves)
    return Outcome(task.seed, "stopped", "gave up before its last sample", seen=seen, curves=curves)

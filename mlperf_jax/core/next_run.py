"""Which run of a set is next: one to take up, or one to begin with the seed that is its turn."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from mlperf_jax.core.options import RunOptions
from mlperf_jax.core.preflight import PlannedRun
from mlperf_jax.errors import UserError
from mlperf_jax.results.runs import RunFolder, RunSet


@dataclass(frozen=True)
class NextRun:
    """What a launch trains next.

    Attributes:
        folder: the run to take up; None: one to begin.
        seed: for a run that has none yet; None: any.
        left: how many follow it.
    """

    folder: RunFolder | None
    seed: int | None
    left: int


Choose = Callable[[RunSet], NextRun]


def take_folder(
    plan: PlannedRun, root: pathlib.Path, choose: Choose
) -> tuple[RunFolder, int, list[str]]:
    """The folder of the run that is chosen, taken up or made, how many follow it, and notes for the display.

    Raises:
        UserError: as `RunSet.create` and `RunSet.resume`, and what the choice raises.
    """
    runs, notes = RunSet(root), []
    chosen = choose(runs)
    entropy = random.SystemRandom()  # the system's, as the closed rules ask
    seed = entropy.randrange(2**32) if chosen.seed is None else chosen.seed
    config, about = plan.config(), plan.about(seed)
    if chosen.folder is not None:
        return runs.resume(config, about, chosen.folder) or chosen.folder, chosen.left, notes
    if (begun := runs.untrained()) and not plan.options.resume:
        notes.append(f"note: {begun[0].path} is unfinished, and --resume would take it up")
    made = runs.create(config, about)
    if made.index and not plan.options.resume:
        notes.append(f"note: {made.path} is run {made.index + 1} of this set")
    return made, chosen.left, notes


def seed_of(folder: RunFolder, options: RunOptions) -> int:
    """The seed that a run has.

    Raises:
        UserError: the options name another.
    """
    seed = folder.config()["options"]["seed"]
    if options.seed not in (None, seed):
        raise UserError(
            f"{folder.path} has seed {seed}, not {options.seed}: leave --seed out to resume it"
        )
    return seed


def next_run(runs: RunSet, options: RunOptions) -> NextRun:
    """The next run of a set; options that resume do what it lacks, others begin it.

    Raises:
        UserError: there is nothing to resume, or the set would grow past what the options say.
    """
    if not options.resume:
        _check_new(runs, options)
        first = options.seeds[0] if options.seeds else options.seed
        return NextRun(None, first, options.runs - 1)
    _check_named(runs, options)
    missing, begun = _missing(runs, options), runs.untrained() or _extensible(runs, options)
    if begun:
        # one that was killed before it had a seed takes one of those missing
        unnamed = sum(run.seed is None for run in begun) if options.seeds else 0
        left = len(begun) - 1 + len(missing[unnamed:])
        return NextRun(begun[0], missing[0] if missing else options.seed, left * (options.runs > 1))
    if missing:
        return NextRun(None, missing[0], len(missing) - 1)
    if (trained := runs.unfinished()) is not None:
        return NextRun(trained, None, 0)  # which waits for its score, and says so
    limits = [limit for _, limit in _limited(runs)]
    more = f", or give more than --max-samples {limits[0]} or none" if limits else ""
    raise UserError(f"{runs.path} holds no unfinished run: leave --resume out to begin one{more}")


def _limited(runs: RunSet) -> list[tuple[RunFolder, int]]:
    """The finished runs that missed their target under a limit on samples, each with it."""
    found = []
    for run in runs.runs():
        given = run.config()["options"] if run.finished and run.config_path.exists() else {}
        limit = given.get("max_samples")
        if limit is not None and not run.result().reached:
            found.append((run, limit))
    return found


def _extensible(runs: RunSet, options: RunOptions) -> list[RunFolder]:
    """Those of them that these options allow more samples."""
    most = options.max_samples
    return [run for run, limit in _limited(runs) if most is None or limit < most]


def _missing(runs: RunSet, options: RunOptions) -> list[int | None]:
    """The seeds of the runs that the set lacks, None for any."""
    found = runs.runs()
    if options.seeds:
        have = {run.seed for run in found}
        return [seed for seed in options.seeds if seed not in have]
    return [None] * (options.runs - len(found)) if options.runs > 1 else []


def _check_new(runs: RunSet, options: RunOptions) -> None:
    there = len(runs.runs())
    if there and options.runs > 1:
        raise UserError(
            f"{runs.path} holds {there} runs, and {options.runs} more would make a set of "
            f"{there + options.runs}: add --resume to train what it lacks of {options.runs}, or give another "
            "output folder"
        )


def _check_named(runs: RunSet, options: RunOptions) -> None:
    """Every run of the set has one of the seeds, where seeds are given."""
    seeds = options.seeds or ()
    for run in runs.runs() if seeds else ():
        if run.seed is not None and run.seed not in seeds:
            raise UserError(
                f"{run.path} has seed {run.seed}, which --seeds leaves out: name it too, or give another "
                "output folder"
            )

"""Scoring a run after it ended: the *offline* mode of evaluation (Stable Diffusion, Mini Go).

The run left sealed, time-stamped checkpoints. The first that meets the targets ends the log, with `run_stop`
stamped with that checkpoint's own time, as rules.md §2.2 has it. Of one run of a set the rules want all
checkpoints up to that one scored, of the others it and the one before; the official checker of a benchmark
with several metrics wants two. Scores are kept as they come; the log is written when all are known, in the
order of the checkpoints.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from typing import Any

from mlperf_jax.core import evaluation, launch, preflight, processes
from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.core.next_run import NextRun, next_run
from mlperf_jax.core.options import RunOptions
from mlperf_jax.core.run import Run
from mlperf_jax.core.standing import Ended, Standing
from mlperf_jax.core.state import State
from mlperf_jax.core.trained import options_here, with_untrained
from mlperf_jax.errors import UserError
from mlperf_jax.paths import check_path
from mlperf_jax.results import durable
from mlperf_jax.results.result import Result
from mlperf_jax.results.runs import RunFolder, RunSet

SCORES = "scores.json"  # by step: the quality, and when its scoring began and ended


def waiting(path: os.PathLike | str) -> tuple[dict[str, Any], RunOptions] | None:
    """What the first run of a set that has no result yet was given; None if all have one.

    Args:
        path: the output folder of the set, or the folder of one of its runs.

    Raises:
        UserError: there is no run at all.
    """
    root = check_path(path, "the folder of a run").expanduser()
    root = root.parent if (root / "config.json").exists() else root
    runs = RunSet(root)
    if not any(run.config_path.exists() for run in runs.runs()):
        raise UserError(f"{root} holds no run: give the output folder of a trained one")
    first = runs.unfinished()
    if first is None:
        return None
    document = first.config()
    return document, options_here(document["options"], output=str(root), resume=True)


def score(
    benchmark: Benchmark,
    options: RunOptions,
    data_dir: str,
    transform: str | None = None,
    *,
    bisect: bool = False,
) -> Result | None:
    """Scores the sealed checkpoints of the unfinished, trained run in `options.output`.

    Args:
        benchmark: the run's own configuration.
        options: with `output` the set's folder.
        data_dir: where the evaluation data are.
        transform: what the configuration says of transforms added to the training data; scoring needs none.
        bisect: score only as many as it takes to find one that passes while the one before it does not,
            instead of all up to the first that passes.

    Returns:
        The result; None on processes other than 0.

    Raises:
        UserError: the benchmark is not scored offline, or the run has not finished training.
    """
    if benchmark.metric.mode != "offline":
        raise UserError(f"{benchmark.name} is evaluated during its run; there is nothing to score")
    launch.connect(options)
    launch.use_compile_cache()
    options = dataclasses.replace(options, resume=True, transform=None)
    plan = preflight.preflight(benchmark, options, data_dir)
    processes.check_same(launch.given_to_all(plan))
    return score_run(dataclasses.replace(plan, transform=transform), bisect=bisect)


def score_run(
    plan: preflight.PlannedRun, chosen: RunFolder | None = None, *, bisect: bool = False
) -> Result | None:
    """Scores a trained run, the first that has no result by default, by a plan whose options resume; as `score`."""

    def choose(runs: RunSet) -> NextRun:
        trained = chosen or runs.unfinished()
        return NextRun(trained, None, 0) if trained else next_run(runs, plan.options)

    with Run(plan, choose=choose) as run:
        trained = run.trained
        if trained is None:
            raise UserError(
                f"{run.folder.path} is not trained to its end: resume it with --resume first"
            )
        run.resumed = trained["resumed"]  # scoring is no resumption
        scorer = Scorer(run, trained)
        passing = scorer.bisect() if bisect else scorer.first()
        if passing == 0:
            for index in range(1, scorer.wanted):
                scorer.passes(index)
        processes.from_primary(lambda: run.reopen_log(trained["log_offset"]))
        return _end(scorer, passing)


class Scorer:
    """Scores the sealed checkpoints of a run, each once, whatever kills it in between.

    Attributes:
        trained: what the run noted when its training ended.
        steps: of the checkpoints, in order.
        scores: what is known, by step.
    """

    def __init__(self, run: Run, trained: dict[str, Any]) -> None:
        self.run, self.trained, self.steps = run, trained, run.checkpoints.sealed_steps()
        self._path = run.folder.path / SCORES

        def known() -> dict[str, Any]:
            return durable.read_json(self._path) if self._path.exists() else {}

        found = processes.from_primary(known)
        self.scores: dict[int, dict[str, Any]] = {int(step): found[step] for step in found}
        if self.steps:
            run.standing = Standing.of(run.checkpoints.meta(self.steps[-1]))

    @property
    def wanted(self) -> int:
        """Of how many checkpoints the log tells at least.

        Two where the first passes and an evaluation has several lines, which the official checker pairs.
        """
        known = next(iter(self.scores.values()))
        lines = self.run.benchmark.quality_lines(known["quality"])
        return min(len(self.steps), 2 if len(lines) > 1 else 1)

    def passes(self, index: int) -> bool:
        """Whether a checkpoint meets the targets; it is scored if that is not known."""
        run, step = self.run, self.steps[index]
        if step not in self.scores:
            begun = time.time_ns() // 1_000_000
            quality = self._evaluator.quality(load(run, step), step)
            ended = time.time_ns() // 1_000_000
            self.scores[step] = {"quality": quality, "begun": begun, "ended": ended}
            processes.from_primary(self._keep)
            run.say_quality(step, quality)
        return run.benchmark.meets_targets(self.scores[step]["quality"])

    def _keep(self) -> None:
        durable.write_json(self._path, self.scores)
        self.run.mirror.push()

    def first(self) -> int | None:
        """The first checkpoint that passes, all before it scored too; None if none does."""
        return next((index for index in range(len(self.steps)) if self.passes(index)), None)

    def bisect(self) -> int | None:
        """One that passes, the one before it scored and not passing; None if none passes.

        If quality only improves it is the first. Where the last does not pass, all are scored.
        """
        fails, passes = -1, len(self.steps) - 1
        if not self.steps or not self.passes(passes):
            return self.first()
        while passes - fails > 1:
            middle = (fails + passes) // 2
            fails, passes = (fails, middle) if self.passes(middle) else (middle, passes)
        return passes

    @functools.cached_property
    def _evaluator(self) -> evaluation.Evaluator:
        run = self.run
        given = (run.assembly, run.seed, run.data_dir, run.options.threads)
        return evaluation.Evaluator(*given, keeps_judges=True)


def load(run: Run, step: int) -> State:
    """The state of one checkpoint."""
    found = run.read(step)
    assert found is not None, "what is missing or damaged is told of"
    return with_untrained(run.assembly, found[0], run.seed, run.data_dir)


def _end(scorer: Scorer, passing: int | None) -> Result | None:
    """Logs the scores in the order of the checkpoints, and `run_stop`; returns the result."""
    run, steps, scores, trained = scorer.run, scorer.steps, scorer.scores, scorer.trained
    told = steps if passing is None else steps[: max(passing + 1, scorer.wanted)]
    told = [step for step in told if step in scores]
    for step in told:
        run.log_eval_start(step, scores[step]["begun"])
        run.log_quality(step, scores[step]["quality"], scores[step]["ended"])
    counts = 0 if not told else told[-1] if passing is None else steps[passing]
    run.standing.step = trained["step"]
    run.standing.seconds_training = trained["seconds_training"]
    run.standing.quality = scores[counts]["quality"] if told else {}
    none = Ended("aborted", "no checkpoint of its evaluations meets the targets")
    run.standing.ended = none if passing is None else Ended("success")
    run.log_run_stop(counts, run.checkpoints.meta(counts)["time_ms"] if told else None)
    state = load(run, counts) if told else None
    return run.conclude(state, counts, scored=[step for step in steps if step in scores])

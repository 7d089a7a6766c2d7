"""Scoring a run after it ended: the *offline* mode of evaluation (Stable Diffusion, Mini Go).

The run left sealed, time-stamped checkpoints. They are scored in order; the first that meets the targets
ends the log, with `run_stop` stamped with that checkpoint's own time, as rules.md §2.2 has it.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

from mlperf_jax.core import evaluation, launch, preflight, processes
from mlperf_jax.core import mesh as meshes
from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.core.options import RunOptions
from mlperf_jax.core.run import Run
from mlperf_jax.core.trained import options_here
from mlperf_jax.errors import UserError
from mlperf_jax.results.result import Result
from mlperf_jax.results.runs import RunSet


def waiting(path: os.PathLike | str) -> tuple[dict[str, Any], RunOptions] | None:
    """Configuration and options of the first run of a set that has no result yet; None if all have.

    Args:
        path: the output folder of the set, or the folder of one of its runs.

    Raises:
        UserError: there is no run at all.
    """
    root = pathlib.Path(path).expanduser()
    root = root.parent if (root / "config.json").exists() else root
    runs = RunSet(root)
    if not any(run.config_path.exists() for run in runs.runs()):
        raise UserError(f"{root} holds no run: give the output folder of a trained one")
    first = runs.unfinished()
    if first is None:
        return None
    document = first.config()
    return document["config"], options_here(document["options"], output=str(root), resume=True)


def score(benchmark: Benchmark, options: RunOptions, data_dir: str) -> Result | None:
    """Scores the sealed checkpoints of the unfinished, trained run in `options.output`.

    Args:
        benchmark: the run's own configuration.
        options: with `output` the set's folder.
        data_dir: where the evaluation data are.

    Returns:
        The result; None on processes other than 0.

    Raises:
        UserError: the benchmark is not scored offline, or the run has not finished training.
    """
    if benchmark.metric.mode != "offline":
        raise UserError(f"{benchmark.name} is evaluated during its run; there is nothing to score")
    launch.connect(options)
    launch.use_compile_cache()
    plan = preflight.preflight(benchmark, dataclasses.replace(options, resume=True), data_dir)
    with Run(plan) as run:
        trained = run.trained
        if trained is None:
            raise UserError(
                f"{run.folder.path} is not trained to its end: resume it with --resume first"
            )
        run.resumed = trained["resumed"]  # scoring is no resumption
        processes.from_primary(lambda: run.reopen_log(trained["log_offset"]))
        return _score(run, trained)


def _score(run: Run, trained: dict[str, Any]) -> Result | None:
    benchmark = run.benchmark

    def batches() -> Any:
        rows = meshes.process_rows(run.assembly.mesh, benchmark.eval_rows)
        return run.eval_data().eval_batches(benchmark.eval_rows, rows=rows, threads=run.threads)

    programs = evaluation.compile_predict(run.assembly)
    evaluator = evaluation.Evaluator(run.assembly, batches, run.seed, programs, run.data_dir)
    ending = Ending(seconds_training=trained["seconds_training"], done=trained["step"])
    for number, step in enumerate(run.checkpoints.sealed_steps(), start=1):
        state, meta = run.load(step)
        run.log.start("eval_start", **run.position(step))
        ending.quality = evaluator.quality(state, number)
        run.log_quality(step, ending.quality)
        ending.kept, ending.kept_step, ending.time_ms = state, step, meta["time_ms"]
        if all(target.met(ending.quality) for target in benchmark.targets):
            ending.status = "success"
            break
    return run.finish_scored(ending)


@dataclasses.dataclass
class Ending:
    """What `Run` needs to know of a finished run, in the loop's words."""

    seconds_training: float
    done: int
    quality: dict[str, float] = dataclasses.field(default_factory=dict)
    status: str = "aborted"
    reason: str = "no checkpoint of its evaluations meets the targets"
    kept: Any = None
    kept_step: int = 0
    time_ms: int | None = None

"""Optimizers compared on a benchmark: the call behind `mlperf-jax compare`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlperf_jax.benchmarks import registry
from mlperf_jax.benchmarks.folders import data_folder
from mlperf_jax.core.fields import Count, Several, Whole, check
from mlperf_jax.core.options import RunOptions, Seed
from mlperf_jax.errors import UserError

if TYPE_CHECKING:
    from mlperf_jax.results.comparison.shown import Compared

SEEDS = 6  # by default: the fewest of which an interval of 95 % can be told
# fields of `RunOptions` that are the same for every run of a comparison
OPTIONS = (
    "data_dir",
    "output",
    "mesh",
    "max_samples",
    "evaluate_every",
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
    "threads",
    "workers",
    "transform",
    "tensorboard",
    "resume",
)


def compare(
    name: Any,
    optimizers: Sequence[Any] | Mapping[str, Any],
    *,
    tiny: bool = False,
    seeds: int | Sequence[int] = SEEDS,
    tune: int = 0,
    parallel: bool = False,
    say: Callable[[str], None] = print,
    **settings: Any,
) -> Compared:
    """Trains a benchmark with several optimizers, each with the same seeds, samples and initial weights.

    Nothing is trained twice: with `resume=True` a comparison that was ended, by a kill even, goes on where it stood. A
    run that does not reach the target within its samples is a result, and so is one that an error ends.

    Args:
        name: as `run` takes it.
        optimizers: texts as `--optimizer` takes them, such as "adamw:3e-3" or "mine.py:make"; functions of the
            `ParamTree`; or these, objects of optax and `Tunable` by label. "recipe" is the benchmark's own. The others
            are told relative to the first. Levers stand behind a plus, "sgd:0.5+ema_decay=0.99", or as second of a pair.
        tiny: the small stand-in.
        seeds: how many, from 1 on, or which.
        tune: how many settings are tried of each entry, the recipe included, before its best is compared: those of a
            quasi-random sequence over the ranges that it states ("adamw:1e-4..1e-1,b1=0.8..0.99"), else over a decade to
            either side of its learning rate; all with one seed that is none of `seeds`. What it costs is told.
        parallel: a run on each device at a time, instead of one after the other on all of them.
        say: takes a line about each run that has ended.
        **settings: fields of the benchmark, and of `RunOptions`: data_dir, output, mesh, max_samples (what each run may
            see), evaluate_every (steps; the curve of a run is that of a run alone at shared steps), resume, …

    Returns:
        What a notebook shows and `print` writes: tables with paired intervals, curves; `save` writes files.

    Raises:
        UserError: an entry cannot be trained, differs in more than its optimizer, or has nothing to search; the folder
            holds another comparison; or for anything that `run` refuses.

    Example:
        compare("resnet", ["sgd:0.5", "recipe", "muon:0.02"], tiny=True, evaluate_every=11)
        compare("bert", {"mine": optax.adan(1e-2), "lamb": "recipe"}, tiny=True, output="runs/adan")
    """
    from mlperf_jax.core import launch
    from mlperf_jax.core.comparison import compare as comparing, entries
    from mlperf_jax.results.comparison.shown import Compared

    options, fields = registry.divided("compare", name, settings, OPTIONS)
    if options.output and "://" in options.output:
        raise UserError(f"--output {options.output}: a comparison is written into a local folder")
    tune, chosen = check("tune", tune, Whole), _seeds(seeds)
    benchmark = registry.get(name, tiny=tiny, **fields)
    if isinstance(optimizers, str):
        optimizers = optimizers.split()
    found = entries.entries_of(benchmark, optimizers, tuned=tune > 0)
    launch.connect(options)
    comparison = comparing.compare(
        benchmark,
        found,
        options,
        lambda: data_folder(benchmark, options),
        seeds=chosen,
        tune=tune,
        parallel=check("parallel", parallel, bool),
        say=say,
    )
    return Compared(comparison)


def compared(*folders: str | os.PathLike) -> Compared:
    """Comparisons that were made, each on another benchmark, finished or not; of several there are profiles too.

    Args:
        *folders: what `compare` wrote into, or a folder right above such.

    Raises:
        UserError: there is none, or its files are damaged.

    Example:
        compared("runs/resnet", "runs/bert").save("table.tex")
    """
    from mlperf_jax.results.comparison import reading
    from mlperf_jax.results.comparison.shown import Compared

    for folder in folders:
        if not reading.find([folder]):
            raise UserError(f"{folder} holds no comparison: give the folder that `compare` wrote")
    return Compared(*reading.find(folders))


def _seeds(given: Any) -> tuple[int, ...]:
    """So many seeds from 1 on, or those that are given, each once."""
    if isinstance(given, int):
        return tuple(range(1, check("seeds", given, Count) + 1))
    seeds = check("seeds", given, Several[Seed])
    RunOptions(seeds=seeds)  # refuses one that is there twice
    return seeds

"""What a run asks of its benchmark: what its log says, and, before it has a folder, whether something is missing."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from mlperf_jax.core import mesh as meshes
from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.core.optimizer_name import NamedOptimizer
from mlperf_jax.errors import UserError
from mlperf_jax.results import keys

EVALUATIONS = 8  # steps of `eval_steps` that are looked at
_METHODS = ("example", "model", "optimizer", "loss", "predict", "eval_steps", "data")
_MODES = ("inline", "beside", "offline")


def full_log(benchmark: Benchmark, optimizer: NamedOptimizer | None = None) -> dict[str, Any]:
    """All configuration lines of the log: the common ones, the benchmark's own and the optimizer's.

    Args:
        benchmark: what is trained.
        optimizer: the one that replaced the benchmark's, where one did.
    """
    own = {**benchmark.tables_log(), **optimizer.log()} if optimizer else benchmark.optimizer_log()
    return {
        "global_batch_size": benchmark.batch_size,
        "gradient_accumulation_steps": benchmark.gradient_accumulation_steps,
        "train_samples": benchmark.train_samples,
        "eval_samples": benchmark.eval_samples,
        **benchmark.log(),
        **own,
    }


def disclosure(benchmark: Benchmark, mesh: Mesh, config_filename: str) -> keys.Disclosure:
    """What the rules want said of how a benchmark runs: its types, its batches, its mesh."""
    micro = benchmark.batch_size // benchmark.gradient_accumulation_steps
    return keys.Disclosure(
        linear=benchmark.dtype,
        attention=benchmark.dtype,
        communication=benchmark.dtype,  # gradients are reduced in the dtype they are computed in
        micro_batch_size=micro // meshes.batch_ways(mesh),
        config_filename=config_filename,
        tensor=mesh.shape["tensor"],
        context=mesh.shape["context"],
        expert=mesh.shape["expert"],
        nodes=jax.process_count(),
        accelerators_per_node=jax.local_device_count(),
    )


def check_members(benchmark: Benchmark) -> None:
    """Nothing, if all is stated that has no default, and gives what a run can use."""
    for name in ("name", "metric"):
        if not hasattr(benchmark, name):
            raise _lacks(benchmark, name)
    wanted = [*_METHODS, "flops_per_sample"]
    wanted += ["lookups"] * bool(benchmark.tables())
    wanted += ["generated_data"] * bool(benchmark.generate)
    for name in wanted:
        if getattr(type(benchmark), name) is getattr(Benchmark, name):
            raise _lacks(benchmark, name)
    check_samples(benchmark)
    first = _check_eval_steps(benchmark)
    _check_numbers(benchmark, first)
    _check_quality(benchmark)


def _lacks(benchmark: Benchmark, name: str) -> UserError:
    return UserError(
        f"{type(benchmark).__name__} does not state {name}, which a run needs: see Benchmark.{name} "
        "in mlperf_jax/core/benchmark.py"
    )


def _wrong(benchmark: Benchmark, member: str, given: Any, wanted: str) -> UserError:
    return UserError(f"{type(benchmark).__name__}.{member} gives {given!r}: it must be {wanted}")


def check_samples(benchmark: Benchmark) -> None:
    """Nothing, if samples grow with every step; else those that ask for a step would wait for ever."""
    counted = [benchmark.samples(step) for step in range(9)]
    if counted[0] != 0 or any(after <= before for before, after in itertools.pairwise(counted)):
        raise UserError(
            f"samples(step) of {benchmark.name} must be 0 before the first step and grow with every one, "
            f"but counts {', '.join(map(str, counted))}"
        )


def _check_eval_steps(benchmark: Benchmark) -> int:
    """The first step after which quality is evaluated."""
    steps = list(itertools.islice(benchmark.eval_steps(), EVALUATIONS))
    increasing = all(a < b for a, b in itertools.pairwise([0, *steps]))
    if len(steps) < EVALUATIONS or not increasing:
        raise _wrong(benchmark, "eval_steps", steps, "increasing steps from 1 on, without end")
    return steps[0]


def _check_numbers(benchmark: Benchmark, step: int) -> None:
    flops, last = benchmark.flops_per_sample, benchmark.last_sample
    if not isinstance(flops, int | float) or not 0 <= flops < float("inf"):
        raise _wrong(benchmark, "flops_per_sample", flops, "a number, at least 0")
    if last is not None and (not isinstance(last, int) or last < 1):
        raise _wrong(benchmark, "last_sample", last, "a whole number, at least 1, or None")
    position = benchmark.position(step)
    if not {"epoch_num", "samples_count"} <= position.keys():
        raise _wrong(benchmark, "position", position, "epoch_num and samples_count by name")
    for member in ("log", "optimizer_log", "tables_log"):
        for key, value in getattr(benchmark, member)().items():
            try:
                json.dumps({key: value}, allow_nan=False)
            except (TypeError, ValueError):
                wanted = "names and values that JSON has"
                raise _wrong(benchmark, member, {key: value}, wanted) from None


def _check_quality(benchmark: Benchmark) -> None:
    metric = benchmark.metric
    if metric.mode not in _MODES:
        raise _wrong(benchmark, "metric.mode", metric.mode, f"one of {', '.join(_MODES)}")
    quality = dict.fromkeys(metric.ranges, 0.5)
    benchmark.diverged(quality)
    lines = benchmark.quality_lines(quality)
    pairs = [line for line in lines if isinstance(line, tuple) and len(line) == 2]
    if not lines or pairs != lines or not all(isinstance(more, Mapping) for _, more in pairs):
        raise _wrong(benchmark, "quality_lines", lines, "pairs of a value and its metadata")

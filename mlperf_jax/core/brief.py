"""Without clock or log: a brief training, by which tiny start checkpoints are made, and what start weights score."""

from __future__ import annotations

import math

import jax

from mlperf_jax.core import evaluation, launch, mesh as meshes, preflight, state as states, step
from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import UserError

# of a start's score: what bfloat16 moves it by, and more
_START_TOLERANCE = 1e-3


def train_briefly(benchmark: Benchmark, data_dir: str, steps: int, seed: int = 0) -> states.State:
    """The state of a benchmark after some steps from random weights.

    Args:
        benchmark: its `start` is left aside.
        data_dir: its data; not read for 0 steps.
        steps: 0 for the random weights themselves.
        seed: of weights, data order and dropout.
    """
    assembly = states.assemble(preflight.resolve_dtype(benchmark), meshes.make_mesh("data=1"))
    state = assembly.create(seed)
    if not steps:
        return state
    key = jax.random.key(seed)
    train = step.jit_train_step(assembly)
    sharding = meshes.batch_sharding(assembly.mesh)
    batches = benchmark.data().train(data_dir).batched(benchmark.rows, seed=seed)
    for number in range(steps):
        state, _ = train(state, jax.device_put(batches[number], sharding), key)
    return state


def score_start(benchmark: Benchmark, options: RunOptions, data_dir: str) -> evaluation.Quality:
    """What the start weights score on the evaluation data before any training.

    Args:
        benchmark: where it states a `start_quality`, the first target's quality must be that.
        options: `mesh` and `threads` are used.
        data_dir: its data and its start weights.

    Raises:
        UserError: it has no start weights, or they score something else than they must.
    """
    launch.connect(options)
    launch.use_compile_cache()
    assembly = states.assemble(preflight.resolve_dtype(benchmark), meshes.make_mesh(options.mesh))
    preflight.check_batches(assembly.benchmark, assembly.mesh)
    start = benchmark.start(data_dir)
    if start is None:
        raise UserError(f"{benchmark.name} begins with random weights: there is nothing to score")
    state = assembly.begin_from(assembly.create(seed=0), start)
    quality = evaluation.Evaluator(assembly, 0, data_dir, options.threads).quality(state, 0)
    wanted, name = benchmark.start_quality, benchmark.targets[0].name
    if wanted is None or benchmark.size == "tiny":
        return quality
    if not math.isclose(quality[name], wanted, abs_tol=_START_TOLERANCE):
        raise UserError(
            f"the start weights score {name} {quality[name]:.5f} and must score {wanted:.5f}: look whether "
            "they, the vocabulary and the evaluation data are the organisers'"
        )
    return quality

"""Without clock or log: a brief training, by which tiny start checkpoints are made, what start weights score, and what
judges say."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from mlperf_jax.core import evaluation, launch, mesh as meshes, preflight, state as states, step
from mlperf_jax.core.benchmark import Batch, Benchmark
from mlperf_jax.core.judges import judges_of
from mlperf_jax.core.levers import Levers
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import UserError

# of a start's score: what bfloat16 moves it by, and more
_START_TOLERANCE = 1e-3


def train_briefly(benchmark: Benchmark, data_dir: str, steps: int, seed: int = 0) -> states.State:
    """The state of a benchmark after some steps from random weights.

    Args:
        benchmark: its `start` and its levers are left aside.
        data_dir: its data; not read for 0 steps.
        steps: 0 for the random weights themselves.
        seed: of weights, data order and dropout.
    """
    plain = preflight.resolve_dtype(benchmark).replace(levers=Levers())
    assembly = states.assemble(plain, meshes.make_mesh("data=1"))
    state = assembly.create(seed)
    if not steps:
        return state
    state = assembly.with_data(state, data_dir)
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
    if benchmark.start(data_dir) is None:
        raise UserError(f"{benchmark.name} begins with random weights: there is nothing to score")
    evaluator = evaluation.Evaluator(assembly, 0, data_dir, options.threads)
    quality = evaluator.quality(assembly.begun(0, data_dir), 0)
    wanted, name = benchmark.start_quality, benchmark.targets[0].name
    if wanted is None or benchmark.size == "tiny":
        return quality
    if not math.isclose(quality[name], wanted, abs_tol=_START_TOLERANCE):
        raise UserError(
            f"the start weights score {name} {quality[name]:.5f} and must score {wanted:.5f}: look whether "
            "they, the vocabulary and the evaluation data are the organisers'"
        )
    return quality


def drawn(make: Callable[[nnx.Rngs], nnx.Module], seed: int = 0) -> states.State:
    """The parameters that a module begins with, a nested dict of NumPy arrays."""
    arrays = jax.jit(lambda key: states.split(make(nnx.Rngs(key)))[1]["params"])
    return jax.device_get(arrays(jax.random.key(seed)))


def judging(
    benchmark: Benchmark,
    data_dir: str,
    function: Callable[[Any, Batch], Any],
    mesh: str | None = None,
) -> Callable[[Batch], Any]:
    """A function of a batch: what `function(judges, batch)` gives, NumPy arrays, on the devices of one process.

    Args:
        benchmark: whose judges.
        data_dir: where their weights are, which are read at once.
        function: traced once for each shape; `judges` is the module of `benchmark.judges`.
        mesh: as a run takes it; it must divide the rows of a batch.

    Raises:
        UserError: weights are missing, or, of what is returned, the mesh does not divide a batch.
    """
    launch.use_compile_cache()
    benchmark, devices = preflight.resolve_dtype(benchmark), meshes.make_mesh(mesh)
    judges = judges_of(benchmark, devices)
    assert judges is not None, f"{benchmark.name} has judges"
    arrays = judges.load(data_dir)
    program = jax.jit(lambda arrays, batch: function(judges.module(arrays), batch))

    def judged(batch: Batch) -> Any:
        meshes.check_divides(devices, len(next(iter(batch.values()))), "batch size")
        with jax.set_mesh(devices):
            placed = jax.device_put(dict(batch), meshes.batch_sharding(devices))
            return jax.device_get(program(arrays, placed))

    return judged

"""A brief training on one device, without clock, log or evaluation: how tiny start checkpoints are made."""

from __future__ import annotations

import jax

from mlperf_jax.core import mesh as meshes, preflight, state as states, step
from mlperf_jax.core.benchmark import Benchmark


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

"""Measures what the training loop itself costs on the host, by processor time, beside the step's bare call.

The real `core.loop.Loop` runs steps that do nothing, on a constant batch, with its log, scalars and
signal handlers in place, as in a run (evaluation and checkpoints left out). For each size of state:

    bare     a compiled step that changes nothing but the count, called in a plain `for`.
    python   the compiled step replaced by a Python function that returns the same arrays: all that is
             left is the loop's own Python. This is the figure with the bar of 300 microseconds.
    loop     the compiled step in the loop.
    fed      the same, with a host batch that the feed's thread puts on the device, as in a real run.

    python scripts/measure_overhead.py --cores 1 [--steps 2000] [--profile]
"""

from __future__ import annotations

import cProfile
import dataclasses
import itertools
import os
import pstats
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import measuring

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlperf_jax import metrics
from mlperf_jax.core import evaluation, loop, mesh as meshes, preemption, preflight, step
from mlperf_jax.core.benchmark import Benchmark, Target, f32
from mlperf_jax.core.options import RunOptions
from mlperf_jax.core.run import Run
from mlperf_jax.optimizers import sgd

BAR = 300  # microseconds
NEVER = 10**9


class Arrays(nnx.Module):
    """A model of many small arrays: what the host pays for is their number, not their size."""

    def __init__(self, count: int, rngs: nnx.Rngs) -> None:
        self.weights = nnx.List([nnx.Param(jnp.zeros(4)) for _ in range(count)])


class Constant:
    """A data set of one batch in memory, again and again; training is all there is of it."""

    def __init__(self, size: int) -> None:
        self._batch = {"x": np.zeros((size, 4), np.float32)}

    def train(self, folder: str) -> Constant:
        return self

    validation = train

    def counts(self, folder: str) -> dict[str, int]:
        return {split: len(self._batch["x"]) for split in ("train", "validation")}

    def build(self, folder: str, source: str | None = None) -> None: ...

    def check(self, folder: str) -> list[str]:
        return []

    def batched(self, rows: int, **how: Any) -> Constant:
        return self

    def ready(self) -> None: ...

    def stream(self, start: int = 0, **how: Any) -> Iterator[dict[str, np.ndarray]]:
        return itertools.repeat(self._batch)


@dataclass(frozen=True, kw_only=True)
class Nothing(Benchmark):
    """Trains nothing; with momentum its state has two arrays for each of the model's."""

    name = "resnet"  # header and rules know only real names
    ruleset = "4.0.0"
    metric = metrics.Mean("accuracy")

    size: str = "tiny"
    arrays: int = 1
    batch_size: int = 8
    train_samples: int = 8
    eval_samples: int = 8
    targets: tuple[Target, ...] = (Target("accuracy", at_least=1.0),)

    def example(self):
        return {"x": f32(4)}

    def model(self, rngs):
        return Arrays(self.arrays, rngs)

    def optimizer(self, tree):
        return sgd(0.1, 0.9)

    def loss(self, model, batch, key):
        return sum(weight[...].sum() for weight in model.weights) + batch["x"].sum()

    def predict(self, model, batch, key):
        return batch["x"][:, 0] > 0

    def data(self):
        return Constant(self.batch_size)

    @property
    def flops_per_sample(self):
        return 0.0

    def eval_steps(self):
        return itertools.count(NEVER, NEVER)

    def optimizer_log(self):
        return {"opt_name": "sgd"}


class Held:
    """A feed that hands out one batch that is on the device already."""

    waited = 0.0

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def __next__(self) -> Any:
        return self._batch

    def close(self) -> None: ...


def compiled_nothing(assembly: Any) -> Any:
    """A compiled train step that only counts, with the real step's arguments, shardings and donation."""
    benchmark, mesh = assembly.benchmark, assembly.mesh

    def nothing(state: Any, batch: Any, key: Any) -> Any:
        state = {**state, "step": state["step"] + 1}
        return state, {"loss": batch["x"][0, 0], "bad_since": state["bad_since"]}

    jitted = jax.jit(
        nothing,
        donate_argnums=0,
        in_shardings=(assembly.shardings, meshes.batch_sharding(mesh), None),
        out_shardings=(assembly.shardings, meshes.replicated(mesh)),
    )
    batch = step.abstract_batch(benchmark.buckets()[0], meshes.batch_sharding(mesh))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jitted.lower(assembly.abstract, batch, key).compile()


def bare(program: Any, state: Any, batch: Any, key: Any, steps: int) -> Any:
    """The same calls with nothing around them."""
    for _ in range(steps):
        state, _ = program(state, batch, key)
    jax.block_until_ready(state["step"])
    return state


def measure(arrays: int, steps: int, rounds: int, profile: bool) -> measuring.Spent:
    """Processor seconds of so many steps by side."""
    options = RunOptions(output=tempfile.mkdtemp(), seed=0, show="none")
    plan = preflight.preflight(Nothing(arrays=arrays), options, "")
    with Run(plan) as run, preemption.Preemption() as signals:
        programs, state = loop.initialise(run)
        run.begin_run()
        assembly = run.assembly
        program = compiled_nothing(assembly)
        batch = jax.device_put(
            next(Constant(assembly.benchmark.batch_size).stream()),
            meshes.batch_sharding(assembly.mesh),
        )
        shape = evaluation.shape_key(batch)
        the = loop.Loop(run, signals, programs, state)
        run.log_block_start(the.next_eval)

        def looped(step_program: Any, batches: Any) -> None:
            the.programs = dataclasses.replace(programs, train={shape: step_program})
            the._batches = batches
            the._steps(the.standing.step + steps)

        def alone() -> None:
            the.state = bare(program, the.state, batch, the.key, steps)

        def python() -> None:
            same = (the.state, {"loss": jnp.zeros(()), "bad_since": jnp.zeros((), jnp.int32)})
            looped(lambda *_: same, Held(batch))

        def fed() -> None:
            with the._train_batches() as feed:
                looped(program, feed)

        sides: dict[str, Callable[[], None]] = {
            "bare": alone,
            "python": python,
            "loop": lambda: looped(program, Held(batch)),
            "fed": fed,
        }
        spent = measuring.in_turns(sides, rounds, 0, settle=False)
        if profile:
            with cProfile.Profile() as profiler:
                python()
            pstats.Stats(profiler).sort_stats("tottime").print_stats(18)
    return spent


def main() -> None:
    parser = measuring.parser(__doc__, rounds=7)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    print(measuring.header())
    for arrays in (4, 161):  # a toy, and as many as ResNet-50 trains
        spent = measure(arrays, arguments.steps, arguments.rounds, arguments.profile)
        print(f"\n{arrays} trained arrays, {arguments.steps} steps a turn, bar of python {BAR} us")
        measuring.report(spent, "bare", "a step", arguments.steps, long=True)
        if statistics.median(spent["python"]) / arguments.steps * 1e6 > BAR:
            print("  above the bar")


if __name__ == "__main__":
    main()

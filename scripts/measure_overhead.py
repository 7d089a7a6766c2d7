"""Measures what the training loop itself costs on the host, in microseconds a step.

The real `core.loop.Loop` runs steps that do nothing, on a constant batch, with its log, scalars and
signal handlers in place, as in a run (evaluation and checkpoints left out). Two figures for each size
of state:

    python   the compiled step replaced by a Python function that returns the same arrays: all that is
             left is the loop's own Python. This is the figure with the bar of 300 microseconds.
    beyond   a compiled step that changes nothing but the count, in the loop, less the same compiled
             step called bare in a `for`: negative when the loop's Python hides behind the device.

`constant` takes the batch from memory on the device; `feed` puts a host batch there in the feed's
thread, which competes for the interpreter, as in a real run.

    python scripts/measure_overhead.py [--steps 2000] [--repeats 5] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import dataclasses
import itertools
import os
import pathlib
import platform
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

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

    def log(self):
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
        return state, {"loss": batch["x"][0, 0], "finite": state["finite"]}

    jitted = jax.jit(
        nothing,
        donate_argnums=0,
        in_shardings=(assembly.shardings, meshes.batch_sharding(mesh), None),
        out_shardings=(assembly.shardings, meshes.replicated(mesh)),
    )
    batch = step.abstract_batch(benchmark.buckets()[0], meshes.batch_sharding(mesh))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jitted.lower(assembly.abstract, batch, key).compile()


def microseconds(work: Callable[[], Any], steps: int) -> float:
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) / steps * 1e6


def bare(program: Any, state: Any, batch: Any, key: Any, steps: int) -> Any:
    """The same calls with nothing around them."""
    for _ in range(steps):
        state, _ = program(state, batch, key)
    jax.block_until_ready(state["step"])
    return state


def measure(arrays: int, steps: int, repeats: int, profile: bool) -> dict[str, list[float]]:
    """Microseconds a step by name, one value per repeat."""
    options = RunOptions(output=tempfile.mkdtemp(), seed=0, show="none")
    plan = preflight.preflight(Nothing(arrays=arrays), options, "")
    found: dict[str, list[float]] = {}
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

        def looped(step_program: Any, batches: Any) -> float:
            the.programs = dataclasses.replace(programs, train={shape: step_program})
            the._batches = batches
            return microseconds(lambda: the._steps(the.standing.step + steps), steps)

        def note(name: str, value: float) -> None:
            found.setdefault(name, []).append(value)

        for repeat in range(-1, repeats):  # the first one warms up
            if repeat == 0:
                found.clear()
            with the._train_batches() as feed:
                note("feed: loop", looped(program, feed))
            note("constant: loop", looped(program, Held(batch)))
            begin = time.perf_counter()
            the.state = bare(program, the.state, batch, the.key, steps)
            note("constant: bare call", (time.perf_counter() - begin) / steps * 1e6)
            note("constant: beyond", found["constant: loop"][-1] - found["constant: bare call"][-1])
            note("feed: beyond", found["feed: loop"][-1] - found["constant: bare call"][-1])
            same = (the.state, {"loss": jnp.zeros(()), "finite": jnp.ones((), bool)})
            note("constant: python", looped(lambda *_, same=same: same, Held(batch)))
            with the._train_batches() as feed:
                note("feed: python", looped(lambda *_, same=same: same, feed))
        if profile:
            with cProfile.Profile() as profiler:
                looped(lambda *_: same, Held(batch))
            pstats.Stats(profiler).sort_stats("tottime").print_stats(18)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    print(
        f"python {platform.python_version()}, jax {jax.__version__}, {os.cpu_count()} cores, "
        f"{arguments.steps} steps x {arguments.repeats}; microseconds a step: median (min … max)"
    )
    for arrays in (4, 161):  # a toy, and as many as ResNet-50 trains
        found = measure(arrays, arguments.steps, arguments.repeats, arguments.profile)
        print(f"\n{arrays} trained arrays")
        for name, values in sorted(found.items()):
            low, middle, high = min(values), statistics.median(values), max(values)
            bar = f"  bar {BAR}" if name == "constant: python" else ""
            print(f"  {name:22} {middle:8.1f}  ({low:.1f} … {high:.1f}){bar}")


if __name__ == "__main__":
    main()

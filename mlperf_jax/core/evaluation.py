"""Quality: predict on every batch, add up, compute on process 0, tell all.

Three modes (`Metric.mode`): *inline* waits for the value; *beside* computes `metric.result` in a thread
while the next steps run, and keeps a copy of the evaluated state, which is the one that counts; *offline*
leaves sealed checkpoints that `offline.score` works through after the run.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from mlperf_jax.core import feed, mesh as meshes, processes, step
from mlperf_jax.core.benchmark import Shape
from mlperf_jax.core.judges import judges_of
from mlperf_jax.core.protocols import Batches, Metric
from mlperf_jax.core.state import Assembly, State, stream
from mlperf_jax.errors import UserError

Quality = dict[str, float]
Outputs = Any  # a tree of arrays: sums, or rows
ShapeKey = tuple[tuple[str, tuple[int, ...]], ...]  # what tells bucket shapes apart
ROUNDING = 1e-5  # of float32 sums: so far beyond its range may a quality lie
IN_FLIGHT = 8  # batches the host may be ahead of the device: each holds its input in memory


@dataclass
class Evaluator:
    """Runs the evaluations of one run.

    Attributes:
        assembly: the run's program.
        seed: sampling keys of the evaluation after a step derive from (seed, step).
        data_dir: where the evaluation data are, and what the metric and judges need besides.
        compiled: what `compile_predict` gave; without it, it is asked when the first evaluation is due.
        threads: that read and decode; one per usable core by default.
        keeps_judges: whether the judges' arrays, if there are any, stay from one evaluation to the next;
            they are let go at the end of each by default.
    """

    assembly: Assembly
    seed: int
    data_dir: str
    threads: int | None = None
    keeps_judges: bool = False
    compiled: Mapping[ShapeKey, jax.stages.Compiled] | None = None

    @functools.cached_property
    def programs(self) -> Mapping[ShapeKey, jax.stages.Compiled]:
        """The predict steps by batch shape."""
        return self.compiled or compile_predict(self.assembly)

    @functools.cached_property
    def batches(self) -> Batches:
        """Evaluation batches, of which this process reads its own rows."""
        benchmark = self.assembly.benchmark
        share = functools.partial(meshes.process_rows, self.assembly.mesh)
        return benchmark.data().validation(self.data_dir).batched(benchmark.eval_rows, share=share)

    @functools.cached_property
    def judges(self) -> Callable[[], State] | None:
        """What loads the arrays of the benchmark's judges; None where it has none."""
        judges = judges_of(self.assembly.benchmark, self.assembly.mesh)
        load = judges and functools.partial(judges.load, self.data_dir)
        return functools.cache(load) if load and self.keeps_judges else load

    @functools.cached_property
    def metric(self) -> Metric:
        """The metric that knows its data."""
        benchmark = self.assembly.benchmark
        stated, made = benchmark.metric, benchmark.metric_from(self.data_dir)
        if (made.mode, made.rows) != (stated.mode, stated.rows):
            takes = {True: "rows", False: "sums"}
            raise UserError(
                f"metric_from gives a metric of mode {made.mode} that takes {takes[made.rows]}, and metric says "
                f"{stated.mode} and {takes[stated.rows]}: they must agree"
            )
        return made

    def outputs(self, state: State, step: int) -> Outputs:
        """Sums added over all batches, or rows in data order, on the host (rows: process 0 only)."""
        benchmark, mesh = self.assembly.benchmark, self.assembly.mesh
        view = self.assembly.eval_view(state)
        judges = [self.judges()] if self.judges else []
        key = jax.random.fold_in(stream(self.seed, "evaluation"), step)
        found: collections.deque[Outputs] = collections.deque()
        total: Outputs | None = None
        given, buckets = self.batches.stream(threads=self.threads), benchmark.eval_buckets()
        with feed.Feed(given, buckets, mesh, padded=True) as batches:
            for index, batch in enumerate(batches):
                mask = batch["mask"]
                if shape_key(batch) not in self.programs:  # the model asks for no mask
                    batch.pop("mask")
                outputs = self.programs[shape_key(batch)](
                    view, batch, mask, jax.random.fold_in(key, index), *judges
                )
                found.append(_rows_on_host(outputs, mask) if benchmark.metric.rows else outputs)
                if len(found) > IN_FLIGHT and not benchmark.metric.rows:
                    total = _added(total, found.popleft())
        if not found:
            raise UserError("the evaluation data holds no sample")
        if benchmark.metric.rows:
            return jax.tree.map(lambda *parts: np.concatenate(parts), *found)
        return functools.reduce(_added, found, total)

    def result(self, outputs: Outputs) -> Quality:
        """The metric's result; to be called on process 0 only."""
        benchmark = self.assembly.benchmark
        quality = {name: float(v) for name, v in self.metric.result(outputs).items()}
        for target in benchmark.targets:
            if target.name not in quality:
                raise UserError(
                    f"the metric gives {', '.join(sorted(quality))}, but a target wants {target.name}"
                )
        for name, (low, high) in self.metric.ranges.items():
            value = quality.get(name, low)
            if value < low - ROUNDING or value > high + ROUNDING:  # NaN is neither
                raise UserError(
                    f"the metric gives {name} {value:.6g}, and its ranges say from {low:g} to {high:g}: look at "
                    "what predict gives"
                )
        return quality

    def quality(self, state: State, step: int) -> Quality:
        """An inline evaluation: process 0's values on every process, so that all take one branch."""
        outputs = self.outputs(state, step)
        return processes.from_primary(lambda: self.result(outputs))


def compile_predict(assembly: Assembly) -> dict[ShapeKey, jax.stages.Compiled]:
    """Compiled predict steps by batch shape."""
    judges = judges_of(assembly.benchmark, assembly.mesh)
    predict = step.jit_predict_step(assembly, judges)
    programs = {
        shape_key(arguments[1]): assembly.compile(predict, *arguments)
        for arguments in step.predict_arguments(assembly, judges)
    }
    if assembly.benchmark.metric.rows:
        _check_rows([jax.tree.leaves(program.out_info) for program in programs.values()])
    return programs


def _check_rows(outputs: Sequence[Sequence[Shape]]) -> None:
    """Nothing, if rows of all buckets are alike, as they are put together."""
    kinds = {tuple((leaf.shape[1:], leaf.dtype) for leaf in leaves) for leaves in outputs}
    if len(kinds) > 1:
        listed = " and ".join(
            ", ".join(f"{dtype}{list(shape)}" for shape, dtype in kind) for kind in sorted(kinds)
        )
        raise UserError(f"predict gives rows of {listed}: pad them to one shape for all buckets")


def shape_key(batch: Mapping[str, jax.Array | Shape]) -> ShapeKey:
    """What tells bucket shapes apart."""
    return tuple(sorted((name, leaf.shape) for name, leaf in batch.items()))


def _added(total: Outputs | None, sums: Outputs) -> Outputs:
    """A batch's sums, of any dtype, added to the total on the host, in float64; None is nothing yet.

    The device keeps those of a few batches: of sixty, second moments of 2,048 features take 1 GB.
    """
    sums = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), jax.device_get(sums))
    return sums if total is None else jax.tree.map(np.add, total, sums)


def _rows_on_host(outputs: Outputs, mask: jax.Array) -> Outputs:
    if jax.process_count() > 1:
        outputs, mask = multihost_utils.process_allgather((outputs, mask), tiled=True)
    outputs, mask = jax.device_get((outputs, mask))
    return jax.tree.map(lambda rows: np.asarray(rows)[mask], outputs)


@dataclass(frozen=True)
class Pending:
    """A *beside* evaluation under way: its value comes from a thread, its state is a copy.

    Attributes:
        step: the evaluated step.
        state: a copy of the evaluated state, kept until the value is known.
        value: of process 0's thread.
    """

    step: int
    state: State
    value: concurrent.futures.Future[Quality]

    @classmethod
    def begin(cls, evaluator: Evaluator, state: State, step: int) -> Pending:
        """Predicts now (the device's part), and starts the host's part in a thread."""
        outputs = evaluator.outputs(state, step)
        value: concurrent.futures.Future[Quality] = concurrent.futures.Future()

        def compute() -> None:
            try:
                value.set_result(evaluator.result(outputs) if jax.process_index() == 0 else {})
            except BaseException as error:  # raised by `wait`
                value.set_exception(error)

        threading.Thread(target=compute, name="evaluation", daemon=True).start()
        return cls(step, jax.tree.map(jnp.copy, state), value)  # the original is donated

    def ready(self) -> bool:
        """Whether `wait` would return at once; with several processes only `wait` may be used."""
        return jax.process_count() == 1 and self.value.done()

    def wait(self) -> Quality:
        """Process 0's values on every process, once they are known."""
        return processes.from_primary(self.value.result)

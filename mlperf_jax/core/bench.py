"""Speed without training: steady-state throughput of a benchmark's own compiled step.

What is measured is the program that `run` runs, compiled in the same way, fed in the same way. Two
passes, because one cannot give both: a *window* of steps timed end to end, dispatched as the loop does
it (the rate, the share of waiting), and as many steps again with the host waiting for each (percentiles,
which therefore miss the overlap that the window has).
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import itertools
import math
import pathlib
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mlperf_jax.core import (
    evaluation,
    feed,
    launch,
    loop,
    mesh as meshes,
    peaks,
    phases,
    placement,
    preflight,
    profiling,
    scales,
    state as states,
    synthetic,
)
from mlperf_jax.core.bench_report import BenchReport
from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.core.fields import Count, Positive, Whole, check
from mlperf_jax.core.judges import judges_of
from mlperf_jax.core.optimizer_argument import load_optimizer
from mlperf_jax.core.options import Input, RunOptions
from mlperf_jax.core.transform_argument import check_transforms, load_transforms
from mlperf_jax.errors import UserError, is_out_of_memory
from mlperf_jax.results.result import versions

Programs = Mapping[evaluation.ShapeKey, jax.stages.Compiled]
PROFILE_FOLDER = "mlperf_bench_profile"
LEAST_STEPS = 3  # of a pass, however slow
EVALUATION_SECONDS = 10.0  # what timing evaluation may take beyond its first batch


def bench(
    benchmark: Benchmark,
    options: RunOptions,
    *,
    data_dir: str | None = None,
    steps: int = 20,
    warmup: int = 5,
    seconds: float | None = None,
    input: Input = "synthetic",
    evaluation: bool = True,
    fit: bool = False,
    memory: float | None = None,
    compile_only: bool = False,
) -> BenchReport:
    """Measures a configuration on the devices at hand; nothing is trained or kept.

    Args:
        benchmark: what is measured.
        options: `mesh`, `optimizer`, `seed` and `threads` are used; `profile` writes an xprof trace
            of a few more steps to `output`, or to `mlperf_bench_profile`.
        data_dir: prepared data; default `options.data_dir`. Synthetic input needs none.
        steps: steps per pass.
        warmup: steps before each pass.
        seconds: about what a pass may take; slow steps are then fewer, at least three.
        input: "synthetic", one constant batch that is on the device already, of ids, labels and lengths such
            as the data's where the data set draws them (`core/synthetic.py`); "real", the benchmark's pipeline as the loop reads
            it; "input-only", that pipeline with no step to wait for.
        evaluation: measure evaluation too.
        fit: measure the largest of the benchmark's scales that a device has room for (`core/scales.py`).
        memory: GiB of a device that may be used; default all that it has.
        compile_only: measure nothing, but compile, for the compile cache.

    Raises:
        UserError: for a bad argument, missing data, a batch that the mesh does not divide, or a program that takes
            more memory than a device has, by the compiler's account.

    Example:
        print(bench(get("resnet", batch_size=256), RunOptions(), input="synthetic"))
    """
    input = check("input", input, Input)
    steps, warmup = check("steps", steps, Count), check("warmup", warmup, Whole)
    seconds = check("seconds", seconds, Positive | None)
    memory = check("memory", memory, Positive | None)
    launch.connect(options)
    launch.use_compile_cache()
    how = Passes(steps, warmup, seconds, evaluation, memory, compile_only)
    if not fit:
        return _bench(benchmark, options, data_dir, input, how)
    smallest = "nothing"
    for scaled in scales.ladder(benchmark):
        try:
            return _bench(scaled, options, data_dir, input, how)
        except scales.TooLarge as error:
            smallest = str(error)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            smallest = "the compiler's account was too low: " + str(error).splitlines()[0]
    raise UserError(f"no scale of {benchmark.name} fits; of the smallest, {smallest}")


@dataclass(frozen=True)
class Passes:
    """How much is measured: as in `bench`."""

    steps: int
    warmup: int
    seconds: float | None
    evaluation: bool
    memory: float | None
    compile_only: bool = False

    def within(self, once: float) -> int:
        """Steps of a pass, where one takes so many seconds."""
        if self.seconds is None:
            return self.steps
        return min(self.steps, max(LEAST_STEPS, int(self.seconds / max(once, 1e-9))))


def _bench(
    benchmark: Benchmark, options: RunOptions, data_dir: str | None, input: Input, how: Passes
) -> BenchReport:
    benchmark = preflight.resolve_dtype(benchmark)
    phases.check_steady(benchmark, "bench")
    optimizer = options.optimizer
    optimizer = load_optimizer(optimizer) if isinstance(optimizer, str) else optimizer
    benchmark, sizes = placement.settle(benchmark, options.mesh, optimizer)
    mesh = meshes.make_mesh(sizes)
    preflight.check_batches(benchmark, mesh)
    folder = options.data_dir if data_dir is None else data_dir
    if input == "synthetic":
        folder = None
    elif benchmark.generate is not None:
        raise UserError(f"{benchmark.name} makes its own data: bench it on synthetic input")
    elif folder is None:
        raise UserError("real input needs the data: give data_dir (--data-dir DIR)")
    else:
        preflight.check_counts(benchmark, folder)
    if folder is not None and input == "input-only":
        found = _measure_input(benchmark, options, mesh, folder, how.steps, how.warmup)
    else:
        found = _measure_steps(benchmark, options, optimizer, mesh, folder, how)
    return _report(benchmark, mesh, input=input, warmup=how.warmup, **found)


# -- what is measured --------------------------------------------------------------------------------


def _measure_input(
    benchmark: Benchmark, options: RunOptions, mesh: Mesh, folder: str, steps: int, warmup: int
) -> dict[str, Any]:
    """Batches per second out of the feed, placed on the devices, when nobody else wants anything."""
    with train_feed(benchmark, options, mesh, folder) as batches:
        # what was read ahead while the threads started does not count as speed
        for _ in range(warmup + feed.DEPTH):
            jax.block_until_ready(next(batches))
        begin = time.perf_counter()
        for _ in range(steps):
            batch = next(batches)
        jax.block_until_ready(batch)
        seconds = time.perf_counter() - begin
    size = sum(leaf.nbytes for leaf in batch.values())
    return {
        "steps": steps,
        "input_examples_per_second": _samples(benchmark, warmup + feed.DEPTH, steps) / seconds,
        "input_bytes_per_second": size * steps / seconds,
    }


def _measure_steps(
    benchmark: Benchmark,
    options: RunOptions,
    optimizer: Any,
    mesh: Mesh,
    folder: str | None,
    how: Passes,
) -> dict[str, Any]:
    room = scales.room(mesh, how.memory)
    assembly = states.assemble(benchmark, mesh, optimizer)
    scales.check_room(_bytes_of(assembly.abstract), room, f"{benchmark.name}'s state")
    train = _compile(lambda: loop.compile_train(assembly))
    scales.check_room(program_bytes(train.programs) or 0, room, f"a step of {benchmark.name}")
    predict = _compile(lambda: evaluation.compile_predict(assembly) if how.evaluation else {})
    compiled = {
        "parameters": trained_parameters(assembly),
        "compile_seconds_train": train.seconds,
        "compile_seconds_evaluation": predict.seconds if how.evaluation else None,
        "compile_cached": train.cached and predict.cached,
    }
    if how.compile_only:
        return {"steps": 0, **compiled}
    state = jax.block_until_ready(assembly.create(options.seed or 0))
    key = jax.device_put(jax.random.key(options.seed or 0), meshes.replicated(mesh))
    stepper = Stepper(train.programs, state, key)
    batches: feed.Feed | Constant = (
        Constant(synthetic.batches(benchmark, benchmark.buckets(), mesh))
        if folder is None
        else train_feed(benchmark, options, mesh, folder)
    )
    with batches:
        first, _ = stepper.window(batches, how.warmup)
        steps = how.within(first / max(1, how.warmup))
        seconds, waited = stepper.window(batches, steps)
        stepper.window(batches, how.warmup)
        each = stepper.one_by_one(batches, steps)
        profile = _profile(stepper, batches, options) if options.profile else None
    memory, source = peak_memory(mesh, train.programs)  # before evaluation adds its own
    examples = None
    if how.evaluation:
        examples = _evaluate(assembly, stepper.state, predict.programs, key, steps)
    return {
        "steps": steps,
        "examples_per_second": _samples(benchmark, how.warmup, steps) / seconds,
        "step_seconds": seconds / steps,
        "step_seconds_p10": float(np.percentile(each, 10)),
        "step_seconds_median": float(np.median(each)),
        "step_seconds_p90": float(np.percentile(each, 90)),
        "input_wait_share": waited / seconds,
        "memory_bytes": memory,
        "memory_source": source,
        "evaluation_examples_per_second": examples,
        "profile": profile,
        "operations": profiling.operations(profile) if profile else None,
        **compiled,
    }


def _bytes_of(state: states.State) -> int:
    """Of a state's arrays, the most on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
    )


def trained_parameters(assembly: states.Assembly) -> int:
    """How many weights are trained, those of tables among them."""
    tables = assembly.benchmark.tables().values()
    return assembly.tree.count() + sum(table.parameters for table in tables)


def _samples(benchmark: Benchmark, before: int, steps: int) -> int:
    """Samples of the steps that come after those `before`."""
    return benchmark.samples(before + steps) - benchmark.samples(before)


@dataclass
class Stepper:
    """Runs compiled train steps and remembers the state, whose buffers each step takes over."""

    programs: Programs
    state: states.State
    key: jax.Array

    def step(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """One step, not waited for; returns its loss."""
        program = self.programs[evaluation.shape_key(batch)]
        self.state, metrics = program(self.state, batch, self.key)
        return metrics["loss"]

    def window(self, batches: feed.Feed | Constant, steps: int) -> tuple[float, float]:
        """Seconds for `steps` steps end to end, the last one finished, and seconds waited for input."""
        in_flight: collections.deque[jax.Array] = collections.deque()
        waited, begin = batches.waited, time.perf_counter()
        for _ in range(steps):
            in_flight.append(self.step(next(batches)))
            if len(in_flight) > loop.IN_FLIGHT:
                in_flight.popleft().block_until_ready()
        jax.block_until_ready(self.state["step"])
        return time.perf_counter() - begin, batches.waited - waited

    def one_by_one(self, batches: feed.Feed | Constant, steps: int) -> list[float]:
        """Seconds of each of `steps` steps, its wait for input included, when each is waited for."""
        seconds = []
        for _ in range(steps):
            begin = time.perf_counter()
            self.step(next(batches))
            jax.block_until_ready(self.state["step"])
            seconds.append(time.perf_counter() - begin)
        return seconds


def _profile(stepper: Stepper, batches: feed.Feed | Constant, options: RunOptions) -> str:
    folder = pathlib.Path(options.output or PROFILE_FOLDER)
    how = jax.profiler.ProfileOptions()
    how.python_tracer_level = (
        0  # our own loop, whose frames are many times as many as the operations
    )
    with jax.profiler.trace(str(folder), profiler_options=how):
        for number in range(profiling.STEPS):
            with jax.profiler.StepTraceAnnotation("train", step_num=number):
                stepper.step(next(batches))
        jax.block_until_ready(stepper.state["step"])
    return str(folder)


def _evaluate(
    assembly: states.Assembly, state: states.State, programs: Programs, key: jax.Array, steps: int
) -> float:
    """Examples per second of predict, on a constant batch; fewer batches than `steps` when it is slow."""
    benchmark, mesh = assembly.benchmark, assembly.mesh
    view, buckets = assembly.eval_view(state), benchmark.eval_buckets()
    judges = judges_of(benchmark, mesh)
    zeros = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)  # noqa: E731
    more = [jax.tree.map(zeros, judges.abstract)] if judges else []
    sharding = meshes.batch_sharding(mesh)
    masks = [jax.device_put(np.ones(bucket.rows, bool), sharding) for bucket in buckets]
    batches = itertools.cycle(zip(synthetic.batches(benchmark, buckets, mesh), masks, strict=True))

    def window(count: int) -> tuple[int, float]:
        rows, begin = 0, time.perf_counter()
        outputs: Any = None
        for _ in range(count):
            # waiting for the one before last bounds what lies on the device, and hides dispatch
            before, (batch, mask) = outputs, next(batches)
            outputs = programs[evaluation.shape_key(batch)](view, batch, mask, key, *more)
            jax.block_until_ready(before)
            rows += len(mask)
        jax.block_until_ready(outputs)
        return rows, time.perf_counter() - begin

    window(len(buckets))  # each is slower the first time
    rows, once = window(1)
    count = min(steps, int(EVALUATION_SECONDS / max(once, 1e-9)))
    rows, seconds = window(count) if count > 1 else (rows, once)
    return rows / seconds


# -- input -------------------------------------------------------------------------------------------


def train_feed(benchmark: Benchmark, options: RunOptions, mesh: Mesh, folder: str) -> feed.Feed:
    """The training batches as the loop reads them, from the first."""
    transforms = load_transforms(options.transform)
    check_transforms(transforms, benchmark.buckets())
    data = benchmark.data().train(folder)
    batches = feed.training_batches(data, benchmark, mesh, options.seed or 0, transforms)
    stream = batches.stream(threads=options.threads, workers=options.workers)
    return feed.Feed(stream, benchmark.buckets(), mesh)


class Constant:
    """A feed whose batches are on the device already: one per bucket shape, in turn."""

    waited = 0.0

    def __init__(self, batches: list[dict[str, jax.Array]]) -> None:
        self._batches: Iterator[dict[str, jax.Array]] = itertools.cycle(batches)

    def __next__(self) -> dict[str, jax.Array]:
        return next(self._batches)

    def __enter__(self) -> Constant:
        return self

    def __exit__(self, *error: object) -> None: ...


# -- compile time, memory, and where it was measured ---------------------------------------------------


@dataclass(frozen=True)
class Compiled:
    """Programs by batch shape, how long they took, and whether all came from the compile cache."""

    programs: Programs
    seconds: float
    cached: bool


def _compile(work: Callable[[], Programs]) -> Compiled:
    events: collections.Counter[str] = collections.Counter()

    def count(event: str, **_: object) -> None:
        events[event.rpartition("/")[2]] += 1

    jax.monitoring.register_event_listener(count)
    try:
        begin = time.perf_counter()
        programs = work()
        seconds = time.perf_counter() - begin
    finally:
        jax.monitoring.unregister_event_listener(count)
    return Compiled(programs, seconds, events["cache_hits"] >= len(programs))


def peak_memory(mesh: Mesh, programs: Programs) -> tuple[int | None, str | None]:
    """Most bytes used on one device, and how they are known.

    The allocator's own count covers the whole process so far. Devices without one (CPUs) get what the
    compiler says the largest train step needs: arguments, results and temporaries.
    """
    here = jax.process_index()
    stats = [d.memory_stats() for d in mesh.devices.flat if d.process_index == here]
    peaks_seen = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    if peaks_seen:
        return max(peaks_seen), "allocator"
    needed = program_bytes(programs)
    return (None, None) if needed is None else (needed, "compiler")


def program_bytes(programs: Programs) -> int | None:
    """Bytes that the largest program takes on a device: arguments, results and temporaries; None if nobody says."""
    needs = []
    for program in programs.values():
        analysis = program.memory_analysis()
        if analysis is not None:
            needs.append(
                analysis.argument_size_in_bytes
                + analysis.output_size_in_bytes
                - analysis.alias_size_in_bytes
                + analysis.temp_size_in_bytes
            )
    return max(needs, default=None)


def git_commit() -> str | None:
    """The commit of the checkout this package lies in, "-dirty" when changed; None elsewhere."""
    root = pathlib.Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        # an installed package may lie below somebody else's checkout
        if pathlib.Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return git("describe", "--always", "--dirty", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _changed(benchmark: Benchmark) -> dict[str, Any]:
    """The fields that are not as the recipe has them, but for the type of the computation and what devices decide."""
    recipe = scales.recipe(benchmark)
    mine, theirs = benchmark.config(), recipe.config() if recipe else benchmark.config()
    same = {n for n, v in theirs.items() if n == "dtype" or v in (mine.get(n), placement.AUTO)}
    return {n: v for n, v in mine.items() if n not in same}


def _report(benchmark: Benchmark, mesh: Mesh, **found: Any) -> BenchReport:
    kind, count, dtype = mesh.devices.flat[0].device_kind, mesh.devices.size, benchmark.dtype
    rate, flops, mfu = found.get("examples_per_second"), None, None
    with contextlib.suppress(NotImplementedError):
        flops = benchmark.flops_per_sample
    if rate is not None and flops is not None:
        found["flops_per_second_per_device"] = flops * rate / count
        mfu = peaks.utilisation(flops, rate, kind, count, dtype)
    return BenchReport(
        benchmark=benchmark.name,
        tiny=benchmark.is_tiny,
        config=benchmark.config(),
        changed=_changed(benchmark),
        batch_size=benchmark.batch_size,
        evaluation_batch_size=benchmark.eval_rows,
        mesh={axis: size for axis, size in mesh.shape.items() if size > 1},
        dtype=dtype,
        device=kind,
        device_count=count,
        mfu=mfu,
        mfu_text=None if mfu is None else peaks.describe(mfu, kind, dtype),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        commit=git_commit(),
        versions=versions(),
        **found,
    )

"""Preflight: all that can be refused before the clock starts, refused; nothing is allocated.

The division's rules, the mesh, the batch sizes and the data's metadata; see DESIGN.md §3.0.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import itertools
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from mlperf_jax.core import (
    layout,
    mesh as meshes,
    optimizer_trace,
    phases,
    placement,
    processes,
    python_file,
    starts,
    state as states,
)
from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.core.judges import judges_of
from mlperf_jax.core.members import EVALUATIONS, check_members, check_samples, full_log
from mlperf_jax.core.optimizer_argument import load_optimizer
from mlperf_jax.core.options import RunOptions
from mlperf_jax.core.protocols import NamesClasses, NotesMaxima
from mlperf_jax.core.transform_argument import (
    Transform,
    check_transforms,
    describe_transforms,
    load_transforms,
)
from mlperf_jax.errors import UserError
from mlperf_jax.results import closed, events, rules


def resolve_dtype(benchmark: Benchmark) -> Benchmark:
    """The benchmark with `dtype="auto"` decided: bfloat16 where matrix units gain by it, else float32.

    On CPUs convolutions in bfloat16 are slower than in float32.
    """
    if benchmark.dtype != "auto":
        if benchmark.dtype == "float64" and not jax.config.read("jax_enable_x64"):
            raise UserError("dtype float64 needs JAX_ENABLE_X64=1 in the environment")
        return benchmark
    platform = meshes.available()[0].platform
    return benchmark.replace(dtype="float32" if platform == "cpu" else "bfloat16")


def resolve_division(benchmark: Benchmark, options: RunOptions) -> str:
    """The run's division, if its rules hold.

    Raises:
        UserError: a replaced optimizer or a transform without `division="open"`, tiny in closed, or a closed run
            whose configuration breaks a rule; the sentence names each.
    """
    if benchmark.is_tiny or not benchmark.ruleset:
        if options.division == "closed":
            what = "a tiny run" if benchmark.is_tiny else f"{benchmark.name}, which no round had,"
            raise UserError(f"{what} is open division by its nature: leave --division out")
        return "open"
    if options.division == "open":
        return "open"
    added = {
        "a replaced optimizer": options.optimizer,
        "a transform of the training data": options.transform,
        "a lever (--levers)": benchmark.levers or None,
        "an evaluation that the rules do not foresee (--evaluate-every)": options.evaluate_every,
    }
    for what, given in added.items():
        if given is not None:
            raise UserError(
                f"{what} is not allowed in the closed division: say --division open "
                '(division="open")'
            )
    broken = closed.closed_violations(
        rules.resolve(benchmark.name, benchmark.ruleset),
        full_log(benchmark),
        optimizer_replaced=False,
        settings={f.name: getattr(benchmark, f.name) for f in dataclasses.fields(benchmark)},
        targets=benchmark.targets,
        eval_steps=list(itertools.islice(benchmark.eval_steps(), EVALUATIONS)),
    )
    if broken:
        raise UserError(f'{" ".join(broken)} Change it, or say --division open (division="open")')
    return "closed"


def check_counts(benchmark: Benchmark, data_dir: str) -> None:
    """The data's metadata against the recipe's counts; no record is read.

    Raises:
        UserError: the folder is unusable (from `counts`), holds another number of samples, more classes
            than the benchmark tells apart, or a sample that the recipe's arrays have no room for.
    """
    counts = benchmark.data().counts(data_dir)
    if "validation" not in counts:
        raise UserError(f"{data_dir} holds no validation samples: prepare it again")
    where = f" ({data_dir})" if data_dir else ""
    expected = {"train": benchmark.train_samples, "validation": benchmark.eval_samples}
    for split, found in counts.items():
        field = "train_samples" if split == "train" else "eval_samples"
        if found != expected[split]:
            raise UserError(
                f"the data{where} hold {found:,} {split} samples and {benchmark.name} expects "
                f"{expected[split]:,}: prepare them again, or set {field}={found} if these are others"
            )
    data, classes = benchmark.data(), getattr(benchmark, "classes", None)
    held = len(data.class_names(data_dir)) if isinstance(data, NamesClasses) else 0
    if classes is not None and held > classes:
        raise UserError(
            f"classes is {classes} and {data_dir} holds samples of {held} classes: give at least {held}"
        )
    capacities = benchmark.capacities()
    maxima = data.maxima(data_dir) if capacities and isinstance(data, NotesMaxima) else {}
    for what, places in capacities.items():
        if what not in maxima:
            raise UserError(
                f"{data_dir} does not say how many {what} a sample has: prepare it again"
            )
        if maxima[what] > places:
            raise UserError(
                f"{data_dir} holds a sample with {maxima[what]:,} {what} and {benchmark.name} has places for "
                f"{places:,}, as nothing is cut: allow at least {maxima[what]:,}"
            )


def check_batches(benchmark: Benchmark, mesh: Mesh) -> None:
    """Samples grow with every step, and every batch splits over the mesh, also in micro-batches."""
    check_samples(benchmark)
    micro, train = benchmark.gradient_accumulation_steps, phases.buckets(benchmark)
    whole = "batch size" if [b.rows for b in train] == [benchmark.batch_size] else "rows"
    for bucket in train:
        meshes.check_divides(mesh, bucket.rows, whole)
        meshes.check_divides(mesh, bucket.rows / micro, "micro-batch of")
    for bucket in benchmark.eval_buckets():
        meshes.check_divides(mesh, bucket.rows, "evaluation batch size")
    if benchmark.generate is not None:
        meshes.check_divides(mesh, benchmark.parts().games, "games of a part")


def check_reading(benchmark: Benchmark, options: RunOptions, mesh: Mesh) -> None:
    """This process reads consecutive rows of every batch, and at least one step is allowed."""
    for bucket in (*phases.buckets(benchmark), *benchmark.eval_buckets()):
        meshes.process_rows(mesh, bucket.rows)
    first = benchmark.samples(1)
    if options.max_samples is not None and options.max_samples < first:
        raise UserError(f"max_samples {options.max_samples} is less than one batch of {first}")


def last_step(benchmark: Benchmark, options: RunOptions) -> int | None:
    """The step after which the run gives up; None for never."""
    limits = [n for n in (benchmark.last_sample, options.max_samples) if n]
    return benchmark.step_of(min(limits)) if limits else None


def eval_steps(benchmark: Benchmark, options: RunOptions) -> Iterator[int]:
    """The steps after which a run's quality is evaluated: the benchmark's own, and those asked for."""
    more = options.evaluate_every
    asked = itertools.count(more, more) if more else ()
    return (step for step, _ in itertools.groupby(heapq.merge(phases.eval_steps(benchmark), asked)))


def evaluates(benchmark: Benchmark, options: RunOptions) -> bool:
    """Whether a quality is computed while the run goes on, and not only afterwards or after its end."""
    last = last_step(benchmark, options)
    if benchmark.metric.mode == "offline":
        return False
    return (
        last is None
        or benchmark.evaluates_generations
        or next(eval_steps(benchmark, options)) <= last
    )


def check_offline(benchmark: Benchmark, options: RunOptions) -> None:
    """A run that is scored afterwards ends by itself, and not before its second checkpoint."""
    if benchmark.metric.mode != "offline":
        return
    last = last_step(benchmark, options)
    if last is None:
        raise UserError(
            f"{benchmark.name} is scored after its run, which no value ends: say how many samples it may "
            "see (--max-samples N)"
        )
    second = next(itertools.islice(eval_steps(benchmark, options), 1, None))
    if last < second:
        raise UserError(
            f"{benchmark.name} is scored after its run, which needs two checkpoints: the second comes after "
            f"step {second} and the run ends after step {last}, so allow at least "
            f"{benchmark.samples(second)} samples"
        )


def check_room(options: RunOptions, assembly: states.Assembly) -> None:
    """The output folder's disk may be written and takes the checkpoints; local folders only.

    While one is written the older ones are still there.
    """
    if "://" in str(options.output):
        return
    folder = pathlib.Path(options.output or ".").expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{folder} may not be written: give another --output")
    kept = {part: leaves for part, leaves in assembly.abstract.items() if part != "frozen"}
    if assembly.evaluates not in kept:
        kept[assembly.evaluates] = kept["params"]
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    needed, free = size * (options.keep_checkpoints + 1), shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} has {free / 1e6:,.1f} MB free, and {options.keep_checkpoints + 1} checkpoints take "
            f"{needed / 1e6:,.1f} MB: free space, keep fewer (--keep-checkpoints), or give another --output"
        )


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run that passed preflight and has touched nothing yet.

    Attributes:
        benchmark: with every "auto" decided.
        options: as given.
        division: "open" or "closed".
        data_dir: where the data are.
        assembly: the program's shapes.
        optimizer: what the replaced optimizer computes, as `optimizer_trace` tells it from others, or None.
        transforms: those added to the training data's.
        transform: the same as text, or None.
        notes: sentences to be said before the first step.
        settled: fields of the benchmark that were "auto", and are what the devices are, not what the run is.
        programs: what its runs execute (`loop.Programs`), once the first has compiled it.
    """

    benchmark: Benchmark
    options: RunOptions
    division: str
    data_dir: str
    assembly: states.Assembly
    optimizer: str | None = None
    transforms: tuple[Transform, ...] = ()
    transform: str | None = None
    notes: tuple[str, ...] = ()
    programs: list[Any] = dataclasses.field(default_factory=list, repr=False)
    settled: tuple[str, ...] = ()

    def config(self) -> dict[str, Any]:
        """What the run is told apart by: the benchmark's fields, its own code, and what was replaced."""
        more = {"transform": self.transform, "code": self.benchmark.own_code}
        return {
            **self.benchmark.config(),
            **dict.fromkeys(self.settled, placement.AUTO),
            "division": self.division,
            "optimizer": self.optimizer,
            **({"evaluate_every": every} if (every := self.options.evaluate_every) else {}),
            **{name: text for name, text in more.items() if text},
        }

    def about(self, seed: int) -> dict[str, Any]:
        """What is kept beside the configuration: the options, and what helps to tell why two differ."""
        names = [f.name for f in dataclasses.fields(self.options)]
        about = {name: getattr(self.options, name) for name in names} | {"seed": seed}
        for name in ("optimizer", "transform"):
            if not isinstance(about[name], str):
                about[name] = None  # the configuration tells it from others
        traced = {"optimizer_traced_by": optimizer_trace.libraries()} if self.optimizer else {}
        return {
            **about,
            **traced,
            "benchmark": python_file.place(type(self.benchmark)),
            "optimizer_state": self.optimizer_state,
        }

    @property
    def optimizer_state(self) -> str:
        """Sixteen hex digits of the structure and shapes of the optimizer's state."""
        leaves, structure = jax.tree.flatten(self.assembly.abstract["opt"])
        shapes = [f"{leaf.shape}{leaf.dtype}" for leaf in leaves]
        return hashlib.sha256(f"{structure}{shapes}".encode()).hexdigest()[:16]


def preflight(
    benchmark: Benchmark, options: RunOptions, data_dir: str | Callable[[], str]
) -> PlannedRun:
    """All that can be refused before the clock starts, refused; see DESIGN.md §3.0.

    Args:
        benchmark, options: of the run.
        data_dir: where the data are, or what finds or makes them, which takes minutes: asked on process 0, and after
            all that can be refused without them.
    """
    if options.tensorboard:
        events.check_extra()
    benchmark = resolve_dtype(benchmark)
    check_members(benchmark)
    check_offline(benchmark, options)
    if options.evaluate_every and benchmark.evaluates_generations:
        raise UserError(
            f"{benchmark.name} is evaluated when a generation of its data ends, and at no other step: leave "
            "--evaluate-every out"
        )
    division = resolve_division(benchmark, options)
    given = options.optimizer
    optimizer = load_optimizer(given) if isinstance(given, str) else given
    transforms = load_transforms(options.transform)
    check_transforms(transforms, phases.buckets(benchmark))
    asked = benchmark
    benchmark, sizes = placement.settle(benchmark, options.mesh, optimizer)
    mesh = meshes.make_mesh(sizes)
    check_batches(benchmark, mesh)
    check_reading(benchmark, options, mesh)
    if not isinstance(data_dir, str):
        data_dir = processes.from_primary(data_dir)
    check_counts(benchmark, data_dir)
    if benchmark.levers.ramped:
        phases.read(benchmark, data_dir)
    # missing weights and tables are refused; of those that are there, nothing is read
    start = benchmark.start(data_dir)
    starts.table_readers(benchmark, data_dir)
    assembly = states.assemble(benchmark, mesh, optimizer)
    assembly.check_room()
    replaced = assembly.traced.program if given is not None and assembly.traced else None
    notes = list(assembly.traced.notes) if assembly.traced else []
    names = [field.name for field in dataclasses.fields(asked)]
    settled = [name for name in names if getattr(asked, name) != getattr(benchmark, name)]
    if sizes != options.mesh:
        words = [
            f"mesh {meshes.describe(mesh)}",
            *(f"{n} {getattr(benchmark, n)}" for n in settled),
        ]
        notes.append(f"note: {', '.join(words)}: found by the devices' memory and links")
    notes += layout.check_layout(assembly)
    if assembly.replaced and start is not None and start.optimizer_step:
        notes.append(
            f"note: the start checkpoint has the state of {benchmark.name}'s own optimizer after "
            f"{start.optimizer_step:,} updates: the one that replaces it begins anew, at update 0"
        )
    judges = judges_of(benchmark, mesh)
    if judges is not None:
        judges.sources(data_dir)
    processes.from_primary(lambda: check_room(options, assembly))
    return PlannedRun(
        benchmark,
        options,
        division,
        data_dir,
        assembly,
        replaced,
        transforms,
        describe_transforms(options.transform),
        tuple(notes),
        settled=tuple(settled),
    )

"""What a run left: its configuration found again, and its weights restored, ready to be used.

Only what evaluation reads is restored: the averaged weights where the benchmark or the optimizer
averaged them, no optimizer state. Frozen weights and untrained tables, which no checkpoint holds, are made or read anew, as the run
itself had them.

Shape legend: B rows of a global batch.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import optax
from flax import nnx

from mlperf_jax.core import (
    evaluation,
    mesh as meshes,
    preflight,
    starts,
    state as states,
    step as steps,
)
from mlperf_jax.core.benchmark import Batch, Benchmark
from mlperf_jax.core.checkpoints import Checkpoints
from mlperf_jax.core.judges import Judges, judges_of
from mlperf_jax.core.options import RunOptions
from mlperf_jax.core.protocols import SavesAdapter
from mlperf_jax.core.standing import Standing
from mlperf_jax.errors import UserError
from mlperf_jax.optimizers import tree as trees
from mlperf_jax.paths import check_new, check_path
from mlperf_jax.results.remote import Mirror
from mlperf_jax.results.result import (
    SMALL_PRINT,
    Result,
    config_hash,
    folder_of,
    html_table,
    trained_hash,
)
from mlperf_jax.results.runs import RunFolder, runs_at


@dataclass(frozen=True)
class Trained:
    """A benchmark with the weights that one of its runs had after a step.

    Attributes:
        benchmark: as it was configured in that run.
        model: the Flax NNX module in evaluation behaviour, with the weights that evaluation reads.
        step: batches that the weights were trained on.
        quality: what the run's own evaluation of these weights gave; None if it did not evaluate them.
        seed: the run's.
        assembly, view: shapes and shardings, and the weights as a nested dict; `view["tables"]` holds
            embedding tables, which are not part of the model.
        find_data: gives the folder of the run's data.
    """

    benchmark: Benchmark
    model: nnx.Module
    step: int
    quality: Mapping[str, float] | None
    seed: int
    assembly: states.Assembly = field(repr=False)
    view: states.State = field(repr=False)
    find_data: Callable[[], str] = field(repr=False)

    def __repr__(self) -> str:
        tiny = " (tiny)" if self.benchmark.is_tiny else ""
        known = [f"{n} {v:.5g}" for n, v in (self.quality or {}).items() if "/" not in n]
        quality = f", {', '.join(known)} (unverified)" if known else ""
        return f"<{self.benchmark.name}{tiny} after step {self.step:,}{quality}>"

    def _repr_html_(self) -> str:
        tiny = " (tiny)" if self.benchmark.is_tiny else ""
        values = self.quality or {}
        quality = [f"{name} {value:.5g} (unverified)" for name, value in values.items()]
        arrays = jax.tree.leaves(self.view["params"])
        rows = {
            "step": f"{self.step:,}, after {self.benchmark.samples(self.step):,} samples",
            "quality": "\n".join(quality) or "not evaluated: evaluate() does",
            "parameters": f"{sum(array.size for array in arrays):,} in {len(arrays)} arrays",
            "mesh": meshes.describe(self.assembly.mesh),
            "seed": str(self.seed),
        }
        return html_table(f"{self.benchmark.name}{tiny}, trained", rows) + SMALL_PRINT

    def apply(self, function: Callable[..., Any], batch: Batch, *more: Any) -> Any:
        """`function(model, batch, *more)`, compiled once per function and shape of the batch.

        What the batch looks up in embedding tables is there as `batch["rows"]`.

        Args:
            function: of the model, a batch and what else is given.
            batch: arrays [B, …]; the mesh must divide B.
            *more: trees of arrays, as they are.
        """
        mesh = self.assembly.mesh
        meshes.process_rows(mesh, len(next(iter(batch.values()))))
        placed = jax.device_put(dict(batch), meshes.batch_sharding(mesh))
        with jax.set_mesh(mesh):
            return self._program(function, self.view, placed, *more)

    @functools.cached_property
    def _program(self) -> jax.stages.Wrapped:
        assembly = self.assembly

        def program(function: Callable[..., Any], view: states.State, batch: Batch, *more: Any):
            given = steps.with_rows(assembly, view, batch)
            return function(assembly.eval_model(view), given, *more)

        return jax.jit(program, static_argnums=0)

    def predict(self, batch: Batch) -> Any:
        """What the benchmark's `predict` gives for a batch of its evaluation data, arrays [B, …]."""
        return self.apply(self._predict, batch, *self._judge_arrays())

    def find(self, batch: Batch) -> Any:
        """What the benchmark's `find` sees in a batch, of any data and size, to be drawn; arrays [B, …]."""
        return self.apply(self._find, batch, *self._judge_arrays())

    @functools.cached_property
    def _judges(self) -> Judges | None:
        return judges_of(self.benchmark, self.assembly.mesh)

    def _judge_arrays(self) -> list[states.State]:
        """Those of the benchmark's judges, to be given to `_predict` and `_find`; none where it has no judges."""
        return [self._judges.load(self.find_data())] if self._judges else []

    def _judging(self, arrays: Sequence[states.State]) -> list[nnx.Module]:
        return [self._judges.module(one) for one in arrays if self._judges]

    @functools.cached_property
    def _predict(self) -> Callable[..., Any]:
        key, predict = states.stream(self.seed, "evaluation"), self.benchmark.predict
        return lambda model, batch, *more: predict(model, batch, key, *self._judging(more))

    @functools.cached_property
    def _find(self) -> Callable[..., Any]:
        find = self.benchmark.find
        return lambda model, batch, *more: find(model, batch, *self._judging(more))

    def evaluate(
        self, data_dir: str | None = None, *, threads: int | None = None
    ) -> dict[str, float]:
        """The quality on all evaluation data, computed as the run computes it.

        Args:
            data_dir: the data; by default where the run had them.
            threads: that read them; one per core by default.

        Raises:
            UserError: the data are not there, or the mesh does not divide the evaluation batch.
        """
        folder = data_dir or self.find_data()
        evaluator = evaluation.Evaluator(self.assembly, self.seed, folder, threads)
        return evaluator.quality(self.view, self.step)


# -- finding a run ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """A run's folder as it was found.

    Attributes:
        folder: its files; of a bucket, the copies here.
        checkpoints: where its checkpoints lie.
        config: the benchmark's fields, the division and the optimizer.
        options: the `RunOptions` it was started with, as JSON holds them.
    """

    folder: RunFolder
    checkpoints: str
    config: dict[str, Any]
    options: dict[str, Any]


def find(path: os.PathLike | str | Result) -> Kept:
    """The run at this path.

    Args:
        path: the folder of a run (`…/run_0`), or of a set that holds only one.

    Raises:
        UserError: there is none, there are several, or its config.json was changed.
    """
    path = text = folder_of(path)
    if "://" not in text:
        text = str(check_path(text, "the folder of a run").expanduser().resolve())
    root, _, last = text.rstrip("/").rpartition("/")
    one = re.fullmatch(r"run_(\d+)", last)
    mirror = Mirror((root or "/") if one else text)
    mirror.pull()
    runs = runs_at(mirror.local / last if one else mirror.local)
    if not runs:
        raise UserError(
            f"{path} is not the folder of a run: give what `mlperf-jax run` was given as --output, or a "
            "run_0, run_1 … in it"
        )
    if len(runs) > 1:
        raise UserError(
            f"{path} holds {len(runs)} runs: give one of them, such as {text}/run_{runs[0].index}"
        )
    (run,) = runs
    document = run.config()
    config, options = document.get("config"), document.get("options")
    if (
        not isinstance(config, dict)
        or not isinstance(options, dict)
        or document["config_hash"] != config_hash(config)
    ):
        raise UserError(
            f"{run.config_path} was changed after the run began: put back what it was, as the weights "
            "belong to that configuration"
        )
    return Kept(run, mirror.checkpoints(run.index), config, options)


def options_here(saved: Mapping[str, Any], **changes: Any) -> RunOptions:
    """The options of a run, not of its set, as they can be had in this process.

    A run on many hosts, or on more devices than are here, is read by this process on its own devices.
    """
    known = {f.name for f in dataclasses.fields(RunOptions)}
    given = {name: value for name, value in saved.items() if name in known}
    here = {"runs": 1, **dict.fromkeys(("seed", "seeds", "coordinator", "processes", "process"))}
    options = RunOptions(**{**given, **here, **changes})
    try:
        meshes.make_mesh(options.mesh)
    except UserError:
        options = dataclasses.replace(options, mesh=None)
    return options


# -- restoring its weights -------------------------------------------------------------------------


def load(
    kept: Kept,
    benchmark: Benchmark,
    find_data: Callable[[], str],
    *,
    step: int | None = None,
    mesh: str | None = None,
) -> Trained:
    """The weights of a run, on this process' devices.

    Args:
        kept: the run.
        benchmark: what its configuration describes.
        find_data: gives the data's folder; called when frozen weights or untrained tables are read from it.
        step: whose checkpoint; by default the one that the result tells of, else the newest.
        mesh: "data=4,fsdp=2"; by default the run's own where there are enough devices.

    Raises:
        UserError: no checkpoint, none of this step, or a damaged one.
    """
    benchmark = preflight.resolve_dtype(benchmark)
    own = meshes.make_mesh(mesh or options_here(kept.options).mesh)
    assembly = states.assemble(benchmark, own, optax.identity())  # no memory for its state
    assembly.check_room()
    view = assembly.kept(assembly.abstract_view)
    state, standing = _restored(kept, benchmark, step, view)
    seed = kept.options["seed"]
    folder = find_data() if assembly.has_untrained else ""
    view = assembly.eval_view(with_untrained(assembly, state, seed, folder))
    return Trained(
        benchmark=benchmark,
        model=assembly.eval_model(view),
        step=standing.step,
        quality=_quality(kept, benchmark, standing),
        seed=seed,
        assembly=assembly,
        view=view,
        find_data=find_data,
    )


def save_adapter(
    kept: Kept,
    benchmark: Benchmark,
    folder: str | os.PathLike,
    step: int | None,
    base: str | None,
) -> pathlib.Path:
    """Writes the adapter of a run, whose parameters are read onto one device; nothing that is frozen is.

    Raises:
        UserError: as `load`; the benchmark trains no adapters, or the folder is there already.
    """
    if not isinstance(benchmark, SavesAdapter):
        raise UserError(
            f"{kept.folder.path} is a run of {benchmark.name}, which trains no adapters: give one of a benchmark with LoRA"
        )
    check_new(folder, "the adapter's folder")
    resolved = preflight.resolve_dtype(benchmark)
    assembly = states.assemble(resolved, meshes.make_mesh("data=1"), optax.identity())
    view = assembly.kept(assembly.abstract_view)
    state, _ = _restored(kept, benchmark, step, {"params": view["params"]})
    return benchmark.save_adapter(state["params"], folder, base)


def _restored(
    kept: Kept, benchmark: Benchmark, step: int | None, view: states.State
) -> tuple[states.State, Standing]:
    """What a checkpoint holds of the parts in `view`, and where the run stood."""
    with Checkpoints(kept.checkpoints, identity=None) as checkpoints:
        step = _chosen_step(kept, benchmark, checkpoints.steps(), step)
        newest = checkpoints.latest_meta() or {}
        theirs, ours = newest.get("identity", {}).get("configuration"), trained_hash(kept.config)
        if theirs not in (None, ours):
            raise UserError(
                f"{kept.checkpoints} holds checkpoints of the configuration {theirs}, and "
                f"{kept.folder.config_path} is {ours}: these files are of different runs"
            )
        weights = newest.get("evaluates", "params")
        names = {"params": weights, "tables": "tables", "stats": "stats"}
        abstract = {name: view[part] for part, name in names.items() if part in view}
        found = checkpoints.restore(abstract, step, partial=True)
    assert found is not None, "there are checkpoints"
    state = found[0]
    state["params"] = state.pop(weights)
    return state, Standing.of(found[1])


def _chosen_step(
    kept: Kept, benchmark: Benchmark, there: list[int], step: int | None
) -> int | None:
    """The step asked for, or that of the run's result, or None: the newest that is whole."""
    path = kept.folder.path
    if not there:
        raise UserError(
            f"{path} keeps no checkpoint: a run takes one after each evaluation and at its end, and every N "
            "steps with --checkpoint-every N; resume it with --resume, or copy its checkpoints too"
        )
    if step is None:
        step = _reported_step(kept, benchmark)
        return step if step in there else None
    if step not in there:
        raise UserError(
            f"{path} keeps no checkpoint of step {step}, only of {', '.join(map(str, there))}: a run keeps "
            "the newest 2, or N with --keep-checkpoints N"
        )
    return step


def _reported_step(kept: Kept, benchmark: Benchmark) -> int | None:
    folder = kept.folder
    return benchmark.step_of(folder.result().samples) if folder.finished else None


def _quality(kept: Kept, benchmark: Benchmark, standing: Standing) -> dict[str, float] | None:
    """What the run says of the weights of this very step, if it evaluated them."""
    if standing.evaluated == standing.step:
        return standing.quality
    if benchmark.metric.mode == "offline" and _reported_step(kept, benchmark) == standing.step:
        return kept.folder.result().quality
    return None


def with_untrained(
    assembly: states.Assembly, state: states.State, seed: int, data_dir: str
) -> states.State:
    """A restored state with its frozen weights and untrained tables: made anew, or read anew."""
    kept = trees.flatten_paths(state)
    state = assembly.completed(state, seed)
    if not assembly.has_untrained:
        return state
    state, start = assembly.with_data(state, data_dir), assembly.benchmark.start(data_dir)
    if start is None:
        return state
    weights = {
        path: weight
        for path, weight in start.weights.items()
        if path.startswith(("frozen/", "tables/")) and path not in kept
    }
    only = dataclasses.replace(start, weights=weights, optimizer_step=0, moments={})
    return starts.begin_from(state, only)

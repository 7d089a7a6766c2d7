"""The benchmarks by their official names, those of your own, and the call that trains one.

>>> from mlperf_jax.benchmarks import get, names
>>> "resnet" in names()
True
>>> get("resnet").batch_size
3264
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import pathlib
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from mlperf_jax.benchmarks.comparing import compare as compare, compared as compared
from mlperf_jax.benchmarks.folders import (
    build_data as build_data,
    check_folder as check_folder,
    data_folder as data_folder,
    default_tiny_folder as default_tiny_folder,
    needs_folder as needs_folder,
    small_folder,
    told_of_tiny,
)
from mlperf_jax.benchmarks.registry import (
    benchmark_class as benchmark_class,
    divided,
    from_config as from_config,
    get as get,
    names as names,
    recipe_note as recipe_note,
    register as register,
)
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import DataError, Interrupted, UserError

if TYPE_CHECKING:
    from mlperf_jax.benchmarks.registry import Named
    from mlperf_jax.core.benchmark import Benchmark, Target, f32, i32
    from mlperf_jax.core.comparison.entries import Tunable
    from mlperf_jax.core.levers import Levers
    from mlperf_jax.core.trained import Trained
    from mlperf_jax.results.listing import Listing
    from mlperf_jax.results.result import Result, Results
    from mlperf_jax.results.story import Curves

__all__ = [
    "Benchmark",
    "Levers",
    "RunOptions",
    "Target",
    "Tunable",
    "compare",
    "compared",
    "curves",
    "evaluate",
    "f32",
    "get",
    "i32",
    "load",
    "names",
    "register",
    "run",
    "save_adapter",
    "show",
    "table",
]


def __getattr__(name: str) -> Any:
    """The contract, which imports JAX: help and a mistyped name need not wait for it."""
    if name == "Tunable":
        return importlib.import_module("mlperf_jax.core.comparison.entries").Tunable
    if name == "Levers":
        return importlib.import_module("mlperf_jax.core.levers").Levers
    if name not in ("Benchmark", "Target", "f32", "i32"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("mlperf_jax.core.benchmark"), name)


def table(ruleset: str | None = None) -> Listing:
    """The benchmarks of all rounds, those of this library first; `mlperf-jax list`.

    Args:
        ruleset: only the benchmarks of a round, such as "5.1", with its targets.

    Returns:
        What a notebook displays and `print` writes; `rows` has more.

    Raises:
        UserError: there is no such round.
    """
    from mlperf_jax.results.listing import Listing

    return Listing(names(), ruleset)


def run(name: Named, *, tiny: bool = False, **settings: Any) -> Any:
    """Trains a benchmark to its quality target and returns the `Result` (a list of them for runs > 1).

    Args:
        name: as `names()` spells it, or one of your own: "my_file.py:Wine", its class, or an object.
        tiny: run the small stand-in: no data to fetch, a minute on two CPU cores.
        **settings: fields of `RunOptions` (data_dir, output, seed, mesh, division, optimizer, transform, …) and
            of the benchmark (batch_size, …). An optimizer with schedule-free parts is evaluated at its averaged
            weights, and one that has `eval_params(opt_state, params)` at what that gives (README).

    Raises:
        UserError: for anything the user can mend, before any file is touched where possible.

    Example:
        run("resnet", tiny=True)
        run("resnet", data_dir="/data", batch_size=4096, mesh="data=8")
        run("resnet", tiny=True, optimizer=optax.adamw(1e-3), division="open")
        run(Wine(hidden=64))                  # a benchmark of your own
    """
    known = [field.name for field in dataclasses.fields(RunOptions)]
    options, fields = divided("run", name, settings, known)
    from mlperf_jax.core import launch  # imports Orbax, which `names()` need not wait for

    benchmark = get(name, tiny=tiny, **fields)
    try:
        launch.connect(options)
        note, data = recipe_note(benchmark), lambda: data_folder(benchmark, options)
        return launch.launch(benchmark, options, data, notes=[note] if note else [])
    except DataError as error:
        if not benchmark.is_tiny:
            raise
        told = told_of_tiny(benchmark, small_folder(options), str(error))
        raise UserError(told) from error
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted at once; what is on the disk is kept, and --resume takes up a run that has begun",
            signal.SIGINT,
        ) from None


def evaluate(path: str | os.PathLike, *, optimizer: Any = None, bisect: bool = False) -> Any:
    """Scores a set's trained runs whose benchmark is evaluated after training; `mlperf-jax evaluate`.

    Args:
        path: the output folder of the set.
        optimizer: the one that the run was given, where it was an object; its state is checked.
        bisect: score only as many checkpoints as it takes to find one that passes while the one before it
            does not: enough for all runs of an official set but one. By default all up to the first.

    Returns:
        The `Result`; a list of them when the set had several runs to score.

    Raises:
        UserError: there is nothing to score, or the run is not trained to its end.
    """
    from mlperf_jax.core import offline

    results = []
    while (found := offline.waiting(path)) is not None:
        document, options = found
        options = dataclasses.replace(options, optimizer=optimizer or options.optimizer)
        benchmark = from_config(document["config"], document["options"].get("benchmark"))
        folder = data_folder(benchmark, options)
        transform = document["config"].get("transform")
        results.append(offline.score(benchmark, options, folder, transform, bisect=bisect))
    if not results:
        raise UserError(f"every run in {path} has its result already")
    return results[0] if len(results) == 1 else results


def load(
    run_folder: str | os.PathLike | Result,
    *,
    step: int | None = None,
    data_dir: str | None = None,
    mesh: str | None = None,
) -> Trained:
    """A run's benchmark with the weights it trained, ready to be used, on the devices that are here.

    Args:
        run_folder: the folder of a run (`…/run_0`), or of a set that holds one run; gs:// too; or a run's `Result`.
        step: whose checkpoint; by default the weights that the run's result tells of, or the newest. A
            run keeps the newest two, and more with `keep_checkpoints`.
        data_dir: where the data are now, if not where the run had them. Only frozen weights, such as the
            base of a LoRA run, are read from there.
        mesh: "data=4,fsdp=2"; by default the run's own where there are enough devices, else all of them
            on `data`. The run may have had others.

    Raises:
        UserError: no run there, of another version, no checkpoint (of this step), or a damaged one.

    Example:
        trained = load("runs/digits/run_0")
        trained.model(images)                 # a Flax NNX module in evaluation behaviour
        trained.step, trained.quality         # 176, {"accuracy": 0.9777}
        trained.evaluate()                    # the same, computed again
    """
    from mlperf_jax.core import launch, trained

    launch.use_compile_cache()
    kept = trained.find(run_folder)
    benchmark = from_config(kept.config, kept.options.get("benchmark"))
    where = trained.options_here(
        kept.options, **({} if data_dir is None else {"data_dir": data_dir})
    )
    return trained.load(
        kept,
        benchmark,
        lambda: data_folder(benchmark, where),
        step=step,
        mesh=mesh,
    )


def save_adapter(
    run_folder: str | os.PathLike | Result,
    folder: str | os.PathLike,
    *,
    step: int | None = None,
    base: str | None = None,
) -> pathlib.Path:
    """Writes the adapter that a LoRA run trained as Hugging Face `peft` does; the base is not read.

    Args:
        run_folder, step: as `load` takes them.
        folder: made by this, with `adapter_config.json` and `adapter_model.safetensors`.
        base: name or path of the base that `transformers` loads, which the configuration notes; by default that
            of the release, and none for tiny runs.

    Returns:
        The folder.

    Raises:
        UserError: as `load`; the run trains no adapters, or the folder is there already.

    Example:
        save_adapter("runs/lora", "mine")     # elsewhere: peft.PeftModel.from_pretrained(base, "mine")
    """
    from mlperf_jax.core import trained

    kept = trained.find(run_folder)
    benchmark = from_config(kept.config, kept.options.get("benchmark"))
    return trained.save_adapter(kept, benchmark, folder, step, base)


def curves(*paths: str | os.PathLike | Result | Results, values: Sequence[str] = ()) -> Curves:
    """Loss and quality of runs over their samples, drawn beside each other; unfinished runs too.

    Args:
        *paths: folders of runs (`…/run_0`) or of sets, whose runs are all drawn; or what `run` returned.
        values: names of what is drawn; by default the loss and each quality that has a target.

    Returns:
        What a notebook displays, and `save("loss.svg")` writes.

    Raises:
        UserError: there is no run, its files are damaged, or no run logged such a value.

    Example:
        curves("runs/digits")
        curves("runs/lars", "runs/adamw", values=["accuracy"])
    """
    from mlperf_jax.results.story import Curves

    return Curves(*paths, values=values)


def show(
    name: Named,
    *,
    tiny: bool = False,
    data_dir: str | None = None,
    run: str | os.PathLike | Result | None = None,
    step: int | None = None,
    samples: int | None = None,
    split: Literal["train", "eval"] = "eval",
    seed: int = 0,
    output: str | os.PathLike | None = None,
    **fields: Any,
) -> Any:
    """A picture of samples with their labels and, of a trained run, with what its model finds in them.

    Args:
        name: as `run` takes it; not every benchmark has pictures.
        tiny: of the small stand-in, whose data are made if need be.
        data_dir: the data; by default those of the run.
        run: the folder of a run, as `load` takes it.
        step: whose checkpoint, as `load` takes it.
        samples: how many; each benchmark has its own default.
        split: "train" is as training sees them, cropped, mirrored and so on.
        seed: which samples, and what augmentation does to them.
        output: a file to write too, ending in .png.
        **fields: of the benchmark, without a run: `min_crop_area=0.5`.

    Returns:
        A `PIL.Image`, which a notebook displays.

    Raises:
        UserError: no pictures of this benchmark, no data, a run of another benchmark, or Pillow is missing.

    Example:
        show("resnet", tiny=True, split="train")
        show("unet3d", run="runs/kits", data_dir="/data", output="kidneys.png")
    """
    from mlperf_jax import pictures
    from mlperf_jax.benchmarks import showing
    from mlperf_jax.core.benchmark import Benchmark

    wanted = showing.Wanted(samples=samples, split=split, seed=seed, output=output)
    cls = benchmark_class(name)
    if cls.picture is Benchmark.picture:
        able = [one.name for one in map(benchmark_class, names()) if one.picture is not cls.picture]
        raise UserError(f"there are no pictures of {cls.name}; there are of {', '.join(able)}")
    pictures.pillow()  # missing, it shall not show after a minute's work
    if run is None:
        if step is not None:
            raise UserError(
                "step is that of a run's checkpoint: give the run too, or leave step out"
            )
        benchmark = get(name, tiny=tiny, **fields)
        folder = data_folder(benchmark, RunOptions(data_dir=data_dir))
        return showing.draw(benchmark, folder, wanted)
    showing.check_run(cls.name, tiny, run, fields)
    # one device: it need not divide the samples, and these models are small
    model = load(run, step=step, data_dir=data_dir, mesh="data=1")
    return showing.draw(model.benchmark, model.find_data(), wanted, model)

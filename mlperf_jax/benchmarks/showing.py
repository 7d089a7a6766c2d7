"""Pictures of samples and of what a trained model finds in them: what `benchmarks.show` does."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from mlperf_jax import benchmarks
from mlperf_jax.core import trained
from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.core.fields import check_whole
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import UserError
from mlperf_jax.results import pictures

SPLITS = ("train", "eval")


@dataclass(frozen=True)
class Wanted:
    """Which samples are drawn, and where to; `benchmarks.show` explains each."""

    samples: int | None = None
    split: str = "eval"
    seed: int = 0
    output: str | os.PathLike | None = None

    def __post_init__(self) -> None:
        check_whole("samples", self.samples, optional=True)
        check_whole("seed", self.seed, least=0)
        if self.split not in SPLITS:
            raise UserError(f"split must be {' or '.join(SPLITS)}, not {self.split!r}")
        if self.output is not None:
            pictures.check_output(self.output)


@dataclass(frozen=True)
class Some:
    """A few records of a source, in this order."""

    source: Any
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.source[int(self.rows[index])]

    def describe(self, index: int) -> str:
        return self.source.describe(int(self.rows[index]))


def draw(
    name: benchmarks.Named,
    wanted: Wanted,
    *,
    tiny: bool = False,
    data_dir: str | None = None,
    run: str | os.PathLike | None = None,
    step: int | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Any:
    """The picture; see `benchmarks.show`."""
    cls = benchmarks.benchmark_class(name)
    if cls.picture is Benchmark.picture:
        every = map(benchmarks.benchmark_class, benchmarks.names())
        able = [other.name for other in every if other.picture is not Benchmark.picture]
        raise UserError(f"there are no pictures of {cls.name}; there are of {', '.join(able)}")
    pictures.pillow()  # missing, it shall not show after a minute's work
    if run is None:
        if step is not None:
            raise UserError(
                "step is that of a run's checkpoint: give the run too, or leave step out"
            )
        benchmark = benchmarks.get(name, tiny=tiny, **(fields or {}))
        folder = benchmarks.data_folder(benchmark, RunOptions(data_dir=data_dir))
        batch, found = chosen(benchmark, folder, wanted), None
    else:
        _check_run(cls.name, tiny, run, fields or {})
        # one device: it need not divide the samples, and these models are small
        model = benchmarks.load(run, step=step, data_dir=data_dir, mesh="data=1")
        benchmark, folder = model.benchmark, model.find_data()
        batch = chosen(benchmark, folder, wanted)
        found = jax.device_get(model.apply(benchmark.find, batch))
    picture = benchmark.picture(batch, benchmark.class_names(folder), found)
    if wanted.output is not None:
        pictures.save(picture, wanted.output)
    return picture


def _check_run(name: str, tiny: bool, run: str | os.PathLike, fields: Mapping[str, Any]) -> None:
    """Nothing, if the run is one of what was asked for; before its weights are read."""
    if fields:
        raise UserError(
            f"{run} has its own configuration: leave {', '.join(sorted(fields))} out, or the run"
        )
    config = trained.find(run).config
    if config["benchmark"] != name:
        raise UserError(f"{run} is a run of {config['benchmark']}, not of {name}")
    if tiny and config["size"] != "tiny":
        raise UserError(f"{run} is a run of the full {name}: leave tiny out")


def chosen(benchmark: Benchmark, data_dir: str, wanted: Wanted) -> dict[str, np.ndarray]:
    """A batch of the samples wanted: the first of a training run, or some of the evaluation data."""
    count = wanted.samples or benchmark.pictured
    if wanted.split == "train":
        batches = benchmark.train_data(data_dir).batches(count, seed=wanted.seed)
    else:
        data = benchmark.eval_data(data_dir)
        rows = np.random.default_rng(wanted.seed).permutation(len(data))[:count]
        some = dataclasses.replace(data, source=Some(data.source, np.sort(rows)))
        batches = some.eval_batches(len(some))
    with contextlib.closing(batches):
        batch = dict(next(batches))
    inside = batch.pop("mask", None)
    return batch if inside is None else {name: rows[inside] for name, rows in batch.items()}

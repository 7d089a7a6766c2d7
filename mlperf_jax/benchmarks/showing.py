"""Pictures of samples and of what a trained model finds in them: what `benchmarks.show` does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from mlperf_jax import pictures
from mlperf_jax.core import trained
from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.core.fields import Count, check_fields
from mlperf_jax.core.options import Seed
from mlperf_jax.core.protocols import NamesClasses, Split
from mlperf_jax.core.trained import Trained
from mlperf_jax.errors import UserError


@dataclass(frozen=True)
class Wanted:
    """Which samples are drawn, and where to; `benchmarks.show` explains each."""

    samples: Count | None = None
    split: Literal["train", "eval"] = "eval"
    seed: Seed = 0
    output: str | os.PathLike | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.output is not None:
            pictures.check_output(self.output)


def draw(benchmark: Benchmark, folder: str, wanted: Wanted, run: Trained | None = None) -> Any:
    """The picture of a benchmark's data in this folder and of what a run's model finds in them."""
    batch = chosen(benchmark, folder, wanted)
    found = jax.device_get(run.find(batch)) if run else None
    data = benchmark.data()
    names = data.class_names(folder) if isinstance(data, NamesClasses) else ()
    picture = benchmark.picture(batch, names, found)
    if wanted.output is not None:
        pictures.save(picture, wanted.output)
    return picture


def check_run(name: str, tiny: bool, run: Any, fields: Mapping[str, Any]) -> None:
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
        batch = benchmark.data().train(data_dir).batched(count, seed=wanted.seed)[0]
    else:
        data: Split = benchmark.data().validation(data_dir)
        numbers = np.random.default_rng(wanted.seed).permutation(len(data))[:count]
        one_each = data.batched(1)
        found = [one_each[number] for number in sorted(numbers.tolist())]
        batch = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
    inside = batch.pop("mask", None)
    return batch if inside is None else {name: rows[inside] for name, rows in batch.items()}

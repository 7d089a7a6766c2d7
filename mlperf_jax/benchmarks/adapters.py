"""What LoRA runs trained, as a folder that other libraries read, and such a folder as what a run begins with."""

from __future__ import annotations

import os
import pathlib

import numpy as np

from mlperf_jax.benchmarks.language_model import LanguageModel
from mlperf_jax.core import trained
from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.errors import UserError
from mlperf_jax.models import importing, lora, lora_peft
from mlperf_jax.models.decoder_config import DecoderConfig


def save(
    kept: trained.Kept,
    benchmark: Benchmark,
    folder: str | os.PathLike,
    *,
    step: int | None = None,
    base: str | None = None,
) -> pathlib.Path:
    """Writes the adapter of a run; the base is not read. Arguments and faults as of `benchmarks.save_adapter`."""
    config = benchmark.decoder() if isinstance(benchmark, LanguageModel) else None
    if config is None or config.lora is None:
        raise UserError(
            f"{kept.folder.path} is a run of {benchmark.name}, which trains no adapters, as llama2_70b_lora does"
        )
    lora_peft.check_new(folder)
    params = trained.parameters(kept, benchmark, step)
    released = None if benchmark.is_tiny else getattr(benchmark, "released", None)
    return lora_peft.save(folder, params, config, base=base or released)


def start_weights(folder: str, config: DecoderConfig) -> dict[str, np.ndarray]:
    """The arrays of an adapter by their paths in the state, for a `Start`.

    Raises:
        UserError: it cannot be read, or is of another base, rank or scale.
    """
    found = lora_peft.read(folder)
    assert config.lora is not None
    mine, theirs = config.lora, found.lora
    if (mine.rank, mine.scale) != (theirs.rank, theirs.scale):
        raise UserError(
            f"{folder} has an adapter that takes rank {theirs.rank} and alpha {theirs.alpha:g} here, not "
            f"{mine.rank} and {mine.alpha:g}: give --lora-rank {theirs.rank} --lora-alpha {theirs.alpha:g}"
        )
    if faults := importing.misfits(found.weights, lora.adapter_shapes(config)):
        raise UserError(
            f"{folder} has an adapter of another base: {'; '.join(faults)}; give one that was trained on this model"
        )
    return {f"params/{path}": array for path, array in found.weights.items()}

"""What tests of Stable Diffusion share."""

from __future__ import annotations

from typing import Any

from mlperf_jax.benchmarks.stable_diffusion import StableDiffusion
from mlperf_jax.core import mesh as meshes, state as states
from mlperf_jax.core.judges import judges_of


def model_of(benchmark: StableDiffusion, data: str) -> Any:
    """The model that a run begins with."""
    assembly = states.assemble(benchmark, meshes.make_mesh("data=1"))
    return assembly.eval_model(assembly.eval_view(assembly.begun(0, data)))


def loaded_judges(benchmark: StableDiffusion, data: str) -> Any:
    judges = judges_of(benchmark, meshes.make_mesh("data=1"))
    assert judges is not None
    return judges.module(judges.load(data))

"""LAION-400M as moments of latents with captions, and coloured shapes in its place."""

from mlperf_jax.input_pipelines.laion.data_set import Laion
from mlperf_jax.input_pipelines.laion.embeddings import write_embeddings
from mlperf_jax.input_pipelines.laion.files import NAME
from mlperf_jax.input_pipelines.laion.moments import prepare, prepare_all
from mlperf_jax.input_pipelines.laion.tiny import Sizes

__all__ = ["NAME", "Laion", "Sizes", "prepare", "prepare_all", "write_embeddings"]

"""Token files of C4, and of docstrings in its place."""

from mlperf_jax.input_pipelines.tokens.builder import TINY_FILES
from mlperf_jax.input_pipelines.tokens.data_set import C4

__all__ = ["C4", "TINY_FILES"]

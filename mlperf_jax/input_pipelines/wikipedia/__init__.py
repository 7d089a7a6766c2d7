"""English Wikipedia as masked sentence pairs, and docstrings in its place."""

from mlperf_jax.input_pipelines.wikipedia.data_set import Wikipedia

__all__ = ["Wikipedia"]

"""Criteo's click logs, and clicks of a planted model in their place."""

from mlperf_jax.input_pipelines.criteo.data_set import (
    BAGS,
    COUNTS,
    ROWS,
    TINY_BAGS,
    TINY_NAME,
    TINY_ROWS,
    Criteo,
)

__all__ = ["BAGS", "COUNTS", "ROWS", "TINY_BAGS", "TINY_NAME", "TINY_ROWS", "Criteo"]

"""GovReport in packed rows, and docstrings in its place."""

from mlperf_jax.input_pipelines.govreport.builder import TINY_ROWS
from mlperf_jax.input_pipelines.govreport.data_set import GovReport

__all__ = ["TINY_ROWS", "GovReport"]

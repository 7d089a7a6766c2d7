"""IGBH, and a planted graph in its place."""

from mlperf_jax.input_pipelines.igbh.data_set import Igbh

__all__ = ["Igbh"]

"""Open Images in MLPerf's subset, and scenes of shapes in its place."""

from mlperf_jax.input_pipelines.openimages.data_set import OpenImages

__all__ = ["OpenImages"]

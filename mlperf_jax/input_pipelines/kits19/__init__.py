"""KiTS19, and phantoms in its place."""

from mlperf_jax.input_pipelines.kits19.data_set import Kits19
from mlperf_jax.input_pipelines.kits19.patches import Augmentation

__all__ = ["Augmentation", "Kits19"]

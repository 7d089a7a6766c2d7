"""ImageNet, and handwritten digits in its place."""

from mlperf_jax.input_pipelines.imagenet.data_set import ImageNet, Normalise

__all__ = ["ImageNet", "Normalise"]

"""ImageNet, and scikit-learn's digits in its place."""

from mlperf_jax.input_pipelines.imagenet.data_set import ImageNet, Normalise

__all__ = ["ImageNet", "Normalise"]

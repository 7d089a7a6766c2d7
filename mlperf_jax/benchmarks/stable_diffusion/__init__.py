"""Stable Diffusion v2: the benchmark, the judges of what it generates, and tiny's given networks."""

from mlperf_jax.benchmarks.stable_diffusion.benchmark import StableDiffusion

__all__ = ["StableDiffusion"]

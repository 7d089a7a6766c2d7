"""The speed of every benchmark: the call behind `mlperf-jax bench --all`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlperf_jax.benchmarks import registry
from mlperf_jax.core import bench_all as running
from mlperf_jax.core.bench_all import COMPILING, Variant
from mlperf_jax.core.bench_suite import Suite

# ways to run ours that may be faster, or tell what something costs
VARIANTS = (
    Variant(
        "convolutions NHWC",
        ("unet3d", "resnet", "retinanet", "stable_diffusion"),
        flags="--xla_gpu_force_conv_nhwc=true",
    ),
    # cuDNN's kernel drops nothing that changes from step to step, so that plain XLA attends where BERT drops
    Variant("no dropout", ("bert",), words=("--dropout", "0")),
    Variant(
        "0.75 of the memory",
        ("llama31_8b", "llama31_405b"),
        environment={"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.75"},
    ),
    Variant("memory as needed", ("llama31_8b", "bert"), environment=COMPILING),
)


def bench_all(names: Sequence[str] = (), *, variants: bool = False, **how: Any) -> Suite:
    """Measures the training step of benchmarks at the largest scale that the devices have room for.

    Args:
        names: of the benchmarks, all by default; "my_file.py:Wine" too.
        variants: measure `VARIANTS` behind the others.
        **how: of `core.bench_all.bench_all`: tiny, minutes, output, twins, profile, steps, warmup, memory, jobs, say.

    Raises:
        UserError: a benchmark or the twins are not there.

    Example:
        print(bench_all(["bert", "resnet"], tiny=True, minutes=2))
    """
    names = tuple(names) or registry.names()
    for name in names:
        registry.benchmark_class(name)
    return running.bench_all(names, VARIANTS if variants else (), **how)

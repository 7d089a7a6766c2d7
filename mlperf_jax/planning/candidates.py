"""Meshes that may suit a benchmark on given devices."""

from __future__ import annotations

import math
from typing import Any

import jax

from mlperf_jax.core import mesh as meshes
from mlperf_jax.core import state as states
from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.errors import UserError
from mlperf_jax.planning import devices as names

REPLICATED = 0.2  # a state that takes no more of the memory than this is kept whole on each device


def suggest(benchmark: Benchmark, devices: names.Devices, optimizer: Any = None) -> dict[str, int]:
    """Axis sizes for a run whose mesh nobody chose.

    Rows go over as many devices as divide the batches, and over `data` alone while a device can hold
    the whole state, else over `fsdp`; what devices are left go to `tensor`.

    Raises:
        UserError: devices would be left without rows, and the model has nothing to split instead.
    """
    ways = row_ways(benchmark, devices)
    axis = "data" if state_size(benchmark, optimizer) <= REPLICATED * devices.memory else "fsdp"
    rest = devices.count // ways
    if rest > 1 and not splits(benchmark, "tensor"):
        raise UserError(
            f"batch size {benchmark.batch_size} goes over {ways:,} of the {devices.count:,} devices of "
            f"{devices.name}: choose a multiple of {devices.count:,} or fewer devices"
        )
    return {axis: ways} | ({"tensor": rest} if rest > 1 else {})


def row_ways(benchmark: Benchmark, devices: names.Devices) -> int:
    """Over how many of the devices rows can go: what divides the devices and every batch."""
    micro = [bucket.rows // benchmark.gradient_accumulation_steps for bucket in benchmark.buckets()]
    return math.gcd(devices.count, *micro, *(bucket.rows for bucket in benchmark.eval_buckets()))


def splits(benchmark: Benchmark, axis: str) -> bool:
    """Whether the benchmark's sharding rules know an axis."""
    return any(axis in str(spec) for _, spec in benchmark.rules)


def state_size(benchmark: Benchmark, optimizer: Any = None) -> int:
    """Bytes of the whole state."""
    one = meshes.make_mesh("data=1")
    abstract = states.assemble(benchmark, one, optimizer).abstract
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))

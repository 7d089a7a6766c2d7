"""Smaller configurations of a benchmark, for devices that the whole does not fit; and whether one does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.errors import UserError

GIB = 2**30


class TooLarge(UserError):
    """A configuration needs more memory than a device has."""


def recipe(benchmark: Benchmark) -> Benchmark | None:
    """The configuration that the benchmark's class has by itself, of its size; None of one whose fields have no values."""
    cls: Any = type(benchmark)
    with contextlib.suppress(TypeError):
        return cls().tiny() if benchmark.is_tiny else cls()
    return None


def ladder(benchmark: Benchmark) -> Iterator[Benchmark]:
    """The benchmark at each of its `scales`, the largest first, then the smallest with ever half the batch.

    Without scales, and of tiny, the whole comes first. A field that was given another value than the class has keeps it.
    """
    given, plain = benchmark, recipe(benchmark)
    for scale in () if benchmark.is_tiny else benchmark.scales:
        kept = {n for n in scale if plain and getattr(benchmark, n) != getattr(plain, n)}
        given = benchmark.replace(**{n: value for n, value in scale.items() if n not in kept})
        yield given
    if given is benchmark:
        yield benchmark
    while given.batch_size > 1:
        try:
            half = given.replace(batch_size=given.batch_size // 2)
        except UserError:  # of a batch that it cannot have
            return
        if half.rows == given.rows:
            return
        yield (given := half)


def room(mesh: Mesh, gibibytes: float | None = None) -> int:
    """Bytes that a device of this process may be filled with: what its allocator has, or the host's memory shared out.

    Args:
        mesh: of the devices.
        gibibytes: no more than so many.
    """
    here = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    stats = [device.memory_stats() or {} for device in here]
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(here)
    most = min(found.get("bytes_limit", host) for found in stats)
    return most if gibibytes is None else min(most, int(gibibytes * GIB))


def check_room(needed: float, most: int, what: str) -> None:
    """Nothing, if a device has the room.

    Raises:
        TooLarge: it has not.
    """
    if needed > most:
        raise TooLarge(
            f"{what} takes {needed / GIB:,.1f} GiB of a device that has {most / GIB:,.1f}: lower --batch-size, spread it "
            "over more devices with --mesh fsdp=N, or say --fit to measure what fits"
        )

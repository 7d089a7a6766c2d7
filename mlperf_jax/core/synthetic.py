"""Batches without data, to measure speed with: as the data set draws them, random where it says nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mlperf_jax.core import mesh as meshes
from mlperf_jax.core.benchmark import Benchmark, Bucket
from mlperf_jax.core.protocols import DrawsBatches, HostBatch
from mlperf_jax.core.terms import Shape, differences
from mlperf_jax.errors import UserError


def batches(
    benchmark: Benchmark, buckets: Sequence[Bucket], mesh: Mesh
) -> list[dict[str, jax.Array]]:
    """A batch for each of these shapes of the benchmark's, on the mesh; the same ones every time.

    What its data set draws (`DrawsBatches`) is as that has it. Of the rest floats are normal, bytes uniform, and
    other integers 0 or 1, which every label and id may be.

    Raises:
        UserError: the data set draws an array of another shape or type than the benchmark states.
    """
    return [_batch(benchmark, bucket, number, mesh) for number, bucket in enumerate(buckets)]


def _batch(benchmark: Benchmark, bucket: Bucket, number: int, mesh: Mesh) -> dict[str, jax.Array]:
    sharding, drawn = meshes.batch_sharding(mesh), _drawn(benchmark, bucket, number)
    rest = {
        name: (index, jax.ShapeDtypeStruct((bucket.rows, *leaf.shape), leaf.dtype))
        for index, (name, leaf) in enumerate(sorted(bucket.example.items()))
        if name not in drawn
    }

    def make(key: jax.Array) -> dict[str, jax.Array]:
        return {
            name: _random(jax.random.fold_in(key, index), leaf)
            for name, (index, leaf) in rest.items()
        }

    placed = {
        name: jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
        for name, array in drawn.items()
    }
    made = jax.jit(make, out_shardings=sharding)(jax.random.key(number)) if rest else {}
    return {name: (placed | made)[name] for name in bucket.example}


def _drawn(benchmark: Benchmark, bucket: Bucket, number: int) -> HostBatch:
    """What the data set draws of the arrays that the benchmark has."""
    data = None
    with contextlib.suppress(NotImplementedError):  # what is only measured needs none
        data = benchmark.data()
    if not isinstance(data, DrawsBatches):
        return {}
    rng = np.random.default_rng(number)
    found = data.drawn(bucket.rows, bucket.example, rng)
    drawn = {name: found[name] for name in bucket.example if name in found}
    wanted = {
        name: jax.ShapeDtypeStruct((bucket.rows, *bucket.example[name].shape), leaf.dtype)
        for name, leaf in bucket.example.items()
        if name in drawn
    }
    for name, is_, should_be in differences(drawn, wanted):
        raise UserError(
            f"the data set of {benchmark.name} draws {name} as {is_}, and the benchmark states {should_be}"
        )
    return drawn


def _random(key: jax.Array, leaf: Shape) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jax.random.normal(key, leaf.shape, leaf.dtype)
    if leaf.dtype == jnp.uint8:
        return jax.random.bits(key, leaf.shape, leaf.dtype)
    return jax.random.bernoulli(key, 0.5, leaf.shape).astype(leaf.dtype)

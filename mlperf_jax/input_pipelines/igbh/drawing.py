"""Random samples as large as those of the graph, without one: nodes and edges of each hop as many as on average.

Shape legend: S seeds, n nodes of a type, e edges of a relation.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from mlperf_jax.input_pipelines.igbh import sampling_shape
from mlperf_jax.input_pipelines.igbh.sampling_shape import Sample, Shape
from mlperf_jax.input_pipelines.sources import Batch


def sample(mean: Shape, nodes: Mapping[str, int], rng: np.random.Generator) -> Sample:
    """A sample with these counts; ids are uniform, and edges lead to all nodes of a hop alike.

    Args:
        mean: nodes and edges after each hop.
        nodes: type -> how many the graph has.
        rng: draws.
    """
    sampled = Sample({}, dict(mean.nodes), {}, {}, {})
    for kind, counts in mean.nodes.items():
        sampled.ids[kind] = rng.integers(0, nodes[kind], counts[-1], np.int32)
    for key, counts in mean.edges.items():
        source, target = (mean.nodes[kind] for kind in sampling_shape.ends(key))
        sources, targets, ends = [], [], [0]
        for hop, (before, after) in enumerate(itertools.pairwise((0, *counts))):
            first = (
                target[hop - 1] if hop else 0
            )  # of the nodes that the hop before this one brought
            count = after - before if target[hop] > first and source[hop + 1] else 0
            sources.append(rng.integers(0, max(1, source[hop + 1]), count, np.int32))
            targets.append(
                np.sort(rng.integers(first, max(first + 1, target[hop]), count, np.int32))
            )
            ends.append(ends[-1] + count)
        sampled.source[key], sampled.target[key] = map(np.concatenate, (sources, targets))
        sampled.edges[key] = tuple(ends[1:])
    return sampled


def row(
    mean: Shape,
    shape: Shape,
    nodes: Mapping[str, int],
    classes: int,
    bins: Mapping[str, tuple[int, int]],
    rng: np.random.Generator,
) -> Batch:
    """A row as `sampling_shape.laid_out` describes it, of S seeds with labels."""
    padded, dropped = sampling_shape.pad(sample(mean, nodes, rng), shape)
    labels = rng.integers(0, classes, shape.seeds, np.int32)
    return sampling_shape.laid_out(padded, dropped, labels, bins, _grouped)


def _grouped(ids: np.ndarray, block: int, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """As `sampling_kernels.grouped`, which needs a compiler."""
    order = np.argsort(ids // block % bins, kind="stable")
    place = np.empty(len(ids), np.int32)
    place[order] = np.arange(len(ids))
    return ids[order], place

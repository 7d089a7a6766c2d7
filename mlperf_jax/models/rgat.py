"""R-GAT: graph attention by relation over a sampled neighbourhood, and a linear head on the seeds.

A sample is padded to static numbers of rows and edges. A relation adds its bias to every node of its
target's type, with in-edges or without, unless the batch has no edge of it at all: then it adds nothing.
The batch is all that one call is given, the samples of all devices together; in the reference each rank looks
at its own samples.

Reference: mlcommons/training, retired_benchmarks/rgat (its layers are PyG's `HeteroConv` of `GATConv`).

N_t rows of node type t · E_r edges of relation r · R relations · I input width · H heads · C head width · D = H C ·
B seeds · K classes · ... none, or one axis of samples, each with nodes of its own
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlperf_jax.errors import UserError
from mlperf_jax.models.rgat_config import Reach, RgatConfig
from mlperf_jax.ops import dense, torch_law
from mlperf_jax.ops.dropout import kept, masked
from mlperf_jax.ops.segments import segment_softmax, segment_sum
from mlperf_jax.ops.shard import ROWS, shard
from mlperf_jax.ops.stack import stacked

__all__ = ["Edges", "Reach", "Rgat", "RgatConfig", "Sample"]

Nodes = Mapping[str, jax.Array]  # by type

_NOWHERE = 2**31 - 1  # a row that no array has


class Edges(NamedTuple):
    """The sampled edges of one relation.

    Attributes:
        source: [..., E_r] int32, rows of the source's type; one that is not there gives NaN.
        target: [..., E_r] int32, rows of the target's type; never falls, padding included.
        real: [..., E_r] bool, false for padding. An edge drawn twice is there twice, and weighs so.
    """

    source: jax.Array
    target: jax.Array
    real: jax.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["features", "edges"],
    meta_fields=["reach"],
)
@dataclass(frozen=True)
class Sample:
    """What the model is given: the sampled neighbourhood of some seeds, padded.

    Attributes:
        features: by type [..., N_t, I], of any floating type, float8 included. Seeds first, then by the hop
            at which a node was first seen; rows of padding are finite and no real edge's.
        edges: by relation's key.
        reach: how many rows and edges lie within each number of hops.
    """

    features: Nodes
    edges: Mapping[str, Edges]
    reach: Reach


# -- parts -----------------------------------------------------------------------------------------


class Attention(nnx.Module):
    """Weights of PyG's `GATConv` for one relation: one projection serves both ends.

    `project/kernel` is Glorot uniform with the fans of the matrix, U(±sqrt(6 / (I + D))), attention vectors
    with those that PyG reads from their shape (1, H, C), U(±sqrt(6 / (H + C))).
    """

    def __init__(self, inputs: int, config: RgatConfig, dtype: Any, *, rngs: nnx.Rngs):
        glorot = nnx.initializers.glorot_uniform()
        shape = (config.heads, config.head_width)
        self.project = nnx.Linear(
            inputs,
            config.width,
            use_bias=False,
            param_dtype=dtype,
            kernel_init=glorot,
            rngs=rngs,
        )
        self.source = nnx.Param(glorot(rngs.params(), shape, dtype))
        self.target = nnx.Param(glorot(rngs.params(), shape, dtype))
        self.bias = nnx.Param(jnp.zeros(config.width, dtype))


class HeteroLayer(nnx.Module):
    """Attention by relation, summed over the relations into a type.

    The weights of all relations are stacked, and their edges lie one behind the other, those into one type together:
    they are weighed and summed at once, with one gather, softmax and sum instead of one of each a relation.
    """

    def __init__(self, inputs: int, config: RgatConfig, dtype: Any, *, rngs: nnx.Rngs):
        self.of = config.relations
        self.width = config.width
        self.slope = config.score_slope
        self.dtype = dtype
        wide = jnp.promote_types(dtype, jnp.float32)
        self.layers = stacked(
            lambda rngs: Attention(inputs, config, wide, rngs=rngs), len(self.of), rngs=rngs
        )

    def __call__(
        self, h: Nodes, rows: Mapping[str, int], edges: Mapping[str, Edges], present: Nodes
    ) -> dict[str, jax.Array]:
        """The first `rows` of each type.

        Args:
          h: by type [..., N_t, I].
          rows: by type how many are wanted, N_t at most.
          edges: by relation's key; those to rows beyond are left out.
          present: by relation's key whether the batch has an edge of it, [] bool.

        Returns:
          by type [..., rows, D] in at least f32.
        """
        leading = edges[self.of[0].key].source.shape[:-1]
        sums = functools.partial(self._sums, rows)
        for _ in leading:
            sums = jax.vmap(sums)
        out = sums(dict(h), dict(edges))
        bias = self.layers.bias[...]
        bias = jnp.where(jnp.stack([present[r.key] for r in self.of])[:, None], bias, 0)
        for name, values in out.items():
            into = np.array([r.target == name for r in self.of])
            out[name] = values + bias[into].sum(0)
        return out

    def _sums(
        self, rows: Mapping[str, int], h: Nodes, edges: Mapping[str, Edges]
    ) -> dict[str, jax.Array]:
        """Of one sample, by type the weighted sums of all relations into it, without biases."""
        wide = jnp.promote_types(self.dtype, jnp.float32)
        into = {name: self._into(name, h, edges) if many else [] for name, many in rows.items()}
        numbers = [i for some in into.values() for i in some]
        relations = [self.of[i] for i in numbers]
        if not numbers:
            return {name: jnp.zeros((many, self.width), wide) for name, many in rows.items()}
        kernels = self.layers.project.kernel[...]  # [R, I, D]
        heads = self.layers.source.shape[1]
        of_sources, of_targets = (
            _by_head(vectors[...]) for vectors in (self.layers.source, self.layers.target)
        )
        # a target's projection is needed for its scores alone: H columns instead of D
        columns = jnp.matmul(kernels, of_targets).astype(self.dtype)  # [R, I, H]
        own = [
            jnp.einsum(
                "mi,rih->rmh",
                h[name][: rows[name]],
                columns[np.array(some)],
                preferred_element_type=wide,
            ).reshape(-1, heads)
            for name, some in into.items()
            if some
        ]
        joined = _joined([edges[r.key] for r in relations], [rows[r.target] for r in relations])
        lengths = [len(edges[r.key].real) for r in relations]
        each = jax.lax.split(kernels.astype(self.dtype), [1] * len(self.of))
        z = [
            _projected(h[self.of[i].source], each[i][0], at)
            for i, at in zip(numbers, jax.lax.split(joined.source, lengths), strict=True)
        ]
        scores = [
            jnp.matmul(some, of_sources[i].astype(self.dtype), preferred_element_type=wide)
            for i, some in zip(numbers, z, strict=True)
        ]
        source = _rows_of_edges(joined.source, lengths, [len(h[r.source]) for r in relations])
        # the backward pass gathers anew what is as long as there are edges: XLA counts 9 % fewer bytes accessed
        weigh = jax.checkpoint(functools.partial(_weighed, slope=self.slope))
        sums = weigh(*map(jnp.concatenate, (z, scores, own)), joined._replace(source=source))
        out, first = {}, 0
        for name, many in rows.items():
            last = first + len(into[name]) * many
            out[name] = sums[first:last].reshape(len(into[name]), many, self.width).sum(0)
            first = last
        return out

    def _into(self, name: str, h: Nodes, edges: Mapping[str, Edges]) -> list[int]:
        """Numbers of the relations into a type that have sources and edges."""
        return [
            i
            for i, r in enumerate(self.of)
            if r.target == name and len(h[r.source]) and len(edges[r.key].real)
        ]


# -- the model -------------------------------------------------------------------------------------


class Rgat(nnx.Module):
    """A sample to logits of its seeds.

    >>> from mlperf_jax.input_pipelines.igbh.sizes import CITES
    >>> config = RgatConfig(relations=(CITES,), layers=1)
    >>> edge = Edges(jnp.zeros([8], jnp.int32), jnp.zeros([8], jnp.int32), jnp.ones([8], bool))
    >>> sample = Sample(
    ...     {"paper": jnp.zeros([10, 1024], jnp.float16)},
    ...     {"paper__cites__paper": edge},
    ...     Reach({"paper": (2, 10)}, {"paper__cites__paper": (8,)}),
    ... )
    >>> def logits():
    ...     model = nnx.view(Rgat(config, jnp.float32, rngs=nnx.Rngs(0)), deterministic=True)
    ...     return model(sample)
    >>> jax.eval_shape(logits).shape
    (2, 2983)
    """

    def __init__(self, config: RgatConfig, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs):
        """Makes the model.

        Args:
          config: sizes.
          dtype: of the computation. Parameters, scores, softmax, sums and logits are in
            promote_types(dtype, f32).
          rngs: keys.
        """
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.deterministic = False
        widths = (config.features, *(config.width,) * (config.layers - 1))
        self.hetero = nnx.List([HeteroLayer(w, config, dtype, rngs=rngs) for w in widths])
        wide = jnp.promote_types(dtype, jnp.float32)
        law = torch_law.uniform(config.width)
        self.head = nnx.Linear(
            config.width,
            config.classes,
            dtype=dtype,
            param_dtype=wide,
            kernel_init=law,
            bias_init=law,
            preferred_element_type=wide,
            rngs=rngs,
        )

    def __call__(
        self, sample: Sample, *, key: jax.Array | None = None, trim: bool = True
    ) -> jax.Array:
        """Logits of the seeds.

        Args:
          sample: one, or several along a leading axis, split over the mesh's rows.
          key: draws dropout; needed in training if the model has any.
          trim: whether each layer computes only what the seeds can see; the logits are the same, but for
            dropout, which then draws for other rows.

        Returns:
          [..., B, K] in promote_types(dtype, f32), B the labelled rows at hop 0.

        Raises:
          UserError: a sample that does not fit the config or its own `reach`, or dropout without a key.
        """
        config, reach = self.config, sample.reach
        self._check(sample)
        keys = self._keys(key)
        present = {name: jnp.any(edges.real) for name, edges in sample.edges.items()}
        h = {name: _laid_out(x.astype(self.dtype)) for name, x in sample.features.items()}
        for i, layer in enumerate(self.hetero):
            hops = config.layers - 1 - i if trim else config.layers
            rows = {name: reach.nodes[name][hops] for name in config.types}
            until = {r.key: reach.edges[r.key][hops if trim else -1] for r in config.relations}
            edges = {
                key: Edges(*(x[..., :count] for x in sample.edges[key]))
                for key, count in until.items()
            }
            h = layer(h, rows, edges, present)
            if i < config.layers - 1:
                h = self._between(h, None if keys is None else keys[i])
        seeds = h[config.labelled][..., : reach.nodes[config.labelled][0], :]
        return self.head(seeds.astype(self.dtype))

    def set_view(self, deterministic: bool | None = None):
        """Switches dropout off and on; called by `nnx.view`."""
        if deterministic is not None:
            self.deterministic = deterministic

    def _between(self, h: Nodes, key: jax.Array | None) -> dict[str, jax.Array]:
        """Leaky ReLU and dropout of what a layer gave, by type [..., N, D]."""
        slope, rate = self.config.slope, self.config.dropout
        out = {t: _laid_out(jax.nn.leaky_relu(x, slope).astype(self.dtype)) for t, x in h.items()}
        if key is None:
            return out
        counts = [x.shape[-2] for x in out.values()]
        *leading, _, width = out[self.config.labelled].shape
        # one draw for all types: XLA takes long to compile each
        keep = _laid_out(kept(key, rate, (*leading, sum(counts), width)))
        parts = jax.lax.split(keep, counts, axis=keep.ndim - 2)
        return {t: masked(x, rate, part) for (t, x), part in zip(out.items(), parts, strict=True)}

    def _keys(self, key: jax.Array | None) -> jax.Array | None:
        """[layers - 1] keys."""
        if self.deterministic or not self.config.dropout or self.config.layers == 1:
            return None
        if key is None:
            raise UserError(
                "rgat: dropout needs a key in training; give `key`, or evaluate with "
                "nnx.view(model, deterministic=True)"
            )
        return jax.random.split(key, self.config.layers - 1)

    def _check(self, sample: Sample) -> None:
        config, reach = self.config, sample.reach
        config.check(reach)
        leading = jnp.shape(sample.features[config.labelled])[:-2]
        wanted: dict[str, tuple[int, ...]] = {
            f"features of {t!r}": (reach.nodes[t][-1], config.features) for t in config.types
        }
        found: dict[str, tuple[int, ...]] = {
            f"features of {name!r}": jnp.shape(x) for name, x in sample.features.items()
        }
        for relation in config.relations:
            for field in Edges._fields:
                wanted[f"{field} of {relation.key!r}"] = (reach.edges[relation.key][-1],)
        for name, edges in sample.edges.items():
            found |= {f"{field} of {name!r}": jnp.shape(x) for field, x in edges._asdict().items()}
        for what, shape in wanted.items():
            if len(leading) > 1 or found.get(what) != (*leading, *shape):
                raise UserError(
                    f"rgat: {what} have the shape {found.get(what, 'of nothing')}; the sample's reach "
                    f"asks for {shape}, behind at most one axis of samples, the same for all"
                )


# -- pieces ----------------------------------------------------------------------------------------


def _by_head(vectors: jax.Array) -> jax.Array:
    """[R, H, C] -> [R, D, H], zero where column and head differ: a product with it is every head's own."""
    count, heads, width = vectors.shape
    spread = vectors[..., None] * jnp.eye(heads, dtype=vectors.dtype)[:, None]
    return spread.reshape(count, heads * width, heads)


def _joined(edges: Sequence[Edges], rows: Sequence[int]) -> Edges:
    """The edges of several relations, one behind the other, whose targets have so many rows each.

    Targets count on from relation to relation; edges to rows beyond are no real ones; `source` still counts within
    its own relation, and is 0 where an edge is not real.
    """
    source, target, real = (jnp.concatenate(parts) for parts in zip(*edges, strict=True))
    lengths = [len(some.real) for some in edges]
    limit = _spread(rows, lengths)
    real &= target < limit
    starts = list(itertools.accumulate(rows, initial=0))[:-1]
    target = jnp.minimum(target, limit - 1) + _spread(starts, lengths)
    return Edges(jnp.where(real, source, 0), target, real)


def _spread(values: Sequence[int], lengths: Sequence[int]) -> jax.Array:
    """Each value so many times, int32."""
    return jnp.concatenate(
        [jnp.full(n, v, jnp.int32) for v, n in zip(values, lengths, strict=True)]
    )


def _few(edges: int, rows: int) -> bool:
    """Whether the sources of edges are projected, one an edge, instead of all rows: they are fewer."""
    return edges < rows


def _projected(h: jax.Array, kernel: jax.Array, at: jax.Array) -> jax.Array:
    """Sources [N, I], or those of edges if these are fewer, times a matrix [I, D]."""
    contracted = (((1,), (0,)), ((), ()))
    if not _few(len(at), len(h)):
        return dense.dot_general(h, kernel, contracted)
    # the backward pass gathers anew what is as long as there are edges
    project = jax.checkpoint(lambda h, kernel: dense.dot_general(_rows(h, at), kernel, contracted))
    return project(h, kernel)


def _rows_of_edges(source: jax.Array, lengths: Sequence[int], rows: Sequence[int]) -> jax.Array:
    """Which row of all that was projected each edge's source is; a row that is not there is none of them."""
    counts = [n if _few(n, many) else many for n, many in zip(lengths, rows, strict=True)]
    begin = list(itertools.accumulate(counts, initial=0))[:-1]
    edge = list(itertools.accumulate(lengths, initial=0))[:-1]
    ahead = [b - e if _few(n, many) else b for b, e, n, many in zip(begin, edge, lengths, rows)]
    few = _spread([_few(n, many) for n, many in zip(lengths, rows)], lengths) > 0
    there = few | (source < _spread(rows, lengths))
    own = jnp.where(few, jnp.arange(len(source), dtype=jnp.int32), source)
    return jnp.where(there, own + _spread(ahead, lengths), _NOWHERE)


def _weighed(
    z: jax.Array, of_sources: jax.Array, of_targets: jax.Array, edges: Edges, *, slope: float
) -> jax.Array:
    """Projected sources [n, D] and scores [n, H], [S, H] -> sums [S, D] in the scores' dtype."""
    count = len(of_targets)
    scores = of_targets.at[edges.target].get(mode="clip", indices_are_sorted=True)  # [E, H]
    scores = jax.nn.leaky_relu(scores + _rows(of_sources, edges.source), slope)
    weights = segment_softmax(scores, edges.target, count, real=edges.real, ascending=True)
    values = weights[..., None] * _rows(z, edges.source).reshape(*weights.shape, -1)  # [E, H, C]
    # padding weighs 0
    return segment_sum(values.reshape(len(values), -1), edges.target, count, ascending=True)


def _rows(values: jax.Array, index: jax.Array) -> jax.Array:
    """NaN for a row that is not there, which ends a run where a clamp would not."""
    return jnp.take(values, index, axis=0, mode="fill")


def _laid_out(x: jax.Array) -> jax.Array:
    """Samples split over the mesh's rows; a single one is left to the compiler."""
    return shard(x, ROWS) if x.ndim > 2 else x

"""R-GAT: graph attention by relation over a sampled neighbourhood, and a linear head on the seeds.

A sample is padded to static numbers of rows and edges. A relation adds its bias to every node of its
target's type, with in-edges or without, unless the batch has no edge of it at all: then it adds nothing.
The batch is all that one call is given, the samples of all devices together; in the reference each rank looks
at its own samples.

Reference: mlcommons/training, retired_benchmarks/rgat (its layers are PyG's `HeteroConv` of `GATConv`).

N_t rows of node type t · E_r edges of relation r · I input width · H heads · C head width · D = H C ·
B seeds · K classes · ... none, or one axis of samples, each with nodes of its own
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mlperf_jax.errors import UserError
from mlperf_jax.models.rgat_config import Reach, RgatConfig
from mlperf_jax.ops import dense, torch_law
from mlperf_jax.ops.dropout import dropped
from mlperf_jax.ops.segments import segment_softmax, segment_sum
from mlperf_jax.ops.shard import ROWS, shard

__all__ = ["Edges", "Reach", "Rgat", "RgatConfig", "Sample"]

Nodes = Mapping[str, jax.Array]  # by type


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
    """PyG's `GATConv` for one relation, its bias left to the caller: one projection serves both ends.

    `project/kernel` is Glorot uniform with the fans of the matrix, U(±sqrt(6 / (I + D))), attention vectors
    with those that PyG reads from their shape (1, H, C), U(±sqrt(6 / (H + C))).
    """

    def __init__(self, inputs: int, config: RgatConfig, dtype: Any, *, rngs: nnx.Rngs):
        wide = jnp.promote_types(dtype, jnp.float32)
        glorot = nnx.initializers.glorot_uniform()
        shape = (config.heads, config.head_width)
        self.project = nnx.Linear(
            inputs,
            config.width,
            use_bias=False,
            dtype=dtype,
            param_dtype=wide,
            kernel_init=glorot,
            dot_general=dense.dot_general,
            rngs=rngs,
        )
        self.source = nnx.Param(glorot(rngs.params(), shape, wide))
        self.target = nnx.Param(glorot(rngs.params(), shape, wide))
        self.bias = nnx.Param(jnp.zeros(config.width, wide))
        self.slope = config.score_slope

    def __call__(self, sources: jax.Array, targets: jax.Array, edges: Edges) -> jax.Array:
        """Weighted sums of messages.

        Args:
          sources: [..., N, I].
          targets: [..., M, I]; edges to rows beyond M are left out.
          edges: of this relation.

        Returns:
          [..., M, D] in at least f32; 0 for a target without in-edges.
        """
        shape = self.source[...].shape
        if edges.source.shape[-1] < sources.shape[-2]:  # then fewer rows are projected, one an edge
            at, here = jnp.where(edges.real, edges.source, 0), jnp.arange(edges.source.shape[-1])
            sources = _per_sample(_rows, at)(sources, at)
            edges = edges._replace(source=jnp.broadcast_to(here, at.shape))
        z = self.project(sources)
        z = z.reshape(*z.shape[:-1], *shape)  # [..., N, H, C]
        wide = jnp.promote_types(z.dtype, jnp.float32)
        vector = self.source[...].astype(z.dtype)
        of_sources = jnp.einsum("...hc,hc->...h", z, vector, preferred_element_type=wide)
        # a target's projection is needed for its scores alone: H columns instead of D
        kernel = self.project.kernel[...]
        columns = jnp.einsum("ihc,hc->ih", kernel.reshape(-1, *shape), self.target[...])
        of_targets = jnp.matmul(targets, columns.astype(z.dtype), preferred_element_type=wide)
        # the backward pass gathers anew what is as long as there are edges: XLA counts 9 % fewer bytes accessed
        sums = jax.checkpoint(functools.partial(_messages, slope=self.slope))
        sums = _per_sample(sums, edges.source)
        out = sums(z, of_sources, of_targets, edges)  # [..., M, H, C]
        return out.reshape(*out.shape[:-2], -1)


class HeteroLayer(nnx.Module):
    """Attention by relation, summed over the relations into a type."""

    def __init__(self, inputs: int, config: RgatConfig, dtype: Any, *, rngs: nnx.Rngs):
        self.of = config.relations
        self.width = config.width
        self.relations = nnx.Dict(
            {r.key: Attention(inputs, config, dtype, rngs=rngs) for r in config.relations}
        )

    def __call__(
        self, h: Nodes, rows: Mapping[str, int], edges: Mapping[str, Edges], present: Nodes
    ) -> dict[str, jax.Array]:
        """The first `rows` of each type.

        Args:
          h: by type [..., N_t, I].
          rows: by type how many are wanted, N_t at most.
          edges: by relation's key.
          present: by relation's key whether the batch has an edge of it, [] bool.

        Returns:
          by type [..., rows, D] in at least f32.
        """
        wide = jnp.promote_types(h[self.of[0].source].dtype, jnp.float32)
        leading = edges[self.of[0].key].source.shape[:-1]
        out = {name: jnp.zeros((*leading, n, self.width), wide) for name, n in rows.items()}
        for relation in self.of:
            source, target, key = relation.source, relation.target, relation.key
            if not rows[target]:
                continue
            attention, these = self.relations[key], edges[key]
            bias = attention.bias[...]
            out[target] += jnp.where(present[key], bias, jnp.zeros_like(bias))
            if h[source].shape[-2] and these.source.shape[-1]:
                out[target] += attention(h[source], h[target][..., : rows[target], :], these)
        return out


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
          trim: whether each layer computes only what the seeds can see; the logits are the same.

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
                h = {
                    name: self._between(h[name], None if keys is None else keys[i, t])
                    for t, name in enumerate(config.types)
                }
        seeds = h[config.labelled][..., : reach.nodes[config.labelled][0], :]
        return self.head(seeds.astype(self.dtype))

    def set_view(self, deterministic: bool | None = None):
        """Switches dropout off and on; called by `nnx.view`."""
        if deterministic is not None:
            self.deterministic = deterministic

    def _between(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """Leaky ReLU and dropout of [..., N, D], whose rows drop the same however many follow them."""
        x = _laid_out(jax.nn.leaky_relu(x, self.config.slope).astype(self.dtype))
        if key is None:
            return x
        if x.ndim == 2:
            return dropped(x, self.config.dropout, key)
        each = jax.vmap(lambda x, key: dropped(x, self.config.dropout, key))
        return each(x, jax.random.split(key, len(x)))

    def _keys(self, key: jax.Array | None) -> jax.Array | None:
        """[layers - 1, types] keys."""
        if self.deterministic or not self.config.dropout or self.config.layers == 1:
            return None
        if key is None:
            raise UserError(
                "rgat: dropout needs a key in training; give `key`, or evaluate with "
                "nnx.view(model, deterministic=True)"
            )
        return jax.random.split(key, (self.config.layers - 1, len(self.config.types)))

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


def _messages(
    z: jax.Array, of_sources: jax.Array, of_targets: jax.Array, edges: Edges, *, slope: float
) -> jax.Array:
    """Projected sources [N, H, C] and scores [N, H], [M, H] -> sums [M, H, C] in the scores' dtype."""
    count = len(of_targets)
    real = edges.real & (edges.target < count)
    source = jnp.where(real, edges.source, 0)
    scores = of_targets.at[edges.target].get(mode="clip", indices_are_sorted=True)  # [E, H]
    scores = jax.nn.leaky_relu(scores + _rows(of_sources, source), slope)
    weights = segment_softmax(scores, edges.target, count, real=real, ascending=True)
    values = weights[..., None] * _rows(z, source)  # [E, H, C]
    return segment_sum(values, edges.target, count, ascending=True)  # padding weighs 0


def _per_sample(function: Callable[..., jax.Array], index: jax.Array) -> Callable[..., jax.Array]:
    """A function of one sample's arrays as one of all that `index` [..., E] is of."""
    for _ in index.shape[:-1]:
        function = jax.vmap(function)
    return function


def _rows(values: jax.Array, index: jax.Array) -> jax.Array:
    """NaN for a row that is not there, which ends a run where a clamp would not."""
    return jnp.take(values, index, axis=0, mode="fill")


def _laid_out(x: jax.Array) -> jax.Array:
    """Samples split over the mesh's rows; a single one is left to the compiler."""
    return shard(x, ROWS) if x.ndim > 2 else x

"""DLRM: a network over dense features and summed embeddings, with DCNv2's cross layers or dot products.

The tables are not part of the module: they are updated row by row (`ops/embedding.py`), and the network
is given the sums of their rows.

Reference: mlcommons/training, recommendation_v2/torchrec_dlrm (the layers are torchrec's).

B batch · D dense features · T tables · W embedding width · F = (T + 1) W, the width of the cross layers
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def _torch_uniform(fan_in: int) -> Any:
    """torch.nn.Linear's law for weights and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _linear(features_in: int, features_out: int, dtype: Any, rngs: nnx.Rngs) -> nnx.Linear:
    law = _torch_uniform(features_in)
    return nnx.Linear(
        features_in,
        features_out,
        dtype=dtype,
        param_dtype=jnp.promote_types(dtype, jnp.float32),
        kernel_init=law,
        bias_init=law,
        rngs=rngs,
    )


class Mlp(nnx.Module):
    """Linear layers, a ReLU after each."""

    def __init__(self, features: int, widths: Sequence[int], dtype: Any, rngs: nnx.Rngs) -> None:
        pairs = zip((features, *widths), widths, strict=False)
        self.linears = nnx.List([_linear(a, b, dtype, rngs) for a, b in pairs])

    def __call__(self, x: jax.Array) -> jax.Array:
        for linear in self.linears:
            x = jax.nn.relu(linear(x))
        return x


class LowRankCross(nnx.Module):
    """x0 * (W (V x) + b) + x, with V and W of low rank and nothing between them."""

    def __init__(self, features: int, rank: int, dtype: Any, rngs: nnx.Rngs) -> None:
        kinds = dict(
            dtype=dtype,
            param_dtype=jnp.promote_types(dtype, jnp.float32),
            kernel_init=nnx.initializers.xavier_normal(),
            rngs=rngs,
        )
        self.v = nnx.Linear(features, rank, use_bias=False, **kinds)
        self.w = nnx.Linear(rank, features, **kinds)

    def __call__(self, x0: jax.Array, x: jax.Array) -> jax.Array:
        return x0 * self.w(self.v(x)) + x


class CrossInteraction(nnx.Module):
    """DCNv2: the concatenation of all vectors through low-rank cross layers."""

    def __init__(
        self, vectors: int, width: int, layers: int, rank: int, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        self.features = vectors * width
        self.cross = nnx.List(
            [LowRankCross(self.features, rank, dtype, rngs) for _ in range(layers)]
        )

    def __call__(self, dense: jax.Array, bags: jax.Array) -> jax.Array:
        x0 = jnp.concatenate([dense, bags.reshape(len(bags), -1)], 1)  # [B, F]
        x = x0
        for layer in self.cross:
            x = layer(x0, x)
        return x


class DotInteraction(nnx.Module):
    """The first DLRM: the dense vector, then the dot products of all pairs of vectors."""

    def __init__(self, vectors: int, width: int) -> None:
        self.features = width + vectors * (vectors - 1) // 2

    def __call__(self, dense: jax.Array, bags: jax.Array) -> jax.Array:
        vectors = jnp.concatenate([dense[:, None], bags], 1)  # [B, T + 1, W]
        products = jnp.einsum("biw,bjw->bij", vectors, vectors)
        below = jnp.tril_indices(vectors.shape[1], -1)
        return jnp.concatenate([dense, products[:, *below]], 1)


class Dlrm(nnx.Module):
    """Click logits from dense features and summed embeddings.

    Args:
        dense_features: D.
        bottom: widths of the bottom layers, the last one W.
        top: widths of the top layers before the one that makes the logit.
        interaction: a module (dense [B, W], bags [B, T, W]) -> [B, features].
        dtype: of the computation.
        rngs: for the initial weights.
    """

    def __init__(
        self,
        dense_features: int,
        bottom: Sequence[int],
        top: Sequence[int],
        interaction: Any,
        dtype: Any,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.dtype = jnp.dtype(dtype)
        self.bottom = Mlp(dense_features, bottom, dtype, rngs)
        self.interaction = interaction
        self.top = Mlp(interaction.features, top, dtype, rngs)
        self.head = _linear((interaction.features, *top)[-1], 1, dtype, rngs)

    def __call__(self, dense: jax.Array, bags: jax.Array) -> jax.Array:
        """Logits [B] of dense features [B, D] and bags [B, T, W], in float32 or wider."""
        mixed = self.interaction(self.bottom(dense.astype(self.dtype)), bags.astype(self.dtype))
        logits = self.head(self.top(mixed))[:, 0]
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def multiply_adds(
    dense_features: int,
    tables: int,
    bottom: Sequence[int],
    top: Sequence[int],
    layers: int,
    rank: int,
) -> int:
    """Of one sample's forward pass with cross layers; sums of rows are not counted.

    >>> multiply_adds(13, 26, (512, 256, 128), (1024, 1024, 512, 256), 3, 512)
    16030464
    """
    features = (tables + 1) * bottom[-1]
    chains = ((dense_features, *bottom), (features, *top, 1))
    dense = sum(a * b for chain in chains for a, b in itertools.pairwise(chain))
    return dense + layers * 2 * features * rank

"""What the UNet and the autoencoder of Stable Diffusion are both made of.

B batch · H, W height and width · C, F channels in and out · T queries · S keys · N heads ·
E width of the time's embedding
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mlperf_jax.ops import conv as convs, dense
from mlperf_jax.ops.attention import attention
from mlperf_jax.ops.group_norm import GroupNorm
from mlperf_jax.ops.shard import ROWS, free_axes, shard
from mlperf_jax.ops.torch_law import uniform


class ResBlock(nnx.Module):
    """x + conv2(silu(norm2(conv1(silu(norm1(x))) + time(t)))), x by a 1x1 convolution where C is not F."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        groups: int,
        *,
        epsilon: float,
        time_width: int | None = None,
        zero: bool = False,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Makes the block.

        Args:
          features_in, features_out: C and F.
          groups: of both norms.
          epsilon: of both norms.
          time_width: E; None for a block that is told no time.
          zero: whether the second convolution starts at 0, which makes the block the identity.
          dtype: of the computation.
          rngs: keys.
        """
        around: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.norm1 = GroupNorm(features_in, groups, epsilon=epsilon, **around)
        self.conv1 = conv(features_in, features_out, 3, **around)
        self.time = None if time_width is None else linear(time_width, features_out, **around)
        self.norm2 = GroupNorm(features_out, groups, epsilon=epsilon, **around)
        self.conv2 = conv(features_out, features_out, 3, zero=zero, **around)
        same = features_in == features_out
        self.skip = None if same else conv(features_in, features_out, 1, **around)

    def __call__(self, x: jax.Array, time: jax.Array | None = None) -> jax.Array:
        """[B, H, W, C], and the activated embedding [B, E] of the time -> [B, H, W, F]."""
        y = shard(self.conv1(self.norm1(x, nnx.silu)), ROWS, None, None, "tensor")
        if self.time is not None:
            assert time is not None
            y = y + self.time(time)[:, None, None]
        y = shard(self.conv2(self.norm2(y, nnx.silu)), ROWS)
        return y + (x if self.skip is None else self.skip(x))


def conv(
    features_in: int,
    features_out: int,
    size: int,
    *,
    zero: bool = False,
    stride: int = 1,
    padding: convs.Padding = "SAME",
    dtype: jax.typing.DTypeLike,
    rngs: nnx.Rngs,
) -> convs.Conv:
    """A square convolution with bias by torch's law of the start, or all 0."""
    law = _law(features_in * size**2, zero)
    return convs.Conv(
        features_in,
        features_out,
        size,
        stride=stride,
        padding=padding,
        bias=law,
        dtype=dtype,
        kernel_init=law,
        rngs=rngs,
    )


def linear(
    features_in: int,
    features_out: int,
    *,
    bias: bool = True,
    zero: bool = False,
    dtype: jax.typing.DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """[..., C] -> [..., F] by torch's law of the start, or all 0."""
    law = _law(features_in, zero)
    return nnx.Linear(
        features_in,
        features_out,
        use_bias=bias,
        dtype=dtype,
        param_dtype=jnp.promote_types(dtype, jnp.float32),
        kernel_init=law,
        bias_init=law,
        dot_general=dense.dot_general,
        rngs=rngs,
    )


def attended(q: jax.Array, k: jax.Array, v: jax.Array, heads: int, backend: str) -> jax.Array:
    """Softmax attention of so many heads, every query over all keys.

    Any number of keys goes to the fast kernels, which fill them up to whole tiles and mask them. Heads of
    zeros are added where the mesh's tensor axis does not divide their number.

    Args:
      q: [B, T, C] queries.
      k, v: [B, S, C] keys and values.
      heads: N.
      backend: of `ops.attention.attention`.

    Returns:
      [B, T, C].
    """
    more = -heads % free_axes().get("tensor", 1)
    parts = (y.reshape(*y.shape[:2], heads, -1) for y in (q, k, v))
    q, k, v = (jnp.pad(y, ((0, 0), (0, 0), (0, more), (0, 0))) if more else y for y in parts)
    q = shard(q, ROWS, "context", "tensor")  # [B, T, N, C / N]
    y = attention(q, k, v, causal=False, backend=backend)[:, :, :heads]
    return shard(y.reshape(*y.shape[:2], -1), ROWS, "context", None if more else "tensor")


def doubled(x: jax.Array) -> jax.Array:
    """Each pixel four times: [B, H, W, C] -> [B, 2 H, 2 W, C].

    >>> doubled(jnp.arange(2).reshape(1, 1, 2, 1))[0, :, :, 0].tolist()
    [[0, 0, 1, 1], [0, 0, 1, 1]]
    """
    batch, height, width, channels = x.shape
    spread = (batch, height, 2, width, 2, channels)
    x = jnp.broadcast_to(x[:, :, None, :, None], spread)
    return x.reshape(batch, 2 * height, 2 * width, channels)


def _law(fan_in: int, zero: bool) -> nnx.Initializer:
    return nnx.initializers.zeros if zero else uniform(fan_in)

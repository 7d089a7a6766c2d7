"""The UNet of Stable Diffusion v2: noisy latents, times and a caption's tokens to what the sampler needs.

The groups of channels are 16 in residual blocks and before the output and 32 in spatial transformers.

Reference: mlcommons/training, retired_benchmarks/stable_diffusion, ldm/modules (openaimodel, attention).

B batch · H, W height and width of latents · C channels · T queries, H W of a level ·
S tokens of the context · K width of the context · E width of the time's embedding
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from mlperf_jax.errors import UserError
from mlperf_jax.models.diffusion_layers import ResBlock, attended, conv, doubled, linear
from mlperf_jax.models.diffusion_unet_config import (
    BLOCK_EPSILON,
    LAYER_EPSILON,
    TRANSFORMER_EPSILON,
    Block as Sizes,
    UNetConfig,
)
from mlperf_jax.ops import attention as attentions, stack
from mlperf_jax.ops.group_norm import GroupNorm
from mlperf_jax.ops.norm import layer_norm
from mlperf_jax.ops.shard import ROWS, shard

__all__ = ["RULES", "UNet", "UNetConfig"]

# Where parameters live, by path: what begins a residual branch is split over tensor along its outputs, what
# ends it along its inputs, the other axis over fsdp; all other kernels over fsdp along their inputs.
RULES = (
    (r".*/conv1/kernel", P(None, None, "fsdp", "tensor")),
    (r".*/conv2/kernel", P(None, None, "tensor", "fsdp")),
    (r".*/(query|key|value|up|gate|time|first)/kernel", P("fsdp", "tensor")),
    (r".*/(out|down|second)/kernel", P("tensor", "fsdp")),
    (r".*/(conv1|up|gate|time|first)/bias", P("tensor")),
    (r".*/project_(in|out)/kernel", P("fsdp")),
    (r"(.*/)?(conv_in|halve|double|skip|head)/kernel", P(None, None, "fsdp")),
    (r".*(scale|bias)", P()),
)

_LONGEST = 10_000  # the longest period of the time's sinusoids over 2 pi, in steps


# -- the time --------------------------------------------------------------------------------------


def sinusoids(timesteps: jax.Array, width: int, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Cosines, then sines, of the times at width / 2 frequencies from 1 down towards 1 / 10,000.

    >>> sinusoids(jnp.zeros(3), 8, jnp.float32)[0].tolist()
    [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """
    half = width // 2
    frequency = jnp.exp(-math.log(_LONGEST) / half * jnp.arange(half, dtype=dtype))
    angle = timesteps.astype(dtype)[:, None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class TimeEmbedding(nnx.Module):
    """[B] -> [B, E], activated: every residual block reads it behind a SiLU."""

    def __init__(self, config: UNetConfig, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs):
        self.first = linear(config.width, config.time_width, dtype=dtype, rngs=rngs)
        self.second = linear(config.time_width, config.time_width, dtype=dtype, rngs=rngs)
        self.width = config.width
        self.kept = jnp.promote_types(dtype, jnp.float32)

    def __call__(self, timesteps: jax.Array) -> jax.Array:
        x = self.first(sinusoids(timesteps, self.width, self.kept))
        return nnx.silu(self.second(nnx.silu(x)))


# -- transformers ----------------------------------------------------------------------------------


class Attention(nnx.Module):
    """[B, T, C] -> [B, T, C]: every query sees all tokens of the context, or of its own picture."""

    def __init__(
        self,
        width: int,
        context_width: int,
        config: UNetConfig,
        dtype: jax.typing.DTypeLike,
        *,
        rngs: nnx.Rngs,
    ):
        around: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.query = linear(width, width, bias=False, **around)
        self.key = linear(context_width, width, bias=False, **around)
        self.value = linear(context_width, width, bias=False, **around)
        self.out = linear(width, width, **around)
        self.heads = width // config.head_width
        self.backend = config.attention

    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        seen = x if context is None else context
        q, k, v = self.query(x), self.key(seen), self.value(seen)
        return self.out(attended(q, k, v, self.heads, self.backend))


class FeedForward(nnx.Module):
    """[B, T, C] -> [B, T, C]: down(up(x) gelu(gate(x))), four times as wide inside."""

    def __init__(self, width: int, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs):
        self.up = linear(width, 4 * width, dtype=dtype, rngs=rngs)
        self.gate = linear(width, 4 * width, dtype=dtype, rngs=rngs)
        self.down = linear(4 * width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(shard(_gated(self.up(x), self.gate(x)), ROWS, "context", "tensor"))


@functools.partial(jax.checkpoint, prevent_cse=False)
def _gated(up: jax.Array, gate: jax.Array) -> jax.Array:
    """up gelu(gate), exactly; the backward pass keeps both and none of the function's own steps."""
    return up * jax.nn.gelu(gate, approximate=False)


class TransformerBlock(nnx.Module):
    """x + attention(norm(x)), then + cross_attention(norm(x), context), then + feed_forward(norm(x))."""

    def __init__(
        self, width: int, config: UNetConfig, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs
    ):
        self.attention_norm = layer_norm(width, LAYER_EPSILON, dtype, rngs=rngs)
        self.attention = Attention(width, width, config, dtype, rngs=rngs)
        self.cross_norm = layer_norm(width, LAYER_EPSILON, dtype, rngs=rngs)
        self.cross_attention = Attention(width, config.context_width, config, dtype, rngs=rngs)
        self.feed_forward_norm = layer_norm(width, LAYER_EPSILON, dtype, rngs=rngs)
        self.feed_forward = FeedForward(width, dtype, rngs=rngs)

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        x = x + shard(self.attention(self.attention_norm(x)), ROWS)
        x = x + shard(self.cross_attention(self.cross_norm(x), context), ROWS)
        return x + shard(self.feed_forward(self.feed_forward_norm(x)), ROWS)


class SpatialTransformer(nnx.Module):
    """[B, H, W, C] -> [B, H, W, C]: x + project_out(block(project_in(norm(x)), context)), x itself at first."""

    def __init__(
        self, width: int, config: UNetConfig, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs
    ):
        around: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        groups = config.transformer_groups
        self.norm = GroupNorm(width, groups, epsilon=TRANSFORMER_EPSILON, **around)
        self.project_in = linear(width, width, **around)
        self.block = TransformerBlock(width, config, dtype, rngs=rngs)
        self.project_out = linear(width, width, zero=True, **around)

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        tokens = self.norm(x).reshape(x.shape[0], -1, x.shape[-1])  # [B, T, C]
        y = self.project_out(self.block(self.project_in(tokens), context))
        return x + y.reshape(x.shape)


# -- the network -----------------------------------------------------------------------------------


class Block(nnx.Module):
    """A residual block over the joined inputs, and a spatial transformer where there is one."""

    def __init__(
        self, sizes: Sizes, config: UNetConfig, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs
    ):
        self.residual = ResBlock(
            sizes.features_in,
            sizes.features_out,
            config.groups,
            epsilon=BLOCK_EPSILON,
            time_width=config.time_width,
            zero=True,
            dtype=dtype,
            rngs=rngs,
        )
        attends, width = sizes.attends, sizes.features_out
        self.transformer = SpatialTransformer(width, config, dtype, rngs=rngs) if attends else None

    def __call__(self, xs: Sequence[jax.Array], time: jax.Array, context: jax.Array) -> jax.Array:
        x = self.residual(jnp.concatenate(xs, axis=-1) if len(xs) > 1 else xs[0], time)
        return shard(x if self.transformer is None else self.transformer(x, context), ROWS)


class DownLevel(nnx.Module):
    """Blocks of one resolution, and the convolution that halves the sides, which the coarsest lacks."""

    def __init__(self, blocks: Sequence[Sizes], halves: bool, config, dtype, *, rngs):
        width = blocks[-1].features_out
        self.blocks = nnx.List(Block(sizes, config, dtype, rngs=rngs) for sizes in blocks)
        how = {"stride": 2, "padding": 1, "dtype": dtype, "rngs": rngs}
        self.halve = conv(width, width, 3, **how) if halves else None


class UpLevel(nnx.Module):
    """Blocks of one resolution, and the convolution over doubled sides, which the finest lacks."""

    def __init__(self, blocks: Sequence[Sizes], doubles: bool, config, dtype, *, rngs):
        width = blocks[-1].features_out
        self.blocks = nnx.List(Block(sizes, config, dtype, rngs=rngs) for sizes in blocks)
        self.double = conv(width, width, 3, dtype=dtype, rngs=rngs) if doubles else None


class UNet(nnx.Module):
    """Latents, their times and captions to a tensor like the latents; exactly 0 before it is trained.

    >>> tiny = UNetConfig(width=32, multipliers=(1, 2), attention_levels=1, head_width=16, context_width=8)
    >>> def run():
    ...     model = UNet(tiny, jnp.bfloat16, rngs=nnx.Rngs(0))
    ...     return model(jnp.ones([2, 8, 8, 4]), jnp.array([0, 999]), jnp.ones([2, 77, 8]))
    >>> jax.eval_shape(run)
    ShapeDtypeStruct(shape=(2, 8, 8, 4), dtype=float32)
    """

    def __init__(self, config: UNetConfig, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs):
        """Makes the network.

        Args:
          config: sizes.
          dtype: of the computation. Parameters, norms' statistics, softmax and the result are in
            promote_types(dtype, f32).
          rngs: keys.
        """
        around: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.config = config
        _checkpointed(config.remat)  # refuses what it does not know
        deepest, last = config.widths[-1], config.halvings
        self.time_embedding = TimeEmbedding(config, **around)
        self.conv_in = conv(config.channels, config.width, 3, **around)
        self.down = nnx.List(
            DownLevel(blocks, level < last, config, **around)
            for level, blocks in enumerate(config.down)
        )
        middle = (Sizes(deepest, deepest, True), Sizes(deepest, deepest, False))
        self.middle = nnx.List(Block(sizes, config, **around) for sizes in middle)
        self.up = nnx.List(
            UpLevel(blocks, level < last, config, **around)
            for level, blocks in enumerate(config.up)
        )
        self.norm = GroupNorm(config.width, config.groups, epsilon=BLOCK_EPSILON, **around)
        self.head = conv(config.width, config.channels, 3, zero=True, **around)

    def __call__(self, latents: jax.Array, timesteps: jax.Array, context: jax.Array) -> jax.Array:
        """What the latents' noise or velocity is taken to be.

        Args:
          latents: [B, H, W, C], each side a multiple of 2 to the number of halvings.
          timesteps: [B], in steps of the noise's schedule.
          context: [B, S, K].

        Returns:
          [B, H, W, C] in promote_types(dtype, f32).

        Raises:
          UserError: shapes that do not fit.
        """
        self._check(latents.shape, timesteps.shape, context.shape)
        run, time = _checkpointed(self.config.remat), self.time_embedding(timesteps)
        x = self.conv_in(shard(latents, ROWS))
        skips = [x]
        for down in self.down:
            for block in down.blocks:
                x = run(block)([x], time, context)
                skips.append(x)
            if down.halve is not None:
                x = down.halve(x)
                skips.append(x)
        for block in self.middle:
            x = run(block)([x], time, context)
        for up in self.up:
            for block in up.blocks:
                x = run(block)([x, skips.pop()], time, context)
            if up.double is not None:
                x = up.double(doubled(x))
        return self.head(self.norm(x, nnx.silu), wide=True)

    def _check(
        self, latents: tuple[int, ...], timesteps: tuple[int, ...], context: tuple[int, ...]
    ):
        config, times = self.config, 2**self.config.halvings
        if len(latents) != 4 or latents[-1] != config.channels:
            raise UserError(
                f"unet: latents of shape {latents} are not [B, H, W, {config.channels}]; give rows of pictures, "
                "channels last"
            )
        if any(side % times for side in latents[1:3]):
            raise UserError(
                f"unet: latents of {latents[1]} x {latents[2]} cannot be halved {config.halvings} times; both sides "
                f"must be multiples of {times}"
            )
        if len(context) != 3 or context[-1] != config.context_width:
            raise UserError(
                f"unet: a context of shape {context} is not [B, tokens, {config.context_width}]; give the text "
                "encoder's output, or its width as context_width"
            )
        if timesteps != latents[:1] or context[:1] != latents[:1]:
            raise UserError(
                f"unet: {latents[0]} latents, times of shape {timesteps} and {context[0]} contexts; give one time "
                "and one context for each"
            )


def _checkpointed(
    remat: str | None,
) -> Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]:
    """Wraps a block so that the backward pass computes again what the policy does not keep."""
    if remat is None:
        return lambda block: block
    if remat == "attention":
        policy = jax.checkpoint_policies.save_only_these_names(attentions.NAME)
    else:
        policy = stack.remat_policy(remat)
    # a function of its own for each call: what was traced is found again by it
    return lambda block: jax.checkpoint(lambda *args: block(*args), policy=policy)

"""The autoencoder of Stable Diffusion: pictures to the moments of latents an eighth as large, and back.

Reference: mlcommons/training, retired_benchmarks/stable_diffusion, ldm/models/autoencoder.

B batch · H, W height and width of pictures · h, w of latents · C channels · Z channels of latents
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from mlperf_jax.errors import UserError
from mlperf_jax.models.diffusion_layers import ResBlock, attended, conv, doubled, linear
from mlperf_jax.models.diffusion_unet_config import Levelled
from mlperf_jax.ops.group_norm import GroupNorm
from mlperf_jax.ops.shard import ROWS, free_axes, shard

EPSILON = 1e-6  # of all group norms
SCALE = 0.18215  # what makes the variance of the released encoder's latents about 1
_LOG_VARIANCES = (-30.0, 20.0)  # clamped to


# -- sizes -----------------------------------------------------------------------------------------


class Level(NamedTuple):
    """The residual blocks of one resolution: channels in, channels out, and how many."""

    features_in: int
    features_out: int
    blocks: int


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(Levelled):
    """One autoencoder; the defaults are that of Stable Diffusion.

    Attributes:
        width: channels of the finest level.
        multipliers: channels of each level over `width`, the finest first; each level halves the sides.
        res_blocks: of a level of the encoder, one less than of the decoder.
        image_channels: of the pictures.
        channels: Z.
        groups: of all norms.
        attention: back end of `ops.attention.attention`.
    """

    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    image_channels: int = 3
    channels: int = 4
    groups: int = 32
    attention: str = "auto"

    def __post_init__(self) -> None:
        for field in ("width", "res_blocks", "image_channels", "channels", "groups"):
            if getattr(self, field) < 1:
                raise UserError(f"autoencoder: {field} is {getattr(self, field)}; give at least 1")
        if not self.multipliers or min(self.multipliers) < 1:
            raise UserError(
                f"autoencoder: multipliers are {self.multipliers}; give one of at least 1 per level"
            )
        if self.width % self.groups:
            raise UserError(
                f"autoencoder: {self.groups} groups do not divide the width {self.width}; choose groups that do"
            )

    @property
    def side(self) -> int:
        """Pixels of a picture along the side of one latent pixel."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def down(self) -> list[Level]:
        """The encoder's levels, the finest first."""
        before = [self.width, *self.widths]
        return [Level(a, b, self.res_blocks) for a, b in zip(before, self.widths)]

    @property
    def up(self) -> list[Level]:
        """The decoder's levels, the coarsest first."""
        widths = self.widths[::-1]
        return [Level(a, b, self.res_blocks + 1) for a, b in zip([widths[0], *widths], widths)]

    def encoder_flops(self, height: int, width: int) -> float:
        """Floating-point operations to encode one picture of so many pixels, two per multiply-add.

        >>> round(AutoencoderConfig().encoder_flops(512, 512) / 1e9, 1)
        1116.7
        """
        pixels, outputs = height * width, 2 * self.channels
        found = 9 * pixels * self.image_channels * self.width
        for i, (level, before) in enumerate(zip(self.down, [None, *self.widths])):
            seen = pixels // 4**i
            found += _blocks_products(seen, level) + (9 * seen * before**2 if before else 0)
        found += self._middle_products(height, width)
        small = pixels // self.side**2
        return 2.0 * (found + 9 * small * self.widths[-1] * outputs + small * outputs**2)

    def decoder_flops(self, height: int, width: int) -> float:
        """The same to decode one picture of so many pixels.

        >>> round(AutoencoderConfig().decoder_flops(512, 512) / 1e9, 1)
        2514.5
        """
        pixels, deepest = height * width, self.widths[-1]
        small = pixels // self.side**2
        found = small * self.channels**2 + 9 * small * self.channels * deepest
        found += self._middle_products(height, width)
        for i, level in enumerate(self.up):
            seen = small * 4**i
            found += _blocks_products(seen, level) + (9 * seen * level.features_in**2 if i else 0)
        return 2.0 * (found + 9 * pixels * self.width * self.image_channels)

    def _middle_products(self, height: int, width: int) -> int:
        deepest, seen = self.widths[-1], height * width // self.side**2
        blocks = _blocks_products(seen, Level(deepest, deepest, 2))
        return blocks + 4 * seen * deepest**2 + 2 * seen**2 * deepest


def _blocks_products(pixels: int, level: Level) -> int:
    """Multiply-adds of a level's residual blocks."""
    before, width, blocks = level
    first = 9 * before * width + (before * width if before != width else 0)
    return pixels * (first + (2 * blocks - 1) * 9 * width**2)


# -- parts -----------------------------------------------------------------------------------------


class Attention(nnx.Module):
    """[B, h, w, C] -> [B, h, w, C]: x + out(attention(norm(x))), one head as wide as there are channels."""

    def __init__(self, width: int, config: AutoencoderConfig, **around: Any):
        self.norm = GroupNorm(width, config.groups, epsilon=EPSILON, **around)
        self.query = linear(width, width, **around)
        self.key = linear(width, width, **around)
        self.value = linear(width, width, **around)
        self.out = linear(width, width, **around)
        self.backend = config.attention

    def __call__(self, x: jax.Array) -> jax.Array:
        tokens = self.norm(x).reshape(x.shape[0], -1, x.shape[-1])  # [B, h w, C]
        q, k, v = (part(tokens) for part in (self.query, self.key, self.value))
        return x + self.out(attended(q, k, v, 1, self.backend)).reshape(x.shape)


class Middle(nnx.Module):
    """Two residual blocks with attention between them, at the coarsest level."""

    def __init__(self, config: AutoencoderConfig, **around: Any):
        width = config.widths[-1]
        self.before = _block(width, width, config, **around)
        self.attention = Attention(width, config, **around)
        self.after = _block(width, width, config, **around)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.after(self.attention(self.before(x)))


class DownLevel(nnx.Module):
    """Residual blocks, then a convolution that halves the sides, padded behind the last row and column."""

    def __init__(self, level: Level, halves: bool, config: AutoencoderConfig, **around: Any):
        self.blocks = _blocks(level, config, **around)
        width = level.features_out
        self.halve = conv(width, width, 3, stride=2, **around) if halves else None

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return x if self.halve is None else self.halve(x)


class UpLevel(nnx.Module):
    """Residual blocks, then a convolution over the doubled sides."""

    def __init__(self, level: Level, doubles: bool, config: AutoencoderConfig, **around: Any):
        self.blocks = _blocks(level, config, **around)
        width = level.features_out
        self.double = conv(width, width, 3, **around) if doubles else None

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return x if self.double is None else self.double(doubled(x))


def _blocks(level: Level, config: AutoencoderConfig, **around: Any) -> nnx.List:
    inputs = [level.features_in, *[level.features_out] * (level.blocks - 1)]
    return nnx.List(_block(before, level.features_out, config, **around) for before in inputs)


def _block(
    features_in: int, features_out: int, config: AutoencoderConfig, **around: Any
) -> ResBlock:
    return ResBlock(features_in, features_out, config.groups, epsilon=EPSILON, **around)


# -- the two halves --------------------------------------------------------------------------------


class Encoder(nnx.Module):
    """Pictures [B, H, W, 3] to moments [B, h, w, 2 Z] in at least float32: Z means, Z log-variances.

    The benchmark's own moments are of pictures in [0, 1], though the network was trained on [-1, 1].

    >>> tiny = AutoencoderConfig(width=8, multipliers=(1, 2), groups=4)
    >>> Encoder(tiny, jnp.float32, rngs=nnx.Rngs(0))(jnp.ones([2, 16, 8, 3])).shape
    (2, 8, 4, 8)
    """

    def __init__(self, config: AutoencoderConfig, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs):
        around: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        last = len(config.down) - 1
        self.config = config
        self.conv_in = conv(config.image_channels, config.width, 3, **around)
        self.down = nnx.List(
            DownLevel(level, i < last, config, **around) for i, level in enumerate(config.down)
        )
        self.middle = Middle(config, **around)
        self.norm = GroupNorm(config.widths[-1], config.groups, epsilon=EPSILON, **around)
        self.conv_out = conv(config.widths[-1], 2 * config.channels, 3, **around)
        self.quant = conv(2 * config.channels, 2 * config.channels, 1, **around)

    def __call__(self, images: jax.Array) -> jax.Array:
        config = self.config
        _check("images", images.shape, config.image_channels)
        if any(side % config.side for side in images.shape[1:3]):
            raise UserError(
                f"autoencoder: images of {images.shape[1]} x {images.shape[2]} pixels; both sides must be multiples "
                f"of {config.side}"
            )
        x = self.conv_in(shard(images, ROWS))
        for level in self.down:
            x = level(x)
        x = self.conv_out(self.norm(self.middle(x), nnx.silu))
        return self.quant(x, wide=True)


class Decoder(nnx.Module):
    """What `sample` gives, [B, h, w, Z], to pictures [B, H, W, 3].

    >>> tiny = AutoencoderConfig(width=8, multipliers=(1, 2), groups=4)
    >>> Decoder(tiny, jnp.float32, rngs=nnx.Rngs(0)).decode(jnp.ones([2, 8, 4, 4])).shape
    (2, 16, 8, 3)
    """

    def __init__(self, config: AutoencoderConfig, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs):
        around: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        last = len(config.up) - 1
        self.config = config
        self.post_quant = conv(config.channels, config.channels, 1, **around)
        self.conv_in = conv(config.channels, config.widths[-1], 3, **around)
        self.middle = Middle(config, **around)
        self.up = nnx.List(
            UpLevel(level, i < last, config, **around) for i, level in enumerate(config.up)
        )
        self.norm = GroupNorm(config.width, config.groups, epsilon=EPSILON, **around)
        self.conv_out = conv(config.width, config.image_channels, 3, **around)

    def __call__(self, latents: jax.Array) -> jax.Array:
        """Latents divided by `SCALE` already, [B, h, w, Z], to pictures about [-1, 1] in at least float32."""
        _check("latents", latents.shape, self.config.channels)
        x = self.middle(self.conv_in(self.post_quant(shard(latents, ROWS))))
        for level in self.up:
            x = level(x)
        return self.conv_out(self.norm(x, nnx.silu), wide=True)

    def decode(self, latents: jax.Array, at_once: int | None = None) -> jax.Array:
        """Pictures in [0, 1], of latents as `sample` and the UNet have them; `SCALE` is divided out here.

        The decoder's widest arrays take 134 MB a picture of 512 x 512 in bfloat16, two or three at a time.

        Args:
          latents: [B, h, w, Z].
          at_once: pictures decoded at the same time on a device, at most: parts of equal size are decoded one
            after the other. None: all.

        Returns:
          [B, H, W, 3] in at least float32.
        """
        if at_once is not None and at_once < 1:
            raise UserError(f"autoencoder: at_once is {at_once}; give at least 1, or None for all")
        parts = _parts(latents.shape[0], at_once)
        # picture i is row i // parts of part i % parts: every device has its own in every part
        rows = latents.reshape(-1, parts, *latents.shape[1:]).swapaxes(0, 1)
        images = self._pictures(rows[0])[None] if parts == 1 else lax.map(self._pictures, rows)
        return images.swapaxes(0, 1).reshape(-1, *images.shape[2:])

    def _pictures(self, latents: jax.Array) -> jax.Array:
        kept = latents.astype(jnp.promote_types(latents.dtype, jnp.float32))
        return jnp.clip((self(kept / SCALE) + 1) / 2, 0, 1)


class Autoencoder(nnx.Module):
    """Both halves, of which most need only one."""

    def __init__(self, config: AutoencoderConfig, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs):
        self.encoder = Encoder(config, dtype, rngs=rngs)
        self.decoder = Decoder(config, dtype, rngs=rngs)


def sample(moments: jax.Array, noise: jax.Array) -> jax.Array:
    """Latents of their moments: SCALE (mean + deviation * noise).

    Args:
      moments: [B, h, w, 2 Z], means before log-variances, which are clamped to -30 ... 20.
      noise: [B, h, w, Z], standard normal.

    Returns:
      [B, h, w, Z] in at least float32.

    >>> sample(jnp.ones([2, 8, 8, 8]), jnp.zeros([2, 8, 8, 4])).shape
    (2, 8, 8, 4)
    """
    wide = moments.astype(jnp.promote_types(noise.dtype, jnp.float32))
    mean, log_variance = jnp.split(wide, 2, axis=-1)
    deviation = jnp.exp(jnp.clip(log_variance, *_LOG_VARIANCES) / 2)
    return SCALE * (mean + deviation * noise)


def _parts(rows: int, at_once: int | None) -> int:
    """Into how many equal parts so many rows are cut, each of which the mesh divides as it does them all."""
    sizes = free_axes()
    ways = math.prod(sizes.get(axis, 1) for axis in ROWS)
    each = rows // ways if rows % ways == 0 else rows  # on a device
    if at_once is None:
        return 1
    return next(n for n in _divisors(each) if each // n <= at_once)


def _divisors(number: int) -> Iterator[int]:
    return (n for n in range(1, number + 1) if number % n == 0)


def _check(what: str, shape: tuple[int, ...], channels: int) -> None:
    if len(shape) != 4 or shape[-1] != channels:
        raise UserError(
            f"autoencoder: {what} of shape {shape} are not [B, height, width, {channels}]; give rows of them, "
            "channels last"
        )

"""The sizes of the UNet of Stable Diffusion v2: what follows what, and its work; no arrays, no JAX.

A block is a residual block and, where there is attention, a spatial transformer behind it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from mlperf_jax.errors import UserError

BLOCK_EPSILON = 1e-5  # of the group norms in residual blocks and before the output
TRANSFORMER_EPSILON = 1e-6  # of those in spatial transformers
LAYER_EPSILON = 1e-5  # of layer norms


class Block(NamedTuple):
    """Channels in and out, and whether a spatial transformer follows."""

    features_in: int
    features_out: int
    attends: bool


class Levelled:
    """What the sizes of networks with several resolutions share."""

    width: int
    multipliers: tuple[int, ...]

    def replace(self, **changes: Any) -> Self:
        """A copy with these fields changed."""
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]

    @property
    def widths(self) -> list[int]:
        """Channels of each level, the finest first."""
        return [self.width * multiplier for multiplier in self.multipliers]


@dataclass(frozen=True, kw_only=True)
class UNetConfig(Levelled):
    """One UNet; the defaults are the benchmark's, a UNet of Stable Diffusion v2 with 16 groups.

    Attributes:
        width: channels of the finest level.
        multipliers: channels of each level over `width`, the finest first; each level halves the sides.
        res_blocks: blocks of a level on the way down, one less than on the way up.
        attention_levels: how many of the levels have transformers, from the finest on; the middle has one.
        head_width: of an attention head.
        context_width: of the tokens that are attended to.
        channels: of the latents.
        groups: of the norms in residual blocks and before the output.
        transformer_groups: of the norm in spatial transformers. The released weights have 32 of both.
        remat: what the forward pass keeps per block: None (all), "full", "dots" or "dots_no_batch" as in
            `ops.stack.Stack`, or "attention": the block's input and the attentions' results.
        attention: back end of `ops.attention.attention`.
    """

    width: int = 320
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    attention_levels: int = 3
    head_width: int = 64
    context_width: int = 1024
    channels: int = 4
    groups: int = 16
    transformer_groups: int = 32
    remat: str | None = None
    attention: str = "auto"

    def __post_init__(self) -> None:
        sizes = ("width", "res_blocks", "head_width", "context_width", "channels", "groups")
        for field in (*sizes, "transformer_groups"):
            if getattr(self, field) < 1:
                raise UserError(f"unet: {field} is {getattr(self, field)}; give at least 1")
        if not self.multipliers or min(self.multipliers) < 1:
            raise UserError(
                f"unet: multipliers are {self.multipliers}; give one of at least 1 per level"
            )
        if not 0 <= self.attention_levels <= len(self.multipliers):
            raise UserError(
                f"unet: attention_levels is {self.attention_levels}; give 0 to {len(self.multipliers)}, the levels"
            )
        if self.width % 2:
            raise UserError(
                f"unet: width {self.width} is odd; half of it are cosines of the time, half sines"
            )
        blocks = [block for level in (*self.down, *self.up) for block in level]
        inside = [width for block in blocks for width in (block.features_in, block.features_out)]
        attending = [*self.widths[: self.attention_levels], self.widths[-1]]
        divided = {"groups": inside, "head_width": attending, "transformer_groups": attending}
        for field, widths in divided.items():
            if odd := [width for width in widths if width % getattr(self, field)]:
                raise UserError(
                    f"unet: {field} {getattr(self, field)} does not divide the {odd[0]} channels of a block; "
                    "choose one that divides them all"
                )

    @property
    def time_width(self) -> int:
        return 4 * self.width

    @property
    def halvings(self) -> int:
        return len(self.multipliers) - 1

    @property
    def down(self) -> list[list[Block]]:
        """The blocks of each level on the way down, the finest first."""
        levels, before = [], self.width
        for level, width in enumerate(self.widths):
            attends = level < self.attention_levels
            inputs = [before, *[width] * (self.res_blocks - 1)]
            levels.append([Block(features, width, attends) for features in inputs])
            before = width
        return levels

    @property
    def up(self) -> list[list[Block]]:
        """The blocks of each level on the way up, the coarsest first; inputs hold a skip's channels."""
        widths = self.widths
        # the last block's of a level is the finer level's last result, halved, or the input's
        finer = [self.width, *widths[:-1]]
        levels, before = [], widths[-1]
        for level in reversed(range(len(widths))):
            width, attends = widths[level], level < self.attention_levels
            blocks = []
            for skip in (*[width] * self.res_blocks, finer[level]):
                blocks.append(Block(before + skip, width, attends))
                before = width
            levels.append(blocks)
        return levels

    def flops(self, height: int, width: int, context_tokens: int) -> float:
        """Floating-point operations of one forward pass for one sample, two per multiply-add.

        Training takes three times as many; recomputation is not counted.

        Args:
            height, width: of the latents.
            context_tokens: that are attended to.

        >>> round(UNetConfig().flops(64, 64, 77) / 1e9, 1)
        804.3
        """
        return 2.0 * sum(self._products(height * width, context_tokens))

    def attention_flops(self, height: int, width: int, context_tokens: int) -> float:
        """Those of `flops` in products of queries with keys and of weights with values.

        >>> round(UNetConfig().attention_flops(64, 64, 77) / 1e9)
        126
        """
        found = 0
        for pixels, block in self._blocks(height * width):
            if block.attends:
                found += 2 * pixels * (pixels + context_tokens) * block.features_out
        return 2.0 * found

    def _blocks(self, pixels: int) -> Iterator[tuple[int, Block]]:
        """All blocks, and the pixels that they see; the middle counts as one with attention and one without."""
        levels = len(self.multipliers)
        for level, blocks in enumerate(self.down):
            yield from ((pixels // 4**level, block) for block in blocks)
        for attends in (True, False):
            yield pixels // 4 ** (levels - 1), Block(self.widths[-1], self.widths[-1], attends)
        for level, blocks in zip(reversed(range(levels)), self.up):
            yield from ((pixels // 4**level, block) for block in blocks)

    def _products(self, pixels: int, tokens: int) -> Iterator[float]:
        """Multiply-adds, part by part."""
        yield self.time_width * (self.width + self.time_width)
        yield 2 * 9 * pixels * self.channels * self.width  # the first and the last convolution
        for level, width in enumerate(self.widths[:-1]):
            yield 9 * pixels // 4 ** (level + 1) * width**2
        for level, width in enumerate(self.widths[1:]):
            yield 9 * pixels // 4**level * width**2
        for seen, (features, width, attends) in self._blocks(pixels):
            yield 9 * seen * width * (features + width) + self.time_width * width
            if features != width:
                yield seen * features * width
            if attends:
                yield (
                    20 * seen * width**2
                )  # 2 around the block, 4 + 2 in the attentions, 12 feed forward
                yield 2 * tokens * self.context_width * width
                yield 2 * seen * (seen + tokens) * width

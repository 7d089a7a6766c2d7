"""The sizes of CLIP's two towers; no arrays, no JAX.

L layers · D width · F feed-forward width · V vocabulary rows · T tokens · N heads · E features
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from mlperf_jax.errors import UserError

EPSILON = 1e-5  # of all layer norms


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """What both towers have.

    Attributes:
        layers, width, heads: L, D and N; heads are D / N wide.
        hidden: F, the inner width of the feed-forward part.
        features: E, of the space that both towers project into.
        remat: what the forward pass keeps per layer, see `ops.stack.Stack`.
        attention: back end of `ops.attention.attention`.
    """

    layers: int
    width: int
    heads: int
    hidden: int
    features: int = 1024
    remat: str | None = None
    attention: str = "auto"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 1 and not isinstance(value, bool):
                raise UserError(f"clip: {field.name} is {value}; give at least 1")
        if self.width % self.heads:
            raise UserError(
                f"clip: width {self.width} is not divided by {self.heads} heads; choose heads that do"
            )

    def replace(self, **changes: Any) -> Self:
        """A copy with these fields changed."""
        return dataclasses.replace(self, **changes)

    def _flops(self, layers: int, tokens: int) -> float:
        products = 8 * self.width**2 + 4 * self.width * self.hidden
        return float(layers * tokens * (products + 4 * tokens * self.width))


@dataclass(frozen=True, kw_only=True)
class TextConfig(TowerConfig):
    """A text tower; the defaults are those of OpenCLIP's ViT-H-14.

    Attributes:
        vocab: V.
        tokens: T, the length of all captions.
        whole: whether the tower has its last layer and its projection: features need both, Stable Diffusion's
            conditioning neither.
    """

    layers: int = 24
    width: int = 1024
    heads: int = 16
    hidden: int = 4096
    vocab: int = 49_408
    tokens: int = 77
    whole: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers < 2:
            raise UserError(
                f"clip: a text tower of {self.layers} layers has none before its last; give at least 2"
            )

    def conditioning_flops(self) -> float:
        """Floating-point operations of a caption's forward pass through all layers but the last.

        >>> round(TextConfig().conditioning_flops() / 1e9, 1)
        45.1
        """
        return self._flops(self.layers - 1, self.tokens)

    def features_flops(self) -> float:
        """The same through all layers and the projection."""
        return self._flops(self.layers, self.tokens) + 2 * self.width * self.features


@dataclass(frozen=True, kw_only=True)
class VisionConfig(TowerConfig):
    """A vision tower; the defaults are those of OpenCLIP's ViT-H-14.

    Attributes:
        side: of the square images, in pixels.
        patch: side of the square patches, which cover the image.
    """

    layers: int = 32
    width: int = 1280
    heads: int = 16
    hidden: int = 5120
    side: int = 224
    patch: int = 14

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side % self.patch:
            raise UserError(
                f"clip: side {self.side} is not divided by patches of {self.patch}; choose patches that do"
            )

    @property
    def tokens(self) -> int:
        """Patches of an image and the class token."""
        return (self.side // self.patch) ** 2 + 1

    def features_flops(self) -> float:
        """Floating-point operations of an image's forward pass.

        >>> round(VisionConfig().features_flops() / 1e9)
        335
        """
        patches = 2 * (self.tokens - 1) * 3 * self.patch**2 * self.width
        return self._flops(self.layers, self.tokens) + patches + 2 * self.width * self.features

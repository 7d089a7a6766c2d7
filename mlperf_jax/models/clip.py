"""CLIP: a tower for captions and a tower for images, both of pre-norm layers, as OpenCLIP's ViT-H-14 has them.

Stable Diffusion is told its caption by the text tower, and images are judged by the cosine of both towers' features.

References: mlcommons/training, retired_benchmarks/stable_diffusion (ldm/modules/encoders, ldm/models/clip_encoder);
open_clip, `CLIP` and `VisionTransformer`.

B batch · T tokens · D width · F feed-forward width · V vocabulary rows · N heads · H head dimension ·
E features · S image side
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from mlperf_jax.errors import UserError
from mlperf_jax.models.clip_config import EPSILON, TextConfig, TowerConfig, VisionConfig
from mlperf_jax.ops import attention as attentions, conv, dense, resize, stack
from mlperf_jax.ops.norm import layer_norm
from mlperf_jax.ops.shard import ROWS, free_axes, shard

__all__ = ["RULES", "Clip", "TextConfig", "TextTower", "VisionConfig", "VisionTower", "pixels"]

# Where parameters live, by path, for one layer, as in models/decoder.py; towers may lie in a larger model.
RULES = (
    (r"(.*/)?(words|positions)/embedding", P(None, ("tensor", "fsdp"))),
    (r".*/(query|key|value|up)/kernel", P("fsdp", "tensor")),
    (r".*/(out|down)/kernel", P("tensor", "fsdp")),
    (r".*/(query|key|value|up)/bias", P("tensor")),
    (r"(.*/)?projection/kernel", P("fsdp", "tensor")),
    (r"(.*/)?patches/kernel", P(None, None, None, "fsdp")),
    (r".*/(bias|scale|class_embedding)|(.*/)?logit_scale", P()),
)

# Of RGB in 0 ... 1, over CLIP's own training images.
MEANS = np.array([0.48145466, 0.4578275, 0.40821073])
DEVIATIONS = np.array([0.26862954, 0.26130258, 0.27577711])


# -- parts -----------------------------------------------------------------------------------------


class Embedding(nnx.Module):
    """A table of vectors, looked up in its own precision."""

    def __init__(self, rows: int, width: int, std: float, dtype: Any, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(std)
        self.embedding = nnx.Param(init(rngs.params(), (rows, width), _kept(dtype)))

    def __call__(self, index: jax.Array) -> jax.Array:
        """Rows of the table; one that it lacks gives NaN."""
        return jnp.take(self.embedding[...], index, axis=0, mode="fill")


class Attention(nnx.Module):
    """[B, T, D] -> [B, T, D]: causal, or among tokens of the same segment."""

    def __init__(self, config: TowerConfig, causal: bool, dtype: Any, *, rngs: nnx.Rngs):
        width, std = config.width, config.width**-0.5
        linear = functools.partial(_linear, width, width, dtype=dtype, rngs=rngs)
        self.query, self.key, self.value = (linear(std=std) for _ in range(3))
        self.out = linear(std=std * (2 * config.layers) ** -0.5)
        self.heads, self.causal, self.backend = config.heads, causal, config.attention

    def __call__(self, x: jax.Array, segments: jax.Array | None) -> jax.Array:
        def split(layer: nnx.Linear) -> jax.Array:
            heads = layer(x).reshape(*x.shape[:2], self.heads, -1)  # [B, T, N, H]
            return shard(heads, ROWS, "context", "tensor")

        y = attentions.attention(
            *map(split, (self.query, self.key, self.value)),
            causal=self.causal,
            segments=segments,
            backend=self.backend,
        )
        return self.out(y.reshape(x.shape))


class FeedForward(nnx.Module):
    """[B, T, D] -> [B, T, D]: down(gelu(up(x))), with the exact GELU."""

    def __init__(self, config: TowerConfig, dtype: Any, *, rngs: nnx.Rngs):
        out_std = config.width**-0.5 * (2 * config.layers) ** -0.5
        in_std = (2 * config.width) ** -0.5
        self.up = _linear(config.width, config.hidden, in_std, dtype, rngs=rngs)
        self.down = _linear(config.hidden, config.width, out_std, dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        # the backward pass keeps the argument of GELU alone
        gelu = jax.checkpoint(functools.partial(jax.nn.gelu, approximate=False), prevent_cse=False)
        return self.down(gelu(shard(self.up(x), ROWS, "context", "tensor")))


class Layer(nnx.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: TowerConfig, causal: bool, dtype: Any, *, rngs: nnx.Rngs):
        self.attention_norm = layer_norm(config.width, EPSILON, dtype, rngs=rngs)
        self.attention = Attention(config, causal, dtype, rngs=rngs)
        self.feed_forward_norm = layer_norm(config.width, EPSILON, dtype, rngs=rngs)
        self.feed_forward = FeedForward(config, dtype, rngs=rngs)

    def __call__(self, x: jax.Array, segments: jax.Array | None = None) -> jax.Array:
        x = shard(x, ROWS, "context")
        x = shard(x + self.attention(self.attention_norm(x), segments), ROWS, "context")
        return shard(x + self.feed_forward(self.feed_forward_norm(x)), ROWS, "context")


# -- the towers ------------------------------------------------------------------------------------


class TextTower(nnx.Module):
    """Captions to what Stable Diffusion is conditioned on, or to features.

    >>> config = TextConfig(layers=2, width=8, heads=2, hidden=16, features=4, vocab=20, tokens=5)
    >>> tower = TextTower(config, jnp.float32, rngs=nnx.Rngs(0))
    >>> tokens = jnp.array([[18, 3, 19, 0, 0]])
    >>> tower.conditioning(tokens).shape, tower.features(tokens).shape
    ((1, 5, 8), (1, 4))
    """

    def __init__(self, config: TextConfig, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs):
        """Makes the tower.

        Args:
          config: sizes.
          dtype: of the computation. Parameters, norms and softmax are in promote_types(dtype, f32).
          rngs: keys.
        """
        self.config, self.dtype = config, dtype
        width = config.width
        self.words = Embedding(config.vocab, width, 0.02, dtype, rngs=rngs)
        self.positions = Embedding(config.tokens, width, 0.01, dtype, rngs=rngs)
        layer = functools.partial(Layer, config, True, dtype)
        self.blocks = _stack(layer, config, config.layers - 1, rngs=rngs)
        self.last = layer(rngs=rngs) if config.whole else None
        self.final_norm = layer_norm(width, EPSILON, dtype, rngs=rngs)
        out = (width, config.features, width**-0.5)
        self.projection = _linear(*out, dtype, bias=False, rngs=rngs) if config.whole else None

    def conditioning(self, tokens: jax.Array) -> jax.Array:
        """What Stable Diffusion's UNet attends to: all layers but the last, then the final norm.

        Padding is no less a token than others: none is masked.

        Args:
          tokens: [B, T] int, in 0 ... V - 1; T as in the config, or fewer.

        Returns:
          [B, T, D] in `dtype`.

        Raises:
          UserError: more tokens than positions.
        """
        return self.final_norm(self._penultimate(tokens)[:, : tokens.shape[1]])

    def features(self, tokens: jax.Array) -> jax.Array:
        """The projected end of each caption, [B, E] in `dtype`; not of length 1.

        Args:
          tokens: [B, T] int; the end is the first of the largest id.

        Raises:
          UserError: more tokens than positions, or the tower is not whole.
        """
        if self.last is None or self.projection is None:
            raise UserError(
                "clip: this text tower ends before its last layer and has no features; make it with whole=True"
            )
        x = self.final_norm(self.last(self._penultimate(tokens)))
        ends = jnp.take_along_axis(x, tokens.argmax(1)[:, None, None], axis=1)
        return self.projection(ends[:, 0])

    def _penultimate(self, tokens: jax.Array) -> jax.Array:
        """[B, T, D] before the last layer, T filled up for the mesh: what comes later is seen by none before."""
        length = tokens.shape[1]
        if length > self.config.tokens:
            raise UserError(
                f"clip: captions of {length} tokens exceed the tower's {self.config.tokens} positions; cut them "
                "as the tokenizer does, or raise tokens"
            )
        x = self.words(tokens) + self.positions(jnp.arange(length))
        return self.blocks(_filled_up(x.astype(self.dtype)))


class VisionTower(nnx.Module):
    """Images to features.

    >>> config = VisionConfig(layers=1, width=8, heads=2, hidden=16, features=4, side=6, patch=3)
    >>> VisionTower(config, jnp.float32, rngs=nnx.Rngs(0))(jnp.ones([2, 6, 6, 3])).shape
    (2, 4)
    """

    def __init__(self, config: VisionConfig, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs):
        """Makes the tower; arguments as of `TextTower`."""
        self.config, self.dtype = config, dtype
        width, std = config.width, config.width**-0.5
        draw, kept = nnx.initializers.normal(std), _kept(dtype)
        # Differs: OpenCLIP leaves these to torch's own initial values; they are loaded or play no part.
        self.patches = conv.Conv(
            3,
            width,
            config.patch,
            stride=config.patch,
            padding=0,
            dtype=dtype,
            kernel_init=nnx.initializers.lecun_normal(),
            rngs=rngs,
        )
        self.class_embedding = nnx.Param(draw(rngs.params(), (width,), kept))
        self.positions = Embedding(config.tokens, width, std, dtype, rngs=rngs)
        self.first_norm = layer_norm(width, EPSILON, dtype, rngs=rngs)
        self.blocks = _stack(
            functools.partial(Layer, config, False, dtype), config, config.layers, rngs=rngs
        )
        self.final_norm = layer_norm(width, EPSILON, dtype, rngs=rngs)
        self.projection = _linear(width, config.features, std, dtype, bias=False, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Features [B, E] in `dtype`, not of length 1.

        Args:
          images: [B, S, S, 3], as `pixels` makes them.

        Raises:
          UserError: images of another size.
        """
        config = self.config
        if images.shape[1:] != (config.side, config.side, 3):
            raise UserError(
                f"clip: images are {'x'.join(map(str, images.shape[1:]))}, the tower's {config.side}x{config.side}x3; "
                "resize them with models.clip.pixels"
            )
        x = self.patches(images).reshape(images.shape[0], -1, config.width)
        first = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype), (len(x), 1, x.shape[2]))
        x = jnp.concatenate([first, x], axis=1)
        x = self.first_norm(x + self.positions(jnp.arange(config.tokens)).astype(x.dtype))
        x = _filled_up(x)
        segments = None
        if x.shape[1] > config.tokens:  # what the mesh was filled up with is seen by nobody
            segments = (jnp.arange(x.shape[1]) >= config.tokens).astype(jnp.int32)
            segments = jnp.broadcast_to(segments, x.shape[:2])
        x = self.blocks(x, segments)
        return self.projection(self.final_norm(x[:, 0]))


class Clip(nnx.Module):
    """Both towers: how well a caption says what an image shows.

    >>> text = TextConfig(layers=2, width=8, heads=2, hidden=16, features=4, vocab=20, tokens=5)
    >>> vision = VisionConfig(layers=1, width=8, heads=2, hidden=16, features=4, side=6, patch=3)
    >>> model = Clip(text, vision, jnp.float32, rngs=nnx.Rngs(0))
    >>> images, tokens = jnp.ones([2, 6, 6, 3]), jnp.array([[18, 3, 19, 0, 0], [18, 4, 5, 19, 0]])
    >>> model(images, tokens).shape, model.logits(images, tokens).shape
    ((2,), (2, 2))
    """

    def __init__(
        self, text: TextConfig, vision: VisionConfig, dtype: jax.typing.DTypeLike, *, rngs: nnx.Rngs
    ):
        """Makes the towers; arguments as of `TextTower`.

        Raises:
          UserError: the towers' features differ in number, or the text tower is not whole.
        """
        if text.features != vision.features or not text.whole:
            raise UserError(
                f"clip: {text.features if text.whole else 'no'} features of captions do not compare with "
                f"{vision.features} of images; give both towers as many, and a whole text tower"
            )
        self.text = TextTower(text, dtype, rngs=rngs)
        self.vision = VisionTower(vision, dtype, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.full((), np.log(1 / 0.07), _kept(dtype)))

    def __call__(self, images: jax.Array, tokens: jax.Array) -> jax.Array:
        """The CLIP score of each image with its own caption: the cosine [B] of their features, at least f32."""
        image, caption = self._directions(images, tokens)
        return (image * caption).sum(-1)

    def logits(self, images: jax.Array, tokens: jax.Array) -> jax.Array:
        """What CLIP is trained by: scaled cosines [B, B] of all images with all captions, at least f32."""
        image, caption = self._directions(images, tokens)
        cosines = jnp.einsum("ie,ce->ic", image, caption, precision="highest")
        return jnp.exp(self.logit_scale[...]) * cosines

    def _directions(self, images: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features of length 1, images' and captions'."""
        both = (self.vision(images), self.text.features(tokens))
        wide = [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in both]
        image, caption = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in wide)
        return image, caption


def pixels(images: jax.Array, side: int) -> jax.Array:
    """Generated images as the vision tower takes them: OpenCLIP's preprocessing for evaluation.

    They are cut down to 8 bits, as torchvision's `ToPILImage` does, resized as Pillow does, and cropped.

    Args:
      images: [B, H, W, 3] in 0 ... 1.
      side: S, of the tower's images.

    Returns:
      [B, S, S, 3] float32.

    >>> [f"{x:.4f}" for x in pixels(jnp.ones([1, 8, 12, 3]), 4)[0, 0, 0]]
    ['1.9303', '2.0749', '2.1459']
    """
    # a little below 0 or above 1 is rounding of the decoder's, which a cast would wrap around
    whole = jnp.clip(jnp.floor(images.astype(jnp.float32) * 255), 0, 255).astype(jnp.uint8)
    square = resize.shortest_side(whole, side).astype(jnp.float32) / 255
    return (square - MEANS.astype(np.float32)) / DEVIATIONS.astype(np.float32)


# -- pieces ----------------------------------------------------------------------------------------


def _kept(dtype: jax.typing.DTypeLike) -> Any:
    """What parameters are stored in."""
    return jnp.promote_types(dtype, jnp.float32)


def _linear(
    inputs: int, outputs: int, std: float, dtype: Any, *, bias: bool = True, rngs: nnx.Rngs
) -> nnx.Linear:
    init = nnx.initializers.normal(std)
    how = {"dtype": dtype, "param_dtype": _kept(dtype), "dot_general": dense.dot_general}
    return nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=init, **how, rngs=rngs)


def _stack(make_layer: Any, config: TowerConfig, layers: int, *, rngs: nnx.Rngs) -> stack.Stack:
    return stack.Stack(lambda rngs: make_layer(rngs=rngs), layers, remat=config.remat, rngs=rngs)


def _filled_up(x: jax.Array) -> jax.Array:
    """x [B, T, D] with zeros at its end, so that the devices of `context` divide T."""
    more = -x.shape[1] % free_axes().get("context", 1)
    return jnp.pad(x, ((0, 0), (0, more), (0, 0))) if more else x

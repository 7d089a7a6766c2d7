"""Stand-ins for the networks that judge generated pictures, for tiny pictures: random convolutions and a ridge fit.

Nothing is trained. Features are those of two random convolutions, which tell colours, edges and corners; a caption is the
sum of a random vector for each word at its place; and the least squares of the one on the other say what a picture shows.

B batch · S side of a picture · D features of a picture · V vocabulary · T tokens · E features of a caption ·
P side of a patch · Z channels of latents
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from mlperf_jax.errors import UserError
from mlperf_jax.models.autoencoder import SCALE
from mlperf_jax.models.clip import pixels
from mlperf_jax.ops.shard import ROWS, shard

Arrays = dict[str, np.ndarray]  # by path in a module: "kernel", "features/first/kernel"


class Widths(NamedTuple):
    """Channels of the two convolutions; the second ones are D."""

    first: int
    second: int


INCEPTION, CLIP = Widths(16, 64), Widths(32, 128)
EMBEDDED = 64  # E
_RIDGE = 1.0  # on features of deviation 1


# -- the modules -----------------------------------------------------------------------------------


class PatchDecoder(nnx.Module):
    """Latents [B, h, w, Z] to pictures [B, h P, w P, 3]: each pixel of a latent is a patch, by one matrix.

    >>> PatchDecoder(4, 4, rngs=nnx.Rngs(0)).decode(jnp.ones([2, 8, 8, 4])).shape
    (2, 32, 32, 3)
    """

    def __init__(self, channels: int, patch: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        shape, self.patch = (channels, patch * patch * 3), patch
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape, dtype))
        self.bias = nnx.Param(jnp.zeros(shape[1:], dtype))

    def decode(self, latents: jax.Array, at_once: int | None = None) -> jax.Array:
        """Pictures in [0, 1], as `autoencoder.Decoder.decode` gives them; all at once, as they are small."""
        rows, height, width, _ = latents.shape
        kernel = self.kernel[...]
        wide = shard(latents.astype(kernel.dtype), ROWS) / SCALE
        flat = jnp.matmul(wide, kernel, precision="highest") + self.bias[...]
        patches = flat.reshape(rows, height, width, self.patch, self.patch, 3)
        images = patches.swapaxes(2, 3).reshape(rows, height * self.patch, width * self.patch, 3)
        return jnp.clip(images, 0, 1)


class Convolution(nnx.Module):
    """A square convolution of stride 2, and a ReLU: [B, S, S, C] -> [B, S / 2, S / 2, F]."""

    def __init__(self, size: int, inputs: int, outputs: int, *, dtype: Any, rngs: nnx.Rngs):
        shape = (size, size, inputs, outputs)
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), shape, dtype))
        self.bias = nnx.Param(jnp.zeros(outputs, dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, form = self.kernel[...], ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=form, precision=lax.Precision.HIGHEST
        )
        return nnx.relu(y + self.bias[...])


class Features(nnx.Module):
    """Pictures [B, S, S, 3] to features [B, D]: means over two convolutions.

    >>> Features(Widths(4, 8), rngs=nnx.Rngs(0))(jnp.ones([2, 32, 32, 3])).shape
    (2, 8)
    """

    def __init__(self, widths: Widths, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.first = Convolution(5, 3, widths.first, dtype=dtype, rngs=rngs)
        self.second = Convolution(3, widths.first, widths.second, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = 2 * images.astype(self.first.kernel.dtype) - 1
        return self.second(self.first(x)).mean((1, 2))


class Clip(nnx.Module):
    """How well a picture shows what a caption says, as `clip.Clip`: the cosine of what is seen and what is said.

    >>> Clip(vocab=20, tokens=5, rngs=nnx.Rngs(0))(jnp.ones([2, 32, 32, 3]), jnp.ones([2, 5], int)).shape
    (2,)
    """

    def __init__(self, vocab: int, tokens: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.features = Features(CLIP, dtype=dtype, rngs=rngs)
        draw = nnx.initializers.normal(1.0)
        self.seen = nnx.Param(draw(rngs.params(), (CLIP.second, EMBEDDED), dtype))
        self.seen_bias = nnx.Param(jnp.zeros(EMBEDDED, dtype))
        self.said = nnx.Param(draw(rngs.params(), (tokens, vocab, EMBEDDED), dtype))
        self.said_bias = nnx.Param(jnp.zeros(EMBEDDED, dtype))

    def __call__(self, images: jax.Array, tokens: jax.Array) -> jax.Array:
        """Cosines [B] of pictures [B, S, S, 3] and tokens [B, T]."""
        features = self.features(images)
        seen = jnp.matmul(features, self.seen[...], precision="highest") + self.seen_bias[...]
        said = self.caption(tokens)
        lengths = jnp.linalg.norm(seen, axis=-1) * jnp.linalg.norm(said, axis=-1)
        return (seen * said).sum(-1) / lengths

    def caption(self, tokens: jax.Array) -> jax.Array:
        """[B, E], about 0 over all captions."""
        places = jnp.arange(tokens.shape[1])
        return self.said[...][places, tokens].sum(1) + self.said_bias[...]


# -- their arrays ----------------------------------------------------------------------------------


def decoder_arrays(matrix: np.ndarray, scale: float, grey: float) -> Arrays:
    """Those of a `PatchDecoder` for latents that are scale (patch - grey) @ matrix, of orthonormal columns.

    Args:
      matrix: [3 P P, Z].
      scale: of latents.
      grey: what is 0 in latents.
    """
    kernel = matrix.T / np.float32(scale)
    return {"kernel": kernel, "bias": np.full(kernel.shape[1], grey, np.float32)}


def feature_arrays(widths: Widths, seed: int) -> Arrays:
    """Those of `Features`, drawn."""
    draw = np.random.default_rng(seed)
    arrays = {}
    for name, size, inputs, outputs in (("first", 5, 3, widths[0]), ("second", 3, *widths)):
        shape = (size, size, inputs, outputs)
        kernel = draw.normal(0, (2 / (size * size * inputs)) ** 0.5, shape)
        arrays[f"{name}/kernel"] = kernel.astype(np.float32)
        arrays[f"{name}/bias"] = draw.normal(0, 0.3, outputs).astype(np.float32)
    return arrays


def clip_arrays(images: np.ndarray, side: int, tokens: np.ndarray, vocab: int, seed: int) -> Arrays:
    """Those of `Clip`, fitted to pictures and what is said of them.

    Args:
      images: f32 [N, H, W, 3] in [0, 1].
      side: S, of what the judge is given of them: `clip.pixels`.
      tokens: [N, T].
      vocab: V.
      seed: of what is drawn.
    """
    features = feature_arrays(CLIP, seed)
    draw = np.random.default_rng(seed + 1)
    said = draw.normal(size=(tokens.shape[1], vocab, EMBEDDED)).astype(np.float32)
    captions = said[np.arange(tokens.shape[1]), tokens].sum(1)
    mean = captions.mean(0)
    seen = applied(features, images, side)
    centre, deviation = seen.mean(0), seen.std(0) + 1e-6
    x, y = (seen - centre) / deviation, captions - mean
    fitted = np.linalg.solve(x.T @ x + _RIDGE * np.eye(x.shape[1]), x.T @ y) / deviation[:, None]
    found = {"seen": fitted, "seen_bias": -centre @ fitted, "said": said, "said_bias": -mean}
    found |= {f"features/{path}": array for path, array in features.items()}
    return {path: np.asarray(array, np.float32) for path, array in found.items()}


def save(path: str | os.PathLike, parts: Mapping[str, Arrays]) -> None:
    """Writes the arrays of several modules, by their names, as safetensors."""
    from safetensors.numpy import save_file

    named = {
        f"{part}/{p}": np.ascontiguousarray(x)
        for part, ours in parts.items()
        for p, x in ours.items()
    }
    save_file(named, path)


def read(path: str | os.PathLike) -> dict[str, Arrays]:
    """What `save` wrote: the arrays by module.

    Raises:
      UserError: it is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        named = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} is missing or damaged ({error}): remove its folder and build the data again"
        ) from error
    found: dict[str, Arrays] = {}
    for name, array in named.items():
        part, _, inside = name.partition("/")
        found.setdefault(part, {})[inside] = array
    return found


def applied(
    arrays: Mapping[str, np.ndarray], images: np.ndarray, side: int | None = None
) -> np.ndarray:
    """What `Features` of these arrays gives for pictures, float64 [N, D].

    Args:
      arrays: of `feature_arrays`.
      images: [N, H, W, 3].
      side: of `clip.pixels` of them, which are then what is looked at.
    """
    widths = Widths(*(len(arrays[f"{name}/bias"]) for name in ("first", "second")))

    def features(given: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
        module = Features(widths, rngs=nnx.Rngs(0))
        for name in ("first", "second"):
            layer = getattr(module, name)
            layer.kernel[...], layer.bias[...] = given[f"{name}/kernel"], given[f"{name}/bias"]
        return module(x if side is None else pixels(x, side))

    return np.asarray(jax.jit(features)(dict(arrays), images), np.float64)

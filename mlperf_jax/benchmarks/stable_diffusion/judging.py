"""The networks that judge generated pictures, and real pictures that they are checked by.

Shape legend: B pictures, H and W their sides, T tokens of a caption.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlperf_jax.input_pipelines import coco_captions, records
from mlperf_jax.models import autoencoder, clip, clip_import, diffusion_huggingface, inception

STATISTICS = "val2014_30k_stats.npz"
AUTOENCODER = autoencoder.AutoencoderConfig()
FEATURES = inception.FEATURES
REAL_FID = 1.0  # of real pictures at most, by JPEG and rounding
_VISION = clip.VisionConfig()
_COCO = "val2014"  # folder of COCO's images in the data's


class Judges(nnx.Module):
    """The networks of evaluation alone: the autoencoder's second half, Inception, CLIP, and a text tower if need be."""

    def __init__(self, decoder: Any, features: Any, fit: Any, side: int, text: Any = None):
        """Puts them together.

        Args:
          decoder: has `decode`, as `autoencoder.Decoder`.
          features: pictures -> what FID compares, as `inception.Inception`.
          fit: pixels and tokens -> cosines, as `clip.Clip`.
          side: of the pictures that `fit` takes.
          text: tells the UNet captions, where the trained model has none that does.
        """
        self.decoder, self.features, self.fit = decoder, features, fit
        self.side, self.text = side, text

    def __call__(self, images: jax.Array, tokens: jax.Array) -> dict[str, jax.Array]:
        """What `FidClip` takes, of pictures [B, H, W, 3] in [0, 1] and their captions [B, T]."""
        fitting = self.fit(clip.pixels(images, self.side), tokens)
        return {"features": self.features(images), "clip": fitting}


def full(tower: clip.TextConfig, dtype: Any, *, text: Any, rngs: nnx.Rngs) -> Judges:
    """Those of the rules; they judge in at least float32.

    Args:
      tower: the text tower of `fit`, but for its last layer.
      dtype: of the decoder.
      text: see `Judges`.
      rngs: keys.
    """
    kept = jnp.promote_types(dtype, jnp.float32)
    return Judges(
        autoencoder.Decoder(AUTOENCODER, dtype, rngs=rngs),
        inception.Inception(dtype=kept, rngs=rngs),
        clip.Clip(tower.replace(whole=True), _VISION, kept, rngs=rngs),
        _VISION.side,
        text,
    )


def full_weights(folder: str, tower: clip.TextConfig) -> dict[str, Mapping[str, Any]]:
    """The arrays of `full` in a folder, by part and path.

    Raises:
      UserError: what is missing, damaged, pickled or of another network, what to fetch, and where to put it.
    """
    return {
        "decoder": diffusion_huggingface.open_autoencoder(folder, AUTOENCODER, "decoder"),
        "features": inception.read_weights(f"{folder}/{inception.FILE}"),
        "fit": clip_import.readers(folder, tower.replace(whole=True), _VISION),
    }


def coco_images(data_dir: str, numbers: Iterable[int]) -> np.ndarray:
    """COCO's pictures of these numbers as the statistics saw them, f32 [B, 512, 512, 3] in [0, 1].

    Raises:
      UserError: one is missing or damaged.
    """
    folder = records.below(data_dir, _COCO)
    paths = [f"{folder}/{coco_captions.image_name(number)}" for number in numbers]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return np.stack([*pool.map(coco_captions.squashed, paths)]).astype(np.float32) / 255

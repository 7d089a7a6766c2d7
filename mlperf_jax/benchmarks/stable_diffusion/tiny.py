"""What is given to tiny in the place of released networks: a random text tower, judges fitted to shapes, statistics."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlperf_jax.benchmarks.stable_diffusion.judging import AUTOENCODER, STATISTICS, Judges
from mlperf_jax.core import brief
from mlperf_jax.input_pipelines.laion import Sizes, tiny as shapes
from mlperf_jax.input_pipelines.tokenizers.clip_bpe import ClipBpe
from mlperf_jax.metrics import fid
from mlperf_jax.models import clip, clip_import, shape_judges

SIZES = Sizes()
SIDE = SIZES.image // shapes.PATCH  # of latents
FEATURES = shape_judges.INCEPTION.second
VOCABULARY = shapes.VOCABULARY
_FILE = "judges.safetensors"
_REAL = 1024  # pictures that generated ones are compared with


def judges(tower: clip.TextConfig, dtype: Any, *, text: Any, rngs: nnx.Rngs) -> Judges:
    """Those of `models.shape_judges`; arguments as of `judging.full`."""
    around: dict[str, Any] = {"dtype": jnp.promote_types(dtype, jnp.float32), "rngs": rngs}
    return Judges(
        shape_judges.PatchDecoder(AUTOENCODER.channels, shapes.PATCH, **around),
        shape_judges.Features(shape_judges.INCEPTION, **around),
        shape_judges.Clip(tower.vocab, tower.tokens, **around),
        SIZES.image,
        text,
    )


def weights(folder: str) -> dict[str, dict[str, np.ndarray]]:
    """Their arrays, by part and path.

    Raises:
      UserError: they are missing or damaged.
    """
    return shape_judges.read(f"{folder}/{_FILE}")


def real_images(count: int, numbers: np.ndarray) -> np.ndarray:
    """Pictures of these prompts, of so many, f32 [B, H, W, 3]: what a perfect model would make."""
    return shapes.seen(count, shapes.VALIDATION, SIZES.image)[0][numbers]


def make(folder: str, tower: clip.TextConfig, tokenizer: ClipBpe) -> None:
    """Writes all of it; the statistics come last.

    Args:
      folder: is made.
      tower: the text tower.
      tokenizer: of the shapes' captions.
    """
    text = brief.drawn(lambda rngs: clip.TextTower(tower, jnp.float32, rngs=rngs))
    clip_import.save_folder(folder, text, tower)
    images, captions = shapes.seen(SIZES.train, shapes.TRAINING, SIZES.image)
    tokens, _ = tokenizer.rows(captions)
    features = shape_judges.feature_arrays(shape_judges.INCEPTION, seed=0)
    parts = {
        "decoder": shape_judges.decoder_arrays(shapes.matrix(), shapes.SCALE, shapes.GREY),
        "features": features,
        "fit": shape_judges.clip_arrays(images, SIZES.image, tokens, tower.vocab, seed=1),
    }
    shape_judges.save(f"{folder}/{_FILE}", parts)
    real, _ = shapes.seen(_REAL, shapes.VALIDATION, SIZES.image)
    found = fid.statistics(shape_judges.applied(features, real))
    found.save(f"{folder}/{STATISTICS}")

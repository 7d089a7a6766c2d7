"""Coloured shapes with captions, such as "a small red circle on a blue ground", in the files of LAION's moments.

Their moments are those of a linear map: patches of 4 x 4 pixels, projected to four channels. Three of the projection's
directions are the mean colour of a patch, the fourth is of its texture; an orthogonal matrix drawn from a seed mixes
them, so that a channel alone says little. What falls into other directions is lost, some edges of the shapes; `decode`
gives the rest.

Shape legend: n images, I side of an image, S = I / 4 of a latent.
"""

from __future__ import annotations

import functools
import itertools
import os
import pathlib
from typing import NamedTuple

import numpy as np

from mlperf_jax.input_pipelines.laion import files, moments, prompts
from mlperf_jax.input_pipelines.tokenizers import clip_bpe

PATCH, CHANNELS = 4, 4
TRAINING, VALIDATION = 1, 2  # seeds of the two splits
SCALE = 5.0  # latents times Stable Diffusion's 0.18215 then vary about as much as noise does
LOG_VARIANCE = -8.0
UNSAID = 8  # one sample of so many has no caption: the text that guidance leads away from
VOCABULARY = 556  # byte pairs that spell every word of the captions as one
COLOURS = {
    "red": (0.85, 0.15, 0.15),
    "green": (0.15, 0.7, 0.2),
    "blue": (0.15, 0.25, 0.85),
    "yellow": (0.95, 0.85, 0.2),
}
KINDS = ("circle", "square", "triangle")
RADII = {"small": 0.17, "large": 0.33}  # half the width of a shape, in sides of the image
GREY = 0.5
_MATRIX_SEED = 400


class Sizes(NamedTuple):
    """How many samples there are, and the side of their images, a multiple of four."""

    train: int = 1024
    validation: int = 256
    image: int = 32


def shapes(n: int, seed: int, size: int) -> tuple[np.ndarray, list[str]]:
    """Images f32 [n, I, I, 3] in [0, 1], and their captions; the first ones of more are the same."""
    names, colours = list(COLOURS), np.array(list(COLOURS.values()), np.float32)
    draws = np.random.default_rng(seed).random((n, 6))
    kind, colour, other, extent = (
        (draws[:, i] * count).astype(int)
        for i, count in enumerate((len(KINDS), len(names), len(names) - 1, len(RADII)))
    )
    ground = (colour + 1 + other) % len(names)  # never the shape's own colour
    radius = np.array(list(RADII.values()))[extent]
    # so far within the image that a shape is whole
    x, y = (radius + draws[:, i] * (1 - 2 * radius) for i in (4, 5))
    cover = _cover(kind, x, y, radius, size)[..., None]
    made = cover * colours[colour][:, None, None] + (1 - cover) * colours[ground][:, None, None]
    captions = [
        _caption(list(RADII)[e], names[c], KINDS[k], names[g])
        for e, c, k, g in zip(extent, colour, kind, ground)
    ]
    return made.astype(np.float32), captions


def all_captions() -> list[str]:
    """Every caption that there may be."""
    return [
        _caption(*words)
        for words in itertools.product(RADII, COLOURS, KINDS, COLOURS)
        if words[1] != words[3]
    ]


def _caption(size: str, colour: str, kind: str, ground: str) -> str:
    return f"a {size} {colour} {kind} on a {ground} ground"


def _cover(
    kind: np.ndarray, x: np.ndarray, y: np.ndarray, radius: np.ndarray, size: int
) -> np.ndarray:
    """The share of each pixel that lies within the shape, about, f32 [n, I, I]: by its distance from the edge."""
    at = ((np.arange(size) + 0.5) / size).astype(np.float32)
    dx = np.abs(at[None, None, :] - x[:, None, None].astype(np.float32))
    dy = at[None, :, None] - y[:, None, None].astype(np.float32)
    r = radius[:, None, None].astype(np.float32)
    kinds = kind[:, None, None]
    circle = np.sqrt(dx**2 + dy**2) - r
    square = np.maximum(dx, np.abs(dy)) - r
    # its top in the middle; the slanting edges fall twice as fast as they spread
    triangle = np.maximum((2 * dx - dy - r) / np.float32(5**0.5), dy - r)
    distance = np.select([kinds == 0, kinds == 1], [circle, square], triangle)
    return np.clip(0.5 - distance * size, 0, 1)


# -- moments -------------------------------------------------------------------------------------


@functools.cache
def matrix() -> np.ndarray:
    """The projection, f32 [48, 4] with orthonormal columns; its rows are a patch's rows, columns and colours."""
    ramp = np.linspace(-1, 1, PATCH)
    texture = np.broadcast_to(ramp[:, None] + 0.5 * ramp, (PATCH, PATCH))
    directions = np.zeros((PATCH, PATCH, 3, CHANNELS))
    for colour in range(3):
        directions[..., colour, colour] = 1
        directions[..., colour, 3] = texture
    flat = directions.reshape(-1, CHANNELS)
    flat /= np.linalg.norm(flat, axis=0)
    mixed, _ = np.linalg.qr(np.random.default_rng(_MATRIX_SEED).normal(size=(CHANNELS, CHANNELS)))
    return (flat @ mixed).astype(np.float32)


def encode(images: np.ndarray) -> np.ndarray:
    """Moments f32 [n, S, S, 8] of images f32 [n, I, I, 3]: means, and one logarithm of variances for all."""
    n, height, width, _ = images.shape
    patches = images.reshape(n, height // PATCH, PATCH, width // PATCH, PATCH, 3)
    flat = patches.transpose(0, 1, 3, 2, 4, 5).reshape(n, height // PATCH, width // PATCH, -1)
    means = SCALE * (flat - np.float32(GREY)) @ matrix()
    return np.concatenate([means, np.full_like(means, LOG_VARIANCE)], -1)


def decode(latents: np.ndarray) -> np.ndarray:
    """Images f32 [n, I, I, 3] about [0, 1] of latents f32 [n, S, S, 4]; `encode` of them gives the latents again."""
    n, height, width, _ = latents.shape
    flat = latents @ matrix().T / SCALE + np.float32(GREY)
    patches = flat.reshape(n, height, width, PATCH, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(n, height * PATCH, width * PATCH, 3)


def seen(n: int, seed: int, size: int) -> tuple[np.ndarray, list[str]]:
    """`shapes` as their latents let them be seen, cut off at 0 and 1: what a perfect model would make."""
    images, captions = shapes(n, seed, size)
    return np.clip(decode(encode(images)[..., :CHANNELS]), 0, 1), captions


# -- files ---------------------------------------------------------------------------------------


def write(folder: str | os.PathLike, sizes: Sizes, shards: int = 4) -> None:
    """Writes shards of moments and captions, the prompts and the vocabulary; the folder is there."""
    clip_bpe.train(all_captions(), VOCABULARY, os.path.join(folder, clip_bpe.VOCABULARY))
    pixels, captions = shapes(sizes.train, TRAINING, sizes.image)
    encoded = encode(pixels)
    for number in range(shards):
        held = range(number, sizes.train, shards)
        said = {i: "" if i % UNSAID == 0 else captions[i] for i in held}
        samples = ((f"{number:05d}{i:04d}", encoded[i], said[i].encode()) for i in held)
        moments.write_shard(pathlib.Path(folder, files.shard_name(number)), samples)
    _, wanted = shapes(sizes.validation, VALIDATION, sizes.image)
    ids = np.arange(sizes.validation)
    rows = zip((ids + 1).tolist(), (10 * ids + 7).tolist(), wanted)
    prompts.write(os.path.join(folder, prompts.FILE), rows)

"""Scenes of coloured shapes, exported as Open Images is: JPEGs, and boxes in COCO's JSON format.

Three classes that only their outlines tell apart (colours are drawn at random), on noise, in images of
many sizes. A detector must find, tell apart and measure them; none of it can be guessed.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from mlperf_jax.input_pipelines import images

CLASSES = ("disc", "square", "triangle")
_SEED = 2021
_SIDES = 72, 120  # pixels: shortest and longest side of a scene
_SHAPES = 0.18, 0.45  # side of a shape, in sides of the scene
_MOST = 3  # shapes in a scene
_QUALITY = 90


def export(folder: str, counts: Mapping[str, int]) -> None:
    """Writes `<split>/data/*.jpg` and `<split>/labels/openimages-mlperf.json` for each split."""
    for number, (split, count) in enumerate(counts.items()):
        base = pathlib.Path(folder, split)
        (base / "data").mkdir(parents=True)
        (base / "labels").mkdir()
        labels: dict[str, Any] = {
            "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
            "images": [],
            "annotations": [],
        }
        for index in range(count):
            pixels, shapes = scene(np.random.default_rng([_SEED, number, index]))
            name, (height, width) = f"scene_{index:04d}.jpg", pixels.shape[:2]
            (base / "data" / name).write_bytes(images.encode_jpeg(pixels, _QUALITY))
            ident = number * 10_000 + index
            labels["images"].append(
                {"id": ident, "file_name": name, "height": height, "width": width}
            )
            for kind, box in shapes:
                labels["annotations"].append(
                    {
                        "id": len(labels["annotations"]) + 1,
                        "image_id": ident,
                        "category_id": kind,
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                    }
                )
        (base / "labels" / "openimages-mlperf.json").write_text(json.dumps(labels))


def scene(rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, list[int]]]]:
    """Pixels uint8 [H, W, 3], and (class, [x, y, width, height]) of each shape; none hides another."""
    height, width = (int(side) for side in rng.integers(_SIDES[0], _SIDES[1] + 1, 2))
    pixels = rng.integers(90, 166, (height, width, 3)).astype(np.uint8)
    taken = np.zeros((height, width), bool)
    shapes = []
    for _ in range(int(rng.integers(1, _MOST + 1))):
        kind = int(rng.integers(len(CLASSES)))
        w = int(width * rng.uniform(*_SHAPES))
        h = int(height * rng.uniform(*_SHAPES))
        x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
        if taken[y : y + h, x : x + w].any():
            continue
        taken[y : y + h, x : x + w] = True
        colour = (
            rng.choice([20, 235], 3) if rng.random() < 0.5 else np.full(3, rng.choice([10, 245]))
        )
        _draw(pixels, kind, x, y, w, h, tuple(int(c) for c in colour))
        shapes.append((kind, [x, y, w, h]))
    return pixels, shapes


def _draw(pixels: np.ndarray, kind: int, x: int, y: int, w: int, h: int, colour: tuple) -> None:
    """Fills the shape whose tight box is [x, x + w) by [y, y + h)."""
    if CLASSES[kind] == "square":
        pixels[y : y + h, x : x + w] = colour
    elif CLASSES[kind] == "disc":
        rows, columns = np.mgrid[:h, :w]
        inside = ((columns + 0.5) / w - 0.5) ** 2 + ((rows + 0.5) / h - 0.5) ** 2 <= 0.25
        pixels[y : y + h, x : x + w][inside] = colour
    else:
        corners = np.array([[x + w // 2, y], [x, y + h - 1], [x + w - 1, y + h - 1]], np.int32)
        cv2.fillConvexPoly(pixels, corners, colour)

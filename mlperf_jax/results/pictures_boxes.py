"""Pictures of detection: images with the boxes that people drew and, beside them, those that were found.

Made of the parts in `pictures`; takes the batch and the rows that a detection benchmark's `predict` returns.

B images · S side of the network's input · G boxes of an image, padding included · D detections
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.results import pictures

_WIDTH = 2  # pixels of a box's line


def boxes(
    batch: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray] | None = None,
    *,
    names: Sequence[str] = (),
    least_score: float = 0.3,
    side: int = 240,
    most: int = 6,
) -> Any:
    """Images with their true boxes, and beside each the same image with the boxes found in it.

    Args:
        batch: "image" f32 [B, S, S, 3], "size" int [B, 2] (height, width of the original), "boxes"
            [B, G, 4] corners in its pixels, "label" int [B, G] (-1 for padding), "crowd" [B, G].
        found: "boxes" [B, D, 4] in the same pixels, "scores" [B, D], "classes" [B, D] (-1 for empty
            places); None leaves the second picture out.
        names: of the classes; numbers where it is too short.
        least_score: detections below it are not drawn.
        side: the longer side of a drawn image, in pixels; its shape is the original's.
        most: images drawn.

    Raises:
        UserError: rows that do not belong to the batch, or Pillow is not installed.
    """
    count = min(len(batch["image"]), most)
    if found is not None and len(found["boxes"]) < count:
        raise UserError(
            f"{len(found['boxes'])} rows of detections cannot be drawn on {count} images"
        )
    tiles = []
    for row in range(count):
        labels, crowd = np.asarray(batch["label"][row]), np.asarray(batch["crowd"][row])
        real = labels >= 0
        words = [_name(k, names) + (" (group)" if c else "") for k, c in zip(labels, crowd)]
        tile = _drawn(batch, row, batch["boxes"][row], labels, words, real, side)
        tiles.append(pictures.caption(tile, f"truth: {real.sum()}"))
        if found is not None:
            kinds, scores = np.asarray(found["classes"][row]), np.asarray(found["scores"][row])
            seen = (kinds >= 0) & (scores >= least_score)
            words = [f"{_name(k, names)} {s:.2f}" for k, s in zip(kinds, scores)]
            tile = _drawn(batch, row, found["boxes"][row], kinds, words, seen, side)
            tiles.append(pictures.caption(tile, f"found: {seen.sum()} of score {least_score:g} up"))
    return pictures.grid(tiles, columns=2)


def _drawn(
    batch: Mapping[str, np.ndarray],
    row: int,
    corners: np.ndarray,
    kinds: np.ndarray,
    words: Sequence[str],
    shown: np.ndarray,
    side: int,
) -> Any:
    """One image in its original shape, with the boxes [n, 4] that are `shown` and a word at each."""
    image, draws = pictures._pillow(), _draw()
    height, width = (int(s) for s in batch["size"][row])
    scale = side / max(height, width, 1)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = pictures.to_bytes(np.asarray(batch["image"][row], np.float32))
    tile = image.fromarray(pixels, "RGB").resize(size)
    draw = draws.Draw(tile)
    for box, kind, word in zip(np.asarray(corners)[shown], kinds[shown], np.array(words)[shown]):
        tint = pictures.COLOURS[int(kind) % len(pictures.COLOURS)]
        x0, y0, x1, y1 = (float(v) * scale for v in box)
        edges = min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
        draw.rectangle(edges, outline=tint, width=_WIDTH)
        text = pictures.printable(str(word))
        at = min(max(edges[0], 0), size[0] - 8), min(max(edges[1], 0), size[1] - 12)
        draw.rectangle(draw.textbbox(at, text), fill=pictures.INK)
        draw.text(at, text, fill=tint)
    return tile


def _name(kind: int, names: Sequence[str]) -> str:
    return names[kind] if 0 <= kind < len(names) else f"class {kind}"


def _draw() -> Any:
    from PIL import ImageDraw

    return ImageDraw

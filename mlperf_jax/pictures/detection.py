"""Pictures of detection: images with the boxes that people drew and, beside them, those that were found.

Made of the parts in `pictures`; takes the batch and the rows that a detection benchmark's `predict` returns.

B images · S side of the network's input · G boxes of an image, padding included · D detections
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlperf_jax import pictures
from mlperf_jax.errors import UserError

_WIDTH = 2  # pixels of a box's line

Edges = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


def boxes(
    batch: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray] | None = None,
    *,
    names: Sequence[str] = (),
    least_score: float = 0.3,
    side: int = 300,
    most: int = 6,
    columns: int = 4,
) -> Any:
    """Images with their true boxes, and beside each the same image with the boxes found in it.

    The name of a box stands in its colour, those of the likeliest detections first where room is short.

    Args:
        batch: "image" [B, S, S, 3], bytes or values of any range, "size" int [B, 2] (height, width of
            the original), "boxes" [B, G, 4] corners in its pixels, "label" int [B, G] (-1 for padding),
            "crowd" [B, G].
        found: "boxes" [B, D, 4] in the same pixels, "scores" [B, D], "classes" [B, D] (-1 for empty
            places); None leaves the second picture out.
        names: of the classes; numbers where it is too short.
        least_score: detections below it are not drawn.
        side: the longer side of a drawn image, in pixels; its shape is the original's.
        most: images drawn.
        columns: pictures in a row, an even number.

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
        words = [
            pictures.name_of(k, names) + (" (group)" if c else "") for k, c in zip(labels, crowd)
        ]
        tile = _drawn(batch, row, batch["boxes"][row], labels, words, real, side)
        tiles.append(pictures.caption(tile, f"truth: {real.sum()}"))
        if found is not None:
            kinds, scores = np.asarray(found["classes"][row]), np.asarray(found["scores"][row])
            seen = (kinds >= 0) & (scores >= least_score)
            words = [f"{pictures.name_of(k, names)} {s:.2f}" for k, s in zip(kinds, scores)]
            tile = _drawn(batch, row, found["boxes"][row], kinds, words, seen, side)
            said = f"found: {seen.sum()}, scored {least_score:g} or more"
            tiles.append(pictures.caption(tile, said))
    return pictures.grid(tiles, columns=columns)


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
    height, width = (int(s) for s in batch["size"][row])
    scale = side / max(height, width, 1)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = pictures.to_bytes(np.asarray(batch["image"][row]))
    tile = pictures.pillow().fromarray(pixels, "RGB").resize(size)
    draw = pictures.draws_on(tile)
    drawn = []
    for box, kind, word in zip(np.asarray(corners)[shown], kinds[shown], np.array(words)[shown]):
        x0, y0, x1, y1 = (float(v) * scale for v in box)
        edges = min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
        drawn.append((edges, pictures.COLOURS[int(kind) % len(pictures.COLOURS)], str(word)))
    for edges, tint, _ in reversed(drawn):  # detections come likeliest first
        draw.rectangle(edges, outline=tint, width=_WIDTH)
    taken: list[Edges] = []
    for edges, tint, word in drawn:
        text = pictures.printable(word)
        wide, high = draw.textlength(text, pictures.font()) + 4, pictures._LINE - 2
        place = _free_place(edges, wide, high, size, taken)
        if place is not None:
            draw.rectangle(place, fill=tint)
            draw.text((place[0] + 2, place[1]), text, fill=pictures.INK, font=pictures.font())
            taken.append(place)
    return tile


def _free_place(
    edges: Edges, wide: float, high: float, size: tuple[int, int], taken: Sequence[Edges]
) -> Edges | None:
    """Where a name can stand at its box and hide no other name; None where it cannot.

    Above the box, below it, or in one of its inner corners; inside the image in any case.
    """
    left, top, right, bottom = edges
    for x, y in (
        (left, top - high),
        (left, bottom),
        (left, top),
        (right - wide, top - high),
        (right - wide, bottom - high),
    ):
        x = min(max(x, 0), max(size[0] - wide, 0))
        y = min(max(y, 0), max(size[1] - high, 0))
        place = x, y, x + wide, y + high
        if not any(_overlap(place, other) for other in taken):
            return place
    return None


def _overlap(one: Edges, other: Edges) -> bool:
    return all(one[i] < other[i + 2] and other[i] < one[i + 2] for i in (0, 1))

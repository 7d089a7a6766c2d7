"""Pictures of samples, with labels and, of a trained run, with predictions beside the truth.

Everything here takes NumPy arrays and gives a `PIL.Image` that can be put together further: `volumes` for
scans with masks, `labelled` for images with a word below, `grid` and `to_png` for any of them.

D, H, W sides of a volume · K classes, 0 the background
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError

# of the classes above 0, told apart by red-green blind eyes too (Okabe and Ito)
COLOURS = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66))
IGNORED = 255  # label of what is not part of a volume
INK, PAPER = (30, 30, 30), (255, 255, 255)

_MASK = 0.45  # how much of a colour lies over the image
_LINE = 16  # pixels of a line of text
_GAP = 6


def volumes(
    batch: Mapping[str, np.ndarray],
    predictions: np.ndarray | None = None,
    *,
    names: Sequence[str] = ("kidney", "tumour"),
    slices: int = 4,
    side: int = 160,
    most: int = 6,
) -> Any:
    """Slices of volumes or patches: as they are, with the true masks, and with the predicted ones.

    Args:
        batch: "image" f32 [B, D, H, W, 1] and "label" int [B, D, H, W], `IGNORED` outside the volume.
        predictions: int [B, D, H, W]; None leaves their row out.
        names: of the classes above 0, for the legend.
        slices: how many planes along D, spread over those that hold most foreground.
        side: of a slice, in pixels.
        most: volumes drawn.

    Returns:
        A picture with a block of rows for each volume.

    Raises:
        UserError: shapes that do not fit, or Pillow is not installed.
    """
    image, label = np.asarray(batch["image"]), np.asarray(batch["label"])
    guessed = label if predictions is None else np.asarray(predictions)
    if not image.shape[:4] == label.shape == guessed.shape:
        raise UserError(
            f"volumes of {image.shape[:4]} with labels of {label.shape} and predictions of "
            f"{guessed.shape} cannot be drawn over each other"
        )
    blocks = []
    for number in range(min(len(image), most)):
        truth = label[number]
        inside = _bounds(truth != IGNORED)
        seen, truth = (
            to_bytes(image[number][inside][..., 0]),
            truth[inside],
        )  # one scale for all slices
        rows = [("scan", None), ("truth", truth)]
        if predictions is not None:
            rows.append(("predicted", guessed[number][inside]))
        planes = chosen_planes(truth, slices)
        tiles = [
            caption(overlay(seen[plane], None if mask is None else mask[plane], side), text)
            for name, mask in rows
            for plane, text in ((plane, f"{name}, slice {plane}") for plane in planes)
        ]
        blocks.append(grid(tiles, columns=len(planes)))
    return grid([legend(names, blocks[0].width), *blocks], columns=1)


def labelled(images: np.ndarray, words: Sequence[str], *, side: int = 96, columns: int = 8) -> Any:
    """Images [B, S, S, 3] of any range in a grid, each with a word below, such as its class.

    >>> labelled(np.zeros((2, 8, 8, 3)), ["cat", "dog"], side=16).size
    (50, 44)
    """
    if len(images) != len(words):
        raise UserError(f"{len(images)} images with {len(words)} words cannot be drawn")
    pictures = _pillow()
    tiles = []
    for image, word in zip(images, words, strict=True):
        tile = pictures.fromarray(to_bytes(np.asarray(image)), "RGB").resize((side, side))
        tiles.append(caption(tile, word))
    return grid(tiles, columns=columns)


# -- parts -------------------------------------------------------------------------------------------


def overlay(plane: np.ndarray, mask: np.ndarray | None, side: int) -> Any:
    """A plane u8 [H, W] in grey with its classes in colour; the longer axis gets `side` pixels."""
    colour = np.repeat(plane[..., None].astype(np.float32), 3, -1)
    if mask is not None:
        for kind, tint in enumerate(COLOURS, start=1):
            here = mask == kind
            colour[here] = (1 - _MASK) * colour[here] + _MASK * np.asarray(tint, np.float32)
    height, width = plane.shape
    size = (max(1, side * width // max(plane.shape)), max(1, side * height // max(plane.shape)))
    pictures = _pillow()
    return pictures.fromarray(colour.astype(np.uint8), "RGB").resize(
        size, pictures.Resampling.NEAREST
    )


def chosen_planes(label: np.ndarray, count: int) -> list[int]:
    """Planes along the first axis, in order: spread over those with foreground, or over all.

    >>> mask = np.zeros((10, 2, 2), int)
    >>> mask[3:8] = 1
    >>> chosen_planes(mask, 3)
    [3, 5, 7]
    """
    found = np.flatnonzero(((label > 0) & (label != IGNORED)).any((1, 2)))
    planes = found if len(found) else np.arange(len(label))
    spread = np.linspace(0, len(planes) - 1, min(count, len(planes))).round().astype(int)
    return [int(planes[i]) for i in spread]


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Values of any range as u8, the smallest 0 and the largest 255; what is not finite is 0."""
    values = np.nan_to_num(np.asarray(values, np.float32), nan=0, posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    return ((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


def caption(tile: Any, text: str) -> Any:
    """The tile with a line of text below it, cut off where it does not fit."""
    pictures = _pillow()
    from PIL import ImageDraw

    whole = pictures.new("RGB", (tile.width, tile.height + _LINE), PAPER)
    whole.paste(tile, (0, 0))
    ImageDraw.Draw(whole).text((2, tile.height + 2), printable(text), fill=INK)
    return whole


def legend(names: Sequence[str], width: int) -> Any:
    """A line with the colour and the name of each class above 0."""
    from PIL import ImageDraw

    line = _pillow().new("RGB", (width, _LINE), PAPER)
    draw, x = ImageDraw.Draw(line), 2
    for name, tint in zip(names, COLOURS, strict=False):
        draw.rectangle((x, 3, x + 10, 13), fill=tint)
        draw.text((x + 14, 2), printable(name), fill=INK)
        x += 26 + int(draw.textlength(printable(name)))
    return line


def grid(tiles: Sequence[Any], columns: int) -> Any:
    """The tiles in rows from left to right; each column and row as wide and high as its largest tile.

    Raises:
        UserError: there is no tile.
    """
    if not tiles:
        raise UserError("there is nothing to draw: the batch holds no sample")
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    widths = [max(row[i].width for row in rows if i < len(row)) for i in range(len(rows[0]))]
    heights = [max(tile.height for tile in row) for row in rows]
    size = (sum(widths) + _GAP * (len(widths) + 1), sum(heights) + _GAP * (len(heights) + 1))
    whole = _pillow().new("RGB", size, PAPER)
    y = _GAP
    for row, height in zip(rows, heights, strict=True):
        x = _GAP
        for tile, width in zip(row, widths, strict=False):
            whole.paste(tile, (x, y))
            x += width + _GAP
        y += height + _GAP
    return whole


def printable(text: str) -> str:
    """Text that Pillow's own font can draw: other letters become question marks."""
    return text.encode("latin-1", "replace").decode("latin-1").replace("\n", " ")


def to_png(picture: Any) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def _bounds(inside: np.ndarray) -> tuple[slice, ...]:
    """The smallest box that holds everything true; all of it where nothing is."""
    if not inside.any():
        return (slice(None),) * inside.ndim
    found = []
    for axis in range(inside.ndim):
        others = tuple(i for i in range(inside.ndim) if i != axis)
        along = np.flatnonzero(inside.any(others))
        found.append(slice(int(along[0]), int(along[-1]) + 1))
    return tuple(found)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise UserError(
            'pictures are drawn by Pillow: pip install "mlperf-jax[pictures]"'
        ) from None
    return Image

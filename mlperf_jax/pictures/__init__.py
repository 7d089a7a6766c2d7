"""Pictures of samples, with labels and, of a trained run, with predictions beside the truth.

Everything here takes NumPy arrays and gives a `PIL.Image` that can be put together further: `volumes` for
scans with masks, `classified` and `labelled` for images with a word below, `grid`, `to_png` and `save` for
any of them.

D, H, W sides of a volume · K classes, 0 the background
"""

from __future__ import annotations

import functools
import io
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError, optional
from mlperf_jax.paths import MARK, check_writable, write as write_file

# of the classes above 0, told apart by red-green blind eyes too (Okabe and Ito)
COLOURS = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66))
# of lines, on light ground and dark: the yellow is too pale, and blue and vermilion make six
LINES = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167), (0, 114, 178), (213, 94, 0))
IGNORED = 255  # label of what is not part of a volume
INK, PAPER = (30, 30, 30), (255, 255, 255)
WRONG = (213, 94, 0)  # vermilion, of the same palette

_MASK = 0.45  # how much of a colour lies over the image
_TEXT = 13  # pixels of a letter's height, accents and descenders included
_LINE = 18  # of a line of text
_FRAME = 4  # of what is wrong
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


def classified(
    images: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str] = (),
    found: np.ndarray | None = None,
) -> Any:
    """Images in a grid with the names of their classes, or the predicted before the true ones.

    Args:
        images: [B, S, S, 3], as `labelled` takes them.
        labels: int [B].
        names: of the classes; numbers where it is too short.
        found: the predicted classes, int [B]; wrong ones are framed, and counted on top.

    Raises:
        UserError: predictions of another number of images, or Pillow is not installed.
    """
    side = min(max(images.shape[1], 96), 160)  # large enough for two names
    truth = [name_of(kind, names) for kind in labels]
    if found is None:
        return labelled(images, truth, side=side)
    if len(found) != len(labels):
        raise UserError(f"{len(found)} predictions cannot be drawn on {len(labels)} images")
    wrong = np.asarray(found) != np.asarray(labels)
    words = [f"{name_of(kind, names)} / {true}" for kind, true in zip(found, truth, strict=True)]
    drawn = labelled(images, words, wrong=wrong, side=side)
    right = f"{len(wrong) - wrong.sum()} of {len(wrong)} right; wrong ones are framed"
    return titled(drawn, f"predicted / true class: {right}")


def labelled(
    images: np.ndarray,
    words: Sequence[str],
    *,
    wrong: Sequence[bool] | np.ndarray | None = None,
    side: int = 96,
    columns: int = 8,
) -> Any:
    """Images [B, S, S, 3] in a grid, each with a word below, such as its class; some marked as wrong.

    Bytes (uint8) are drawn as they are, other values from the image's smallest to its largest.

    >>> labelled(np.zeros((2, 8, 8, 3)), ["cat", "dog"], side=16).size
    (50, 46)
    """
    if len(images) != len(words):
        raise UserError(f"{len(images)} images with {len(words)} words cannot be drawn")
    marked = [False] * len(words) if wrong is None else wrong
    tiles = []
    for image, word, bad in zip(images, words, marked, strict=True):
        tile = square(image, side)
        tiles.append(caption(framed(tile) if bad else tile, word, WRONG if bad else INK))
    return grid(tiles, columns=columns)


def captioned(
    images: np.ndarray, captions: Sequence[str], *, side: int = 192, columns: int = 4
) -> Any:
    """Images [B, S, S, 3], as `labelled` takes them, in a grid, each with its caption in several lines below.

    >>> captioned(np.zeros((2, 8, 8, 3)), ["a small red circle on a blue ground", ""], side=96).size
    (210, 151)
    """
    letters = max(1, side // 6)  # of a line
    lines = [
        textwrap.wrap(text, letters, max_lines=4, placeholder=" ...") or [""] for text in captions
    ]
    most = max(map(len, lines), default=1)
    tiles = []
    for image, words in zip(images, lines, strict=True):
        tile = square(image, side)
        for line in (*words, *[""] * (most - len(words))):
            tile = caption(tile, line)
        tiles.append(tile)
    return grid(tiles, columns=columns)


# -- parts -------------------------------------------------------------------------------------------


def square(image: np.ndarray, side: int) -> Any:
    """An image [S, S, 3], its values as of `to_bytes`, with so many pixels a side."""
    return pillow().fromarray(to_bytes(np.asarray(image)), "RGB").resize((side, side))


def overlay(plane: np.ndarray, mask: np.ndarray | None, side: int) -> Any:
    """A plane u8 [H, W] in grey with its classes in colour; the longer axis gets `side` pixels."""
    colour = np.repeat(plane[..., None].astype(np.float32), 3, -1)
    if mask is not None:
        for kind, tint in enumerate(COLOURS, start=1):
            here = mask == kind
            colour[here] = (1 - _MASK) * colour[here] + _MASK * np.asarray(tint, np.float32)
    height, width = plane.shape
    size = (max(1, side * width // max(plane.shape)), max(1, side * height // max(plane.shape)))
    pictures = pillow()
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
    """Values of any range as u8, the smallest 0 and the largest 255; what is not finite is 0.

    Bytes stay as they are.
    """
    if values.dtype == np.uint8:
        return values
    values = np.nan_to_num(np.asarray(values, np.float32), nan=0, posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    return ((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


def caption(tile: Any, text: str, colour: tuple[int, int, int] = INK) -> Any:
    """The tile with a line of text below it, shortened where it does not fit."""
    whole = pillow().new("RGB", (tile.width, tile.height + _LINE), PAPER)
    whole.paste(tile, (0, 0))
    write(whole, (1, tile.height + 1), text, colour)
    return whole


def titled(picture: Any, text: str) -> Any:
    """The picture with a line of text above it."""
    whole = pillow().new("RGB", (picture.width, picture.height + _LINE), PAPER)
    whole.paste(picture, (0, _LINE))
    write(whole, (_GAP, _GAP // 2), text)
    return whole


def write(picture: Any, at: tuple[int, int], text: str, colour: tuple[int, int, int] = INK) -> None:
    """Text from this corner to the right, shortened where the picture ends."""
    draw, text = draws_on(picture), printable(text)
    whole, room = text, picture.width - at[0]
    while text and draw.textlength(text, font()) > room:
        whole = whole[:-1]
        text = f"{whole}.." if whole else ""
    draw.text(at, text, fill=colour, font=font())


def framed(tile: Any) -> Any:
    """The tile with a frame inside its edges: something is wrong with it."""
    tile = tile.copy()
    corners = (0, 0, tile.width - 1, tile.height - 1)
    draws_on(tile).rectangle(corners, outline=WRONG, width=_FRAME)
    return tile


def draws_on(picture: Any) -> Any:
    """Pillow's pen on a picture."""
    return pillow("ImageDraw").Draw(picture)


@functools.cache
def font() -> Any:
    """Pillow's own font, in the size of all our words."""
    return pillow("ImageFont").load_default(_TEXT)


def name_of(kind: int, names: Sequence[str]) -> str:
    """The name of a class, or its number where it has none.

    >>> name_of(1, ["cat", "dog"]), name_of(2, ["cat", "dog"])
    ('dog', 'class 2')
    """
    return str(names[kind]) if 0 <= kind < len(names) else f"class {kind}"


def legend(names: Sequence[str], width: int) -> Any:
    """A line with the colour and the name of each class above 0."""
    line = pillow().new("RGB", (width, _LINE), PAPER)
    draw, x = draws_on(line), _GAP
    for name, tint in zip(names, COLOURS, strict=False):
        draw.rectangle((x, 3, x + 11, 14), fill=tint)
        write(line, (x + 16, 1), name)
        x += 32 + int(draw.textlength(printable(name), font()))
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
    whole = pillow().new("RGB", size, PAPER)
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
    about = pillow("PngImagePlugin").PngInfo()
    about.add_text("Software", MARK)
    picture.save(file, format="PNG", pnginfo=about)
    return file.getvalue()


def check_output(path: os.PathLike | str) -> None:
    """Nothing, if a picture can be saved there.

    Raises:
        UserError: the name does not end in .png, the folder is missing or may not be written, or there is a file
            that would be lost.
    """
    if not os.fspath(path).lower().endswith(".png"):
        raise UserError(f"output {path} must end in .png: pictures are PNG files")
    check_writable(path)


def save(picture: Any, path: os.PathLike | str) -> None:
    """Writes the picture as a PNG file, which is there whole or not at all.

    Raises:
        UserError: as `check_output`, or the disk is full.
    """
    check_output(path)
    write_file(path, to_png(picture))


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


def pillow(part: str = "Image") -> Any:
    """A module of Pillow.

    Raises:
        UserError: it is not installed; says how to.
    """
    return optional(f"PIL.{part}", "pictures", "a picture")

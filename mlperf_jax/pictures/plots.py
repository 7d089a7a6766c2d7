"""The panels of `curves` as files for papers: PNG and PDF by Matplotlib, SVG without it."""

from __future__ import annotations

import io
import os
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

from mlperf_jax.errors import UserError, optional, printable
from mlperf_jax.paths import MARK, check_writable, write
from mlperf_jax.pictures import LINES, curves

SUFFIXES = (".png", ".pdf", ".svg")

_HEIGHT, _WIDTH = 2.6, 3.4  # of a panel, in inches: two of them are as wide as a page's text
_DOTS = 200  # of an inch of a PNG
_LETTERS = 19  # of the note's small letters in an inch
_DASHES = ("-", "--", ":")  # of lines that share a colour
_MARKS = {".png": {"Software": MARK}, ".pdf": {"Creator": MARK, "CreationDate": None}}


def check_output(path: os.PathLike | str) -> str:
    """The ending of a file that panels can be saved as.

    Raises:
        UserError: it is none of ours, the file cannot be written or another would be lost, or Matplotlib is needed
            and not installed.
    """
    suffix = pathlib.PurePath(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    check_writable(path)
    if suffix != ".svg":
        _matplotlib()
    return suffix


def save(
    panels: Sequence[curves.Panel],
    path: os.PathLike | str,
    *,
    columns: int | None = None,
    note: str = "",
) -> None:
    """Writes panels side by side, as the ending of the path says; equal panels give equal files.

    Args:
        columns: panels of a row; by default all of them.
        note: a sentence below them.

    Raises:
        UserError: as `check_output`, or the disk is full.
    """
    suffix = check_output(path)
    if suffix == ".svg":
        write(path, curves.svg(panels, columns=columns, note=note, alone=True).encode())
        return
    file = io.BytesIO()
    drawn(panels, columns=columns, note=note).savefig(
        file, format=suffix[1:], dpi=_DOTS, metadata=_MARKS[suffix]
    )
    write(path, file.getvalue())


def drawn(panels: Sequence[curves.Panel], *, columns: int | None = None, note: str = "") -> Any:
    """A `matplotlib.figure.Figure` of the panels, to be drawn on further.

    Raises:
        UserError: Matplotlib is not installed.
    """
    beside = columns or max(1, len(panels))
    below = -(-len(panels) // beside) or 1
    size = (_WIDTH * beside, _HEIGHT * below)
    figure = _matplotlib().Figure(figsize=size, layout="constrained")
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    handles: dict[str, Any] = {}
    for number, panel in enumerate(panels, start=1):
        _draw(figure.add_subplot(below, beside, number), panel, names, handles)
    if len(handles) > 1:
        words = [_plain(name) for name in handles]
        figure.legend(
            [*handles.values()], words, loc="outside upper center", ncols=2 * beside, frameon=False, fontsize=8
        )  # fmt: skip
    if note:
        lines = textwrap.wrap(_plain(note), int(size[0] * _LETTERS))
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=6)
    return figure


def _draw(axes: Any, panel: curves.Panel, names: Sequence[str], handles: dict[str, Any]) -> None:
    for name, band in panel.areas().items():
        across, lows, highs = zip(*band, strict=True) if band else ((), (), ())
        colour, _ = _style(names.index(name))
        axes.fill_between(across, lows, highs, color=colour, alpha=0.2, linewidth=0)
    for name, points in panel.drawn().items():
        across, values = zip(*points, strict=True) if points else ((), ())
        colour, dashes = _style(names.index(name))
        marker = "o" if panel.dots or len(points) == 1 else ""
        (handles[name],) = axes.plot(
            across, values, color=colour, linestyle=dashes, linewidth=1.4, marker=marker, markersize=2.5
        )  # fmt: skip
    if panel.level is not None:
        axes.axhline(panel.level, color="black", linestyle=(0, (5, 4)), linewidth=0.8)
    reach = "" if panel.level is None else f", target {panel.level:.5g}"
    axes.set_title(_plain(panel.title + reach), fontsize=9)
    axes.set_xlabel(_plain(panel.across), fontsize=8)
    axes.set_xlim(left=panel.begin)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _style(number: int) -> tuple[tuple[float, ...], str]:
    """Colour and dashes of a line, as `curves` has them."""
    colour = tuple(part / 255 for part in LINES[number % len(LINES)])
    return colour, _DASHES[number // len(LINES) % len(_DASHES)]


def _plain(text: str) -> str:
    """A text that Matplotlib takes as it is: it reads formulas between dollars and hides names that begin with _."""
    return (" " if text.startswith("_") else "") + printable(text).replace("$", r"\$")


def _matplotlib() -> Any:
    return optional("matplotlib.figure", "plots", "a picture as PNG or PDF")

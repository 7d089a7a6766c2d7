"""Curves as SVG: values over samples, beside each other, for notebooks and pages without script.

A line may have a band around it, such as the range of several runs.

Text takes the colour of the page around it, so that a picture reads on light and dark ground.
"""

from __future__ import annotations

import html
import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlperf_jax.paths import MARK
from mlperf_jax.pictures import LINES

Points = Sequence[tuple[float, float]]  # (samples, value), by samples
Band = Sequence[tuple[float, float, float]]  # (samples, low, high), by samples

_LEFT, _TOP, _RIGHT, _BOTTOM = 52, 26, 12, 24  # around a panel, in pixels
_SMALL = 5.6  # pixels of a small letter
_MOST = 400  # points of a line: more than a picture has pixels for
_DASHES = ("", "6 3", "2 3")  # of lines that share a colour


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: what is drawn upwards.
        lines: points by name; those that are not finite are left out.
        level: a value to be reached, as a dashed line; None for none.
        dots: whether each point is marked, as few points are.
        bands: the range around the line of the same name, drawn as an area.
        across: what is drawn to the right.
        begin: where that begins at the latest.
        stepped: whether a value holds until the next one.
    """

    title: str
    lines: Mapping[str, Points] = field(default_factory=dict)
    level: float | None = None
    dots: bool = False
    bands: Mapping[str, Band] = field(default_factory=dict)
    across: str = "samples"
    begin: float = 0
    stepped: bool = False

    def drawn(self) -> dict[str, list[tuple[float, float]]]:
        """The lines as they are drawn: finite, thinned, and with the corners of their steps."""
        lines = {name: _drawable(points) for name, points in self.lines.items()}
        return {name: _corners(line) for name, line in lines.items()} if self.stepped else lines

    def areas(self) -> dict[str, Band]:
        """The bands of the lines, of as many points as can be seen."""
        return {name: _drawable(self.bands[name]) for name in self.lines if name in self.bands}


def svg(
    panels: Sequence[Panel],
    *,
    width: int = 760,
    height: int = 230,
    columns: int | None = None,
    note: str = "",
    alone: bool = False,
) -> str:
    """Panels side by side, and below them the names of their lines where there are several.

    >>> svg([Panel("loss", {"run_0": [(0, 2.0), (640, 1.0)]})]).startswith("<svg")
    True

    Args:
        panels: from left to right; those without a point are drawn empty.
        width: of the whole, in pixels.
        height: of a row of panels.
        columns: panels of a row; by default all of them.
        note: a sentence below all of it, in small letters.
        alone: dark on white, as a file of its own has no page whose colours it could take.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    beside = columns or max(1, len(panels))
    each, bottom = width / beside, height * max(1, -(-len(panels) // beside))
    drawn = [
        f'<g transform="translate({number % beside * each:.1f} {number // beside * height})">'
        f"{_panel(panel, names, each, height)}</g>"
        for number, panel in enumerate(panels)
    ]
    legend, more = _legend(names, width, bottom) if len(names) > 1 else ("", 0)
    below = ""
    for line in textwrap.wrap(note, int(width / _SMALL)):
        more += 14
        below += _word(4, bottom + more, line, "start").replace("<text", '<text font-size="10"', 1)
    more += 6 * bool(note)
    over = " and ".join(dict.fromkeys(panel.across for panel in panels)) or "samples"
    about = html.escape(f"{' and '.join(panel.title for panel in panels)} over {over}")
    ground = "background:#fff;color:#1e1e1e;" if alone else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + more}" data-generator="{MARK}" role="img" '
        f'aria-label="{about}" style="display:block;width:100%;max-width:{width}px;height:auto;'
        f'{ground}font:12px system-ui,sans-serif;fill:currentColor">'
        f"{''.join(drawn)}{legend}{below}</svg>"
    )


def _panel(panel: Panel, names: Sequence[str], width: float, height: float) -> str:
    lines, areas = panel.drawn(), panel.areas()
    points = list(itertools.chain(*lines.values()))
    heights = [value for _, value in points]
    heights += [end for band in areas.values() for _, *ends in band for end in ends]
    if panel.level is not None:
        heights.append(panel.level)
    across = _Scale.of([x for x, _ in points] or [0, 1], _LEFT, width - _RIGHT, least=panel.begin)
    upwards = _Scale.of(heights or [0, 1], height - _BOTTOM, _TOP)
    reach = "" if panel.level is None else f", target {panel.level:.5g}"
    parts = [
        f'<text x="{_LEFT}" y="15" font-weight="600">{html.escape(panel.title + reach)}</text>',
        _word(width - _RIGHT, 15, f"{panel.across} →", "end"),
    ]
    for tick in upwards.ticks(4):
        y = upwards(tick)
        parts += [
            f'<path d="M{_LEFT} {y:.1f}H{width - _RIGHT:.1f}" stroke="currentColor" stroke-opacity=".15"/>',
            _word(_LEFT - 6, y + 4, upwards.label(tick), "end"),
        ]
    for tick in across.ticks(4):
        parts.append(_word(across(tick), height - 7, across.label(tick), "middle"))
    if panel.level is not None:
        y = upwards(panel.level)
        parts.append(
            f'<path d="M{_LEFT} {y:.1f}H{width - _RIGHT:.1f}" stroke="currentColor" stroke-dasharray="5 4"/>'
        )
    for name, band in areas.items():
        parts.append(_area(band, across, upwards, names.index(name)))
    for name, found in lines.items():
        parts.append(_line(found, across, upwards, names.index(name), name, panel.dots))
    return "".join(parts)


def _area(band: Band, across: _Scale, upwards: _Scale, number: int) -> str:
    """From the lower ends to the right and back along the upper ones."""
    ends = [(x, low) for x, low, _ in band] + [(x, high) for x, _, high in reversed(band)]
    edge = " ".join(f"{across(x):.1f},{upwards(y):.1f}" for x, y in ends)
    return f'<polygon points="{edge}" fill="{_style(number)[0]}" fill-opacity=".2"/>'


def _line(
    points: Points, across: _Scale, upwards: _Scale, number: int, name: str, dots: bool
) -> str:
    colour, dashes = _style(number)
    places = [(across(x), upwards(y)) for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places)
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.75"{dashes}>'
        f"<title>{html.escape(name)}</title></polyline>{marks if dots or len(places) == 1 else ''}"
    )


def _legend(names: Sequence[str], width: int, top: int) -> tuple[str, int]:
    """Names with a piece of their lines, in as many rows as they need, and the height of these."""
    parts, x, y = [], _LEFT, top + 12
    for number, name in enumerate(names):
        long = 42 + 7 * len(name)
        if x > _LEFT and x + long > width:
            x, y = _LEFT, y + 18
        colour, dashes = _style(number)
        parts.append(
            f'<path d="M{x} {y}h20" stroke="{colour}" stroke-width="2"{dashes}/>'
            f"{_word(x + 26, y + 4, name, 'start')}"
        )
        x += long
    return "".join(parts), y + 10 - top


def _word(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill-opacity=".75">'
        f"{html.escape(text)}</text>"
    )


def _style(number: int) -> tuple[str, str]:
    """Colour of a line, and how it is dashed where colours come again."""
    dashes = _DASHES[number // len(LINES) % len(_DASHES)]
    red, green, blue = LINES[number % len(LINES)]
    return f"#{red:02x}{green:02x}{blue:02x}", f' stroke-dasharray="{dashes}"' if dashes else ""


def _drawable(points: Sequence[tuple[float, ...]]) -> list[Any]:
    """The finite points, thinned where there are more than can be seen; the last one stays."""
    finite = [point for point in points if all(map(math.isfinite, point))]
    every = -(-len(finite) // _MOST) or 1
    return finite[(len(finite) - 1) % every :: every]


def _corners(points: Points) -> list[tuple[float, float]]:
    """Points with the corners between them: along to the next, then up or down to it."""
    between = ((b[0], a[1]) for a, b in itertools.pairwise(points))
    return [*itertools.chain(*zip(points, between)), *points[-1:]]


@dataclass(frozen=True)
class _Scale:
    """Values from `low` to `high` as pixels from `begin` to `end`."""

    low: float
    high: float
    begin: float
    end: float

    @classmethod
    def of(
        cls, values: Sequence[float], begin: float, end: float, least: float | None = None
    ) -> _Scale:
        low, high = min(values), max(values)
        if least is not None:
            low = min(low, least)
        if high <= low:
            high, low = (
                high + (abs(high) or 1) * 0.1,
                low - (abs(low) * 0.1 if least is None else 0),
            )
        elif least is None:
            low, high = low - 0.06 * (high - low), high + 0.06 * (high - low)
        return cls(low, high, begin, end)

    def __call__(self, value: float) -> float:
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)

    def step(self, most: int) -> float:
        """The distance of round numbers of which about `most` lie in range: 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        return next(power * n for n in (1, 2, 5, 10) if power * n >= rough)

    def ticks(self, most: int) -> list[float]:
        step = self.step(most)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [number * step for number in range(first, last + 1)]

    def label(self, tick: float) -> str:
        """A tick with as many decimals as tell it from the next."""
        decimals = max(0, -math.floor(math.log10(self.step(4))))
        return f"{tick:,.{decimals}f}" if decimals < 7 else f"{tick:.1e}"

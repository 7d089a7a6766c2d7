"""Curves as SVG: every point in its place, whatever the values."""

import doctest
import math
import re
import xml.etree.ElementTree as tree

import pytest

from mlperf_jax.pictures import curves
from mlperf_jax.pictures.curves import Panel, svg

NAMES = "{http://www.w3.org/2000/svg}"


def drawn(*panels: Panel) -> tree.Element:
    return tree.fromstring(svg(panels))


def points(picture: tree.Element) -> list[list[tuple[float, float]]]:
    """The lines of a picture, in pixels."""
    lines = [line.get("points", "") for line in picture.iter(f"{NAMES}polyline")]
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in lines]


def words(picture: tree.Element) -> list[str]:
    return [word.text for word in picture.iter(f"{NAMES}text")]


def test_examples():
    assert doctest.testmod(curves).failed == 0


def test_points_lie_where_their_values_are():
    (line,) = points(drawn(Panel("loss", {"run": [(0, 1.0), (50, 3.0), (100, 2.0)]})))
    (x0, low), (x1, high), (x2, middle) = line
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert high < middle < low, "larger values lie higher"
    assert middle == pytest.approx((low + high) / 2, abs=0.06)


def test_a_target_is_named_and_within_the_picture():
    picture = drawn(Panel("accuracy", {"run": [(10, 0.2), (20, 0.4)]}, level=0.95))
    assert "accuracy, target 0.95" in words(picture)
    (level,) = [p for p in picture.iter(f"{NAMES}path") if p.get("stroke-dasharray")]
    height = float(re.match(r"M52 ([\d.]+)H", level.get("d"))[1])
    assert 26 <= height < min(y for _, y in points(picture)[0]), "above what was reached"


@pytest.mark.parametrize(
    "values",
    [[], [(640, 2.0)], [(0, 0.0), (1, 0.0)], [(5, -3.0), (7, -3.0)], [(0, 1e-9), (1, 3e-9)]],
    ids=["none", "one", "zeros", "all alike", "tiny"],
)
def test_few_or_equal_values_are_drawn(values):
    picture = drawn(Panel("loss", {"run": values} if values else {}))
    assert sum(map(len, points(picture))) == len(values)
    assert all(math.isfinite(c) for line in points(picture) for pair in line for c in pair)


def test_what_is_not_finite_is_left_out():
    values = [(0, math.nan), (1, 2.0), (2, math.inf), (3, 1.0), (math.nan, 1.0)]
    assert len(points(drawn(Panel("loss", {"run": values})))[0]) == 2


def test_long_runs_are_thinned_and_keep_their_end():
    values = [(step, float(step)) for step in range(100_001)]
    (line,) = points(drawn(Panel("loss", {"run": values})))
    assert 300 < len(line) <= 400
    assert line[-1][0] == pytest.approx(760 - 12, abs=0.1)


def test_names_are_escaped_and_shown_where_there_are_several():
    values = [(0, 1.0), (1, 2.0)]
    picture = drawn(Panel("a & b", {"<run>": values, "other": values}))
    assert {"a & b", "<run>", "other"} <= {*words(picture)}
    assert "<run>" not in words(drawn(Panel("loss", {"<run>": values})))


def test_many_lines_are_told_apart():
    values = [(0, 1.0), (1, 2.0)]
    picture = drawn(Panel("loss", {f"run_{n}": values for n in range(12)}))
    lines = [(p.get("stroke"), p.get("stroke-dasharray")) for p in picture.iter(f"{NAMES}polyline")]
    assert len({*lines}) == 12
    height = float(picture.get("viewBox").split()[3])
    ys = [float(word.get("y")) for word in picture.iter(f"{NAMES}text")]
    assert max(ys) < height, "the names of the lines fit in"


@pytest.mark.parametrize("span", [1e-7, 0.003, 1, 42, 65_536, 3e9])
def test_ticks_are_round_and_differ(span):
    scale = curves._Scale(0.0, span, 0.0, 300.0)
    ticks = scale.ticks(4)
    assert 2 <= len(ticks) <= 6
    assert len({scale.label(tick) for tick in ticks}) == len(ticks)


# -- bands, steps, rows ----------------------------------------------------------------------------


def areas(picture: tree.Element) -> list[list[tuple[float, float]]]:
    found = [area.get("points", "") for area in picture.iter(f"{NAMES}polygon")]
    return [[tuple(map(float, pair.split(","))) for pair in area.split()] for area in found]


def test_a_band_lies_around_its_line_in_its_colour():
    lines = {"a": [(0, 1.0), (100, 2.0)], "b": [(0, 3.0), (100, 4.0)]}
    picture = drawn(Panel("loss", lines, bands={"b": [(0, 2.5, 3.5), (100, 3.0, 9.0)]}))
    (area,), (_, line) = areas(picture), points(picture)
    (x0, low0), (x1, low1), (x2, high1), (x3, high0) = area
    assert (x0, x1) == (x3, x2) == (line[0][0], line[1][0])
    assert low0 > line[0][1] > high0 and low1 > line[1][1] > high1
    assert high1 >= 26, "the whole band is within the picture"
    (polygon,) = picture.iter(f"{NAMES}polygon")
    _, second = picture.iter(f"{NAMES}polyline")
    assert polygon.get("fill") == second.get("stroke")


def test_of_a_band_what_is_not_finite_or_too_much_is_left_out():
    band = [(float(x), 0.0, math.nan if x % 2 else 1.0) for x in range(10_000)]
    (area,) = areas(drawn(Panel("loss", {"a": [(0, 0.5)]}, bands={"a": band})))
    assert 600 < len(area) <= 800
    assert areas(drawn(Panel("loss", {"a": [(0, 0.5)]}, bands={"other": band}))) == []


def test_steps_hold_their_value_until_the_next():
    values = [(1.0, 0.2), (2.0, 0.6), (4.0, 1.0)]
    panel = Panel("share", {"a": values}, across="times the best", begin=1, stepped=True)
    assert panel.drawn()["a"] == [(1, 0.2), (2, 0.2), (2, 0.6), (4, 0.6), (4, 1.0)]
    picture = drawn(panel)
    (line,) = points(picture)
    assert line[0][0] == pytest.approx(52), "the axis begins at 1, not at 0"
    assert "times the best →" in words(picture)
    assert picture.get("aria-label") == "share over times the best"
    assert Panel("share", {"a": []}, stepped=True).drawn() == {"a": []}


def test_panels_stand_in_rows_and_a_note_below_them():
    panel = Panel("loss", {"a": [(0, 1.0), (1, 2.0)]})
    one, rows = (
        float(tree.fromstring(svg([panel] * 4, columns=columns)).get("viewBox").split()[3])
        for columns in (None, 2)
    )
    assert rows == 2 * one
    picture = tree.fromstring(svg([panel], note="word " * 100))
    height = float(picture.get("viewBox").split()[3])
    below = [t for t in picture.iter(f"{NAMES}text") if t.get("font-size") == "10"]
    assert len(below) > 3
    assert " ".join(t.text for t in below).split() == ["word"] * 100
    assert one < max(float(t.get("y")) for t in below) < height

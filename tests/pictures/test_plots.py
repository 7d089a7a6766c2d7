"""Panels as files for papers: what is in the figure, and which file may be written where."""

import sys

import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.paths import MARK, check_writable
from mlperf_jax.pictures import LINES, curves, plots
from mlperf_jax.pictures.curves import Panel

PANELS = [
    Panel("loss", {"a": [(0, 2.0), (64, 1.0)], "b": [(0, 3.0), (64, 2.0)]}),
    Panel(
        "accuracy",
        {"b": [(0, 0.1), (64, 0.9)]},
        level=0.8,
        bands={"b": [(0, 0.05, 0.2), (64, 0.8, 0.95)]},
        across="samples seen",
    ),
]


def test_the_figure_has_what_the_panels_have():
    figure = plots.drawn(PANELS, note="not verified")
    loss, accuracy = figure.axes
    assert [line.get_xydata().tolist() for line in loss.lines] == [[[0, 2], [64, 1]], [[0, 3], [64, 2]]]  # fmt: skip
    line, level = accuracy.lines
    second = tuple(part / 255 for part in LINES[1])
    assert line.get_color() == loss.lines[1].get_color() == second, "a name has one colour"
    assert level.get_ydata()[0] == 0.8
    (band,) = accuracy.collections
    corners = band.get_paths()[0].vertices
    assert {(0, 0.05), (0, 0.2), (64, 0.8), (64, 0.95)} <= {tuple(p) for p in corners.tolist()}
    assert accuracy.get_title() == "accuracy, target 0.8"
    assert accuracy.get_xlabel() == "samples seen"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert figure.get_supxlabel() == "not verified"


def test_rows_and_no_legend_of_one_line():
    figure = plots.drawn([PANELS[1]] * 3, columns=2)
    assert [axes.get_subplotspec().rowspan.start for axes in figure.axes] == [0, 0, 1]
    assert figure.legends == []


def test_names_are_no_formulas_and_none_is_hidden(tmp_path):
    names = ["_hidden", "$x^{", "50% & \\frac", "tab\there"]
    panel = Panel("$_^", {name: [(0, 1.0), (1, n)] for n, name in enumerate(names)})
    plots.save([panel], tmp_path / "x.png", note="$a$ $")
    (legend,) = plots.drawn([panel]).legends
    assert [t.get_text() for t in legend.get_texts()] == [" _hidden", r"\$x^{", "50% & \\frac", "tab?here"]  # fmt: skip


@pytest.mark.parametrize(("suffix", "begin"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<svg")])  # fmt: skip
def test_files_bear_the_mark_and_are_equal_and_replaceable(tmp_path, suffix, begin):
    path = tmp_path / f"x{suffix}"
    plots.save(PANELS, path, note="a note")
    first = path.read_bytes()
    assert first.startswith(begin) and MARK.encode() in first
    check_writable(path)
    plots.save(PANELS, path, note="a note")
    assert path.read_bytes() == first
    assert [*tmp_path.iterdir()] == [path]


def test_a_large_pdf_is_known_as_ours_too(tmp_path):
    lines = {f"line {n}": [(x, x * n % 7) for x in range(400)] for n in range(60)}
    plots.save([Panel("a", lines)] * 8, tmp_path / "x.pdf", columns=2)
    assert (tmp_path / "x.pdf").stat().st_size > 2 << 16
    check_writable(tmp_path / "x.pdf")


def test_what_cannot_be_saved(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"x.gif must end in .png, .pdf or .svg"):
        plots.save(PANELS, tmp_path / "x.gif")
    (tmp_path / "mine.png").write_bytes(b"a photograph")
    with pytest.raises(UserError, match="not written by this command"):
        plots.save(PANELS, tmp_path / "mine.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r'needs an extra.*: pip install "mlperf-jax\[plots\]"'):
        plots.save(PANELS, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
    plots.save(PANELS, tmp_path / "x.svg")  # needs none


def test_six_lines_have_six_colours_none_of_them_pale():
    assert len({*LINES}) == len(LINES) == 6
    assert all(min(colour) < 210 and sum(colour) < 510 for colour in LINES)


def test_a_file_has_a_ground_of_its_own_and_a_page_gives_its(tmp_path):
    plots.save(PANELS, tmp_path / "x.svg")
    assert "background:#fff;color:#1e1e1e" in (tmp_path / "x.svg").read_text()
    assert "background" not in curves.svg(PANELS)

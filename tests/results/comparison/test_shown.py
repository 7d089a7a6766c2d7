"""What a terminal and a notebook get of comparisons, and every kind of file."""

import csv
import dataclasses
import html.parser
import math
import xml.etree.ElementTree as tree

import pytest
from made_comparisons import comparison, demo

from mlperf_jax.errors import UserError
from mlperf_jax.paths import MARK, check_writable
from mlperf_jax.results.comparison.shown import Compared
from mlperf_jax.results.result import LEGEND, UNVERIFIED

SUFFIXES = (".csv", ".tex", ".png", ".pdf", ".svg", ".html")


@pytest.fixture(scope="module")
def several():
    return Compared(*demo())


class Tags(html.parser.HTMLParser):
    """Counts tags, and fails on one that is closed in the wrong place."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in ("meta", "br", "!doctype"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_terminal_gets_tables_profiles_and_the_notices(several):
    text = str(several)
    for one in several.comparisons:
        assert f"{one.title}: samples to" in text
    assert "AlgoPerf score" in text
    assert text.endswith(f"{UNVERIFIED}\n{LEGEND}")
    assert repr(several).startswith("<Compared 4 optimizers on resnet (tiny), ")
    assert repr(several).endswith("(unverified)>")
    assert "AlgoPerf" not in str(Compared(demo()[0]))


def test_a_notebook_gets_tables_and_curves(several):
    seen = Tags(several._repr_html_()).seen
    assert seen.count("table") == 3 + 1
    assert seen.count("svg") == 3 + 1
    assert seen.count("polygon") == 3 * 2 * 4
    page = several.to_html()
    assert MARK in page and UNVERIFIED in page and "<script" not in page
    Tags(page)
    empty = Compared(comparison({"a": []}))
    assert "svg" not in Tags(empty._repr_html_()).seen


def test_ratios_by_benchmark_and_the_confidence_asked_for(several):
    found = several.paired()
    assert [*found] == ["resnet (tiny)", "bert (tiny)", "dlrm (tiny)"]
    assert found["resnet (tiny)"][0].verdict == "fewer samples"
    assert several.paired("seconds")["bert (tiny)"][0].verdict == "fewer seconds"
    (few,) = (
        Compared(comparison({"a": [640] * 4, "b": [320] * 4}), confidence=0.8).paired().values()
    )
    assert few[0].confidence == 0.875 and few[0].low is not None


def test_all_files_are_ours_and_can_be_written_again(several, tmp_path):
    for suffix in SUFFIXES:
        path = tmp_path / f"x{suffix}"
        several.save(path)
        first = path.read_bytes()
        assert MARK.encode() in first
        check_writable(path)
        several.save(str(path))
        assert path.read_bytes() == first
    assert {p.name for p in tmp_path.iterdir()} == {*(f"x{s}" for s in SUFFIXES), "x_runs.csv"}
    runs = list(csv.DictReader((tmp_path / "x_runs.csv").open()))
    assert len(runs) == 3 * 4 * 8
    picture = tree.parse(tmp_path / "x.svg").getroot()
    told = " ".join(picture.itertext())
    assert UNVERIFIED.split()[0] in told and "no MLPerf result" in told
    assert "bert (tiny): accuracy, target 0.93" in told


def test_panels_are_named_by_their_benchmark_where_there_are_several(several):
    titles = [panel.title for panel in several.panels()]
    assert titles[0] == "resnet (tiny): loss" and titles[-1] == "share of 3 problems"
    assert Compared(demo()[0]).panels()[0].title == "loss"
    low, high = (
        Compared(demo()[0], whole=whole).panels()[1].bands["lars"][20] for whole in (False, True)
    )
    assert high[1] < low[1] < low[2] < high[2]


def test_other_peoples_files_stay(several, tmp_path):
    for name in ("mine.csv", "mine.png", "other_runs.csv"):
        (tmp_path / name).write_text("my data\n")
    for name in ("mine.csv", "mine.png", "other.csv"):
        with pytest.raises(UserError, match="not written by this command"):
            several.save(tmp_path / name)
    assert not (tmp_path / "other.csv").exists(), "neither of the two, or both"
    with pytest.raises(UserError, match=r"x\.xlsx must end in \.csv, \.tex, \.html, \.png"):
        several.save(tmp_path / "x.xlsx")
    with pytest.raises(UserError, match="there is no folder"):
        several.save(tmp_path / "none" / "x.tex")
    with pytest.raises(UserError, match="no run logged a loss or a quality"):
        Compared(comparison({"a": []})).save(tmp_path / "x.png")


def test_what_cannot_be_compared():
    with pytest.raises(UserError, match="no comparison is given"):
        Compared()
    one = demo()[0]
    with pytest.raises(UserError, match=r"resnet \(tiny\) is compared twice"):
        Compared(one, one)
    with pytest.raises(UserError, match="has no optimizer"):
        Compared(dataclasses.replace(one, entrants=()))
    with pytest.raises(UserError, match="lars stands 2 times on resnet"):
        Compared(dataclasses.replace(one, entrants=one.entrants[:1] * 2))
    with pytest.raises(UserError, match="a confidence of 95"):
        Compared(one, confidence=95)
    with pytest.raises(UserError, match="a confidence of nan"):
        Compared(one, confidence=math.nan)


def test_entries_that_do_not_match_cost_only_the_profiles():
    made = Compared(demo()[0], comparison({"lars": [640] * 3, "lion": [640] * 3}, benchmark="bert"))
    assert made.profiles is None
    assert "no performance profiles: lion is not on resnet (tiny)" in str(made)
    assert "lion is not on resnet (tiny)" in made._repr_html_()
    assert Compared(demo()[0]).profiles_fault == ""

"""Tables of comparisons: what they hold, and that each form reads back as it was meant."""

import csv
import doctest
import io
import math
import re

import pytest
from made_comparisons import BUDGET, comparison, demo

from mlperf_jax.paths import MARK
from mlperf_jax.results.comparison import tables
from mlperf_jax.results.comparison.model import Tuning
from mlperf_jax.results.comparison.profiles import profiles
from mlperf_jax.results.result import LEGEND, UNVERIFIED

HOSTILE = 'a_w & 50% \\end{table} #$~^<b>|[*]"\x1b[31m\n'
TUNING = Tuning("learning_rate log-uniform in 0.05 to 5", 12, 9600, {"learning_rate": 0.25})


@pytest.fixture
def made():
    ways = {"sgd": [6400] * 6, "lars": [3200] * 5 + ["stopped"], "muon": [None] * 4 + [3200] * 2}
    return comparison(ways, tunings={"lars": TUNING})


def by_head(made, label):
    line = next(line for line in tables.cells(made) if line[0] == label)
    return dict(zip(tables.heads(made), line, strict=True))


def test_examples():
    assert doctest.testmod(tables).failed == 0


def test_a_line_of_each_entry(made):
    lars = by_head(made, "lars")
    assert lars["reached"] == "5 of 6"
    assert (lars["median samples"], lars["median steps"]) == ("3,200", "50")
    assert lars["olympic samples"] == "3,200", "one failed, as the rules allow"
    assert lars["ratio to sgd"] == "at least 0.5"
    assert lars["tuning samples"] == "9,600"
    assert lars["total samples"] == f"{5 * 3200 + BUDGET // 4 + 9600:,}"
    sgd = by_head(made, "sgd")
    assert (sgd["ratio to sgd"], sgd["p (Holm)"], sgd["tuning samples"]) == ("1", "-", "not tuned")
    muon = by_head(made, "muon")
    assert (muon["median samples"], muon["olympic samples"]) == ("not reached", "-")


def test_tuning_is_a_column_only_where_something_was_tuned_and_two_need_no_holm():
    made = comparison({"a": [640] * 2, "b": [640] * 2}, benchmark="my_own")
    heads = tables.heads(made)
    assert "tuning samples" not in heads and "p" in heads
    assert "mean samples" in heads, "no rules leave anything out"
    assert "(0.95 needs 6 seeds)" in by_head(made, "b")["ratio to a"]


def test_runs_still_to_come_are_told():
    made = comparison({"a": [640] * 3, "b": [640], "c": []})
    assert by_head(made, "b")["reached"] == "1 of 1, 2 to come"
    assert by_head(made, "c")["median samples"] == "-"
    assert by_head(made, "c")["ratio to a"] == "no pair of runs"


def test_the_text_says_all_that_must_be_known(made):
    text = tables.text(made)
    head, *lines = text.splitlines()
    assert head == (
        "resnet (tiny): samples to accuracy at least 0.93, 6 seeds, at most 64,000 samples a run, cpu"
    )
    assert lines[0].split()[0] == "optimizer"
    assert tables.TINY in text
    assert "lars was tuned in 12 trials over learning_rate log-uniform in 0.05 to 5: learning_rate 0.25" in text  # fmt: skip
    assert "not tuned, so compared as it was given: sgd, muon" in text
    assert "each interval is for itself; p (Holm) is for all 2 together" in text
    assert "Holm" not in tables.text(comparison({"a": [640], "b": [640]}))
    assert "lars, seed 5: stopped, the loss was not finite" in text
    assert tables.TINY not in tables.text(comparison({"a": [640]}, tiny=False))


def test_hostile_names_are_shown_and_obeyed_by_nobody():
    made = comparison({HOSTILE: [640] * 6, "b": [640] * 6})
    text, page, tex = tables.text(made), tables.page(made), tables.latex(made)
    assert "\x1b" not in text + tex
    assert "<b>|" not in page and "&lt;b&gt;|" in page
    assert tex.count("\\end{table}") == 1
    bare = re.sub(r"\\[&%$#_{}\\]|\{\[\}|\{\]\}|\{\*\}|\\text\w+\{\}|\{\\char34\}", "", tables.escaped(HOSTILE))  # fmt: skip
    assert not set(bare) & set('\\&%$#_{}~^<>|[]*"\n')


def test_latex_is_a_whole_table(made):
    tex = tables.latex(made)
    assert tex.startswith(f"% {MARK}")
    for name in ("table", "tabular"):
        assert tex.count(f"\\begin{{{name}}}") == tex.count(f"\\end{{{name}}}") == 1
    body = re.search(r"\\midrule\n(.*)\\bottomrule", tex, re.DOTALL)[1].splitlines()
    assert len(body) == 3
    columns = len(re.search(r"begin\{tabular\}\{(\w+)\}", tex)[1])
    assert all(line.count(" & ") == columns - 1 and line.endswith(r" \\") for line in body)
    assert UNVERIFIED in tex and LEGEND.split(".")[0] in tex and "no MLPerf result" in tex


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_raw_numbers_of_each_entry(made):
    sgd, lars, muon = read(tables.csv_entries([made]))
    assert (sgd["optimizer"], sgd["definition"], sgd["samples_ratio"]) == ("sgd", "optax.sgd(0.1)", "")  # fmt: skip
    assert (float(lars["median_samples"]), lars["samples_ratio"]) == (3200, "")
    assert float(lars["samples_low"]) == pytest.approx(0.5)
    assert float(lars["samples_high"]) == math.inf
    assert (lars["verdict"], lars["tuning_samples"], sgd["tuning_samples"]) == ("not told apart", "9600", "0")  # fmt: skip
    assert float(muon["median_samples"]) == math.inf and muon["olympic_samples"] == ""
    assert muon["olympic_minutes"] == "" and float(sgd["olympic_minutes"]) == pytest.approx(6.4 / 60)  # fmt: skip
    assert "unverified" not in sgd and UNVERIFIED in sgd[MARK] and tables.TINY in sgd[MARK]
    full = read(tables.csv_entries([comparison({"a": [640]}, tiny=False)]))
    assert full[0][MARK] == UNVERIFIED


def test_csv_of_runs_has_a_line_each(made):
    lines = read(tables.csv_runs([made, *demo()[1:]]))
    assert len(lines) == 18 + 2 * 32
    failed = lines[11]
    assert (failed["optimizer"], failed["seed"], failed["ending"]) == ("lars", "5", "stopped")
    assert (failed["samples"], failed["seen"], failed["reason"]) == ("", "16000", "the loss was not finite")  # fmt: skip
    assert (lines[0]["samples"], lines[0]["steps"], lines[0]["seconds"]) == ("6400", "100", "6.4")
    assert tables.csv_runs([comparison({"a": []})]).strip().endswith(MARK), (
        "told as ours when empty"
    )


def test_names_in_csv_read_back_as_they_were():
    made = comparison({'a,"b"\n_%': [640]})
    assert read(tables.csv_entries([made]))[0]["optimizer"] == 'a,"b"\n_%'


def test_profiles_as_a_table():
    found = profiles(demo())
    head, *lines = tables.areas(found)
    assert [line[0] for line in lines] == list(found.labels)
    muon = dict(zip(head, lines[1], strict=True))
    assert (muon["best on"], muon["reached"], muon["AlgoPerf score"]) == ("100%", "100%", "1.0000")
    assert "over 3 problems, area up to 4 times the best" in tables.areas_title(found)

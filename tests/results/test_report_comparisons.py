"""Comparisons of optimizers in the report, and sets that differ by their optimizer: as data, and in a real browser."""

import dataclasses
import json

import chromium
import pytest
import report_demo
from made_comparisons import comparison, demo

from mlperf_jax.results.comparison import tables
from mlperf_jax.results.report import Report, collect, report
from mlperf_jax.results.report.compared import documents
from mlperf_jax.results.report.notebook import plain_comparisons
from mlperf_jax.results.report.payload import payload
from mlperf_jax.results.score import scores

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">"
OPTIMIZERS = {  # folder -> name, program, logged setting
    "muon": ("muon", "1" * 16, {}),
    "make": ("make", "2" * 16, {"opt_base_learning_rate": 0.1}),
    "make2": ("make", "3" * 16, {"opt_base_learning_rate": 0.2}),
    "own": ("", "", {}),
}
SOURCE = "import grain\n\nclass Flip(grain.transforms.Map):\n    side = {}\n"


def write_sets(root):
    """Four sets of resnet with four optimizers, three of which replace the recipe's."""
    for number, (folder, (name, program, settings)) in enumerate(OPTIMIZERS.items()):
        out = root / folder
        named = {"opt_name": name} if name else {}
        report_demo.write_set(
            out, "resnet", chips=8, batch=3264, length=36 * 1_281_167, minutes=40 + number, seed=number,
            platform="8xTPU v5 lite", division="open", both=True, settings=named | settings,
        )  # fmt: skip
        config = {"benchmark": "resnet", "size": "full", "optimizer": program or None}
        config["transform"] = SOURCE.format(number % 2)
        report_demo.add_folders(out, tiny=False, chips=8, device="TPU v5 lite", mfu=0.4, config=config, optimizer=name)  # fmt: skip
        if program:
            for log in out.glob("result_*.txt"):
                lines = log.read_text().splitlines()
                marked = [
                    line.replace('"metadata": {', f'"metadata": {{"program": "{program}", ')
                    if '"opt_name"' in line
                    else line
                    for line in lines
                ]
                log.write_text("\n".join(marked) + "\n")
    return root


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("sets"))


# -- sets by their optimizer -----------------------------------------------------------------------


def test_sets_that_differ_by_optimizer_are_labelled_so(sets):
    found = collect(sets)
    named = {data["folder"].rpartition("/")[2]: data["by"] for data in payload(found.sets, [])["sets"]}  # fmt: skip
    assert named == {
        "muon": "muon",
        "make": "make, opt_base_learning_rate 0.1",
        "make2": "make, opt_base_learning_rate 0.2",
        "own": "lars (the recipe's)",
    }
    for label in named.values():
        assert label in repr(found)
    (alone,) = payload([found.sets[0]], [])["sets"]
    assert alone["by"] == ""


def test_scores_say_their_optimizer_where_it_differs(sets):
    every = scores(sets)
    head, *lines = str(every).splitlines()[:5]
    assert head.split()[:2] == ["benchmark", "optimizer"]
    found = sorted(line.split("open")[0].split(maxsplit=1)[1].strip() for line in lines)
    assert found == ["make 22222222", "make 33333333", "muon", "the recipe's"]
    assert "make 22222222" in every._repr_html_()
    muon = next(score for score in every if score.folder.name == "muon")
    assert "optimizer     muon" in str(muon)
    assert muon.to_dict()["optimizer"] == "muon"
    own = next(score for score in every if score.folder.name == "own")
    assert "optimizer" not in str(own)
    assert "optimizer" not in str(dataclasses.replace(every, scores=(own, own)))


def test_a_source_in_a_configuration_is_a_word_with_its_hash(sets):
    texts = [data["config"]["transform"] for data in payload(collect(sets).sets, [])["sets"]]
    assert len({*texts}) == 2, "those that differ look different"
    assert all(text.startswith("text ") and text.endswith(" (4 lines)") for text in texts)


# -- comparisons as data ---------------------------------------------------------------------------


def test_documents_are_json_and_hold_what_the_tables_do():
    made = demo()
    found = documents(made)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    for one, document in zip(made, found["comparisons"], strict=True):
        assert document["head"] == tables.heads(one)
        assert document["rows"] == tables.cells(one)
        assert document["notes"] == tables.notes(one)
        assert [curve["name"] for curve in document["curves"]] == ["loss", "accuracy"]
    failed = found["comparisons"][0]["ratios"]["samples"][2]
    assert (failed["ratio"], failed["high"], failed["known"]) == (None, None, True)
    assert failed["low"] > 1 and failed["verdict"] == "more samples"
    line = found["comparisons"][0]["curves"][1]["lines"][0]
    assert len(line["x"]) == len(line["low"]) == len(line["y"]) == len(line["high"]) > 10
    assert found["profiles"]["steps"][1][0] == [1, 1]
    assert documents(made[:1])["profiles"] is None
    assert documents([]) == {"comparisons": [], "profiles": None, "profiles_fault": ""}


def test_profiles_that_cannot_be_made_say_why():
    found = documents([demo()[0], comparison({"lion": [640]}, benchmark="bert")])
    assert found["profiles"] is None
    assert "lion is not on resnet (tiny)" in found["profiles_fault"]


def test_open_and_missing_intervals():
    (few,) = documents([comparison({"a": [640], "b": [640]})])["comparisons"][0]["ratios"][
        "samples"
    ]
    assert (few["known"], few["low"], few["high"], few["ratio"]) == (False, None, None, 1)
    made = comparison({"a": [None] * 6, "b": [640] * 6})
    (better,) = documents([made])["comparisons"][0]["ratios"]["samples"]
    assert (better["low"], better["known"]) == (None, True) and better["high"] < 1


def test_a_report_shows_them_as_text_and_in_a_notebook():
    found = Report((), (), comparisons=tuple(demo()))
    assert "comparison of bert (tiny): samples to accuracy" in repr(found)
    assert found._repr_html_().count("<table>") == 3 + 1
    plain = plain_comparisons(found.comparisons)
    assert plain.count("<table>") == 3 and "style" not in plain, "the policy allows none"
    assert plain in found.html()


# -- in a browser ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    if chromium.binary() is None:
        pytest.skip("Chromium is not installed")
    with chromium.Page() as page:
        yield page


@pytest.fixture(scope="module")
def written(sets, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    return report(sets, path, comparisons=demo()).path


def texts(page, selector):
    return page.value(f"[...document.querySelectorAll({selector!r})].map((n) => n.textContent)")


def test_the_page_draws_tables_bands_intervals_and_profiles(browser, written):
    browser.open(written)
    assert browser.console == []
    assert browser.value("document.getElementById('comparisons').hidden") is False
    assert len(texts(browser, ".comparison table")) == 3 + 1
    assert len(texts(browser, ".comparison .band")) == 3 * 2 * 4
    assert len(texts(browser, ".comparison .interval")) == 3 * 3
    titles = texts(browser, ".comparison .plot-card h3")
    assert titles == [*["loss against samples", "accuracy against samples", "Ratio to lars"] * 3, "Performance profiles"]  # fmt: skip
    assert "NaN" not in browser.value("document.getElementById('comparison-list').innerHTML")
    assert "no MLPerf result" in browser.value("document.getElementById('comparison-list').innerText")  # fmt: skip
    assert "0.759 (0.746 to 0.772)" in texts(browser, "#plot-forest-0 .value")


def test_intervals_lie_on_their_sides_of_one(browser, written):
    browser.open(written)
    muon, _, sgd = browser.value(
        "[...document.querySelectorAll('#plot-forest-0 .interval')].map((n) => { const b = n.getBBox(); return [b.x, b.x + b.width]; })"
    )
    one = browser.value("document.querySelector('#plot-forest-0 .target').getBBox().x")
    assert muon[1] < one < sgd[0]
    browser.value(
        "(() => { const list = document.querySelectorAll('#comparison-list select')[0]; list.value = 'seconds';"
        " list.dispatchEvent(new Event('change')); })()"
    )
    assert "seconds to the target" in browser.value("document.getElementById('plot-forest-0').textContent")  # fmt: skip


def test_pointing_at_a_median_names_its_entry(browser, written):
    browser.open(written)
    browser.point_along("#plot-band-0-1 svg")
    tip = browser.value("document.getElementById('tip').textContent")
    assert "of 8 runs" in tip and "unverified" in tip


@pytest.mark.parametrize("width", [1400, 420])
def test_nothing_is_wider_than_the_window(browser, written, width):
    browser.open(written, width=width)
    assert browser.value("document.documentElement.scrollWidth") == width
    ends = browser.value(
        "[...document.querySelectorAll('.comparison svg')].map((s) => s.getBoundingClientRect().right)"
    )
    assert max(ends) <= width


def test_sets_are_called_by_their_optimizer_and_sources_are_short(browser, written):
    browser.open(written)
    legend = " ".join(texts(browser, "#group .legend span"))
    assert all(name in legend for name in ("muon", "opt_base_learning_rate 0.1", "opt_base_learning_rate 0.2", "lars (the recipe's)"))  # fmt: skip
    assert len({*texts(browser, ".results td.system")}) == 4
    browser.value("document.querySelectorAll('.pick input').forEach((box) => box.click())")
    browser.frame()
    heads = texts(browser, ".differences th[scope=row]")
    rows = texts(browser, ".differences tr:has(th[scope=row])")
    assert "muon" in rows[heads.index("optimizer")]
    source = rows[heads.index("transform")]
    assert "class Flip" not in source and source.count("(4 lines)") == 4


def test_without_comparisons_there_is_no_section(browser, sets, tmp_path):
    browser.open(report(sets, tmp_path / "r.html").path)
    assert browser.console == []
    assert browser.value("document.getElementById('comparisons').hidden") is True


def test_hostile_labels_run_nothing(browser, sets, tmp_path):
    made = comparison({HOSTILE: [640 * n for n in range(1, 7)], "__proto__": [None] * 6, "b": []})
    made = dataclasses.replace(made, folder=HOSTILE, device="\ud800")
    browser.open(report(sets, tmp_path / "r.html", comparisons=[made]).path)
    assert browser.console == []
    assert browser.value("document.title") == "Training results (unverified)"
    assert browser.value("document.querySelectorAll('img').length") == 0
    assert "onerror" in browser.value("document.getElementById('comparison-list').textContent")
    assert "no pair of runs" in browser.value("document.getElementById('comparison-list').textContent")  # fmt: skip

"""The report in a real browser: it loads under its policy, filters, sorts, and runs nothing foreign."""

import base64
import struct

import chromium
import pytest
import report_demo

from mlperf_jax.results.report import report

pytestmark = pytest.mark.skipif(chromium.binary() is None, reason="Chromium is not installed")

HOSTILE = (
    "</script><img src=x onerror=\"document.title='owned'\"><svg onload=\"document.title='owned'\">"
)


@pytest.fixture(scope="module")
def browser():
    with chromium.Page() as page:
        yield page


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    return report(report_demo.write_demo(root / "demo"), root / "report.html")


@pytest.fixture
def page(browser, written):
    browser.open(written.path)
    return browser


def rows(page):
    return page.value("document.querySelectorAll('.results tr.set').length")


def choose(page, name, value):
    page.value(
        f"(() => {{ const list = document.getElementById('filter-{name}'); list.value = {value!r};"
        " list.dispatchEvent(new Event('change')); })()"
    )
    page.frame()


def texts(page, selector):
    return page.value(
        f"[...document.querySelectorAll({selector!r})].map((node) => node.textContent)"
    )


def test_it_loads_without_a_word_in_the_console(page, written):
    assert page.console == []
    assert rows(page) == len(written.sets)
    drawn = texts(page, "#plots h3")
    assert "Quality against time" in drawn
    assert "Place against the reference" in drawn
    assert page.value("document.querySelectorAll('#plots svg').length") == len(drawn)
    assert page.value("document.querySelectorAll('#plots .curve').length") > 5
    assert "NaN" not in page.value("document.getElementById('plots').innerHTML")


def test_every_score_is_labelled(page, written):
    cells = texts(page, ".results td.minutes")
    shown = [text for text in cells if text != "–"]
    assert len(shown) == sum(data.verdict.minutes is not None for data in written.sets)
    assert all(text.endswith("unverified") for text in shown)
    foot = page.value("document.querySelector('footer').innerText")
    assert "Result not verified by MLCommons Association." in foot
    assert "registered and unregistered trademarks of MLCommons" in foot
    assert "v5.0 closed: bert benchmark" in foot.replace("(assumed) ", "")


def test_filters_narrow_the_table_and_the_charts_and_are_taken_back(page, written):
    choose(page, "benchmark", "resnet")
    assert set(texts(page, ".results td.name b")) == {"resnet"}
    assert [text.rstrip("0123456789") for text in texts(page, "#tabs button")] == ["resnet"]
    assert "resnet benchmark of MLPerf® Training" in texts(page, "#group h3")[0]
    choose(page, "division", "open")
    assert rows(page) == 1
    assert "1 of" in page.value("document.getElementById('shown').textContent")
    page.value("document.getElementById('filter-reset').click()")
    page.frame()
    assert rows(page) == len(written.sets)


@pytest.mark.parametrize(
    ("name", "value"),
    [("system", "h200_n8_jax"), ("chips", "512"), ("status", "incomplete"), ("division", "open")],
)
def test_each_filter_counts_what_it_leaves(page, name, value):
    option = page.value(
        f"[...document.getElementById('filter-{name}').options].find((o) => o.value === {value!r}).text"
    )
    choose(page, name, value)
    assert option == f"{value} ({rows(page)})"
    assert rows(page) > 0


def test_the_search_takes_several_words_and_says_when_nothing_is_left(page):
    def search(words):
        page.value(
            f"(() => {{ const box = document.getElementById('filter-text'); box.value = {words!r};"
            " box.dispatchEvent(new Event('input')); })()"
        )
        page.frame()

    search("trillium another")
    assert rows(page) == 1
    search("no such thing")
    assert rows(page) == 0
    assert "No set passes" in page.value("document.getElementById('table').innerText")
    assert page.value("document.getElementById('charts').hidden") is True


def test_columns_sort_both_ways_with_the_unknown_last(page):
    def order():
        text = [cell.removesuffix("unverified") for cell in texts(page, ".results td.minutes")]
        return [None if cell == "–" else float(cell.replace(",", "")) for cell in text]

    def sort():
        page.value(
            "[...document.querySelectorAll('.results > thead button')]"
            ".find((b) => b.textContent === 'Minutes').click()"
        )

    for direction in (1, -1):
        sort()
        known = [value for value in order() if value is not None]
        assert known == sorted(known, reverse=direction < 0)
        assert order()[len(known) :] == [None] * (len(order()) - len(known))


def test_details_show_the_runs_and_their_settings(page):
    choose(page, "system", "8xTPU v5 lite")
    choose(page, "division", "closed")
    page.value("document.querySelector('.more').click()")
    page.frame()
    detail = page.value("document.querySelector('.detail').textContent")
    for part in ("run 4", "left out (extreme)", "lars_opt_base_learning_rate", "0.12.0", "MFU"):
        assert part in detail


def test_chosen_sets_are_compared_with_what_the_rules_want_said(page):
    choose(page, "benchmark", "resnet")
    choose(page, "chips", "8")
    page.value("document.querySelectorAll('.pick input').forEach((box) => box.click())")
    page.frame()
    differences = page.value("document.getElementById('differences').textContent")
    assert "closed, open" in differences
    assert "may have changed the model, the optimizer or the schedule" in differences
    assert "opt_name" in differences
    assert "muon" in differences
    choose(page, "chips", "")
    choose(page, "benchmark", "bert")
    page.value("document.querySelector('.pick input').click()")
    assert "may not be compared" in page.value("document.getElementById('differences').textContent")


def test_findings_are_listed(page, written):
    listed = page.value("document.getElementById('finding-list').textContent")
    for finding in written.findings:
        assert finding.expected in listed


def test_pointing_at_a_curve_names_its_run(page):
    page.point_along("#plot-quality-t svg")
    tip = page.value("document.getElementById('tip').textContent")
    assert "seed" in tip
    assert "unverified" in tip


@pytest.mark.parametrize("width", [1400, 420])
def test_nothing_is_wider_than_the_window(page, written, width):
    page.resize(width, 900)
    page.value("document.querySelector('.more').click()")
    page.frame()
    assert page.value("document.documentElement.scrollWidth") == width
    for svg in page.value(
        "[...document.querySelectorAll('#plots svg')].map((s) => s.getBoundingClientRect().right)"
    ):
        assert svg <= width


def test_dark_and_light_differ_only_in_colour(browser, written):
    grounds = []
    for dark in (False, True):
        browser.open(written.path, dark=dark)
        grounds.append(browser.value("getComputedStyle(document.body).backgroundColor"))
        assert browser.console == []
    assert grounds[0] != grounds[1]


def test_hostile_names_and_values_run_nothing(browser, tmp_path):
    folder = tmp_path / "x'\"<i>&"
    report_demo.write_set(
        folder, "bert", chips=8, batch=448, length=2.4e6, minutes=5, platform=HOSTILE, org=HOSTILE, seed=1,
        settings={HOSTILE: HOSTILE, "__proto__": HOSTILE, "constructor": 1},
    )  # fmt: skip
    (folder / "result_3.txt").write_text(HOSTILE)
    report(tmp_path, tmp_path / "r.html")
    browser.open(tmp_path / "r.html")
    browser.value("document.querySelectorAll('.more').forEach((button) => button.click())")
    browser.frame()
    assert browser.value("document.title") == "Training results (unverified)"
    assert (
        browser.value("document.querySelectorAll('img, iframe, [onload], [onerror]').length") == 0
    )
    assert browser.console == []
    assert "onerror" in browser.value("document.querySelector('.results').textContent")


def test_the_policy_stops_what_does_not_belong_to_the_page(page):
    page.value(
        "(() => { const s = document.createElement('script'); s.textContent = \"document.title = 'owned'\";"
        " document.body.append(s); const i = document.createElement('img'); i.src = 'x.png';"
        " document.body.append(i); })()"
    )
    page.frame()
    assert page.value("document.title") == "Training results (unverified)"
    assert any("Content Security Policy" in text for text in page.console)


def test_a_screenshot_is_as_wide_as_asked(page, tmp_path):
    page.screenshot(tmp_path / "page.png", whole=False)
    header = (tmp_path / "page.png").read_bytes()[:24]
    assert base64.b64encode(header[:4]) == b"iVBORw=="
    assert struct.unpack(">I", header[16:20])[0] == 1400


def test_two_hundred_runs_of_five_hundred_evaluations_are_a_small_page(browser, tmp_path):
    folders = report_demo.write_large(tmp_path, runs=40, evaluations=500)
    written = report(folders, tmp_path / "large.html")
    # a fifth of the load; the whole must stay under 3 MB, of which the script is a small part
    assert written.path.stat().st_size < 3_000_000 / 5
    browser.open(written.path)
    assert browser.console == []
    assert rows(browser) == 20

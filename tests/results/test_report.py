"""What the report makes of folders: whole sets, and everything that can be wrong with them."""

import datetime
import html.parser
import json
import os
import re

import pytest
import report_demo

from mlperf_jax.errors import UserError
from mlperf_jax.results.report import collect, report
from mlperf_jax.results.report.model import Curve, SetData
from mlperf_jax.results.report.page import embedded, render
from mlperf_jax.results.report.payload import _axis, payload, span_of
from mlperf_jax.results.result import LEGEND, UNVERIFIED

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><!--\u2028${1}`&amp;"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return collect(report_demo.write_demo(tmp_path_factory.mktemp("demo")))


def by_folder(found, end):
    return next(data for data in found.sets if data.folder.endswith(end))


def bert(folder, **changes):
    fields = {
        "chips": 8,
        "batch": 448,
        "length": 2.45e6,
        "minutes": 5.0,
        "platform": "8xNVIDIA H200",
    }
    return report_demo.write_set(folder, "bert", **(fields | {"seed": 1} | changes))


def texts(found):
    return "\n".join(map(str, found.findings))


# -- whole sets --------------------------------------------------------------------------------


def test_a_set_of_ours_is_read_with_chips_settings_and_speed(demo):
    data = by_folder(demo, "resnet-v5e-8")
    assert (data.benchmark, data.round, data.division, data.chips) == ("resnet", "4.0", "closed", 8)
    assert not data.assumed
    assert data.verdict.status == "scored"
    times = sorted(run.seconds / 60 for run in data.runs)[1:-1]
    factor = max(1.0, data.verdict.position.reference / data.verdict.position.mean)
    assert data.verdict.minutes == pytest.approx(sum(times) / 3 * factor, rel=1e-9)
    assert sum(run.used for run in data.runs) == 3
    # the log counts epochs, the page shows samples
    assert data.unit == "samples"
    assert data.runs[0].length % 1_281_167 == 0
    assert data.runs[0].settings["lars_opt_base_learning_rate"] == 10.5
    assert data.targets[0].at_least == 0.759


def test_a_replaced_optimizer_is_shown_and_the_recipes_is_not(demo):
    ours = by_folder(demo, "resnet-muon-v5e-8")
    assert ours.runs[0].config["opt_name"] == "lars"
    replaced, own = payload([ours, by_folder(demo, "resnet-v5e-8")], [])["sets"]
    assert (replaced["optimizer"], own["optimizer"]) == ("muon", "")
    assert replaced["settings"]["opt_name"] == "muon"
    assert "opt_name" not in replaced["config"]


def test_a_submission_takes_its_system_from_the_system_file(demo):
    data = by_folder(demo, "h200_n8_jax/bert")
    assert (data.system, data.chips, data.org) == ("h200_n8_jax", 64, "ExampleOrg")
    assert (data.round, data.assumed) == ("5.0", False)  # the folder's name says so
    assert data.hardware["framework"] == "JAX 0.12"
    assert data.verdict.position.accepted is True
    # between two reference points there are no reference runs to draw, at one there are
    assert data.verdict.position.lengths == ()
    assert len(by_folder(demo, "h200_n1_jax/bert").verdict.position.lengths) == 23


def test_tiny_sets_stay_apart_from_the_benchmark_and_from_its_reference(demo):
    tiny, real = by_folder(demo, "resnet-tiny-e7884d90"), by_folder(demo, "resnet-v5e-8")
    assert tiny.size == "tiny"
    assert tiny.label == "resnet (tiny)"
    assert tiny.targets[0].at_least == 0.75  # its own, not the benchmark's
    assert tiny.verdict.position is None or tiny.verdict.position.reference is None
    sets = payload([tiny, real], [])["sets"]
    assert sets[0]["group"] != sets[1]["group"]


def test_a_small_stand_in_is_known_by_its_evaluation_samples_alone(tmp_path):
    bert(tmp_path / "s", settings={"eval_samples": 300}, division="open")
    assert collect(tmp_path).sets[0].size == "reduced"


def test_versions_that_may_not_be_compared_are_not_drawn_together(demo):
    data = by_folder(demo, "resnet-v5e-8")

    def at(round_):
        return span_of(SetData("f", "f", "resnet", round=round_))

    assert span_of(data) == at("0.6") == at("2.1")
    assert at("0.5") != at("0.6")


def test_sets_that_cannot_be_scored_say_why(demo):
    expected = {
        "bert-broken": ("broken", "2 of 10"),
        "llama-half": ("incomplete", "4 of 10"),
        "llama-open-diverges": ("not converged", "2 of 10"),
    }
    for folder, (status, why) in expected.items():
        verdict = by_folder(demo, folder).verdict
        assert verdict.status == status
        assert verdict.minutes is None
        assert why in verdict.reason
    assert "result_4.txt" in texts(demo)
    assert "result_7.txt" in texts(demo)


# -- bad input: a line in the report, and the others are still there ---------------------------


def test_a_cut_log_keeps_its_readable_lines(tmp_path):
    log = bert(tmp_path, runs=1) / "result_0.txt"
    content = log.read_text()
    log.write_text(content[: content.rindex(":::MLLOG") - 40])
    run = collect(tmp_path).sets[0].runs[0]
    assert run.status == "unfinished"
    assert run.seconds is None
    assert len(run.curves[0].values) >= 16


def test_evaluations_that_are_no_numbers_are_left_out_and_named(tmp_path):
    log = bert(tmp_path, runs=1) / "result_0.txt"
    lines = log.read_text().splitlines()
    at = [n for n, line in enumerate(lines) if '"eval_accuracy"' in line]
    lines[at[2]] = re.sub(r'"value": [^,]+', '"value": "0.7"', lines[at[2]])
    lines[at[3]] = re.sub(r'"value": [^,]+', '"value": NaN', lines[at[3]])
    lines[at[4]] = re.sub(r'"epoch_num": \d+', '"epoch_num": "many"', lines[at[4]])
    log.write_text("\n".join(lines) + "\n")
    found = collect(tmp_path)
    curve = found.sets[0].runs[0].curves[0]
    assert len(curve.values) == report_demo.KINDS["bert"]["evals"] - 2
    assert curve.values[2] == 0.7  # text that spells a number counts, and is named
    said = texts(found)
    assert 'eval_accuracy: has the text "0.7" for a number' in said
    assert re.search("without (epoch_num|samples_count), are left out: 1", said)
    assert f"result_0.txt:{at[4] + 1}: eval_accuracy: has the value" in said


def test_lines_prefixed_by_a_rank_and_strange_types_are_read(tmp_path):
    log = bert(tmp_path, runs=1) / "result_0.txt"
    odd = [
        ':::MLLOG {"key": 3, "value": 1, "time_ms": 1, "metadata": {}}',
        ':::MLLOG {"key": "a", "value": 1, "time_ms": 1e999, "metadata": {}}',
        ':::MLLOG {"key": "b", "value": [1], "time_ms": 5, "metadata": [1]}',
        ":::MLLOG []",
        ":::MLLOG " + "[" * 100_000,
    ]
    log.write_text("".join(f"0: {line}\n" for line in [*log.read_text().splitlines(), *odd]))
    run = collect(tmp_path).sets[0].runs[0]
    assert run.status == "success"
    assert run.settings["b"] == "[1]"


def test_damaged_files_beside_the_log_cost_only_themselves(tmp_path):
    bert(tmp_path / "set")
    run = tmp_path / "set" / "run_0"
    run.mkdir()
    (run / "result.json").write_text('{"mfu": ')
    (run / "config.json").write_text("[1, 2]")
    (run / "scalars.jsonl").write_text('{"samples": 5, "loss": 2}\nnot json\n{"samples": "7"}\n')
    (tmp_path / "set" / "run_12").mkdir()  # begun, never logged
    found = collect(tmp_path)
    assert found.sets[0].verdict.minutes is not None
    said = texts(found)
    assert "run_0/result.json: is not JSON" in said
    assert "run_0/config.json: is not a JSON object" in said
    assert "result_12.txt: is missing" in said


def test_a_run_of_another_benchmark_is_left_out(tmp_path):
    folder = bert(tmp_path / "set")
    (folder / "result_3.txt").unlink()
    report_demo.write_set(
        tmp_path / "other", "resnet", chips=8, batch=3264, length=4e7, minutes=30, platform="p", seed=1, runs=1
    )  # fmt: skip
    (tmp_path / "other" / "result_0.txt").rename(folder / "result_3.txt")
    data = by_folder(collect(folder), "set")
    assert data.benchmark == "bert"
    assert len(data.runs) == 9
    assert "result_3.txt is left out" in texts(collect(folder))


def test_a_missing_system_file_and_an_empty_folder_are_said_and_the_rest_is_shown(tmp_path):
    top = tmp_path / "training_results_v5.0" / "Org"
    bert(top / "results" / "sys" / "bert")
    (tmp_path / "empty").mkdir()
    found = collect([top, tmp_path / "empty", tmp_path / "nowhere"])
    assert len(found.sets) == 1
    assert found.sets[0].system == "sys"
    assert found.sets[0].round == "5.0"
    said = texts(found)
    assert "systems/sys.json" in said
    assert "empty: has no runs" in said
    assert "nowhere: does not exist" in said


def test_the_same_folder_twice_is_shown_once(tmp_path):
    bert(tmp_path / "a")
    found = collect([tmp_path, tmp_path / "a"])
    assert len(found.sets) == 1
    assert not [finding for finding in found.findings if "has no runs" in finding.expected]


def test_an_unknown_benchmark_is_shown_without_a_score(tmp_path):
    log = bert(tmp_path, runs=1) / "result_0.txt"
    log.write_text(log.read_text().replace('"value": "bert"', '"value": "chess"'))
    found = collect(tmp_path)
    assert found.sets[0].benchmark == "chess"
    assert found.sets[0].verdict.minutes is None
    assert "chess" in texts(found)
    assert len(found.sets[0].runs[0].curves[0].values) > 3


def test_nothing_to_report_on_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nothing to report on"):
        collect(tmp_path)
    with pytest.raises(UserError, match="no folder is given"):
        collect([])


def test_a_page_that_cannot_be_written_is_an_error(tmp_path):
    bert(tmp_path / "a", runs=1)
    with pytest.raises(UserError, match="there is no folder"):
        report(tmp_path, tmp_path / "missing" / "report.html")


# -- the page ----------------------------------------------------------------------------------


class Elements(html.parser.HTMLParser):
    """All elements with their attributes, and the text of scripts."""

    def __init__(self, text):
        super().__init__()
        self.found, self.scripts, self._inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._inside = tag == "script"

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.scripts.append(data)


def test_the_page_carries_the_notices_and_loads_nothing(demo):
    text = render(demo.sets, demo.findings, now=datetime.datetime(2026, 1, 2, 3, 4))
    assert text.count(UNVERIFIED) >= 2
    assert LEGEND in text
    elements = Elements(text)
    names = [tag for tag, _ in elements.found]
    assert not {"img", "link", "iframe", "object", "embed", "form"} & set(names)
    attributes = {name for _, attrs in elements.found for name in attrs}
    assert not {"src", "href", "style", "onclick", "onload"} & attributes
    policy = next(a["content"] for _, a in elements.found if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    data = json.loads(elements.scripts[0])
    assert data["date"] == "2026-01-02 03:04 UTC"
    assert len(data["sets"]) == len(demo.sets)


def test_numbers_that_json_does_not_know_never_reach_the_page(tmp_path):
    bert(
        tmp_path / "a", runs=2, settings={"nan": float("nan"), "huge": 10**400, "deep": [{"a": 1}]}
    )
    text = report(tmp_path, tmp_path / "r.html").html()
    data = json.loads(Elements(text).scripts[0], parse_constant=pytest.fail)
    assert data["sets"][0]["settings"]["nan"] == "nan"


def test_hostile_text_stays_text(tmp_path):
    folder = tmp_path / "<b>x"
    bert(
        folder, platform=HOSTILE, org=HOSTILE, settings={HOSTILE: HOSTILE, "__proto__": "x"}, runs=3
    )
    (tmp_path / os.fsdecode(b"bad\xff")).mkdir()
    found = collect(tmp_path)
    for text in (found.html(), found._repr_html_()):
        text.encode("utf-8")
        assert "<img" not in text
        assert "<b>x" not in text
    names = [tag for tag, _ in Elements(found.html()).found]
    assert names.count("script") == 2
    assert embedded({"a": HOSTILE + "\ud800"}).isprintable()


def test_a_notebook_gets_a_table_without_script(demo):
    text = demo._repr_html_()
    assert "<script" not in text
    assert "style=" not in text
    assert text.count("(unverified)") > len([s for s in demo.sets if s.verdict.minutes])
    assert UNVERIFIED in text
    assert LEGEND in text
    assert UNVERIFIED in repr(demo)
    assert f"{len(demo.sets)} sets" in repr(demo)


@pytest.mark.parametrize("values", [(0.0,), (1.5, 3.0, 4.5), (0.1, 7.3, 7.9, 400.0), (5.0, 5.0)])
def test_axes_survive_their_packing(values):
    packed = _axis(values)
    if "d" in packed:
        total, back = 0, []
        for step in packed["d"]:
            total += step
            back.append(total * packed["q"])
    else:
        back = [packed["a"] + packed["s"] * n for n in range(packed["n"])]
    span = max(values) - min(values)
    assert back == pytest.approx(values, abs=span / 10_000 + 1e-9)


def test_an_evaluation_takes_few_characters(demo):
    run = by_folder(demo, "b200_n8_jax/llama31_8b").runs[0]
    curve = Curve("", *(getattr(run.curves[0], name) for name in ("seconds", "lengths", "values")))
    document = payload([by_folder(demo, "b200_n8_jax/llama31_8b")], [])["sets"][0]["runs"][0]
    text = json.dumps(document["curves"][0], separators=(",", ":"))
    assert len(text) < 20 * len(curve.values)


def test_lengths_are_samples_whichever_way_they_are_logged(demo):
    ours, epochs = by_folder(demo, "resnet-muon-v5e-8"), by_folder(demo, "resnet-v5e-8")
    for data in (ours, epochs):
        assert data.unit == "samples"
        assert {curve.name for curve in data.runs[0].curves} == {"", "training loss"}
        for curve in data.runs[0].curves:
            assert curve.lengths[-1] == pytest.approx(data.runs[0].length, rel=0.03)
    assert "samples_count" in ours.runs[0].ending
    assert "samples_count" not in epochs.runs[0].ending

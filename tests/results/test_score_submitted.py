"""Scores of submissions: the minutes of the official summary first, whatever else there is second."""

import json

import pytest
from score_sets import lines, resnet_set, said, write

from mlperf_jax.errors import UserError
from mlperf_jax.results import compliance
from mlperf_jax.results.report import collect
from mlperf_jax.results.score import score

FAST = 28.0  # epochs: fewer than the reference at batch 3,264 allows
QUICK = 35.0  # fewer than its mean


@pytest.fixture
def submitted(tmp_path):
    """Writes a set of a submission's tree, with a `scaling.json` where a factor is given."""

    def make(*logs, factor=None, below="lab/results/box/resnet"):
        folder = write(tmp_path / "training_results_v4.0" / below, *logs)
        if factor is not None:
            (folder / "scaling.json").write_text(json.dumps({"scaling_factor": factor}))
        return folder

    return make


def test_a_filed_factor_is_applied_though_the_verdict_is_too_fast(submitted):
    folder = submitted(*resnet_set(10, 10, 10, 10, 10, length=FAST), factor=1.18)
    found = score(folder)
    assert found.verdict is not None and not found.verdict.passed
    assert found.minutes == pytest.approx(11.8)
    assert (found.factor_source, found.submitted, found.valid) == ("scaling.json", True, False)
    assert found.reference_minutes == 10
    text = str(found)
    assert "11.800 minutes (unverified)" in text.splitlines()[1]
    assert "10.000 minutes x 1.1800 from scaling.json" in text
    assert "10.000 minutes, not scaled, by the comparison with the reference" in text
    assert found.to_dict()["minutes"] == pytest.approx(11.8)
    assert found.to_dict()["reference_minutes"] == 10
    verdict = collect(folder).sets[0].verdict
    assert (verdict.minutes, verdict.status) == (pytest.approx(11.8), "too fast")
    assert "scaled by 1.1800 from scaling.json; 10.000 minutes, not scaled" in verdict.reason


def test_a_submission_without_a_filed_factor_is_not_scaled(submitted):
    folder = submitted(*resnet_set(10, 10, 10, 10, 10, length=QUICK))
    found = score(folder)
    by_reference = 10 * found.verdict.scaling_factor
    assert by_reference > 10.04
    assert (found.minutes, found.factor_source) == (10, "")
    assert found.reference_minutes == pytest.approx(by_reference)
    assert score(folder, scaling="rcp").minutes == pytest.approx(by_reference)
    assert collect(folder).sets[0].verdict.minutes == 10
    scaled = collect(folder, scaling="rcp").sets[0].verdict
    assert scaled.minutes == pytest.approx(by_reference)
    assert "by the reference" in scaled.reason


def test_runs_of_ours_in_such_a_folder_are_no_submission(submitted):
    folder = submitted(*resnet_set(10, 10, 10, 10, 10, length=QUICK))
    (folder / "run_0").mkdir()
    found = score(folder)
    assert (found.submitted, found.factor_source) == (False, "reference")
    assert found.reference_minutes is None


def test_a_log_that_is_there_is_a_run(submitted):
    folder = submitted(*resnet_set(10, 11, 12, 13), "curl: (22) no such file\n")
    found = score(folder)
    assert found.minutes == pytest.approx(12)
    assert len(found.runs) == 5
    assert "global_batch_size: is not in result_4.txt" in said(found)
    assert not found.valid


def test_a_submission_that_lacks_runs_has_minutes_in_the_report_too(submitted):
    folder = submitted(*resnet_set(10, 11, 12, 13))
    verdict = collect(folder).sets[0].verdict
    assert score(folder).minutes == verdict.minutes == 11.5
    assert (verdict.status, verdict.reason) == ("incomplete", "4 of 5 runs are here")


# ---- the first two rounds


def v06(log):
    """A log of today's form as v0.6 wrote it."""
    for text in log:
        members = json.loads(text.removeprefix(":::MLLOG "))
        rest = json.dumps({"value": members["value"], "metadata": members["metadata"]})
        yield f":::MLL {members['time_ms'] / 1000:.3f} {members['key']}: {rest}"


def test_lines_of_v06_are_scored(tmp_path):
    logs = [["rank 3 " + text for text in v06(log)] for log in resnet_set(10, 11, 12, 13, 14)]
    found = score(write(tmp_path / "set", *logs))
    assert (found.ruleset, found.minutes, found.length) == ("0.6.0", pytest.approx(12), 36)
    assert (found.benchmark, found.batch_size, found.valid) == ("resnet", 3264, True)


def test_minutes_of_v06_are_those_of_the_official_summary(tmp_path):
    parser = pytest.importorskip("mlperf_logging.compliance_checker.mlp_parser.ruleset_060")
    path = write(tmp_path / "set", list(v06(lines(10.5)))) / "result_0.txt"
    official, wrong = parser.parse_file(path)
    at = {line.key: line.timestamp for line in official}
    assert not wrong
    ours = score(path.parent, "0.6").runs[0]
    assert ours.minutes == pytest.approx((at["run_stop"] - at["run_start"]) / 60)


def test_qualities_of_v06_that_are_named_one_level_deeper(tmp_path):
    logs = [
        lines(m, benchmark="mask", seed=m, values=({"accuracy": {"BBOX": 0.4, "SEGM": 0.35}},))
        for m in range(10, 15)
    ]
    found = score(write(tmp_path / "set", *map(list, map(v06, logs))))
    assert (found.benchmark, found.minutes) == ("maskrcnn", pytest.approx(12))
    assert found.runs[0].quality == {"BBOX": 0.4, "SEGM": 0.35}


def test_a_line_of_v06_that_is_no_json_spoils_its_log(tmp_path):
    log = list(v06(lines(10)))
    log[4] = ":::MLL 12.5 cache_clear: {value: true, metadata: {lineno: 0}}"
    found = score(write(tmp_path / "set", log))
    assert found.runs[0].flaw == "the log is damaged"
    assert "result_0.txt:5: the line cannot be read" in said(found)


def test_a_run_of_v06_that_was_judged_afterwards_ends_with_the_model_that_passed(tmp_path):
    logs = [list(v06(lines(90, benchmark="minigo", seed=i)))[:-1] for i in range(5)]
    for i, log in enumerate(logs):
        passed = {"value": None, "metadata": {"iteration": 3, "timestamp": 600.0 + 60 * i}}
        log.append(f":::MLL 99999.000 eval_result: {json.dumps(passed)}")
    found = score(write(tmp_path / "set", *logs))
    assert found.benchmark == "minigo"
    assert found.minutes == pytest.approx(12)


def v05(minutes, *, stop='{"success": true}', quality=0.76):
    at = [1_540_000_000.0, 1_540_000_000.0 + minutes * 60]
    said = [
        (at[0], "run_start", ""),
        (at[0], "seed", "17"),
        (at[0], "model_hp", "(1, 2)"),
        (at[1], "eval_accuracy", json.dumps({"epoch": 60, "value": quality})),
        (at[1], "eval_target", "0.749"),
        (at[1], "run_stop", stop),
    ]
    return [
        f":::MLPv0.5.0 resnet {time:.6f} (train.py:{i}) {key}{': ' * bool(value)}{value}"
        for i, (time, key, value) in enumerate(said)
    ]


def test_logs_of_v05_are_shown_without_a_score(tmp_path):
    found = score(write(tmp_path / "set", *(v05(10 + i) for i in range(5))))
    assert (found.ruleset, found.minutes, found.division) == ("0.5.0", None, "")
    assert found.mean_minutes == pytest.approx(12)
    assert [run.minutes for run in found.runs] == pytest.approx([10, 11, 12, 13, 14])
    assert found.runs[0].quality == {"accuracy": 0.76}
    text = str(found)
    assert "no score; 5 runs took 12.000 minutes on average (unverified)" in text
    assert "there is no official score of logs of v0.5" in text
    assert "resnet, division not logged" in text
    verdict = collect(tmp_path / "set").sets[0].verdict
    assert verdict.minutes is None
    assert (verdict.status, verdict.reason) == ("flawed", found.rcp_note)


def test_runs_of_v05_that_say_nothing_of_success_are_judged_by_their_target(tmp_path):
    logs = [
        v05(10),
        v05(10, stop='{"success": false}'),
        v05(10, stop=""),
        v05(10, stop="", quality=0.7),
    ]
    found = score(write(tmp_path / "set", *logs))
    assert [run.counted for run in found.runs] == [True, False, True, False]


def test_a_value_that_no_score_needs_does_not_make_it_invalid(submitted):
    logs = resnet_set(10, 11, 12, 13, 14, division="open")
    logs[0] = [text.replace('"value": 1281167', '"value": [1281167]') for text in logs[0]]
    found = score(submitted(*logs))
    assert "train_samples: has the value [1281167]" in said(found)
    assert (found.minutes, found.valid) == (12, True)


def test_before_v10_nobody_asked_for_seeds(submitted):
    logs = [lines(10 + i, seed=None) for i in range(5)]
    assert score(submitted(*logs), "0.7").valid
    assert not score(submitted(*logs), "1.0").valid


def test_logs_of_v06_are_checked_by_their_own_rules(tmp_path):
    pytest.importorskip("mlperf_logging.compliance_checker.mlp_compliance")
    folder = write(tmp_path / "set", list(v06(lines(10))))
    report = compliance.check(folder / "result_0.txt")
    assert (report.ruleset, report.success) == ("0.6.0", False)
    asked = {finding.key for finding in report.findings}
    assert {"submission_status", "epoch_start"} < asked
    assert "run_start" not in asked
    assert score(folder, "0.6", official=True).runs[0].flaw.startswith("the official compliance")
    today = write(tmp_path / "today", lines(10))
    with pytest.raises(UserError, match=r"under ruleset 0\.6\.0; the oldest is 0\.7\.0"):
        compliance.check(today, "0.6")
    first = write(tmp_path / "first", v05(10))
    with pytest.raises(UserError, match=r"under ruleset 0\.5\.0; the oldest is 0\.6\.0"):
        compliance.check(first, "0.5")

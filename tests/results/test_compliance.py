"""The official checker on our logs: what passes, and what each missing or wrong line is called."""

import logging
import re
import sys

import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.results import compliance, rules
from mlperf_jax.results.compliance import check
from mlperf_jax.results.keys import required
from mlperf_jax.results.log import Log, read

pytest.importorskip("mlperf_logging")

COMMON = [
    "submission_benchmark",
    "submission_division",
    "submission_org",
    "submission_platform",
    "submission_status",
    "cache_clear",
    "init_start",
    "init_stop",
    "run_start",
    "run_stop",
    "eval_accuracy",
    "train_samples",
    "eval_samples",
]


def drop(*keys):
    return lambda method, key, value, metadata: (
        None if key in keys else (method, key, value, metadata)
    )


def change(wanted, value):
    return lambda method, key, old, metadata: (
        method,
        key,
        value if key == wanted else old,
        metadata,
    )


def keys(report):
    return {finding.key for finding in report.findings}


def test_a_minimal_open_log_passes(resnet_log):
    path = resnet_log()
    report = check(path, "4.0.0")
    assert report.success, str(report)
    assert report.findings == ()
    assert report.raw == ""
    assert (report.ruleset, report.benchmark, report.files) == ("4.0.0", "resnet", (str(path),))
    assert "passes the official checker (resnet, ruleset 4.0.0)" in str(report)


@pytest.mark.parametrize("optimizer", ["lars", "sgd"])
def test_a_minimal_closed_log_passes(resnet_log, optimizer):
    report = check(resnet_log(division="closed", optimizer=optimizer))
    assert report.success, str(report)
    assert report.ruleset == "4.0.0"  # the last round that ran it


@pytest.mark.parametrize("key", COMMON)
def test_each_missing_common_line_is_named(resnet_log, key):
    report = check(resnet_log(spoil=drop(key)), "4.0.0")
    assert not report.success
    found = [finding for finding in report.findings if finding.key == key]
    assert found, str(report)
    assert found[0].line is None
    assert "is required; the log has none." in found[0].expected
    assert found[0].advice
    assert key in found[0].official


@pytest.mark.parametrize("optimizer", ["lars", "sgd"])
def test_each_missing_closed_line_is_named(resnet_log, optimizer):
    for key in required(rules.resolve("resnet"), {"opt_name": optimizer}):
        if key == "submission_benchmark":
            continue  # without it the log cannot be checked; tested above
        report = check(resnet_log(division="closed", optimizer=optimizer, spoil=drop(key)))
        assert not report.success, key
        assert key in keys(report), (key, str(report))


def test_a_missing_pair_is_named(resnet_log):
    report = check(resnet_log(spoil=drop("block_start", "eval_start")))
    found = [f.expected for f in report.findings]
    assert found == [
        "at least one line with block_start or epoch_start is required; the log has none.",
        "at least one line with block_start or eval_start is required; the log has none.",
    ]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("submission_org", "", "a value that is not empty"),
        ("submission_status", "mine", "one of 'cloud', 'onprem', 'preview', 'research'"),
        ("train_samples", None, "exactly one line is required"),
    ],
)
def test_wrong_common_values(resnet_log, key, value, expected):
    spoil = drop(key) if value is None else change(key, value)
    report = check(resnet_log(spoil=spoil))
    finding = next(f for f in report.findings if f.key == key)
    assert expected in finding.expected
    assert not report.success


@pytest.mark.parametrize(
    ("optimizer", "key", "value", "expected"),
    [
        ("lars", "lars_epsilon", 1e-9, "value == 0.0"),
        ("lars", "lars_opt_end_learning_rate", 1e-3, "value == 0.0001"),
        ("lars", "lars_opt_learning_rate_decay_poly_power", 1, "value == 2"),
        ("lars", "lars_opt_weight_decay", 3e-5, "0.0001 times a power of two"),
        ("sgd", "sgd_opt_base_learning_rate", 0.0015, "a whole multiple of 0.001"),
        ("lars", "global_batch_size", 0, "value > 0"),
        ("lars", "gradient_accumulation_steps", 0, "value > 0"),
    ],
)
def test_wrong_closed_values_name_line_value_and_rule(resnet_log, optimizer, key, value, expected):
    path = resnet_log(division="closed", optimizer=optimizer, spoil=change(key, value))
    report = check(path)
    assert [f.key for f in report.findings] == [key]
    finding = report.findings[0]
    lineno = next(line.lineno for line in read(path) if line.key == key)
    assert finding.line == lineno
    assert expected in finding.expected
    assert f"has the value {value}" in finding.expected
    assert str(finding).startswith(f"{path}:{lineno}: {key}:")


def test_a_missed_target(resnet_log):
    report = check(resnet_log(division="closed", spoil=change("eval_accuracy", 0.75)))
    assert keys(report) == {"eval_accuracy"}
    assert "no line passes" in report.findings[0].expected
    assert "0.7590" in report.findings[0].expected
    assert "reach the quality target" in report.findings[0].advice


def test_an_open_log_need_not_reach_it(resnet_log):
    assert check(resnet_log(spoil=change("eval_accuracy", 0.75))).success


def test_evaluations_need_epoch_num(resnet_log):
    def spoil(method, key, value, metadata):
        return (method, key, value, {} if key == "eval_accuracy" else metadata)

    report = check(resnet_log(spoil=spoil))
    assert keys(report) == {"eval_accuracy"}
    assert "metadata epoch_num" in report.findings[0].expected
    assert "epoch_num" in report.findings[0].advice


def test_run_stop_needs_a_status(resnet_log):
    def spoil(method, key, value, metadata):
        return (method, key, value, {} if key == "run_stop" else metadata)

    report = check(resnet_log(spoil=spoil))
    assert [f.key for f in report.findings] == ["run_stop"]
    assert "metadata status" in report.findings[0].expected


def reorder(path, key, after):
    """Moves the line of `key` behind the line of `after`."""
    lines = path.read_text().splitlines(keepends=True)
    moved = next(line for line in lines if f'"key": "{key}"' in line)
    lines.remove(moved)
    at = next(i for i, line in enumerate(lines) if f'"key": "{after}"' in line)
    lines.insert(at + 1, moved)
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize(
    ("key", "after", "found", "expected"),
    [
        ("submission_division", "init_stop", "init_stop", "initialisation within the time limit"),
        ("init_start", "init_stop", "init_stop", "comes after init_start"),
        ("run_start", "run_stop", "run_stop", "comes after run_start"),
        ("init_stop", "run_start", "run_start", "comes after init_stop"),
    ],
)
def test_lines_out_of_order(resnet_log, key, after, found, expected):
    report = check(reorder(resnet_log(), key, after))
    finding = next(f for f in report.findings if f.key == found)
    assert expected in finding.expected, str(report)
    assert finding.line is not None


def test_too_long_an_initialisation(resnet_log):
    path = resnet_log(division="closed")
    text = path.read_text()
    start = next(line for line in read(path) if line.key == "init_start")
    early = start.text.replace(
        f'"time_ms": {start.time_ms:.0f}', f'"time_ms": {start.time_ms - 1.8e6:.0f}'
    )
    path.write_text(text.replace(start.text, early))
    report = check(path)
    assert keys(report) == {"init_stop"}
    assert "30 minutes" in report.findings[0].advice


def test_two_runs_in_one_log(resnet_log):
    path = resnet_log()
    path.write_text(path.read_text() * 2)
    report = check(path)
    assert not report.success
    assert {"init_start", "init_stop"} <= keys(report)


def test_repeated_equal_lines_are_a_warning_only(resnet_log):
    path = resnet_log()
    line = next(line.text for line in read(path) if line.key == "train_samples")
    path.write_text(path.read_text() + line + "\n")
    report = check(path)
    assert report.success
    assert [f.warning for f in report.findings] == [True]
    assert "exactly one line is required; the log has 2" in report.findings[0].expected


def test_repeated_different_lines_list_their_values(resnet_log):
    path = resnet_log()
    with Log(path) as log:
        log.event("train_samples", 1)
    finding = check(path).findings[0]
    assert not finding.warning
    assert re.search(r"with the values .*1281167", finding.expected)


def test_half_a_last_line(resnet_log):
    path = resnet_log()
    with open(path, "ab") as f:
        f.write(b':::MLLOG {"key')
    report = check(path)
    assert not report.success
    assert "parsing errors" in report.findings[0].official
    with Log(path):  # opening it drops the half line
        pass
    assert check(path).success


def test_values_that_stop_the_checker(resnet_log):
    path = resnet_log()
    path.write_text(path.read_text().replace('"value": 0.7591', '"value": null'))
    report = check(path)
    assert not report.success
    assert "the checker itself ended with an error" in str(report)


def test_a_stopped_checker_leaves_no_rules_for_the_next_log(resnet_log):
    path = resnet_log(division="closed")
    path.write_text(path.read_text().replace('"value": 0.7591', '"value": null'))
    assert not check(path).success  # stops with the rules for lars still in its queue
    assert check(resnet_log("next.txt", spoil=drop("lars_epsilon"))).success


def test_an_unknown_division(resnet_log):
    report = check(resnet_log(spoil=change("submission_division", "ajar")))
    assert not report.success
    assert "submission_division" in keys(report)
    assert "there are no rules named ajar_common" in str(report)
    assert check(resnet_log("next.txt")).success


def test_an_optimizer_without_rules(resnet_log):
    report = check(resnet_log(division="closed", spoil=change("opt_name", "muon")))
    assert "one of 'sgd', 'lars'" in report.findings[0].expected
    assert "there are no rules named closed_resnet_muon" in report.findings[1].expected


def test_a_value_the_rule_cannot_be_tried_on(resnet_log):
    path = resnet_log(division="closed", spoil=change("lars_opt_weight_decay", 0))
    finding = check(path).findings[0]
    assert finding.line is not None
    assert "the value 0 cannot be tested" in finding.expected
    assert "0.0001 times a power of two" in finding.expected


@pytest.mark.parametrize("key", ["submission_division", "opt_name"])
def test_a_log_cannot_make_the_checker_load_a_file(resnet_log, tmp_path, key):
    evil = tmp_path / "evil_common.yaml"
    evil.write_text("- BEGIN:\n    CODE: open('/dev/null')\n")
    path = resnet_log(spoil=change(key, f"../../../../../../../..{tmp_path}/evil"))
    with pytest.raises(UserError, match=rf"as its {key}, which is not a name"):
        check(path)


def test_the_official_convergence_and_seed_readers_take_our_log(resnet_log):
    rcp_checker = pytest.importorskip("mlperf_logging.rcp_checker.rcp_checker")
    seed_checker = pytest.importorskip("mlperf_logging.package_checker.seed_checker")
    paths = [str(resnet_log(f"result_{i}.txt", seed=i)) for i in range(2)]
    not_converged, epochs, batch, name = rcp_checker.read_submission_file(paths[0], "4.0.0", False)
    assert (not_converged, epochs, batch, name) == (0, 7, 3264, "resnet")
    checker = seed_checker.SeedChecker("4.0.0")
    assert checker._assert_unique_seed_per_run(paths) == []
    assert checker._assert_unique_seed_per_run(paths[:1] * 2) != []


def test_the_division_that_was_asked_for(resnet_log):
    path = resnet_log()
    assert check(path, division="open").success
    report = check(path, division="closed")
    assert not report.success
    assert "is 'open', but 'closed' was asked for" in str(report)
    with pytest.raises(UserError, match="give 'closed' or 'open'"):
        check(path, division="both")


def test_a_set(resnet_log, tmp_path):
    for index in (0, 1, 2, 10):
        resnet_log(f"result_{index}.txt", seed=index)
    (tmp_path / "notes.txt").write_text("not a log")
    report = check(tmp_path)
    assert report.success
    assert report.findings == ()
    assert [path.rsplit("_", 1)[1] for path in report.files] == [
        "0.txt",
        "1.txt",
        "2.txt",
        "10.txt",
    ]
    resnet_log("result_2.txt", spoil=drop("run_stop"))
    report = check(tmp_path)
    assert not report.success
    assert {finding.file for finding in report.findings} == {str(tmp_path / "result_2.txt")}


def test_a_closed_set_needs_its_number_of_runs_and_seeds(resnet_log, tmp_path):
    for index in range(4):
        resnet_log(f"result_{index}.txt", division="closed", seed=1)
    report = check(tmp_path)
    assert report.success
    assert "made of 5 runs; here are 4" in str(report)
    assert "a seed of its own; repeated: 1" in str(report)
    for index in range(5):
        (tmp_path / f"result_{index}.txt").unlink(missing_ok=True)
        resnet_log(f"result_{index}.txt", division="closed", seed=index)
    assert check(tmp_path).findings == ()


def test_a_set_of_two_benchmarks(resnet_log, tmp_path):
    resnet_log("result_0.txt")
    resnet_log("result_1.txt", spoil=change("submission_benchmark", "bert"))
    with pytest.raises(UserError, match=r"resnet in result_0\.txt, bert in result_1\.txt"):
        check(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "result_0.txt is empty: give a result_"),
        (b"\x00\x01\xff" * 1000, "result_0.txt is binary, and a log is plain text: give"),
        (b"hello\n", "result_0.txt is no log: no line of it holds :::MLLOG: give"),
        (b":::MLLOG {broken}\n", "line 1 of the log"),
        (b':::MLLOG {"key": 1}\n', "line 1 of the log"),
    ],
)
def test_what_is_not_a_log(tmp_path, content, says):
    path = tmp_path / "result_0.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        check(path)


def test_places_without_a_log(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        check(tmp_path / "no")
    with pytest.raises(UserError, match=r"has no result_0\.txt"):
        check(tmp_path)


@pytest.mark.parametrize(
    ("ruleset", "says"),
    [
        ("9.9.9", "there is no ruleset '9.9.9'"),
        ("4.1.0", "resnet was in the rounds 0.5 to 4.0, not in 4.1"),
        ("0.5.0", "no official checker"),
        ("0.6.0", "no official checker"),
    ],
)
def test_rulesets_that_do_not_apply(resnet_log, ruleset, says):
    with pytest.raises(UserError, match=says):
        check(resnet_log(), ruleset)


def test_unknown_and_unnamed_benchmarks(resnet_log):
    path = resnet_log(spoil=change("submission_benchmark", "resnet51"))
    with pytest.raises(
        UserError, match="'resnet51', which no round had: there are no official rules"
    ):
        check(path)
    path = resnet_log("other.txt", spoil=drop("submission_benchmark"))
    with pytest.raises(UserError, match="so the ruleset must be given"):
        check(path)


@pytest.mark.parametrize(
    ("name", "ruleset"), [("ssd", "4.1.0"), ("retinanet", "5.1.0"), ("gnn", "4.1.0")]
)
def test_the_default_ruleset_is_the_last_that_used_the_name(resnet_log, name, ruleset):
    report = check(resnet_log(spoil=change("submission_benchmark", name)))
    assert report.ruleset == ruleset


def test_hpc_logs_get_the_hpc_rules(resnet_log):
    report = check(resnet_log(spoil=change("submission_benchmark", "cosmoflow")))
    assert report.ruleset == "3.0.0"
    assert "eval_error" in keys(report)


def test_the_checker_leaves_our_logging_alone(resnet_log, capsys, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])  # as in a plain process; pytest has its own
    check(resnet_log(spoil=drop("run_stop")))
    assert root.handlers == []
    assert capsys.readouterr() == ("", "")


def test_without_the_official_package(resnet_log, monkeypatch):
    path = resnet_log()
    monkeypatch.setitem(sys.modules, "mlperf_logging", None)
    with pytest.raises(UserError, match=re.escape('pip install "mlperf-jax[results]"')):
        check(path)
    monkeypatch.undo()
    checker = "mlperf_logging.compliance_checker.mlp_compliance"
    monkeypatch.delitem(sys.modules, checker, raising=False)
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(UserError, match=r"which cannot be loaded \(.*yaml"):
        check(path)


def test_a_notebook_shows_findings_as_a_table():
    found = compliance.Finding("a<b.txt", "seed", "one line is required.", "Log it.", line=3)
    shown = compliance.Report(False, (found,), "", "4.0.0", "resnet", ("a<b.txt",))._repr_html_()
    assert "a&lt;b.txt:3" in shown and "does not pass" in shown and shown.count("<tr>") == 2

"""What a log says and cannot be is a finding that names file, line and key, and its set is not valid."""

import gzip
import json
import os
import re

import pytest
from score_sets import MINUTE, line, lines, log_of, resnet_set, said, write
from spoilt_logs import (
    BY_THE_CHECKER,
    CLEAR,
    DIVISION,
    FIRST,
    LAST,
    SEED,
    SPOILT,
    START,
    spoilt,
    with_second_seed,
)

from mlperf_jax import cli
from mlperf_jax.errors import UserError
from mlperf_jax.results import compliance, log, logset, report, rules, sane
from mlperf_jax.results.score import score


def control_characters(text):
    return [c for c in text if not c.isprintable() and c != "\n"]


@pytest.fixture
def folder(tmp_path):
    return lambda *logs: write(tmp_path / "set", *resnet_set(10, 11, 12, 13), *logs)


@pytest.mark.parametrize("kind", SPOILT)
def test_what_cannot_be_is_named_by_file_line_and_key(folder, kind):
    spoilt_log, says = SPOILT[kind]
    where = folder(spoilt_log)
    found = score(where, "4.0.0")
    assert re.search(f"result_4.txt{says}", said(found)), said(found)
    assert (found.valid, found.minutes is None) == (False, False)
    assert [run.counted for run in found.runs[:4]] == [True] * 4
    shown = report.collect(where, ruleset="4.0.0")
    assert shown.sets[0].verdict.status == "flawed"
    assert re.search(f"result_4.txt{says}", "\n".join(map(str, shown.findings)))
    checked = compliance.check(where, "4.0.0")
    assert not checked.success
    if kind not in BY_THE_CHECKER:
        assert re.search(f"result_4.txt{says}", str(checked)), str(checked)
    assert len({found.file for found in checked.findings}) >= 5  # all others were checked too


def test_a_log_as_it_should_be_has_no_finding(folder):
    found = score(folder(lines(14, seed=9)), "4.0.0")
    assert (said(found), found.valid) == ("", True)


def test_one_finding_of_a_kind_and_how_many_more(folder):
    log = spoilt(LAST, spoilt(FIRST, value=30), value=75.9)
    found = score(folder(log), "4.0.0")
    assert "result_4.txt:13: eval_accuracy: is 30; accuracy is between 0 and 1" in said(found)
    assert said(found).count("is between") == 1
    assert "So does 1 more line." in said(found)


def test_a_run_that_diverged_and_says_so_is_one_that_did_not_converge(folder):
    log = lines(9, seed=8, values=(0.1, float("nan")), status="aborted")
    found = score(folder(log), "4.0.0")
    assert "eval_accuracy: is NaN, which is no accuracy" in said(found)
    assert found.valid


@pytest.mark.parametrize(
    ("name", "ruleset", "value", "is_fine"),
    [
        ("rnnt", "3.1.0", 9.9, True),  # more errors than words
        ("rnnt", "3.1.0", -0.1, False),
        ("gpt3", "4.1.0", 11.0, True),
        ("bert", "5.0.0", 72.0, False),
        ("dlrm_dcnv2", "5.1.0", 1.01, False),
        ("llama31_8b", "5.1.0", -3.0, False),
    ],
)
def test_a_quality_has_the_range_of_its_metric(tmp_path, name, ruleset, value, is_fine):
    plain = log_of(name, ruleset, 256, 1000, 1)
    path = write(tmp_path, spoilt(FIRST, plain, value=value)) / "result_0.txt"
    found = sane.findings([logset.read(path)], rules.resolve(name, ruleset))
    assert (found == []) == is_fine


def test_each_quality_of_several_has_its_own_range(tmp_path):
    official = rules.resolve("stable_diffusion", "5.0.0")
    plain = log_of("stable_diffusion", "5.0.0", 512, 1000, 1)
    path = write(tmp_path, plain) / "result_0.txt"
    assert sane.findings([logset.read(path)], official) == []  # FID 120, evaluated at any time
    write(tmp_path, [text.replace('"value": 0.2', '"value": 20.0') for text in plain])
    found = sane.findings([logset.read(path)], official)
    assert "is 20.0; CLIP is between -1 and 1" in str(found[0])
    official = rules.resolve("maskrcnn", "3.1.0")
    both = spoilt(LAST, value={"BBOX": 0.378, "SEGM": 34.0})
    write(tmp_path, both)
    assert "is 34.0; SEGM is between 0 and 1" in str(
        sane.findings([logset.read(path)], official)[0]
    )


@pytest.mark.parametrize("value", [1621233034.09, "1621", -17470150, None])
def test_seeds_as_first_rounds_logged_them(tmp_path, value):
    """Where all logs of such a set have them, they were accepted with them; one alone is not of that set."""
    every = [spoilt(SEED, log, value=value) for log in resnet_set(10, 11, 12, 13, 14)]
    where = write(tmp_path, *every)
    for ruleset, are in (("1.0.0", True), ("1.1.0", False)):
        judged = sane.findings(
            [logset.read(p) for p in logset.logs(where)], rules.resolve("resnet", ruleset)
        )
        assert all(found.warning for found in judged) == are
        assert len(judged) == (1 if are else 5)
    write(where, *every[:4], lines(14, seed=4))
    assert not score(where, "1.0.0").valid


def test_a_seed_for_each_rank_is_a_warning_where_all_runs_have_them(tmp_path):
    every = [with_second_seed(plain) for plain in resnet_set(10, 11, 12, 13, 14)]
    for i, plain in enumerate(every):
        plain[SEED + 1] = line("seed", 100 + i)
    found = score(write(tmp_path, *every), "4.0.0")
    assert "one run has one seed" in said(found)
    assert found.valid


def test_a_single_log_of_other_seeds_is_checked_alone(tmp_path):
    where = write(tmp_path, spoilt(SEED, value="7")) / "result_0.txt"
    assert 'result_0.txt:9: seed: is "7"' in str(compliance.check(where, "4.0.0"))


# ---- files that are no logs

NO_LOGS = {
    "empty": (b"", "is empty"),
    "spaces": (b" \n\n", "is empty"),
    "gzip": (gzip.compress(b":::MLLOG {}"), "is compressed by gzip, and a log is plain text"),
    "zip": (b"PK\x03\x04...", "is compressed by zip"),
    "UTF-16": ("\n".join(lines(9)).encode("utf-16"), "is in UTF-16, and a log is in UTF-8"),
    "UTF-16 alone": (
        "\n".join(lines(9)).encode("utf-16-be"),
        "is in UTF-16, and a log is in UTF-8",
    ),
    "binary": (bytes(range(256)), "is binary, and a log is plain text"),
    "other text": (b"hello\n", "is no log: no line of it holds :::MLLOG"),
}


@pytest.mark.parametrize("kind", NO_LOGS)
def test_a_file_that_is_no_log_is_told_by_what_it_is(folder, kind):
    content, says = NO_LOGS[kind]
    where = folder(content)
    found = score(where, "4.0.0")
    assert f"result_4.txt: {says}" in said(found)
    assert "''" not in said(found)
    assert not found.valid
    checked = compliance.check(where, "4.0.0")
    assert f"result_4.txt {says}" in str(checked)
    assert any(found.file.endswith("result_3.txt") for found in checked.findings)
    with pytest.raises(UserError, match=f"result_4.txt {re.escape(says)}"):
        compliance.check(where / "result_4.txt")


@pytest.mark.parametrize(
    "kind", ["pipe", "folder", "link to nothing", "link to a pipe", "link to itself"]
)
def test_what_is_no_file_is_named_and_waited_for_by_nobody(folder, kind, capsys):
    where = folder()
    path = where / "result_4.txt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(where / "pipe")
        path.symlink_to(
            {"link to nothing": "nowhere", "link to a pipe": "pipe"}.get(kind, path.name)
        )
    found = score(where, "4.0.0")
    assert re.search("result_4.txt: (is a (pipe|folder)|cannot be read)", said(found))
    assert (found.valid, found.minutes) == (False, 12)
    assert re.search(
        "result_4.txt (is a (pipe|folder)|cannot be read)", str(compliance.check(where))
    )
    shown = report.collect(where, ruleset="4.0.0")
    assert [run.status for run in shown.sets[0].runs] == ["success"] * 4 + ["unreadable"]
    assert cli.main(["check", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_pipes_beside_logs_are_waited_for_by_nobody(folder):
    where = folder(lines(14, seed=9))
    (where / "run_4").mkdir()
    for name in ("scaling.json", "run_4/result.json", "run_4/config.json", "run_4/scalars.jsonl"):
        os.mkfifo(where / name)
    assert "scaling.json is a pipe" in said(score(where, "4.0.0"))
    assert "run_4/result.json: is not JSON (it is a pipe)" in "\n".join(
        map(str, report.collect(where, ruleset="4.0.0").findings)
    )


ENDLESS = {
    "a long line": (':::MLLOG {"key": "cache_clear", "value": "' + "x" * 70_000 + '"}', "it has 70,0.. characters"),
    "brackets": (':::MLLOG {"key": "x", "value": ' + "[" * 10_000, "maximum recursion depth"),
    "digits": (':::MLLOG {"key": "x", "time_ms": ' + "1" * 5000 + "}", "Exceeds the limit"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_line_that_nobody_logs_stops_no_other_log(folder, kind):
    text, says = ENDLESS[kind]
    log = lines(9, seed=8)
    where = folder([*log[:CLEAR], text, *log[CLEAR:]])
    found = score(where, "4.0.0")
    assert re.search(f"result_4.txt:5: the line cannot be read .*{says}", said(found)), said(found)
    assert (found.valid, found.minutes) == (False, 12)
    checked = compliance.check(where, "4.0.0")
    assert "line 5 of" in str(checked)
    assert any(found.file.endswith("result_3.txt") for found in checked.findings)


def test_other_lines_may_be_of_any_length(folder):
    log = lines(14, seed=9)
    where = folder(["y" * 280_000, *log[:CLEAR], "y" * 280_000 + log[CLEAR], *log[CLEAR + 1 :]])
    found = score(where, "4.0.0")
    assert (said(found), found.valid) == ("", True)
    assert "characters" not in str(compliance.check(where, "4.0.0"))


def test_a_log_of_another_benchmark_stops_no_other(folder):
    checked = compliance.check(folder(lines(9, seed=8, benchmark="bert")), "4.0.0")
    assert "result_4.txt: submission_benchmark: is 'bert', and 'resnet' in 4 logs" in str(checked)
    assert checked.benchmark == "resnet"


# ---- rounds and terminals


def test_check_takes_the_round_from_the_folder_as_score_does(tmp_path):
    where = write(tmp_path / "training_results_v3.1/lab/results/system/resnet", *resnet_set(10, 11))
    assert compliance.check(where).ruleset == score(where).ruleset == "3.1.0"
    assert compliance.check(where / "result_0.txt").ruleset == "3.1.0"
    assert compliance.check(where, "2.0").ruleset == "2.0.0"
    elsewhere = write(tmp_path / "training_results_v9.9/resnet", *resnet_set(10, 11))
    assert compliance.check(elsewhere).ruleset == score(elsewhere).ruleset == "4.0.0"


def test_terminals_get_no_control_characters(tmp_path, capsys):
    evil = "\x1b[31m\x07\u202elab\x9b"
    org = [
        [text.replace('"a lab"', json.dumps(evil)) for text in log]
        for log in resnet_set(10, 11, 12)
    ]
    bad = [*lines(9)[:2], ':::MLLOG {"key": "' + evil + '", "value": 1}', *lines(9)[2:]]
    name = spoilt(0, value=evil)
    where = write(tmp_path / evil, *org, bad, name, b"\x1b[2J")
    for words in (
        ["score", str(where)], ["check", str(where)], ["check", str(where / "result_4.txt")],
        ["report", str(where), "--out", str(tmp_path / "page.html")], ["show", "resnet", "--run", str(where)],
        ["score", str(where / evil)],
    ):  # fmt: skip
        cli.main(words)
        told = capsys.readouterr()
        assert told.out + told.err
        assert control_characters(told.out + told.err) == []
    assert control_characters(repr(score(where)) + str(compliance.check(where))) == []


def test_reading_many_broken_lines_is_fast(tmp_path):
    """Each line's number was once counted from the log's beginning: minutes for this one."""
    (tmp_path / "result_0.txt").write_bytes(b":::MLLOG {broken}\n" * 40_000)
    (tmp_path / "result_1.txt").write_bytes(b":::MLLOG {broken}\r" * 40_000)
    assert len(logset.read(tmp_path / "result_0.txt").findings) == 20
    assert logset.read(tmp_path / "result_1.txt").broken


def test_the_longest_line_that_is_read(tmp_path):
    text = line("cache_clear", "x" * (log.LONGEST - 200))
    path = write(tmp_path, [text]) / "result_0.txt"
    assert not logset.read(path).broken
    assert compliance.harmless(path)


def test_what_accepted_logs_hold_is_no_fault(tmp_path):
    """Machines without accelerators, a late line of no interest; and in the first rounds clocks that disagree."""
    plain = lines(14, seed=9)
    late = spoilt(CLEAR, plain, time_ms=16655441572299)
    none = [*plain, line("accelerators_per_node", 0, 20 * MINUTE)]
    early = spoilt(START, plain, time_ms=0)
    for content, ruleset, says in (
        (late, "2.1.0", ""),
        (none, "2.1.0", ""),
        (early, "0.7.0", "run_start: is 2 minutes earlier than init_stop"),
        (spoilt(DIVISION, plain, value="open"), "0.7.0", "A set is of one division"),
    ):
        found = score(write(tmp_path, *resnet_set(10, 11, 12, 13), content), ruleset)
        assert found.valid, said(found)
        assert says in said(found)
    found = score(write(tmp_path, *resnet_set(10, 11, 12, 13), early), "1.1.0")
    assert not found.valid

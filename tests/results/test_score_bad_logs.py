"""Sets with something wrong: each thing is named, and the other logs are scored."""

import json
import os
import re

import pytest
from score_sets import line, lines, resnet_set, said, write

from mlperf_jax.errors import UserError
from mlperf_jax.results import compliance, logset
from mlperf_jax.results.score import score, scores


@pytest.fixture
def folder(tmp_path):
    """Writes logs into a folder below the test's, and returns it."""
    return lambda *logs, where="set": write(tmp_path / where, *logs)


def good(n=4):
    return resnet_set(*range(10, 10 + n))


BAD = {
    "empty": ("", "result_4.txt counts as not converged: the log does not say which benchmark"),
    "noise": ("no such line\n" * 9, "the log does not say which benchmark"),
    "cut in the middle of a line": (
        "\n".join(lines(9, seed=8))[:-30],
        "the line ends in the middle",
    ),
    "broken JSON": (
        "\n".join(lines(9, seed=8)).replace('"key": "init_start"', '"key": "init_start'),
        r"result_4.txt:6: the line cannot be read",
    ),
    "two ranks in one line": (
        "\n".join(lines(9, seed=8)).replace(
            '"opt_name", "value": "lars"', '"opt_name", "value": "la'
        ),
        r"result_4.txt:10: the line cannot be read",
    ),
    "no metadata": (
        "\n".join([*lines(9, seed=8), ':::MLLOG {"key": "run_stop", "value": 1, "time_ms": 3}']),
        "it lacks 'metadata'|ends in the middle",
    ),
    "not ended": ("\n".join(lines(9, seed=8)[:-1]) + "\n", "the log has no run_stop"),
    "not begun": ("\n".join(lines(9, seed=8)[:9]) + "\n", "the log has no run_start"),
    "backwards": (lines(-5, seed=8), "run_stop is earlier than run_start"),
    "twice": (lines(9, seed=8) + lines(9, seed=7), "is there 2 times"),
    "without status": (lines(9, seed=8, status=""), "run_stop has no status"),
    "target missed": (lines(9, seed=8, values=(0.1, 0.2)), "no evaluation meets the target"),
    "slow to start": (lines(9, seed=8, init_minutes=31), "initialisation took 31 minutes, 30 are"),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_bad_log_is_named_and_the_others_are_scored(folder, kind):
    log, says = BAD[kind]
    found = score(folder(*good(), log), "4.0.0")
    assert re.search(says, said(found)), said(found)
    assert found.minutes == pytest.approx(12)  # a log that is there is a run
    assert [run.counted for run in found.runs] == [True] * 4 + [False]
    assert str(found)
    assert json.dumps(found.to_dict())
    assert found.valid == (kind not in ("empty", "noise"))  # one run that does not count is allowed


def test_lines_may_have_a_prefix_and_end_in_any_way(folder):
    plain = resnet_set(10, 11, 12, 13, 14)
    noisy = ["12: :::MLLOG x " + text for text in plain[0]]
    noisy.insert(3, "Epoch 3:  45%|####\r" + line("tracked_stats", {"a": "}{"}) + "\rnext")
    logs = [noisy, "\r\n".join(plain[1]) + "\r\n", "\n".join(plain[2]), b"\xff\xfe\n" * 3]
    logs[3] += "\n".join(plain[3]).encode() + b"\n\x85"
    found = score(folder(*logs, plain[4]), "4.0.0")
    assert found.minutes == pytest.approx(12)
    assert said(found) == ""


def test_text_for_numbers_is_understood_and_named(folder):
    log = [
        text.replace('"value": 3264', '"value": "3264"')
        .replace('"epoch_num": 36.0', '"epoch_num": "36.0"')
        .replace('"value": 0.76,', '"value": "0.76",')
        for text in lines(14, seed=9)
    ]
    found = score(folder(*good(), log), "4.0.0")
    assert (found.minutes, found.batch_size, found.length) == (12, 3264, 36)
    assert said(found).count("for a number") == 3


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"value": 3264', '"value": "many"', "many"),
        ('"value": 3264', '"value": [1]', "not a number"),
        ('"value": 3264', '"value": Infinity', "not a finite number"),
        ('"value": 0.76', '"value": {"a": null}', "not a number"),
        ('"time_ms": 0', '"time_ms": "soon"', "cannot be read"),
    ],
)
def test_values_that_mean_nothing(folder, old, new, says):
    log = [text.replace(old, new, 1) for text in lines(14, seed=9)]
    found = score(folder(*good(), log), "4.0.0")
    assert says in said(found)
    assert found.mean_minutes is not None


def test_not_a_number_does_not_meet_a_target(folder):
    found = score(folder(*good(), lines(9, seed=9, values=(0.1, float("nan")))), "4.0.0")
    assert "result_4.txt counts as not converged: it says success, but" in said(found)


def test_nine_of_ten(folder):
    logs = [
        lines(m, benchmark="bert", seed=m, length=2.7e6, values=(0, 0.73), batch=448)
        for m in range(9)
    ]
    found = score(folder(*logs), "5.0.0")
    assert "holds 9 of the 10 runs that make a score" in said(found)
    assert (found.minutes, found.valid) == (4, False)


def test_duplicate_seeds(folder):
    logs = [*good(), lines(14, seed=2)]
    found = score(folder(*logs), "4.0.0")
    assert "seed: 2 is in result_2.txt and in result_4.txt" in said(found)
    assert (found.minutes, found.valid) == (12, False)
    no_seed = [text for text in lines(14) if '"seed"' not in text]
    found = score(folder(*good(), no_seed), "4.0.0")
    assert "seed: is not in result_4.txt; the official package checker asks for it" in said(found)
    assert found.valid


def test_bert_may_log_its_samples_to_the_target_as_train_samples(folder):
    logs = [
        [
            text.replace('"value": 1281167', '"value": 2700000')
            for text in lines(10, benchmark="bert", seed=i, length=3, values=(0, 0.73), batch=448)
        ]
        for i in range(10)
    ]
    path = folder(*logs)
    assert not score(path, "5.0.0").verdict.passed
    assert score(path, "5.0.0", bert_train_samples=True).verdict.passed
    assert scores(path, "5.0.0", bert_train_samples=True)[0].length == 2_700_000


def test_a_run_of_another_benchmark_is_left_out(folder):
    found = score(folder(*good(), lines(99, benchmark="bert", seed=9)), "4.0.0")
    assert "result_4.txt is left out: it is of 'bert', the set of 'resnet'" in said(found)
    assert found.benchmark == "resnet"
    assert found.minutes == pytest.approx(11.5)
    assert "holds 4 of the 5 runs" in said(found)


def test_different_batch_sizes(folder):
    found = score(folder(*good(), lines(14, seed=9, batch=64)), "4.0.0")
    assert "differs between the runs of the set (3264 in 4 logs, 64 in 1 logs)" in said(found)
    assert (found.batch_size, found.verdict, found.minutes, found.valid) == (None, None, 12, False)


def test_different_optimizers(folder):
    def of(*programs):
        logs = [lines(10 + i, seed=i, division="open") for i in range(len(programs))]
        named = [
            line("opt_name", "mine", program=p) if p else line("opt_name", "lars") for p in programs
        ]
        return folder(*([new, *log] for new, log in zip(named, logs, strict=True)))

    found = score(of("aa", "aa", "bb", "aa", "aa"), "4.0.0")
    assert "stands for different optimizers (aa in 4 logs, bb in 1 logs)" in said(found)
    assert not found.valid
    found = score(of(*["aa"] * 4, None), "4.0.0")
    assert "(aa in 4 logs, the recipe's in 1 logs)" in said(found)
    assert "optimizers" not in said(score(of(*["aa"] * 5), "4.0.0"))


def test_two_targets(folder):
    log = lines(14, seed=9)
    log[8:8] = [line("target_accuracy", 0.759), line("target_accuracy", 0.7)]
    found = score(folder(*good(), log), "4.0.0")
    assert "names different targets, 0.7 and 0.759" in said(found)
    assert found.valid


def test_mixed_rulesets(folder):
    newest = [*lines(14, seed=9), line("lowest_numerical_precision_in_linear", "bf16")]
    found = score(folder(*good(), newest), "4.0.0")
    assert "1 of 5 have the keys that only v6.1 wants" in said(found)
    assert not found.valid


def test_a_round_that_did_not_have_the_benchmark(folder):
    found = score(folder(*resnet_set(10, 11, 12, 13, 14)), "5.1.0")
    assert "is 'resnet', which was not in round 5.1.0 as such" in said(found)
    assert (found.minutes, found.valid, found.ruleset) == (12, False, "4.0.0")


@pytest.mark.parametrize("name", ["../../etc/passwd", "nothing", "<b>", "\x1b[31m"])
def test_a_benchmark_that_no_round_had(folder, name):
    found = score(folder(*resnet_set(10, 11, 12, 13, 14, benchmark=name)))
    assert (found.minutes, found.valid, found.ruleset) == (12, False, "")
    assert "which no round had" in said(found)
    assert "\x1b" not in str(found)
    assert "<b>" not in found._repr_html_().replace("<caption><b>", "")


def test_without_a_ruleset(folder):
    logs = resnet_set(10, 11, 12, 13, 14)
    found = score(folder(*logs))
    assert found.ruleset == "4.0.0"
    assert "the rules of 4.0.0 were applied" in said(found)
    found = score(folder(*logs, where="training_results_v3.1/lab/results/sys/resnet"))
    assert found.ruleset == "3.1.0"
    old = resnet_set(10, 11, 12, 13, 14, benchmark="ssd", values=(0, 0.35))
    assert score(folder(*old, where="a"), "2.0").benchmark == "retinanet"
    assert score(folder(*old, where="b"), "1.1").benchmark == "ssd"


def test_only_lines_of_interest_are_parsed(folder, monkeypatch):
    """A log may have thousands of others; damage in them is found by their brackets."""
    log = lines(10)
    log[9:9] = [line("tracked_stats", {"throughput": i}) for i in range(2000)]
    path = folder(log) / "result_0.txt"
    parsed = []
    loads = json.loads
    monkeypatch.setattr(logset.json, "loads", lambda text: parsed.append(text) or loads(text))
    assert logset.read(path).seconds == 600
    assert len(parsed) < 20


def test_reading_is_tolerant_of_what_cannot_be_read(folder):
    path = folder(*good(4))
    (path / "result_3.txt").unlink()
    (path / "result_9.txt").symlink_to("nowhere")
    (path / "result_x.txt").write_text("\n".join(lines(14, seed=77)) + "\n")
    assert [p.name for p in logset.logs(path)][-1] == "result_x.txt"
    assert score(path, "4.0.0").minutes == pytest.approx((11 + 12 + 14) / 3)


def test_a_pipe_in_a_logs_place_is_waited_for_by_nobody(folder):
    where = folder(*good())
    os.mkfifo(where / "result_4.txt")
    assert re.search(r"result_4.txt: is a pipe, which no run leaves", said(score(where, "4.0.0")))
    with pytest.raises(UserError, match=r"result_4.txt is a pipe: give a file"):
        compliance.check(where)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ('"time_ms": ' + "9" * 400, "cannot be read"),
        ('"value": ' + "[" * 10_000, "cannot be read"),
        (
            '"value": "' + "x" * 400_000 + '"',
            "has 400,[0-9]{3} characters, more than any log needs",
        ),
    ],
    ids=["a number without end", "brackets", "a line without end"],
)
def test_the_official_checker_gets_no_line_without_end(folder, value, says):
    name = value.partition(":")[0]
    spoilt = "\n".join(
        re.sub(rf"{name}: [^,]*", lambda _: value, text, count=1) for text in lines(9, seed=8)[:1]
    )
    where = folder([spoilt, *lines(9, seed=8)[1:]])
    with pytest.raises(UserError, match=says):
        compliance.check(where)

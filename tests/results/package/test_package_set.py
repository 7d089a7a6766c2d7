"""Runs that make no set are refused before anything is written."""

import shutil

import pytest
from submission_sets import CONFIG, edit, refused

from mlperf_jax.results import package_set

pytest.importorskip("mlperf_logging")


def test_nine_of_ten_runs(rehearsal, pack, tmp_path):
    runs = rehearsal("llama31_8b", lengths=[159744] * 9)
    refused(pack, runs, r"9 of the 10 runs that a result of llama31_8b v6.1", tmp_path)


def test_one_run_too_many(rehearsal, pack, tmp_path):
    runs = rehearsal(lengths=[35] * 6)
    refused(pack, runs, "holds 6 runs, .* exactly 5; the rules do not let you choose", tmp_path)


def test_a_seed_twice(rehearsal, pack, tmp_path, monkeypatch):
    # as a set of an older version may have it
    monkeypatch.setattr("mlperf_jax.results.runs.RunSet._refuse_seed", lambda *given: None)
    runs = rehearsal(each=lambda i: {"seed": 7} if i in (1, 3) else {})
    refused(pack, runs, "runs 1 and 3 .* have the same seed, 7", tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"key": "seed", "value": 1002',
            '"key": "seed", "value": "1002"',
            "it must be a whole number",
        ),
        ('"key": "seed"', '"key": "sowed"', "has no seed line"),
        ('"key": "seed", "value": 1002', '"key": "seed", "value": 5', "are of different runs"),
        ('"key": "run_stop"', '"key": "run_halt"', "run 2 in .* is not finished"),
        ('"value": "closed"', '"value": "open"', "log a different submission_division"),
        (
            '_size", "value": 3264',
            '_size", "value": 64',
            "a different global_batch_size .3264 and 64",
        ),
        ('"key": "lars_epsilon"', '"key": "lars_eps"', "log a different lars_epsilon"),
        ('"value": "lars"', '"value": "../../x"', "is not a name"),
        ('{"namespace"', '{"names', "cannot be read: it lacks 'namespace'|cannot be read"),
    ],
)
def test_a_log_that_was_edited(rehearsal, pack, tmp_path, old, new, message):
    runs = rehearsal()
    edit(runs / "result_2.txt", old, new, 1 if "names" in new else -1)
    refused(pack, runs, message, tmp_path)


def test_a_run_of_another_benchmark(rehearsal, pack, tmp_path):
    runs, other = rehearsal(), rehearsal("llama31_8b", lengths=[159744])
    shutil.rmtree(runs / "run_4")
    shutil.move(other / "run_0", runs / "run_4")
    shutil.move(other / "result_0.txt", runs / "result_4.txt")
    refused(pack, runs, "different benchmarks .*run 4 of llama31_8b", tmp_path)


def test_a_run_of_another_configuration(rehearsal, pack, tmp_path):
    runs, other = rehearsal(), rehearsal(lengths=[35], seed=9, config=CONFIG | {"batch_size": 64})
    shutil.rmtree(runs / "run_4")
    shutil.move(other / "run_0", runs / "run_4")
    shutil.move(other / "result_0.txt", runs / "result_4.txt")
    refused(pack, runs, "batch_size was 3264 and is now 64", tmp_path)


def test_a_run_folder_that_is_incomplete(rehearsal, pack, tmp_path):
    runs = rehearsal()
    (runs / "run_3/result.json").unlink()
    refused(pack, runs, "run 3 in .* is not finished", tmp_path)
    shutil.rmtree(runs / "run_3")
    refused(pack, runs, "has no run folder run_3", tmp_path)
    (runs / "result_2.txt").unlink()
    refused(pack, runs, "run_2 has no log result_2.txt", tmp_path)


def test_a_configuration_that_was_edited(rehearsal, pack, tmp_path):
    runs = rehearsal()
    edit(runs / "run_0/config.json", '"batch_size": 3264', '"batch_size": 3265')
    refused(pack, runs, "was edited since the run", tmp_path)


def test_a_log_that_is_too_large(rehearsal, pack, tmp_path, monkeypatch):
    monkeypatch.setattr(package_set, "LARGEST", 500)
    refused(pack, rehearsal(), "larger than 50 MB", tmp_path)


def test_folders_without_runs(pack, tmp_path):
    refused(pack, tmp_path / "nothing", "holds no runs", tmp_path)

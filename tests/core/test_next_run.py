"""Which run of a set a launch trains next, and what it refuses to train."""

import pytest

from mlperf_jax.core.next_run import next_run
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import UserError
from mlperf_jax.results.log import Log
from mlperf_jax.results.runs import RunSet

CONFIG = {"benchmark": "resnet"}


def a_set(folder, **ends):
    """A set with these runs: run_0 with seed 10, run_1 with 11, …, each "done", "trained" or "killed"."""
    runs = RunSet(folder)
    for number, end in enumerate(ends.values()):
        with runs.create(CONFIG, {"seed": 10 + number}) as run, Log(run.log_path) as log:
            log.event("seed", 10 + number)
            log.start("run_start")
            if end == "done":
                log.stop("run_stop", status="success")
                run.result_path.write_text("{}")
            elif end == "trained":
                run.trained_path.write_text("{}")
    return runs


def following(of, **given):
    found = next_run(of, RunOptions(**given))
    return found.folder and found.folder.index, found.seed, found.left


def test_a_new_set(tmp_path):
    runs = RunSet(tmp_path)
    assert following(runs) == (None, None, 0)
    assert following(runs, seed=3) == (None, 3, 0)
    assert following(runs, runs=3) == (None, None, 2)
    assert following(runs, seeds=(5, 4)) == (None, 5, 1)


def test_one_run_more_is_no_surprise_and_several_are(tmp_path):
    runs = a_set(tmp_path, a="done", b="done")
    assert following(runs, seed=3) == (None, 3, 0)
    for given in ({"runs": 3}, {"seeds": (1, 2, 3)}):
        with pytest.raises(
            UserError, match=r"holds 2 runs, and 3 more would make a set of 5: add --r"
        ):
            following(runs, **given)


def test_resumed_the_set_gets_what_it_lacks_and_no_more(tmp_path):
    runs = a_set(tmp_path, a="killed", b="done", c="killed")
    assert following(runs, resume=True) == (0, None, 0)
    assert following(runs, runs=3, resume=True) == (0, None, 1), "run_2 follows, and no other"
    assert following(runs, runs=5, resume=True) == (0, None, 3)
    assert following(a_set(tmp_path / "b", a="done"), runs=3, resume=True) == (None, None, 1)
    for given in ({}, {"runs": 1}, {"runs": 2}):
        with pytest.raises(UserError, match="holds no unfinished run"):
            following(a_set(tmp_path / str(given), a="done", b="done"), resume=True, **given)


def test_resumed_seeds_that_are_there_are_not_repeated(tmp_path):
    runs = a_set(tmp_path, a="done", b="killed")
    assert following(runs, seeds=(12, 10, 11, 13), resume=True) == (1, 12, 2)
    runs = a_set(tmp_path / "b", a="done", b="done")
    assert following(runs, seeds=(12, 10, 11, 13), resume=True) == (None, 12, 1)
    with pytest.raises(UserError, match="holds no unfinished run"):
        following(runs, seeds=(11, 10), resume=True)
    with pytest.raises(UserError, match=r"run_1 has seed 11, which --seeds leaves out: name it"):
        following(runs, seeds=(10, 12), resume=True)


def test_a_run_killed_before_it_had_a_seed_takes_one_that_is_missing(tmp_path):
    runs = a_set(tmp_path, a="done")
    (tmp_path / "run_1").mkdir()
    assert following(runs, seeds=(9, 10, 11), resume=True) == (1, 9, 1)
    assert following(runs, resume=True, seed=7) == (1, 7, 0)


def test_a_trained_run_waits_for_its_score_while_others_are_trained(tmp_path):
    runs = a_set(tmp_path, a="trained", b="killed")
    assert following(runs, runs=3, resume=True) == (1, None, 1)
    runs = a_set(tmp_path / "b", a="trained")
    assert following(runs, runs=2, resume=True) == (None, None, 0)
    assert following(runs, resume=True) == (0, None, 0), "which says how it is scored"

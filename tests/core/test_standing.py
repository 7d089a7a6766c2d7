"""Where a run stands, as checkpoints keep it."""

import json

from mlperf_jax.core.standing import Ended, Standing

GOING = Standing(12, {"accuracy": 0.5}, 10, 3.5, {"epoch_num": 2}, [6, 12], True, saved=10)
OVER = Standing(12, ended=Ended("aborted", "the model has diverged"))


def again(standing):
    return Standing.of(json.loads(json.dumps(standing.kept())))


def test_what_is_kept_comes_back():
    for standing in (GOING, OVER):
        assert again(standing) == Standing(**{**vars(standing), "saved": 12})


def test_only_an_ended_run_keeps_how_it_ended():
    """As checkpoints have it since before this value was there, which are still read."""
    assert "ended" not in GOING.kept() and GOING.kept()["evaluation_due"]
    assert OVER.kept()["ended"] == {"status": "aborted", "reason": "the model has diverged"}
    assert "evaluation_due" not in OVER.kept()

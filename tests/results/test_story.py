"""What a run logged, as curves and as the page of a notebook."""

import dataclasses
import json
import types

import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.results import rules
from mlperf_jax.results.result import Result, Results
from mlperf_jax.results.story import Curves, Story, draw, page

MLLOG = ":::MLLOG "


def event(key, value, **metadata):
    line = {
        "namespace": "",
        "time_ms": 1,
        "event_type": "POINT_IN_TIME",
        "key": key,
        "value": value,
    }
    return f"{MLLOG}{json.dumps({**line, 'metadata': metadata})}\n"


@pytest.fixture
def folder(tmp_path):
    """A set of two runs of a benchmark with two targets; the second has just begun."""
    targets = [
        {"name": "FID", "at_least": None, "at_most": 90, "above": None},
        {"name": "CLIP", "at_least": 0.15, "at_most": None, "above": None},
    ]
    for index in range(2):
        run = tmp_path / f"run_{index}"
        run.mkdir()
        document = {"config_hash": "0", "config": {"targets": targets}, "options": {}}
        (run / "config.json").write_text(json.dumps(document))
    (tmp_path / "run_0" / "scalars.jsonl").write_text(
        '{"step": 10, "samples": 640, "loss": 2.5}\n{"step": 20, "samples": 1280, "loss": null}\n'
    )
    (tmp_path / "result_0.txt").write_text(
        event("eval_accuracy", 120.0, samples_count=1000, metric="FID")
        + event("eval_accuracy", 0.1, samples_count=1000, metric="CLIP")
        + event("eval_accuracy", "broken", samples_count=2000, metric="CLIP")
        + event("eval_accuracy", 0.2, metric="CLIP")
        + event("eval_accuracy", 0.2, samples_count="many", metric="CLIP")
    )
    return tmp_path


def test_loss_and_quality_are_read(folder):
    (story, _) = Curves(folder).stories
    assert story.points["loss"][0] == (640, 2.5) and len(story.points["loss"]) == 2
    assert story.points["FID"] == [(1000, 120.0)] and story.points["CLIP"] == [(1000, 0.1)]
    assert story.levels == {"FID": 90, "CLIP": 0.15}


def test_a_single_target_names_the_quality(folder):
    for index in range(2):
        path = folder / f"run_{index}" / "config.json"
        document = json.loads(path.read_text())
        document["config"]["targets"] = document["config"]["targets"][:1]
        path.write_text(json.dumps(document))
    (folder / "result_0.txt").write_text(event("eval_accuracy", 80.0, samples_count=1000))
    assert Curves(folder / "run_0").stories[0].points["FID"] == [(1000, 80.0)]


def test_what_is_drawn(folder):
    drawn = Curves(folder)
    assert "FID, target 90" in drawn.svg and "CLIP, target 0.15" in drawn.svg
    assert "not verified by MLCommons" in drawn._repr_html_()
    assert repr(drawn) == "<Curves of run_0, run_1 (unverified)>"
    assert "FID" not in Curves(folder, values=["loss"]).svg


def test_runs_of_several_sets_are_told_apart(folder):
    names = [story.name for story in Curves(folder / "run_0", folder).stories]
    assert names == [f"{folder.name}/run_{index}" for index in (0, 0, 1)]


def test_bad_input_is_told(folder, tmp_path):
    with pytest.raises(UserError, match="no run was given"):
        Curves()
    with pytest.raises(UserError, match="is not the folder of a run"):
        Curves(tmp_path / "nothing")
    with pytest.raises(UserError, match="no run logged 'los'; logged were CLIP, FID, loss"):
        Curves(folder, values=["los"])
    with pytest.raises(UserError, match=r"must end in \.svg"):
        Curves(folder).save(tmp_path / "x.png")
    with pytest.raises(UserError, match="there is no folder"):
        Curves(folder).save(tmp_path / "missing" / "x.svg")


def test_saved(folder, tmp_path):
    drawn = Curves(folder)
    drawn.save(tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_text() == drawn.svg


def test_the_page_grows():
    story = Story.of([rules.Target("accuracy", at_least=0.95)], "digits/run_0")
    before = page(story, "is compiled <soon>", None, [])
    assert "&lt;soon&gt;" in before and "<svg" not in before, "no empty axes"
    story.add(640, {"loss": 2.0, "accuracy/class": 0.5})
    assert "<svg" not in page(story, "step 10", 0.1, []), "a point is no curve"
    story.add(1280, {"loss": 1.0, "accuracy": 0.5})
    after = page(story, "step 20", 0.25, ["epoch 1 · [b]", "epoch 2"])
    assert "width:25.0%" in after and "epoch 1 · [b]<br>epoch 2" in after
    assert after.count("<polyline") == 2 and "accuracy/class" not in after
    assert draw([story]) in after


def test_a_result_stands_for_its_run(folder):
    result = types.SimpleNamespace(**{f.name: None for f in dataclasses.fields(Result)})
    given = Result(**{**vars(result), "log": str(folder / "result_0.txt"), "quality": {}})
    assert given.folder == folder / "run_0"
    assert [story.name for story in Curves(given).stories] == ["run_0"]
    assert len(Curves(Results([given, given])).stories) == 2


@pytest.mark.parametrize("given", [None, 3, b"x", ["a", "b"]])
def test_what_is_no_folder_is_told(given):
    with pytest.raises(UserError, match="is no folder of a run: give its path, or the Result"):
        Curves(given)

"""Event files of runs: the points of scalars.jsonl and of the log, once each, whatever happened to the run."""

import json

import numpy as np
import pytest
import toys
from tensorboard.backend.event_processing import event_accumulator

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks import registry
from mlperf_jax.core import preflight
from mlperf_jax.errors import UserError
from mlperf_jax.results import events, log as logs
from mlperf_jax.results.runs import RunFolder, Scalars

pytestmark = pytest.mark.usefixtures("compiled_quickly")
ASKED = {"tensorboard": True, "log_every": 2, "mesh": "data=1"}


def shown(folder, index=0):
    """(samples, value) by tag, and the times by tag, as TensorBoard reads them."""
    sizes = {event_accumulator.SCALARS: 0}
    path = str(folder / f"run_{index}" / "tensorboard")
    found = event_accumulator.EventAccumulator(path, sizes).Reload()
    points = {tag: found.Scalars(tag) for tag in found.Tags()["scalars"]}
    values = {tag: [(p.step, p.value) for p in each] for tag, each in points.items()}
    return values, {tag: [p.wall_time for p in each] for tag, each in points.items()}


def told(folder, index=0):
    """The same of scalars.jsonl and the log."""
    run, found = RunFolder(folder, index), {}
    for line in Scalars.read(run.scalars_path):
        for name in line.keys() - {"step", "samples"}:
            value = float(np.float32(line[name]))
            found.setdefault(f"train/{name}", []).append((line["samples"], value))
    for line in logs.read(run.log_path):
        if line.key == "eval_accuracy":
            point = line.metadata["samples_count"], float(np.float32(line.value))
            found.setdefault("eval/accuracy", []).append(point)
    return found


def test_without_the_option_nothing_is_written(tmp_path):
    toys.run(toys.Brief(), tmp_path, mesh="data=1")
    assert not (tmp_path / "run_0" / "tensorboard").exists()
    assert events.files(RunFolder(tmp_path, 0)) == []


@pytest.mark.parametrize("toy", [toys.Brief, toys.BriefBeside])
def test_every_scalar_and_every_quality_is_there_once(tmp_path, toy):
    toys.run(toy(), tmp_path, **ASKED)
    values, times = shown(tmp_path)
    assert values == told(tmp_path)
    assert len(values["train/loss"]) > 2 and len(values["eval/accuracy"]) >= 1
    stamps = {line.key: line.time_ms / 1000 for line in logs.read(tmp_path / "result_0.txt")}
    for when in times.values():
        assert when == sorted(when)
        assert stamps["run_start"] <= when[0] and when[-1] <= stamps["run_stop"] + 1


@pytest.mark.parametrize("at", [7, 25])  # before the first checkpoint, and between two
def test_a_resumed_run_has_no_point_twice_and_none_is_lost(tmp_path, at):
    with toys.failing(toys.Toy, at), pytest.raises(UserError, match="damaged"):
        toys.run(toys.Toy(), tmp_path, **ASKED)
    before, times_before = shown(tmp_path)
    assert before["train/loss"], "the run had told something"
    toys.run(toys.Toy(), tmp_path, resume=True, **ASKED)
    values, times = shown(tmp_path)
    assert values == told(tmp_path)
    whole = toys.run(toys.Toy(), tmp_path / "whole", seed=seed(tmp_path), **ASKED)
    assert whole.reached and values == shown(tmp_path / "whole")[0]
    kept = [point for point in before["train/loss"] if point[0] < 32 * (at - at % 10)]
    assert times["train/loss"][: len(kept)] == times_before["train/loss"][: len(kept)]


def seed(folder):
    return json.loads((folder / "run_0" / "config.json").read_text())["options"]["seed"]


def test_a_run_that_is_asked_for_it_late_has_all_points(tmp_path):
    without = {**ASKED, "tensorboard": False}
    with toys.failing(toys.Toy, 25), pytest.raises(UserError, match="damaged"):
        toys.run(toys.Toy(), tmp_path, **without)
    toys.run(toys.Toy(), tmp_path, resume=True, **ASKED)
    assert shown(tmp_path)[0] == told(tmp_path)


def test_a_run_that_goes_on_without_says_so(tmp_path, capsys):
    with toys.failing(toys.Toy, 25), pytest.raises(UserError, match="damaged"):
        toys.run(toys.Toy(), tmp_path, **ASKED)
    without = {**ASKED, "tensorboard": False, "show": "plain"}
    toys.run(toys.Toy(), tmp_path, resume=True, **without)
    said = "".join(capsys.readouterr())
    assert "note: nothing is added to" in said and "--tensorboard would" in said


def test_scores_of_an_offline_run_are_there_once_though_it_was_scored_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "benchmark_class", lambda name: toys.Offline)
    toys.run(toys.Offline(), tmp_path, max_samples=32 * 40, data_dir="data", **ASKED)
    assert "eval/accuracy" not in shown(tmp_path)[0]

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("mlperf_jax.core.run.Run.log_run_stop", killed)
        with pytest.raises(KeyboardInterrupt):
            benchmarks.evaluate(tmp_path)
    benchmarks.evaluate(tmp_path)
    values, times = shown(tmp_path)
    assert values == told(tmp_path) and len(values["eval/accuracy"]) >= 3
    stamps = [
        line.time_ms / 1000
        for line in logs.read(tmp_path / "result_0.txt")
        if line.key == "eval_accuracy"
    ]
    assert times["eval/accuracy"] == stamps


def test_a_full_disk_ends_the_run_in_one_sentence_and_it_is_resumed(tmp_path, monkeypatch):
    def full(self, data, *, sync):
        raise UserError(f"{self.path} cannot be written (No space left on device)")

    record = events.Events.record

    def at_the_third(self, samples, values):
        if samples == 32 * 6:
            monkeypatch.setattr(events.Events, "append_bytes", full)
        record(self, samples, values)

    monkeypatch.setattr(events.Events, "record", at_the_third)
    with pytest.raises(UserError, match=r"tfevents.* cannot be written"):
        toys.run(toys.Toy(), tmp_path, **ASKED)
    monkeypatch.undo()
    assert toys.run(toys.Toy(), tmp_path, resume=True, **ASKED).reached
    assert shown(tmp_path)[0] == told(tmp_path)


def test_a_missing_extra_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    def missing():
        raise UserError('a file of TensorBoard events needs an extra: pip install "mlperf-jax"')

    monkeypatch.setattr(preflight.events, "check_extra", missing)
    with pytest.raises(UserError, match="needs an extra"):
        toys.run(toys.Toy(), tmp_path / "set", **ASKED)
    assert not (tmp_path / "set").exists()

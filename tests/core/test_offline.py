"""Runs that are scored after they ended."""

import json

import numpy as np
import pytest
import toys

from mlperf_jax import benchmarks
from mlperf_jax.core import evaluation, offline
from mlperf_jax.core.benchmark import Target
from mlperf_jax.core.checkpoints import Checkpoints
from mlperf_jax.errors import UserError
from mlperf_jax.results import compliance
from mlperf_jax.results import log as logs

HARD = (Target("accuracy", above=1.0),)


@pytest.fixture(autouse=True)
def toy_is_found(monkeypatch):
    """`evaluate` finds the benchmark by the name in the run's configuration."""
    monkeypatch.setattr(benchmarks, "benchmark_class", lambda name: toys.Offline)


def trained(folder, *, steps=40, **fields):
    assert toys.run(toys.Offline(**fields), folder, max_samples=32 * steps, data_dir="data") is None
    return folder


def sealed(folder, index=0):
    with Checkpoints(folder / f"run_{index}" / "checkpoints", identity={}) as some:
        return {step: some.meta(step) for step in some.sealed_steps()}


def lines(folder, key):
    return [line for line in logs.read(folder / "result_0.txt") if line.key == key]


def test_training_leaves_a_sealed_checkpoint_for_each_evaluation(tmp_path):
    trained(tmp_path)
    assert list(sealed(tmp_path)) == [10, 20, 30, 40], "two is the retention of others"
    assert not lines(tmp_path, "run_stop") and not lines(tmp_path, "eval_accuracy")
    assert not (tmp_path / "run_0" / "result.json").exists()


def test_the_first_checkpoint_that_passes_ends_the_run_at_its_own_time(tmp_path):
    inline = toys.run(toys.Toy(), tmp_path / "inline")
    trained(tmp_path / "offline")
    result = benchmarks.evaluate(tmp_path / "offline")
    assert result.reached and result.samples == inline.samples == 960
    assert result.quality == inline.quality
    assert result.parameters_sha256 == inline.parameters_sha256
    (stop,) = lines(tmp_path / "offline", "run_stop")
    assert stop.metadata["status"] == "success" and stop.metadata["samples_count"] == 960
    assert stop.time_ms == sealed(tmp_path / "offline")[30]["time_ms"]
    accuracies = [line.value for line in lines(tmp_path / "offline", "eval_accuracy")]
    assert accuracies == [line.value for line in lines(tmp_path / "inline", "eval_accuracy")]
    report = compliance.check(tmp_path / "offline")
    assert report.success, report
    with pytest.raises(UserError, match="has its result already"):
        benchmarks.evaluate(tmp_path / "offline")


def test_a_run_without_a_checkpoint_that_passes_is_aborted(tmp_path):
    result = benchmarks.evaluate(trained(tmp_path, steps=20, targets=HARD))
    assert not result.reached and result.samples == 640
    (stop,) = lines(tmp_path, "run_stop")
    assert stop.metadata["status"] == "aborted"
    assert stop.time_ms == sealed(tmp_path)[20]["time_ms"]


def test_a_run_that_ended_before_its_first_evaluation_is_aborted_too(tmp_path):
    result = benchmarks.evaluate(trained(tmp_path, steps=5))
    assert result.status == "aborted" and result.parameters_sha256 is None
    assert json.loads((tmp_path / "run_0" / "result.json").read_text())["samples"] == 0


def test_a_trained_run_is_not_resumed(tmp_path):
    trained(tmp_path, steps=20)
    with pytest.raises(UserError, match=r"is trained: score it with `mlperf-jax evaluate"):
        toys.run(toys.Offline(), tmp_path, resume=True, max_samples=640)
    assert benchmarks.evaluate(tmp_path).resumed == 0, "neither that nor scoring resumed it"


def test_a_run_that_is_not_trained_to_its_end_is_not_scored(tmp_path):
    class Broken(toys.Offline):
        def train_data(self, data_dir):
            raise UserError("damaged")

    with pytest.raises(UserError, match="damaged"):
        toys.run(Broken(), tmp_path, data_dir="data")
    with pytest.raises(UserError, match="not trained to its end"):
        benchmarks.evaluate(tmp_path)
    assert toys.run(toys.Offline(), tmp_path, resume=True, data_dir="data") is None
    assert benchmarks.evaluate(tmp_path).resumed == 1


def test_scoring_that_broke_off_is_begun_again(tmp_path, monkeypatch):
    trained(tmp_path)
    result_of, calls = evaluation.Evaluator.result, []

    def broken(self, outputs):
        calls.append(1)
        if len(calls) == 2:
            raise OSError("the scorer died")
        return result_of(self, outputs)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation.Evaluator, "result", broken)
        with pytest.raises(OSError, match="scorer died"):
            benchmarks.evaluate(tmp_path)
    assert len(lines(tmp_path, "eval_accuracy")) == 1
    result = benchmarks.evaluate(tmp_path)
    assert result.reached and result.resumed == 0
    assert [x.metadata["samples_count"] for x in lines(tmp_path, "eval_accuracy")] == [
        320,
        640,
        960,
    ]
    assert len(lines(tmp_path, "eval_start")) == 3


def test_every_trained_run_of_a_set_is_scored(tmp_path):
    assert (
        toys.run(toys.Offline(), tmp_path, runs=2, max_samples=640, data_dir="data") == [None] * 2
    )
    results = benchmarks.evaluate(tmp_path)
    assert [result.log for result in results] == [str(tmp_path / f"result_{i}.txt") for i in (0, 1)]


def test_a_run_with_another_optimizer_is_rebuilt_with_it(tmp_path):
    assert toys.run(
        toys.Offline(), tmp_path / "a", optimizer="adam:1e-2", max_samples=320, data_dir="data"
    ) is None  # fmt: skip
    assert benchmarks.evaluate(tmp_path / "a").samples == 320
    import optax

    given = optax.adam(1e-2)
    toys.run(toys.Offline(), tmp_path / "b", optimizer=given, max_samples=320, data_dir="data")
    with pytest.raises(UserError, match="optimizer was"):
        benchmarks.evaluate(tmp_path / "b")
    assert benchmarks.evaluate(tmp_path / "b", optimizer=optax.adam(1e-2)).samples == 320


def test_what_is_not_to_be_scored_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="holds no run"):
        benchmarks.evaluate(tmp_path / "nothing")
    monkeypatch.setattr(benchmarks, "benchmark_class", lambda name: toys.Toy)

    class Broken(toys.Toy):
        def train_data(self, data_dir):
            raise UserError("damaged")

    with pytest.raises(UserError, match="damaged"):
        toys.run(Broken(), tmp_path, data_dir="data")
    with pytest.raises(UserError, match="evaluated during its run"):
        benchmarks.evaluate(tmp_path)


def test_a_configuration_survives_its_json():
    benchmark = toys.Offline(
        dtype="float32", targets=(Target("accuracy", above=0.5), Target("accuracy", at_most=1.0))
    )
    again = benchmarks.from_config(json.loads(json.dumps(benchmark.config())))
    assert again == benchmark


def test_more_devices_than_are_here_are_not_needed_to_score(tmp_path):
    trained(tmp_path, steps=10)
    path = tmp_path / "run_0" / "config.json"
    document = json.loads(path.read_text())
    document["options"] |= {"mesh": "data=64", "processes": 16, "coordinator": "host:1"}
    path.write_text(json.dumps(document))
    _, options = offline.waiting(tmp_path)
    assert options.mesh is None and options.coordinator is None
    assert np.isfinite(benchmarks.evaluate(tmp_path).quality["accuracy"])

"""Runs that are scored after they ended."""

import json

import numpy as np
import pytest
import toys

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks import registry
from mlperf_jax.core import evaluation, offline
from mlperf_jax.core.benchmark import Target
from mlperf_jax.core.checkpoints import Checkpoints
from mlperf_jax.core.run import Run
from mlperf_jax.errors import UserError
from mlperf_jax.results import compliance, log as logs
from mlperf_jax.results.runs import RunFolder

HARD = (Target("accuracy", above=1.0),)


@pytest.fixture(autouse=True)
def toy_is_found(monkeypatch):
    """`evaluate` finds the benchmark by the name in the run's configuration."""
    monkeypatch.setattr(registry, "benchmark_class", lambda name: toys.Offline)


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
    assert not result.reached and result.samples == 640 and result.scored == [320, 640]
    (stop,) = lines(tmp_path, "run_stop")
    assert stop.metadata["status"] == "aborted"
    assert stop.time_ms == sealed(tmp_path)[20]["time_ms"]


def test_a_run_that_ended_before_its_first_evaluation_is_aborted_too(tmp_path):
    result = benchmarks.evaluate(trained(tmp_path, steps=20, poisoned=(4,)))
    assert result.status == "aborted" and result.parameters_sha256 is None
    assert json.loads((tmp_path / "run_0" / "result.json").read_text())["samples"] == 0


def test_a_run_that_nothing_ends_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"scored after its run, which no value ends: .*--max-samples"
    ):
        toys.run(toys.Offline(sample_limit=None), tmp_path / "a")
    sentence = (
        "the second comes after step 20 and the run ends after step 19, so allow at least 640"
    )
    with pytest.raises(UserError, match=sentence):
        toys.run(toys.Offline(), tmp_path / "a", max_samples=639)
    with pytest.raises(UserError, match=sentence):
        toys.run(toys.Offline(sample_limit=639), tmp_path / "a")
    assert not (tmp_path / "a").exists()


# -- which checkpoints are scored ------------------------------------------------------------------


def scored(monkeypatch, folder, values, **how):
    """(result, checkpoints in the order they were scored, samples of the log's evaluations)."""
    steps, load = [], offline.load

    def noted(run, step):
        steps.append(step)
        return load(run, step)

    def quality(self, state, step):
        return {"accuracy": values[step // 10 - 1]}

    monkeypatch.setattr(offline, "load", noted)
    monkeypatch.setattr(evaluation.Evaluator, "quality", quality)
    trained(folder, steps=10 * len(values))
    result = benchmarks.evaluate(folder, **how)
    told = [line.metadata["samples_count"] // 320 for line in lines(folder, "eval_accuracy")]
    assert [line.metadata["samples_count"] // 320 for line in lines(folder, "eval_stop")] == told
    return result, [step // 10 for step in steps[:-1]], told


WORSE, BETTER = 0.2, 0.95


@pytest.mark.parametrize(
    ("bisect", "values", "asked", "told"),
    [
        (False, [WORSE] * 3 + [BETTER] * 5, [1, 2, 3, 4], [1, 2, 3, 4]),
        (True, [WORSE] * 3 + [BETTER] * 5, [8, 4, 2, 3], [2, 3, 4]),
        (True, [WORSE] * 7 + [BETTER], [8, 4, 6, 7], [4, 6, 7, 8]),
        # one that passes by itself: it, and the one before it that does not
        (True, [BETTER, WORSE, WORSE, BETTER], [4, 2, 3], [2, 3, 4]),
        # the first passes: it counts, and official tools take the last one's length
        (False, [BETTER] * 4, [1], [1]),
        (True, [BETTER] * 4, [4, 2, 1], [1]),
        # the last does not: none is passed over
        (True, [WORSE, BETTER, WORSE, WORSE], [4, 1, 2], [1, 2]),
        (True, [WORSE] * 3, [3, 1, 2], [1, 2, 3]),
    ],
)
def test_which_are_scored_and_told(bisect, values, asked, told, tmp_path, monkeypatch):
    result, order, logged = scored(monkeypatch, tmp_path, values, bisect=bisect)
    assert (order, logged) == (asked, told)
    assert result.scored == [320 * number for number in sorted(asked)]
    assert result.reached == (BETTER in values) and result.samples == 320 * told[-1]
    (stop,) = lines(tmp_path, "run_stop")
    assert stop.time_ms == sealed(tmp_path)[10 * told[-1]]["time_ms"]
    assert stop.metadata["samples_count"] == result.samples
    begun, ended = (lines(tmp_path, key) for key in ("eval_start", "eval_stop"))
    assert all(a.time_ms <= b.time_ms for a, b in zip(begun, ended, strict=True))


def test_the_official_checker_of_two_metrics_wants_two_checkpoints(tmp_path, monkeypatch):
    """Two lines a checkpoint, and two checkpoints though the first passes."""

    class Painter(toys.Offline):
        name, ruleset = "stable_diffusion", "5.0.0"

        def quality_lines(self, quality):
            return [(80.0, {"metric": "FID"}), (quality["accuracy"], {"metric": "CLIP"})]

    monkeypatch.setattr(registry, "benchmark_class", lambda name: Painter)
    easy = (Target("accuracy", at_least=0.1),)
    toys.run(Painter(targets=easy), tmp_path, max_samples=640, data_dir="data")
    assert benchmarks.evaluate(tmp_path).samples == 320
    assert [x.metadata["samples_count"] for x in lines(tmp_path, "eval_accuracy")] == [320, 320, 640, 640]  # fmt: skip
    report = compliance.check(tmp_path)
    assert report.success, report


def test_a_trained_run_is_not_resumed(tmp_path):
    trained(tmp_path, steps=20)
    with pytest.raises(UserError, match=r"is trained: score it with `mlperf-jax evaluate"):
        toys.run(toys.Offline(), tmp_path, resume=True, max_samples=640)
    assert benchmarks.evaluate(tmp_path).resumed == 0, "neither that nor scoring resumed it"


def test_a_run_that_is_not_trained_to_its_end_is_not_scored(tmp_path):
    with toys.failing(toys.Offline, 3), pytest.raises(UserError, match="damaged"):
        toys.run(toys.Offline(), tmp_path, data_dir="data")
    with pytest.raises(UserError, match="not trained to its end"):
        benchmarks.evaluate(tmp_path)
    assert toys.run(toys.Offline(), tmp_path, resume=True, data_dir="data") is None
    assert benchmarks.evaluate(tmp_path).resumed == 1


class Killed(Exception):
    """What a kill leaves is what this leaves: nothing in `offline` catches it."""


@pytest.mark.parametrize(
    ("owner", "name", "nth"),
    [
        (evaluation.Evaluator, "result", 2),
        (offline.Scorer, "_keep", 2),
        (logs.Log, "event", 2),
        (Run, "conclude", 1),
        (RunFolder, "save_result", 1),
    ],
)
def test_scoring_that_broke_off_scores_and_writes_nothing_twice(
    owner, name, nth, tmp_path, monkeypatch
):
    trained(tmp_path)
    method, result_of, calls, asked = getattr(owner, name), evaluation.Evaluator.result, [], []

    def broken(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == nth:
            raise Killed
        return method(self, *args, **kwargs)

    def noted(self, outputs):
        asked.append(1)
        return result_of(self, outputs)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation.Evaluator, "result", noted)
        patch.setattr(owner, name, broken)
        with pytest.raises(Killed):
            benchmarks.evaluate(tmp_path)
    before = len(json.loads((tmp_path / "run_0" / "scores.json").read_text()))
    assert before == (1 if name in ("result", "_keep") else 3)
    asked.clear()
    monkeypatch.setattr(evaluation.Evaluator, "result", noted)
    result = benchmarks.evaluate(tmp_path)
    assert len(asked) == 3 - before, "what is known is not scored again"
    assert result.reached and result.resumed == 0 and result.scored == [320, 640, 960]
    for key in ("eval_start", "eval_accuracy", "eval_stop"):
        assert [x.metadata["samples_count"] for x in lines(tmp_path, key)] == [320, 640, 960]
    assert len(lines(tmp_path, "run_stop")) == 1


def test_every_trained_run_of_a_set_is_scored(tmp_path, capfd):
    given = dict(runs=2, max_samples=640, data_dir="data", show="plain")
    assert toys.run(toys.Offline(), tmp_path, **given) == [None] * 2
    assert "unfinished" not in "".join(capfd.readouterr()), (
        "a trained run waits for its score alone"
    )
    results = benchmarks.evaluate(tmp_path)
    assert [result.log for result in results] == [str(tmp_path / f"result_{i}.txt") for i in (0, 1)]


def test_a_run_with_another_optimizer_is_rebuilt_with_it_and_names_it(tmp_path):
    assert toys.run(
        toys.Offline(), tmp_path / "a", optimizer="adam:1e-2", max_samples=640, data_dir="data"
    ) is None  # fmt: skip
    assert benchmarks.evaluate(tmp_path / "a").samples <= 640
    import optax

    given = optax.adam(1e-2)
    toys.run(toys.Offline(), tmp_path / "b", optimizer=given, max_samples=640, data_dir="data")
    with pytest.raises(UserError, match="optimizer was"):
        benchmarks.evaluate(tmp_path / "b")
    result = benchmarks.evaluate(tmp_path / "b", optimizer=optax.adam(1e-2))
    assert result.samples <= 640
    (line,) = lines(tmp_path / "b", "opt_name")
    assert line.value == result.optimizer == "adam"
    assert line.metadata["settings"]["scale_by_learning_rate"] == {"learning_rate": 1e-2}
    (rate,) = lines(tmp_path / "b", "opt_base_learning_rate")
    assert rate.value == 1e-2


def test_what_is_not_to_be_scored_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="holds no run"):
        benchmarks.evaluate(tmp_path / "nothing")
    monkeypatch.setattr(registry, "benchmark_class", lambda name: toys.Toy)

    with toys.failing(toys.Toy, 3), pytest.raises(UserError, match="damaged"):
        toys.run(toys.Toy(), tmp_path, data_dir="data")
    with pytest.raises(UserError, match="evaluated during its run"):
        benchmarks.evaluate(tmp_path)


def test_processes_that_score_different_things_are_stopped(tmp_path, monkeypatch):
    """As those that train are (test_processes.py); here only one is asked."""

    def differ(given):
        raise UserError(f"processes differ: {given['targets']}")

    trained(tmp_path, steps=20)
    monkeypatch.setattr(offline.processes, "check_same", differ)
    with pytest.raises(UserError, match=r"processes differ: .*accuracy"):
        benchmarks.evaluate(tmp_path)
    assert not lines(tmp_path, "eval_accuracy")


def test_a_configuration_survives_its_json():
    benchmark = toys.Offline(
        dtype="float32", targets=(Target("accuracy", above=0.5), Target("accuracy", at_most=1.0))
    )
    again = benchmarks.from_config(json.loads(json.dumps(benchmark.config())))
    assert again == benchmark


def test_more_devices_than_are_here_are_not_needed_to_score(tmp_path):
    trained(tmp_path, steps=20)
    path = tmp_path / "run_0" / "config.json"
    document = json.loads(path.read_text())
    document["options"] |= {"mesh": "data=64", "processes": 16, "coordinator": "host:1"}
    path.write_text(json.dumps(document))
    _, options = offline.waiting(tmp_path)
    assert options.mesh is None and options.coordinator is None
    assert np.isfinite(benchmarks.evaluate(tmp_path).quality["accuracy"])

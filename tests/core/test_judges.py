"""Networks that only judge: there while an evaluation lasts, and nowhere else."""

import gc
import types

import jax
import numpy as np
import playing_toys
import pytest
import toys
from flax import nnx

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks import registry
from mlperf_jax.core import evaluation, judges, mesh as meshes, preflight
from mlperf_jax.core.bench import bench
from mlperf_jax.core.checkpoints import Checkpoints
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import UserError
from mlperf_jax.results import log as logs


@pytest.fixture
def loads(monkeypatch):
    """How many judges are on the devices, noted at each loading."""
    found, load = [], judges.Judges.load

    def noted(self, data_dir):
        gc.collect()
        found.append(judges_here())
        return load(self, data_dir)

    monkeypatch.setattr(judges.Judges, "load", noted)
    return found


def judges_here():
    """Arrays of the judge's kernel, whose shape and values nothing else has, on the devices."""
    arrays = [a for a in jax.live_arrays() if a.shape == toys.TRUTH.shape]
    return sum(np.allclose(np.asarray(a), toys.TRUTH.astype(np.float32)) for a in arrays)


def accuracies(folder):
    return [
        line.value for line in logs.read(folder / "result_0.txt") if line.key == "eval_accuracy"
    ]


def leaves(folder):
    with Checkpoints(folder / "run_0" / "checkpoints", identity={}) as some:
        return (some.latest_meta() or {})["leaves"]


def test_they_judge_and_leave_no_trace_in_what_is_trained(tmp_path, loads):
    plain = toys.run(toys.Toy(), tmp_path / "plain")
    judged = toys.run(playing_toys.Judged(), tmp_path / "judged")
    assert judged.quality == plain.quality, "the judge knows the true rule, as the labels do"
    assert accuracies(tmp_path / "judged") == accuracies(tmp_path / "plain")
    assert judged.parameters_sha256 == plain.parameters_sha256
    assert leaves(tmp_path / "judged").keys() == leaves(tmp_path / "plain").keys()
    gc.collect()
    assert loads == [0] * (judged.samples // 320), (
        "read anew for each evaluation, let go after each"
    )
    assert judges_here() == 0


def test_they_are_there_while_an_evaluation_lasts(monkeypatch):
    assembly, seen = toys.prepared(playing_toys.Judged(), "data=8"), []
    data = assembly.benchmark.eval_data("").batched(32)

    def stream(threads):
        for batch in data.stream(threads=threads):
            seen.append(judges_here())
            yield batch

    measuring = evaluation.Evaluator(assembly, 0, "data", threads=1)
    measuring.batches = types.SimpleNamespace(stream=stream)
    measuring.outputs(assembly.create(0), 1)
    gc.collect()
    assert len(seen) == 2 and min(seen) >= 1 and judges_here() == 0


def test_runs_that_are_scored_later_load_them_once(tmp_path, loads, monkeypatch):
    monkeypatch.setattr(registry, "benchmark_class", lambda name: playing_toys.OfflineJudged)
    inline = toys.run(toys.Toy(), tmp_path / "inline")
    assert (
        toys.run(playing_toys.OfflineJudged(), tmp_path / "a", max_samples=1280, data_dir="data")
        is None
    )
    assert loads == [], "training needs none"
    result = benchmarks.evaluate(tmp_path / "a")
    assert (result.quality, result.samples) == (inline.quality, inline.samples)
    assert result.parameters_sha256 == inline.parameters_sha256
    assert len(loads) == 1 and len(result.scored) == 3


def test_a_loaded_run_is_judged_too(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "benchmark_class", lambda name: playing_toys.Judged)
    result = toys.run(playing_toys.Judged(), tmp_path, data_dir="data")
    found = benchmarks.load(tmp_path, data_dir="data")
    assert found.evaluate() == result.quality
    batch = toys.problem(48, 2)
    hits = np.asarray(found.predict({"x": batch["x"], "ids": batch["ids"]}))
    assert hits.shape == (48,) and 0.8 < hits.mean() <= 1


def test_speed_is_measured_with_them():
    report = bench(playing_toys.Judged().tiny(), RunOptions(mesh="data=8"), steps=2, warmup=1)
    assert report.evaluation_examples_per_second > 0


class WideJudge(nnx.Module):
    def __init__(self, rngs):
        self.rule = nnx.Linear(64, 512, rngs=rngs)


class Wide(playing_toys.Judged):
    def judges(self, rngs):
        return WideJudge(rngs)

    def judge_weights(self, data_dir):
        kernel = np.arange(64 * 512, dtype=np.float32).reshape(64, 512)
        return {"params/rule/kernel": lambda index: kernel[index], "params/rule/bias": kernel[0]}


def test_large_ones_are_split_as_weights_are():
    found = judges.judges_of(Wide(), meshes.make_mesh("data=2,fsdp=4"))
    arrays = found.load("data")
    kernel = arrays["params"]["rule"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(64, 128)}
    np.testing.assert_array_equal(kernel, np.arange(64 * 512).reshape(64, 512))


def test_a_plan_counts_them_in_evaluation():
    """One more argument of the evaluation's program, of 4 bytes a number, and of no other."""
    sizes = [
        next(iter(evaluation.compile_predict(toys.prepared(cls())).values()))
        .memory_analysis()
        .argument_size_in_bytes
        for cls in (toys.Toy, playing_toys.Judged)
    ]
    # 30 numbers more, and 32 labels less, which are not read where a judge knows them
    assert sizes[1] - sizes[0] == 4 * 30 - 4 * 32
    assert (
        toys.prepared(playing_toys.Judged()).abstract.keys()
        == toys.prepared(toys.Toy()).abstract.keys()
    )


# -- refused before the run ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda given: given.pop("stats/norm/var"),
            "lacks 'stats/norm/var': all arrays of a judge",
        ),
        (lambda given: given.update(x=np.zeros(3)), "has 'x', which no judge has"),
        (
            lambda given: given.update({"params/norm/scale": np.zeros(4)}),
            r"has 'params/norm/scale' of shape \(4,\), the judge \(3,\)",
        ),
    ],
)
def test_weights_that_are_not_a_judges_are_refused(change, sentence, tmp_path):
    class Other(playing_toys.Judged):
        def judge_weights(self, data_dir):
            given = dict(super().judge_weights(data_dir))
            change(given)
            return given

    with pytest.raises(UserError, match=sentence):
        toys.run(Other(), tmp_path / "a")
    assert not (tmp_path / "a").exists(), "nothing is touched"


def test_a_missing_file_is_refused(tmp_path):
    options = toys.options(tmp_path / "a")
    with pytest.raises(UserError, match=r"elsewhere/judge.npz is missing"):
        preflight.preflight(playing_toys.Judged(), options, "elsewhere")
    assert preflight.preflight(playing_toys.Judged(), options, "data").division == "open"

"""Samples are not rows: what counts the one and what the other."""

import itertools

import jax
import pytest
import sample_toys
import toys

from mlperf_jax import benchmarks
from mlperf_jax.core import preflight
from mlperf_jax.core.bench import bench
from mlperf_jax.core.benchmark import Target
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import UserError
from mlperf_jax.planning import convergence, timing
from mlperf_jax.results import log as logs
from mlperf_jax.results.runs import Scalars

HARD = (Target("accuracy", above=1.0),)


class Growing(toys.Plain):
    """Batches of 16 samples and, from step 6 on, of 32."""

    def samples(self, step):
        return 16 * step + 16 * max(0, step - 6)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """(result, folder) of a run of 13 steps."""
    folder = tmp_path_factory.mktemp("packed")
    benchmark = sample_toys.Packed(targets=HARD)
    return toys.run(benchmark, folder, max_samples=48 * 13 + 47, log_every=4), folder


# -- counting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("benchmark", [toys.Toy(), sample_toys.Packed(), Growing()])
def test_steps_are_found_from_samples(benchmark):
    for step in range(40):
        samples = benchmark.samples(step)
        assert benchmark.step_of(samples) == step
        assert benchmark.step_of(benchmark.samples(step + 1) - 1) == step
    assert benchmark.step_of(10**15) > 10**13 / 4


def test_epochs_are_counted_in_samples():
    assert sample_toys.Packed().position(5) == {"epoch_num": 1, "samples_count": 240}
    growing = Growing()  # 6 steps of 16 samples and 5 of 32 make an epoch of 256
    assert growing.epoch_steps == 11
    assert growing.position(11) == {"epoch_num": 1, "samples_count": 256}
    assert growing.position(6) == {"epoch_num": 96 / 256, "samples_count": 96}


def test_rows_follow_the_batch_size_unless_a_row_holds_more():
    assert (toys.Toy(batch_size=64).rows, toys.Toy(batch_size=64).eval_rows) == (64, 64)
    assert (sample_toys.Packed().rows, sample_toys.Packed().eval_rows) == (32, 32)
    assert sample_toys.Packed(eval_batch_size=16).eval_rows == 16


# -- a run -----------------------------------------------------------------------------------------


def test_a_run_counts_samples(packed):
    result, folder = packed
    assert result.samples == 48 * 13, "the step that would pass the limit is not taken"
    scalars = Scalars.read(folder / "run_0" / "scalars.jsonl")
    assert [(line["step"], line["samples"]) for line in scalars] == [(4, 192), (8, 384), (12, 576)]
    lines = logs.read(folder / "result_0.txt")
    (evaluated,) = [line.metadata for line in lines if line.key == "eval_accuracy"]
    assert evaluated["samples_count"] == 480 and evaluated["epoch_num"] == 2
    assert lines[-1].metadata["samples_count"] == 624
    assert {line.value for line in lines if line.key == "global_batch_size"} == {48}


def test_its_weights_are_found_by_its_samples(packed, monkeypatch):
    monkeypatch.setattr(benchmarks, "benchmark_class", lambda name: sample_toys.Packed)
    assert benchmarks.load(packed[1]).step == 13


def test_packed_rows_teach_what_their_samples_do(tmp_path):
    assert toys.run(sample_toys.Packed(), tmp_path).reached


@pytest.mark.parametrize("micro", [1, 4])
def test_packed_rows_on_one_and_eight_devices(micro):
    with jax.enable_x64(True):
        benchmark = sample_toys.Packed(dtype="float64", gradient_accumulation_steps=micro)
        (one, losses), (eight, found) = (
            toys.stepped(benchmark, mesh) for mesh in ("data=1", "data=2,fsdp=4")
        )
        whole, _ = toys.stepped(sample_toys.Packed(dtype="float64"), "data=1")
    assert toys.distance(toys.weights(one), toys.weights(eight)) < 1e-12
    assert toys.distance(toys.weights(one), toys.weights(whole)) < 1e-12
    assert [s["loss"] for s in found] == pytest.approx([s["loss"] for s in losses], rel=1e-12)


# -- before a run ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "options", "sentence"),
    [
        ({}, {"max_samples": 47}, "max_samples 47 is less than one batch of 48"),
        ({"gradient_accumulation_steps": 8}, {}, "micro-batch of 4 is not divided by the mesh"),
        ({"eval_batch_size": 20}, {}, "evaluation batch size 20 is not divided"),
    ],
)
def test_rows_are_split_and_samples_limited(fields, options, sentence, tmp_path):
    options = toys.options(tmp_path / "output", **options)
    with pytest.raises(UserError, match=sentence):
        preflight.preflight(sample_toys.Packed(**fields), options, "data")


def test_micro_batches_divide_the_rows():
    with pytest.raises(UserError, match=r"rows 32 is not a multiple of .* 3"):
        sample_toys.Packed(gradient_accumulation_steps=3)  # which divides the 48 samples


@pytest.mark.parametrize(
    "count", [lambda step: 32 * max(0, step - 3), lambda step: 32 * step + 1, lambda step: 0]
)
def test_samples_must_grow(count, tmp_path):
    class Wrong(toys.Plain):
        def samples(self, step):
            return count(step)

    with pytest.raises(UserError, match=r"samples\(step\) of resnet must be 0 before"):
        preflight.preflight(Wrong(), toys.options(tmp_path / "output"), "data")


def test_speed_is_measured_in_samples():
    report = bench(sample_toys.Packed(), RunOptions(mesh="data=8"), steps=3, warmup=1)
    assert report.examples_per_second == pytest.approx(48 / report.step_seconds)
    growing = bench(
        Growing(), RunOptions(mesh="data=8"), data_dir="", steps=8, warmup=2, input="real"
    )
    assert growing.examples_per_second * growing.step_seconds * 8 == pytest.approx(4 * 16 + 4 * 32)


def test_a_plan_counts_samples(monkeypatch):
    assert timing.samples_per_step(sample_toys.Packed()) == 48
    assert timing.samples_per_step(Growing()) == 256 / 11
    monkeypatch.setattr(convergence, "samples_to_target", lambda b: (300.5, 10.0, "here"))
    time = timing.StepTime(2.0, 0.25, 1, 1, 1, 0, "products", 16.0, 0.5, "", None, "")
    devices = convergence.names.parse("v5p:2x2x4")
    found, _ = convergence.to_target(Growing(), devices, time, None)
    counted = itertools.takewhile(lambda s: Growing().samples(s) < 300.5, itertools.count())
    assert found is not None and found.steps == len(list(counted)) == 13

"""Samples are not rows: what counts the one and what the other."""

import itertools

import jax
import jax.numpy as jnp
import more_toys
import pytest
import toys

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks import registry
from mlperf_jax.core import evaluation, preflight
from mlperf_jax.core.bench import bench
from mlperf_jax.core.benchmark import Target
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import UserError
from mlperf_jax.planning import convergence, timing
from mlperf_jax.results import log as logs
from mlperf_jax.results.runs import Scalars

HARD = (Target("accuracy", above=1.0),)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """(result, folder) of a run of 13 steps."""
    folder = tmp_path_factory.mktemp("packed")
    benchmark = more_toys.Packed(targets=HARD)
    return toys.run(benchmark, folder, max_samples=48 * 13 + 47, log_every=4), folder


# -- counting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("benchmark", [toys.Toy(), more_toys.Packed(), more_toys.Growing()])
def test_steps_are_found_from_samples(benchmark):
    for step in range(40):
        samples = benchmark.samples(step)
        assert benchmark.step_of(samples) == step
        assert benchmark.step_of(benchmark.samples(step + 1) - 1) == step
    assert benchmark.step_of(10**15) > 10**13 / 4


def test_epochs_are_counted_in_samples():
    assert more_toys.Packed().position(5) == {"epoch_num": 1, "samples_count": 240}
    growing = more_toys.Growing()  # 6 steps of 16 samples and 5 of 32 make an epoch of 256
    assert growing.epoch_steps == 11
    assert growing.position(11) == {"epoch_num": 1, "samples_count": 256}
    assert growing.position(6) == {"epoch_num": 96 / 256, "samples_count": 96}


def test_rows_follow_the_batch_size_unless_a_row_holds_more():
    assert (toys.Toy(batch_size=64).rows, toys.Toy(batch_size=64).eval_rows) == (64, 64)
    assert (more_toys.Packed().rows, more_toys.Packed().eval_rows) == (32, 32)
    assert more_toys.Packed(eval_batch_size=16).eval_rows == 16


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
    monkeypatch.setattr(registry, "benchmark_class", lambda name: more_toys.Packed)
    assert benchmarks.load(packed[1]).step == 13


TOYS = [more_toys.Packed, more_toys.Growing, more_toys.Planned]
MESHES = ("data=1", "data=2,fsdp=4")


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("cls", TOYS)
def test_one_device_and_eight_agree(cls, micro):
    with jax.enable_x64(True):
        benchmark = cls(dtype="float64", gradient_accumulation_steps=micro)
        (one, losses), (eight, found) = (toys.stepped(benchmark, mesh, steps=8) for mesh in MESHES)
        whole, _ = toys.stepped(cls(dtype="float64"), "data=1", steps=8)
    assert toys.distance(toys.weights(one), toys.weights(eight)) < 1e-12
    assert toys.distance(toys.weights(one), toys.weights(whole)) < 1e-12
    assert [s["loss"] for s in found] == pytest.approx([s["loss"] for s in losses], rel=1e-12)


@pytest.mark.parametrize("micro", [1, 2])
def test_groups_of_a_partial_batch_do_not_depend_on_the_mesh(micro):
    """Neither does what stands in the place of padding matter: 20 rows in four groups of 8."""

    class Dirty(more_toys.Partial):
        def loss(self, model, batch, key):
            x = jnp.where(batch["mask"][:, None], batch["x"], 1e3)
            return super().loss(model, {**batch, "x": x}, key)

    with jax.enable_x64(True):
        given = dict(dtype="float64", gradient_accumulation_steps=micro)
        held = toys.batch_of(more_toys.Partial(**given), 2)["mask"].reshape(-1, micro)
        assert [held[:, m].reshape(-1, 8).sum(1).tolist() for m in range(micro)] == (
            [[5, 5, 5, 5]] if micro == 1 else [[5, 5], [5, 5]]
        )
        (one, losses), (eight, found) = (
            toys.stepped(more_toys.Partial(**given), mesh, steps=7) for mesh in MESHES
        )
        dirty, _ = toys.stepped(Dirty(**given), steps=7)
    assert toys.distance(toys.weights(one), toys.weights(eight)) < 1e-12
    assert toys.distance(toys.weights(one), toys.weights(dirty)) < 1e-12
    assert [s["loss"] for s in found] == pytest.approx([s["loss"] for s in losses], rel=1e-12)


@pytest.mark.parametrize("cls", [*TOYS, more_toys.Partial])
def test_they_learn(cls, tmp_path):
    assert toys.run(cls(), tmp_path).reached


def test_batches_of_all_rows_are_counted(tmp_path):
    growing = toys.run(more_toys.Growing(targets=HARD), tmp_path / "a", max_samples=6 * 16 + 100)
    assert growing.samples == 6 * 16 + 3 * 32
    planned = toys.run(more_toys.Planned(targets=HARD), tmp_path / "b", max_samples=7 * 24 + 31)
    assert planned.samples == 4 * 32 + 4 * 16, (
        "the short batch that would pass the limit is not read"
    )


def test_planned_evaluation_counts_every_sample_once():
    """Whatever its batches' shapes: as the same samples in one shape."""
    assembly = toys.prepared(more_toys.Planned(), "data=8")
    state = assembly.create(0)

    def outputs(assembly):
        return evaluation.Evaluator(assembly, 0, "", threads=1).outputs(state, 1)

    planned, plain = outputs(assembly), outputs(toys.prepared(toys.Plain(), "data=8"))
    assert planned == plain and planned["count"] == 50


def test_rows_of_different_shapes_are_refused_before_a_run():
    class Apart(more_toys.Planned):
        metric = toys.Slow()

        def predict(self, model, batch, key):
            return batch["x"]

    with pytest.raises(UserError, match=r"rows of float32\[1, 6\] and float32\[3, 6\]: pad them"):
        evaluation.compile_predict(toys.prepared(Apart(), "data=8"))


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
        preflight.preflight(more_toys.Packed(**fields), options, "data")


def test_micro_batches_divide_the_rows():
    with pytest.raises(UserError, match=r"rows 32 is not a multiple of .* 3"):
        more_toys.Packed(gradient_accumulation_steps=3)  # which divides the 48 samples


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
    report = bench(more_toys.Packed(), RunOptions(mesh="data=8"), steps=3, warmup=1)
    assert report.examples_per_second == pytest.approx(48 / report.step_seconds)
    growing = bench(
        more_toys.Growing(),
        RunOptions(mesh="data=8"),
        data_dir="",
        steps=8,
        warmup=2,
        input="real",
    )
    assert growing.examples_per_second * growing.step_seconds * 8 == pytest.approx(4 * 16 + 4 * 32)


def test_a_plan_counts_samples(monkeypatch):
    assert timing.samples_per_step(more_toys.Packed()) == 48
    assert timing.samples_per_step(more_toys.Growing()) == 256 / 11
    monkeypatch.setattr(convergence, "samples_to_target", lambda b: (300.5, 10.0, "here"))
    time = timing.StepTime(2.0, 0.25, 1, 1, 1, 0, "products", 16.0, 0.5, "", None, "")
    devices = convergence.names.parse("v5p:2x2x4")
    found, _ = convergence.to_target(more_toys.Growing(), devices, time, None)
    counted = itertools.takewhile(
        lambda s: more_toys.Growing().samples(s) < 300.5, itertools.count()
    )
    assert found is not None and found.steps == len(list(counted)) == 13

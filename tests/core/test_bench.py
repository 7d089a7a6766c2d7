"""Measuring speed: what is run, what is counted, and what the report says."""

import dataclasses
import json
import shutil
import types

import jax
import numpy as np
import pytest
import toys

from mlperf_jax.core import bench as benches, loop, mesh as meshes, peaks, synthetic
from mlperf_jax.core.bench import bench
from mlperf_jax.core.benchmark import f32, i32
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import pipeline

TOY = toys.Toy().tiny()


class Buckets(toys.Toy):
    """Two shapes of batch; the model sees the sum over what varies."""

    def example(self):
        return tuple({"x": f32(n, toys.FEATURES), "ids": i32(2), "label": i32()} for n in (1, 3))

    def loss(self, model, batch, key):
        return super().loss(model, {**batch, "x": batch["x"].sum(1)}, key)

    def predict(self, model, batch, key):
        return super().predict(model, {**batch, "x": batch["x"].sum(1)}, key)


@pytest.fixture
def calls(monkeypatch):
    """Batches of every train step that `bench` runs, in order."""
    seen = []
    original = loop.compile_train

    def watched(assembly):
        def wrap(program):
            def step(state, batch, key):
                seen.append({name: leaf.shape for name, leaf in batch.items()})
                return program(state, batch, key)

            step.memory_analysis = program.memory_analysis
            return step

        return {shape: wrap(program) for shape, program in original(assembly).items()}

    monkeypatch.setattr(loop, "compile_train", watched)
    return seen


def test_synthetic_input_runs_the_loops_own_step_on_every_device(calls):
    report = bench(TOY, RunOptions(mesh="data=2,fsdp=2,expert=2"), steps=4, warmup=1)
    assert len(calls) == 2 * (1 + 4), "two passes of warm-up and steps"
    assert report.mesh == {"data": 2, "fsdp": 2, "expert": 2}
    assert report.device_count == 8
    assert report.examples_per_second == pytest.approx(TOY.batch_size / report.step_seconds)
    assert 0 < report.step_seconds_p10 <= report.step_seconds_median <= report.step_seconds_p90
    assert report.flops_per_second_per_device == pytest.approx(
        TOY.flops_per_sample * report.examples_per_second / 8
    )
    assert report.evaluation_examples_per_second > 0
    assert report.input_wait_share == 0
    assert report.compile_seconds_train > 0
    assert report.memory_source == "compiler"
    assert report.memory_bytes > 0
    assert report.mfu is None, "CPUs have no peak in the table"


def test_real_input_is_read_as_the_loop_reads_it(calls, monkeypatch):
    asked = []
    batched, stream = pipeline.Split.batched, pipeline.Batches.stream

    def noted_batched(self, rows, **how):
        asked.append((rows, how["seed"], how["share"](rows)))
        return batched(self, rows, **how)

    def noted_stream(self, start=0, **how):
        asked.append((start, how))
        return stream(self, start, **how)

    monkeypatch.setattr(pipeline.Split, "batched", noted_batched)
    monkeypatch.setattr(pipeline.Batches, "stream", noted_stream)
    options = RunOptions(mesh="data=8", seed=7, threads=2)
    report = bench(TOY, options, data_dir="", steps=3, warmup=1, input="real")
    assert asked == [(32, 7, (0, 32)), (0, {"threads": 2, "workers": 0})]
    assert len(calls) == 8
    assert 0 <= report.input_wait_share < 1
    assert report.input == "real"


def test_input_only_takes_no_step(calls):
    report = bench(TOY, RunOptions(mesh="data=8"), data_dir="", steps=3, input="input-only")
    assert calls == []
    assert report.input_examples_per_second > 0
    row_bytes = toys.FEATURES * 4 + 2 * 4 + 4
    assert report.input_bytes_per_second == pytest.approx(
        report.input_examples_per_second * row_bytes
    )
    assert report.examples_per_second is None
    assert "input alone" in str(report)
    assert "training" not in report.rows()


def test_buckets_take_turns(calls):
    bench(Buckets().tiny(), RunOptions(mesh="data=8"), steps=4, warmup=0)
    widths = [shapes["x"][1] for shapes in calls]
    assert widths == [1, 3, 1, 3, 1, 3, 1, 3]


def test_waiting_is_the_feeds_count_over_the_window():
    """A feed that says it waited for as long as the clock ran: the share is what it says."""

    class Feed:
        waited = 10.0

        def __next__(self):
            self.waited += 0.25
            return {"x": np.zeros((2, 1))}

    ready = jax.numpy.zeros(())
    program = lambda state, batch, key: (state, {"loss": ready})  # noqa: E731
    key = benches.evaluation.shape_key({"x": np.zeros((2, 1))})
    stepper = benches.Stepper({key: program}, {"step": ready}, ready)
    seconds, waited = stepper.window(Feed(), 40)
    assert waited == pytest.approx(40 * 0.25)
    assert seconds > 0


def test_synthetic_batches_are_valid_everywhere_and_lie_where_the_step_wants_them():
    mesh = meshes.make_mesh("data=8")
    image = jax.ShapeDtypeStruct((4, 4), np.uint8)

    class Shapes(toys.Toy):
        def example(self):
            return {
                "x": f32(3),
                "ids": i32(2),
                "image": image,
                "ok": jax.ShapeDtypeStruct((), bool),
            }

    given = Shapes(batch_size=16)
    (batch,) = synthetic.batches(given, given.buckets(), mesh)
    assert all(leaf.sharding == meshes.batch_sharding(mesh) for leaf in batch.values())
    assert set(np.unique(batch["ids"])) == {0, 1}
    assert batch["image"].dtype == np.uint8
    assert np.asarray(batch["image"]).max() > 1
    assert batch["ok"].dtype == bool
    assert np.std(np.asarray(batch["x"])) > 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"input": "imaginary"}, "input must be synthetic, real or input-only"),
        ({"input": "real"}, "give data_dir"),
        ({"steps": 0}, "steps must be a whole number, at least 1"),
        ({"warmup": -1}, "warmup must be a whole number, at least 0"),
    ],
)
def test_bad_arguments_are_refused(change, says):
    with pytest.raises(UserError, match=says):
        bench(TOY, RunOptions(), **change)


def test_data_of_another_size_are_refused():
    class Short(toys.Toy):
        def counts(self, data_dir):
            return {"train": 3, "validation": 50}

    with pytest.raises(UserError, match="hold 3 train samples"):
        bench(Short().tiny(), RunOptions(mesh="data=8"), data_dir="", input="real")


def test_self_made_data_cannot_be_real_input():
    with pytest.raises(UserError, match="makes its own data"):
        bench(toys.SelfMade().tiny(), RunOptions(mesh="data=8"), data_dir="", input="real")


def test_a_mesh_that_does_not_divide_the_batch_is_refused():
    with pytest.raises(UserError, match="is not divided by the mesh"):
        bench(TOY.replace(batch_size=12, span=None), RunOptions(mesh="data=8"))


def test_a_profile_is_written_to_the_output_folder(tmp_path):
    options = RunOptions(mesh="data=1", profile=True, output=str(tmp_path / "trace"))
    report = bench(TOY, options, steps=1, warmup=0)
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    assert report.profile == str(tmp_path / "trace")


# -- the report --------------------------------------------------------------------------------------


@pytest.fixture
def report():
    return benches.BenchReport(
        benchmark="resnet",
        tiny=False,
        config={"targets": ({"name": "accuracy"},), "dtype": "bfloat16"},
        batch_size=256,
        evaluation_batch_size=512,
        mesh={"data": 8},
        dtype="bfloat16",
        device="NVIDIA H200",
        device_count=8,
        input="real",
        steps=20,
        warmup=5,
        examples_per_second=12345.6,
        step_seconds=0.0207,
        step_seconds_p10=0.02,
        step_seconds_median=0.021,
        step_seconds_p90=0.03,
        flops_per_second_per_device=5.04e14,
        mfu=0.51,
        mfu_text="51 % of bf16 989 TFLOP/s",
        input_wait_share=0.125,
        memory_bytes=3 * 2**30,
        memory_source="allocator",
        evaluation_examples_per_second=40000.0,
        compile_seconds_train=31.0,
        compile_seconds_evaluation=9.0,
        compile_cached=True,
        versions={"python": "3.11.7", "jax": "<0.12>"},
        date="2026-11-22T00:00:00+00:00",
        commit="abc1234",
    )


def test_the_table_is_aligned_and_names_the_denominator(report):
    lines = str(report).splitlines()
    width = max(map(len, report.rows()))
    assert all(line[width : width + 2] == "  " for line in lines[:-1])
    rows = report.rows()
    assert rows["training"] == "12,346 examples/s"
    assert rows["MFU"] == "51 % of bf16 989 TFLOP/s"
    assert rows["waiting for input"].startswith("12.5 %")
    assert rows["model FLOP/s"] == "504 TFLOP/s per device"
    assert rows["memory"].startswith("3,072 MiB per device")
    assert "from the compile cache" in rows["compile"]
    assert "abc1234" in rows["measured"]
    assert "not a benchmark result" in lines[-1]


def test_without_a_known_peak_there_is_no_percentage(report):
    unknown = dataclasses.replace(report, mfu=None, mfu_text=None, device="cpu")
    assert "%" not in unknown.rows()["MFU"]
    assert "'cpu'" in unknown.rows()["MFU"]


def test_html_is_escaped_and_json_is_plain(report):
    page = report._repr_html_()
    assert "<0.12>" not in page
    assert "&lt;0.12&gt;" in page
    again = json.loads(json.dumps(report.to_dict()))
    assert again["config"]["targets"] == [{"name": "accuracy"}]
    assert again["step_seconds_median"] == 0.021
    assert {field.name for field in dataclasses.fields(report)} == set(again)


def test_memory_is_the_fullest_local_devices_when_the_allocator_tells():
    devices = [
        types.SimpleNamespace(
            process_index=p, memory_stats=lambda n=n: n and {"peak_bytes_in_use": n}
        )
        for p, n in ((0, 5), (0, 9), (1, 100))
    ]
    mesh = types.SimpleNamespace(devices=np.array(devices, object))
    assert benches.peak_memory(mesh, {}) == (9, "allocator")


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_ours_or_nobodys(monkeypatch, tmp_path):
    inside = tmp_path / "site-packages" / "mlperf_jax" / "core"
    inside.mkdir(parents=True)
    monkeypatch.setattr(benches, "__file__", str(inside / "bench.py"))
    assert benches.git_commit() is None
    benches.subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert benches.git_commit() is None, "the checkout around an installed package is not its own"


# -- peaks -------------------------------------------------------------------------------------------


def test_peaks_are_named_by_unit_and_never_guessed():
    assert peaks.describe(0.512, "NVIDIA H200", "bfloat16") == "51 % of bf16 989 TFLOP/s"
    assert peaks.describe(0.0512, "NVIDIA H200", "float32") == "5.1 % of tf32 494.5 TFLOP/s"
    assert peaks.utilisation(1e12, 98.9, "NVIDIA H200", 1, "bfloat16") == pytest.approx(0.1)
    assert peaks.utilisation(1e12, 98.9, "NVIDIA H200", 2, "bfloat16") == pytest.approx(0.05)
    for kind, dtype in (("cpu", "float32"), ("TPU v4", "float32"), ("NVIDIA H200", "float64")):
        assert peaks.utilisation(1e12, 1.0, kind, 1, dtype) is None
    with pytest.raises(ValueError, match="no peak"):
        peaks.describe(0.5, "cpu", "float32")


def test_a_known_device_gets_its_percentage(monkeypatch):
    monkeypatch.setitem(peaks.PEAKS, "cpu", peaks.Peak(bfloat16=1e-3, float32=1e-6))
    report = bench(TOY, RunOptions(mesh="data=1"), steps=2, warmup=0)
    assert report.mfu == pytest.approx(report.flops_per_second_per_device / 1e6)
    assert report.rows()["MFU"].endswith("% of tf32 1e-06 TFLOP/s")

"""Batches and examples that change their size as training goes on: what is read, evaluated, logged and resumed."""

import itertools
from dataclasses import dataclass

import grain
import jax
import numpy as np
import pytest
import toys
from toys import arrays

from mlperf_jax import benchmarks
from mlperf_jax.core import feed, mesh as meshes, phases, preflight, state as states, step as train
from mlperf_jax.core.levers import Levers
from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import pipeline, sources
from mlperf_jax.results import log as logs
from mlperf_jax.results.runs import RunFolder, Scalars

RAMP = "batch_ramp=8:60,16:200"
HARD = toys.Hopeless.targets


def batched(benchmark, transforms=()):
    mesh = meshes.make_mesh("data=1")

    def make(data, phase, first):
        return feed.training_batches(data, phase, mesh, 3, (*first, *transforms))

    return phases.batches_of(benchmark, "", make)


@dataclass(frozen=True, kw_only=True)
class Long(toys.Plain):
    """Its examples have a length, and the model takes the mean over it."""

    sized_by = "length"
    length: int = 6

    def example(self):
        leaf = super().example()
        x = jax.ShapeDtypeStruct((self.length, toys.FEATURES), self.array_dtype)
        return {**leaf, "x": x}

    def loss(self, model, batch, key):
        return super().loss(model, {**batch, "x": batch["x"].mean(1)}, key)

    def predict(self, model, batch, key):
        return super().predict(model, {**batch, "x": batch["x"].mean(1)}, key)

    def _long(self, rows):
        steps = np.arange(1, self.length + 1, dtype=self.array_dtype)[:, None]
        return {**rows, "x": rows["x"][:, None] * steps / steps.mean()}

    def train_data(self, data_dir):
        return arrays(self._long(self.problem()))

    def eval_data(self, data_dir):
        rows = toys.problem(self.eval_samples, 2, self.array_dtype)
        return pipeline.evaluation(sources.Arrays(self._long(rows)))


class CutLong(Long):
    """Shorter examples are the beginnings of whole ones."""

    cuts_examples = True


# -- what is read ----------------------------------------------------------------------------------


def test_a_batch_that_grows_reads_the_stream_once_and_in_order():
    benchmark = toys.Plain(levers=RAMP)
    found = batched(benchmark)
    sizes = [len(found[number]["x"]) for number in range(24)]
    assert sizes[:8] == [8] * 8 and sizes[8:18] == [16] * 10 and {*sizes[18:]} == {32}
    assert sum(sizes[:18]) % 32 == 0
    (_, whole), *_ = phases.read(toys.Plain(levers="batch_ramp=1:1"), "")
    rows = whole.batched(1, seed=3)
    read = np.concatenate([found[number]["x"] for number in range(24)])
    assert len(read) > 256, "into the second epoch"
    np.testing.assert_array_equal(read, np.concatenate([rows[k]["x"] for k in range(len(read))]))
    assert len({row.tobytes() for row in read[:256]}) == 256, "an epoch holds each sample once"


@pytest.mark.parametrize("start", [0, 5, 8, 16, 17, 21])
@pytest.mark.parametrize("levers", [RAMP, "size_ramp=2:100,4:200", f"{RAMP}+size_ramp=2:100"])
def test_a_stream_begins_anywhere(levers, start):
    found = batched(Long(levers=levers))
    stream = found.stream(start, threads=2)
    for number in range(start, start + 15):
        one, other = next(stream), found[number]
        assert {n: v.tolist() for n, v in one.items()} == {n: v.tolist() for n, v in other.items()}
    stream.close()


def test_smaller_examples_are_read_anew_or_cut():
    levers = Levers(size_ramp=((2, 64),))
    read, cut, whole = (
        batched(Long(levers=levers)),
        batched(CutLong(levers=levers)),
        batched(Long()),
    )
    assert [read[k]["x"].shape[1] for k in range(4)] == [2, 2, 6, 6]
    for k in range(4):
        np.testing.assert_array_equal(read[k]["label"], whole[k]["label"], "the same samples")
        np.testing.assert_array_equal(cut[k]["x"], whole[k]["x"][:, : cut[k]["x"].shape[1]])
    np.testing.assert_array_equal(read[2]["x"], whole[2]["x"])
    assert not np.array_equal(read[0]["x"], cut[0]["x"]), (
        "read anew, they are examples of their own"
    )


def test_a_transform_of_the_users_comes_behind_the_cut():
    class Twice(grain.transforms.Map):
        def map(self, element):
            seen.append(element["x"].shape)
            return {**element, "x": element["x"] * 2}

    seen = []
    found = batched(CutLong(levers="size_ramp=2:64"), [Twice()])[0]
    plain = batched(CutLong(levers="size_ramp=2:64"))[0]
    np.testing.assert_array_equal(found["x"], plain["x"] * 2)
    assert {*seen} == {(2, toys.FEATURES)}


def test_planned_and_padded_batches_do_not_run_on(tmp_path):
    class Planned(toys.Plain):
        def train_data(self, data_dir):
            plan = pipeline.BatchPlan((32,), lambda seed, epoch: [(0, np.arange(32))], per_epoch=1)
            return pipeline.training(sources.Arrays(self.problem()), plan=plan)

    class Padded(toys.Plain):
        def train_data(self, data_dir):
            return pipeline.training(sources.Arrays(self.problem()), last_batch="keep")

    for cls, how in ((Planned, "planned"), (Padded, "padded at the end of an epoch")):
        with pytest.raises(
            UserError, match=f"resnet has no batch_ramp: batches that run on .* {how}"
        ):
            toys.run(cls(levers=RAMP), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- runs ------------------------------------------------------------------------------------------


def test_a_run_whose_batch_grows_counts_samples_everywhere(tmp_path):
    benchmark = toys.Plain(levers=RAMP, targets=HARD)
    result = toys.run(benchmark, tmp_path, max_samples=32 * 24, seed=3, log_every=1)
    scalars = list(Scalars.read(tmp_path / "run_0" / "scalars.jsonl"))
    assert [line["samples"] for line in scalars] == [
        benchmark.samples(n + 1) for n in range(len(scalars))
    ]
    assert result.samples == 32 * 24 == benchmark.samples(result.steps) and result.steps > 24
    lines = logs.read(tmp_path / "result_0.txt")
    (told,) = (line.value for line in lines if line.key == "levers")
    assert told == RAMP
    # the benchmark evaluates every 320 samples: where those were seen
    evaluated = [line.metadata["samples_count"] for line in lines if line.key == "eval_accuracy"]
    wanted = [
        next(n for n in map(benchmark.samples, itertools.count(1)) if n >= due)
        for due in (320, 640)
    ]
    assert evaluated == wanted
    assert RunFolder(tmp_path, 0).config()["config"]["levers"] == RAMP


@pytest.mark.parametrize("at", [3, 20, 25])
def test_a_run_that_broke_off_in_any_phase_ends_as_one_that_did_not(tmp_path, at):
    fields = {"levers": f"{RAMP}+sam=0.05+ema_decay=0.9+size_ramp=2:100", "targets": HARD}
    given = dict(max_samples=32 * 20, seed=3, mesh="data=1", checkpoint_every=4)
    whole = toys.run(Long(**fields), tmp_path / "whole", **given)
    broken = tmp_path / "broken"

    real = feed.Feed.__next__
    count = iter(range(1000))

    def failing(self):
        if next(count) == at:
            raise UserError("damaged")
        return real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed.Feed, "__next__", failing)
        with pytest.raises(UserError, match="damaged"):
            toys.run(Long(**fields), broken, **given)
    other = fields | {"levers": RAMP}
    with pytest.raises(
        UserError, match=r"levers was .*sam=0\.05.* and is now 'batch_ramp=8:60,16:200'"
    ):
        toys.run(Long(**other), broken, **given, resume=True)
    result = toys.run(Long(**fields), broken, **given, resume=True)
    assert result.parameters_sha256 == whole.parameters_sha256 and result.resumed == 1


def test_what_a_phase_costs_is_counted():
    class Counted(Long):
        @property
        def flops_per_sample(self):
            return 10.0 * self.length

    benchmark = Counted(levers="size_ramp=2:64,4:128")
    assert phases.flops(benchmark, 1) == 20 and phases.flops(benchmark, 4) == 30
    assert phases.flops(benchmark, 8) == (64 * 20 + 64 * 40 + 128 * 60) / 256
    assert phases.flops(Counted(), 5) == 60


def test_phases_of_one_shape_share_a_program():
    from mlperf_jax.core import loop

    benchmark = Long(levers="size_ramp=2:32,4:64,2:96", dtype="float32")
    assert len(phases.phases(benchmark)) == 4
    assembly = states.assemble(benchmark, meshes.make_mesh("data=1"))
    assert len(loop.compile_train(assembly)) == 3


def test_a_split_of_somebodys_own_that_cannot_run_on_is_told_what_it_lacks():
    class Bare(toys.Plain):
        def train_data(self, data_dir):
            return object()

    with pytest.raises(UserError, match=r"object has no running_on: see pipeline\.Split"):
        phases.read(Bare(levers=RAMP), "")


# -- the library's benchmarks ----------------------------------------------------------------------

SIZED = {
    "resnet": 16,
    "retinanet": 64,
    "unet3d": 8,
    "gpt3": 32,
    "llama31_8b": 32,
    "llama31_405b": 32,
    "llama2_70b_lora": 32,
}


GROWING = {*SIZED, "stable_diffusion", "dlrm_dcnv2"}


def test_all_that_have_a_size_are_tried():
    classes = map(benchmarks.benchmark_class, benchmarks.names())
    assert {*SIZED} == {cls.name for cls in classes if cls.sized_by}


@pytest.mark.parametrize("name", SIZED)
def test_smaller_examples_fit_the_step_and_the_data(name, tiny_data):
    """Traced, not compiled: shapes are what may not fit."""
    batch = benchmarks.get(name, tiny=True).batch_size
    ramp = f"size_ramp={SIZED[name]}:{batch}"
    benchmark = preflight.resolve_dtype(benchmarks.get(name, tiny=True, levers=ramp))
    assembly = toys.prepared(benchmark)
    for phase in train.in_phases(assembly):
        for arguments in train.train_arguments(phase):
            with jax.set_mesh(assembly.mesh):
                train.jit_train_step(phase).trace(*arguments)

    def make(data, phase, first):
        return feed.training_batches(data, phase, assembly.mesh, 3, first)

    found = phases.batches_of(benchmark, tiny_data(name), make)
    forms = [feed.Form.of(bucket, assembly.mesh, False) for bucket in phases.buckets(benchmark)]
    assert len(forms) == 2
    for number, form in enumerate(forms):
        assert form.fits(found[number]), form.differences(found[number])


@pytest.mark.parametrize("name", benchmarks.names())
def test_whose_batch_may_grow(name, tiny_data):
    plain = benchmarks.get(name, tiny=True)
    half = plain.batch_size // 2
    fields = {"bn_span": half} if name == "resnet" else {}
    ramp = {"levers": f"batch_ramp={half}:{3 * half}"}
    if name not in GROWING:
        with pytest.raises(UserError, match=f"{name} has no batch_ramp: "):
            phases.read(plain.replace(**ramp), tiny_data(name))
        return
    (first, _), (last, split) = phases.read(plain.replace(**ramp, **fields), tiny_data(name))
    assert (first.benchmark.batch_size, last.benchmark.batch_size) == (half, 2 * half)
    assert last.samples == 4 * half and split.last_batch == "mix"

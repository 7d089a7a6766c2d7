"""The one loop: what it logs, when it evaluates, saves and stops, and what it leaves behind."""

import dataclasses
import json
import os
import pathlib
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from mlperf_jax.core import loop, preflight
from mlperf_jax.core.benchmark import Target
from mlperf_jax.core.checkpoints import Checkpoints
from mlperf_jax.core.preemption import Preemption
from mlperf_jax.core.run import Run
from mlperf_jax.errors import Interrupted, UserError
from mlperf_jax.input_pipelines import pipeline
from mlperf_jax.input_pipelines.sources import Arrays
from mlperf_jax.results import compliance, log as logs
from mlperf_jax.results.runs import RunFolder, Scalars

HARD = (Target("accuracy", above=1.0),)  # out of reach
BLOCK = ["block_start", "block_stop", "eval_start", "eval_accuracy", "eval_stop"]


def lines(output):
    return logs.read(output / "result_0.txt")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(result, folder) of one run that reaches its target."""
    folder = tmp_path_factory.mktemp("done")
    return toys.run(toys.Toy(), folder), folder


# -- a run that reaches its target -----------------------------------------------------------------


def test_log_lines_come_in_the_official_order(done):
    result, folder = done
    evaluations = result.samples // 320
    assert toys.keys(folder) == [
        "init_start", "init_stop", "run_start", *BLOCK * evaluations, "run_stop",
    ]  # fmt: skip
    assert lines(folder)[-1].metadata["status"] == "success"


def test_log_passes_the_official_checker(done):
    report = compliance.check(done[1])
    assert report.success, report


def test_blocks_and_evaluations_say_where_they_are(done):
    found = {}
    for line in lines(done[1]):
        found.setdefault(line.key, []).append(line.metadata)
    samples = [m["samples_count"] for m in found["eval_accuracy"]]
    assert samples == [320 * (i + 1) for i in range(len(samples))]
    assert [m["epoch_num"] for m in found["eval_accuracy"]] == [s / 256 for s in samples]
    assert found["block_start"][0]["first_epoch_num"] == 1
    assert found["block_start"][1]["first_epoch_num"] == 2.25
    assert [m["samples_count"] for m in found["block_stop"]] == samples
    assert found["run_stop"][0]["samples_count"] == samples[-1]


def test_result_says_what_happened(done):
    result, folder = done
    assert result.reached and result.status == "success"
    assert result.quality["accuracy"] >= 0.9
    assert result.seed == 1 and result.resumed == 0 and result.mesh["data"] == 8
    assert result.examples_per_second > 0 and result.seconds > 0
    saved = json.loads((folder / "run_0" / "result.json").read_text())
    assert saved["parameters_sha256"] == result.parameters_sha256
    assert len(result.parameters_sha256) == 64


def test_scalars_hold_a_line_every_few_steps(done, tmp_path):
    assert toys.scalar_steps(done[1]) == [10, 20, 30]
    toys.run(toys.Toy(targets=HARD), tmp_path, log_every=4, max_samples=32 * 13)
    found = Scalars.read(tmp_path / "run_0" / "scalars.jsonl")
    assert [line["step"] for line in found] == [4, 8, 12]
    assert [line["samples"] for line in found] == [128, 256, 384]
    assert all(np.isfinite(line["loss"]) for line in found)


def test_weights_that_passed_are_kept(done):
    result, folder = done
    with Checkpoints(folder / "run_0" / "checkpoints", identity=identity(folder)) as kept:
        meta = kept.latest_meta()
    assert meta["step"] * 32 == result.samples
    assert meta["ended"] == {"status": "success", "reason": ""}


def identity(folder):
    with Checkpoints(folder / "run_0" / "checkpoints", identity={}) as some:
        return some.latest_meta()["identity"]


def test_same_seed_ends_equal_whatever_the_threads(done, tmp_path):
    again = toys.run(toys.Toy(), tmp_path / "a", threads=1)
    third = toys.run(toys.Toy(), tmp_path / "b", threads=5)
    assert again.parameters_sha256 == third.parameters_sha256 == done[0].parameters_sha256
    other = toys.run(toys.Toy(), tmp_path / "c", seed=2, max_samples=320)
    assert other.parameters_sha256 != done[0].parameters_sha256


def test_records_are_read_only_after_run_start(tmp_path):
    read = []

    class Watching(Arrays):
        def __getitem__(self, index):
            read.append("run_start" in toys.keys(tmp_path))
            return super().__getitem__(index)

    class Watched(toys.Toy):
        def train_data(self, data_dir):
            return pipeline.training(Watching(toys.problem(self.train_samples, 3)))

        def eval_data(self, data_dir):
            return pipeline.evaluation(Watching(toys.problem(self.eval_samples, 2)))

    toys.run(Watched(targets=HARD), tmp_path, max_samples=640)
    assert len(read) >= 640 + 50 and all(read)


def test_the_order_is_worked_out_before_the_clock(tmp_path):
    asked = []

    class Slow(Arrays):
        def ready(self):
            asked.append([*toys.keys(tmp_path)])

    class Ordered(toys.Toy):
        def train_data(self, data_dir):
            return pipeline.training(Slow(toys.problem(self.train_samples, 3)))

    toys.run(Ordered(targets=HARD), tmp_path, max_samples=64)
    assert asked == [["init_start"]]


def test_batches_may_come_in_several_shapes(tmp_path):
    def cut(number, batch):
        return {**batch, "x": batch["x"][:, :4]} if number % 3 else batch

    class Buckets(toys.Plain):
        def example(self):
            wide = super().example()
            return {**wide, "x": jax.ShapeDtypeStruct((4,), jnp.float32)}, wide

        def loss(self, model, batch, key):
            missing = toys.FEATURES - batch["x"].shape[1]
            return super().loss(
                model, {**batch, "x": jnp.pad(batch["x"], ((0, 0), (0, missing)))}, key
            )

        def predict(self, model, batch, key):
            missing = toys.FEATURES - batch["x"].shape[1]
            x = jnp.pad(batch["x"], ((0, 0), (0, missing)))
            return super().predict(model, {**batch, "x": x}, key)

        def train_data(self, data_dir):
            return toys.Altered(super().train_data(data_dir), cut)

    result = toys.run(Buckets(targets=HARD), tmp_path, max_samples=640)
    assert result.quality["accuracy"] > 0.5


def test_runs_of_a_set_lie_side_by_side_with_seeds_of_their_own(tmp_path):
    results = toys.run(toys.Plain(targets=HARD), tmp_path, runs=2, max_samples=64)
    assert [result.seed for result in results] == [
        RunFolder(tmp_path, index).config()["options"]["seed"] for index in (0, 1)
    ]
    assert results[0].seed != results[1].seed
    assert toys.keys(tmp_path, 0) == toys.keys(tmp_path, 1)


def test_seeds_are_those_of_the_runs_and_none_is_trained_twice(tmp_path, monkeypatch):
    given, short = toys.Plain.train_data, dict(max_samples=64, mesh="data=1")

    def stopped(self, data_dir):
        data = given(self, data_dir)
        # while its first batch is read, so that it is seen before the second step
        return toys.asks_to_stop(data, 0) if (tmp_path / "run_1").exists() else data

    with monkeypatch.context() as patched:
        patched.setattr(toys.Plain, "train_data", stopped)
        with pytest.raises(Interrupted):
            toys.run(toys.Plain(targets=HARD), tmp_path, seeds=(5, 3, 4), **short)
    for number in (3, 5):
        with pytest.raises(UserError, match=f"has seed {number} already, and runs of one set need"):
            toys.run(toys.Plain(targets=HARD), tmp_path, seed=number, **short)
    assert len(list(tmp_path.glob("run_*"))) == 2, "refused before there is a folder"
    results = toys.run(toys.Plain(targets=HARD), tmp_path, seeds=(5, 3, 4), resume=True, **short)
    assert [result.seed for result in results] == [3, 4]
    logged = [
        [x.value for x in logs.read(path) if x.key == "seed"]
        for path in sorted(tmp_path.glob("*.txt"))
    ]
    assert logged == [[5], [3], [4]]


# -- when it stops ---------------------------------------------------------------------------------


def test_last_allowed_sample_ends_the_run(tmp_path):
    result = toys.run(toys.Toy(targets=HARD, sample_limit=32 * 25 + 31), tmp_path)
    assert result.status == "aborted" and not result.reached
    assert result.samples == 32 * 25
    assert toys.keys(tmp_path)[-3:] == ["block_start", "block_stop", "run_stop"]
    assert lines(tmp_path)[-1].metadata["status"] == "aborted"


def test_max_samples_ends_the_run_before_the_rules_do(tmp_path):
    result = toys.run(toys.Toy(targets=HARD), tmp_path, max_samples=640)
    assert result.samples == 640 and result.status == "aborted"
    # an evaluation is due at the very end, and counts
    assert toys.keys(tmp_path)[-2:] == ["eval_stop", "run_stop"]
    with Checkpoints(tmp_path / "run_0" / "checkpoints", identity=identity(tmp_path)) as kept:
        assert kept.latest_meta()["step"] == 20


def test_evaluations_follow_their_own_schedule(tmp_path):
    class Odd(toys.Toy):
        def eval_steps(self):
            yield from (1, 4, 9, *range(1000, 2000))

    toys.run(Odd(targets=HARD), tmp_path, max_samples=320)
    samples = [x.metadata["samples_count"] for x in lines(tmp_path) if x.key == "eval_accuracy"]
    assert samples == [32, 128, 288]


def test_all_targets_must_be_met_at_once(tmp_path):
    both = (Target("accuracy", at_least=0.1), Target("accuracy", above=1.0))
    assert not toys.run(toys.Toy(targets=both), tmp_path, max_samples=320).reached


def test_loss_that_is_not_finite_aborts_and_keeps_the_last_good_checkpoint(tmp_path, capfd):
    benchmark = toys.Toy(targets=HARD, poisoned=(13,))
    result = toys.run(benchmark, tmp_path, checkpoint_every=4, log_every=2, show="plain")
    said = "".join(capfd.readouterr())
    assert "the loss of step 14 is not finite: the checkpoint of step 12 is kept" in said
    assert result.status == "aborted" and not result.reached
    assert toys.keys(tmp_path)[-1] == "run_stop"
    assert lines(tmp_path)[-1].metadata["status"] == "aborted"
    with Checkpoints(tmp_path / "run_0" / "checkpoints", identity=identity(tmp_path)) as kept:
        assert max(kept.steps()) == 12, "nothing is saved once the loss was not finite"
    unfit = [x["step"] for x in Scalars.read(tmp_path / "run_0" / "scalars.jsonl")]
    assert unfit[-1] <= 18, "it is noticed while training, a few lines of scalars later"


def test_only_a_checkpoint_that_is_there_is_said_to_be_kept(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(Checkpoints, "save", lambda *_, **__: None)
    toys.run(toys.Plain(targets=HARD, poisoned=(5,)), tmp_path, checkpoint_every=4, show="plain")
    assert "the loss of step 6 is not finite: there is no checkpoint" in "".join(capfd.readouterr())


def test_weights_destroyed_under_a_finite_loss_are_not_saved(tmp_path, capfd):
    class Root(toys.Plain):
        """Its loss at the weights it begins with is finite, and its gradient is not."""

        def loss(self, model, batch, key):
            bias = model.head.bias[...]
            return super().loss(model, batch, key) + jnp.sqrt(jnp.abs(bias)).sum()

    result = toys.run(Root(targets=HARD), tmp_path, checkpoint_every=1, show="plain")
    said = "".join(capfd.readouterr())
    assert "a weight after step 1 is not finite: there is no checkpoint" in said
    assert result.status == "aborted" and result.samples == 32
    assert not list((tmp_path / "run_0").glob("checkpoints/*/meta.json"))


def test_skipped_batches_do_not_end_the_run(tmp_path):
    benchmark = toys.Toy(nonfinite="skip", poisoned=(3, 11))
    result = toys.run(benchmark, tmp_path, log_every=4)
    assert result.reached
    losses = {x["step"]: x["loss"] for x in Scalars.read(tmp_path / "run_0" / "scalars.jsonl")}
    assert np.isnan(losses[4]) and np.isnan(losses[12]) and np.isfinite(losses[8])


def test_batches_skipped_without_end_end_the_run_also_when_resumed(tmp_path, capfd, monkeypatch):
    benchmark = toys.Plain(
        targets=HARD, nonfinite="skip", skip_limit=6, poisoned=tuple(range(5, 99))
    )
    given, often = toys.Plain.train_data, dict(checkpoint_every=4, show="plain", mesh="data=1")
    with monkeypatch.context() as patched:
        stopped = lambda self, folder: toys.asks_to_stop(given(self, folder), 9)  # noqa: E731
        patched.setattr(toys.Plain, "train_data", stopped)
        with pytest.raises(Interrupted):
            toys.run(benchmark, tmp_path / "a", **often)
    toys.run(benchmark, tmp_path / "a", resume=True, log_every=1, **often)
    toys.run(benchmark, tmp_path / "b", **often)
    said = "".join(capfd.readouterr())
    assert (
        said.count("the losses of 6 steps in a row, from step 6 on, are not finite: the che") == 2
    )
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert lines(folder)[-1].metadata["status"] == "aborted"
        with Checkpoints(folder / "run_0" / "checkpoints", identity=identity(folder)) as kept:
            assert 8 <= max(kept.steps()) < 11, "none is taken once it was given up"
    text = (tmp_path / "a" / "run_0" / "scalars.jsonl").read_text()
    assert '"loss": null' in text and "NaN" not in text


# -- what it refuses -------------------------------------------------------------------------------


def test_batch_that_differs_from_the_example_is_an_error_that_names_the_array(
    tmp_path, monkeypatch
):
    def wrong(self, data_dir):
        rows = self.problem()
        return toys.arrays({**rows, "label": rows["label"].astype(np.int64)})

    with monkeypatch.context() as patched:
        patched.setattr(toys.Toy, "train_data", wrong)
        with pytest.raises(UserError, match=r"gives int64\[\] for 'label'.*says int32\[\]"):
            toys.run(toys.Toy(), tmp_path)
    # nothing is left open: the run can be taken up in the same process
    assert toys.run(toys.Toy(), tmp_path, resume=True).reached


def test_training_data_that_end_are_an_error(tmp_path):
    class Ending(toys.Toy):
        def train_data(self, data_dir):
            data = super().train_data(data_dir)
            return toys.Altered(data, lambda step, batch: batch if step < 3 else None)

    with pytest.raises(UserError, match="training data ended after step 3"):
        toys.run(Ending(), tmp_path)


def test_an_error_in_the_data_reaches_the_caller_as_it_is(tmp_path):
    class Bad(toys.Toy):
        def train_data(self, data_dir):
            return toys.fails(super().train_data(data_dir), 3, "record 7 of shard 3 is truncated")

    with pytest.raises(UserError, match="record 7 of shard 3"):
        toys.run(Bad(), tmp_path, profile=True)
    if pathlib.Path("/proc/self/fd").exists():
        opened = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        assert not [path for path in opened if path.startswith(str(tmp_path))]
    assert not [t for t in threading.enumerate() if t.name in ("feed", "evaluation")]


def test_implicit_transfers_in_the_hot_path_are_forbidden(tmp_path):
    plan = preflight.preflight(preflight.resolve_dtype(toys.Plain()), toys.options(tmp_path), "")
    with Run(plan) as run, Preemption() as preemption:
        programs, state = loop.initialise(run)
        ((shape, program),) = programs.train.items()

        def careless(state, batch, key):
            jnp.zeros(3) + np.ones(3)  # a host array that moves to the device unasked
            return program(state, batch, key)

        programs = dataclasses.replace(programs, train={shape: careless})
        looping = loop.Loop(run, preemption, programs, state)
        try:
            with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
                looping.go()
        finally:
            looping.close()


# -- being asked to stop ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_run_with_a_checkpoint_and_it_can_be_resumed(
    tmp_path, done, number, monkeypatch
):
    given, before = toys.Toy.train_data, signal.getsignal(number)
    with monkeypatch.context() as patched:
        stopped = lambda self, folder: toys.asks_to_stop(given(self, folder), 17, number)  # noqa: E731
        patched.setattr(toys.Toy, "train_data", stopped)
        with pytest.raises(Interrupted, match=f"signal {int(number)}.*--resume") as stop:
            toys.run(toys.Toy(), tmp_path)
    assert stop.value.signal == number
    assert signal.getsignal(number) == before
    with Checkpoints(tmp_path / "run_0" / "checkpoints", identity=identity(tmp_path)) as kept:
        assert 10 <= max(kept.steps()) < 30
    result = toys.run(toys.Toy(), tmp_path, resume=True)
    assert result.parameters_sha256 == done[0].parameters_sha256
    assert result.resumed == 1
    assert toys.keys(tmp_path) == toys.keys(done[1])
    assert toys.scalar_steps(tmp_path) == toys.scalar_steps(done[1])


def test_a_terminal_that_goes_away_is_ignored_where_it_was(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not preemption.requested(0)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_after_the_last_step_of_a_run_keeps_the_next_from_beginning(tmp_path, monkeypatch):
    conclude, short = Run.conclude, dict(runs=2, max_samples=64)

    def asked(self, *args):
        signal.raise_signal(signal.SIGTERM)
        return conclude(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "conclude", asked)
        with pytest.raises(Interrupted, match="signal 15 between two"):
            toys.run(toys.Plain(targets=HARD), tmp_path, **short)
    assert RunFolder(tmp_path, 0).finished and not RunFolder(tmp_path, 1).path.exists()
    toys.run(toys.Plain(targets=HARD), tmp_path, **short, resume=True)
    assert RunFolder(tmp_path, 1).finished


def test_a_second_interrupt_does_not_wait():
    with Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.requested(0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert not Preemption().requested(0)


def test_a_set_with_several_runs_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    given = toys.Plain.train_data

    def stopped(self, data_dir):
        data = given(self, data_dir)
        return toys.asks_to_stop(data, 2) if (tmp_path / "run_1").exists() else data

    short = dict(targets=HARD)
    with monkeypatch.context() as patched:
        patched.setattr(toys.Plain, "train_data", stopped)
        with pytest.raises(Interrupted):
            toys.run(toys.Plain(**short), tmp_path, runs=3, max_samples=320)
    assert (tmp_path / "run_0" / "result.json").exists()
    results = toys.run(toys.Plain(**short), tmp_path, runs=3, max_samples=320, resume=True)
    assert [result.resumed for result in results] == [1, 0]
    assert sorted(p.name for p in tmp_path.glob("run_*")) == ["run_0", "run_1", "run_2"]
    with pytest.raises(UserError, match="no unfinished run"):
        toys.run(toys.Plain(**short), tmp_path, runs=3, max_samples=320, resume=True)


def test_a_run_that_begins_beside_an_unfinished_one_says_so(tmp_path, capfd):
    class Stopped(toys.Plain):
        def train_data(self, data_dir):
            data = super().train_data(data_dir)
            return data if (tmp_path / "run_1").exists() else toys.asks_to_stop(data, 2)

    with pytest.raises(Interrupted):
        toys.run(Stopped(targets=HARD), tmp_path, max_samples=320, show="plain")
    assert "unfinished" not in "".join(capfd.readouterr())
    toys.run(Stopped(targets=HARD), tmp_path, seed=2, max_samples=320, show="plain")
    said = "".join(capfd.readouterr())
    assert f"note: {tmp_path / 'run_0'} is unfinished, and --resume would take it up" in said

"""A run that `max_samples` ended goes on when it is allowed more, and ends as if it had never stopped."""

import json

import more_toys
import pytest
import toys

from mlperf_jax.core.benchmark import Target
from mlperf_jax.core.next_run import next_run
from mlperf_jax.core.options import RunOptions
from mlperf_jax.core.standing import Standing
from mlperf_jax.errors import UserError
from mlperf_jax.results import compliance
from mlperf_jax.results.runs import RunFolder, RunSet, Scalars
from mlperf_jax.results.story import Story

pytestmark = pytest.mark.usefixtures("compiled_quickly")
ENDLESS = {"targets": (Target("accuracy", above=1.0),)}
STEPS = 25


def run(benchmark, output, steps, **more):
    limit = None if steps is None else benchmark.samples(steps)
    return toys.run(benchmark, output, mesh="data=1", max_samples=limit, **more)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return run(toys.Toy(**ENDLESS), folder, STEPS), folder


@pytest.mark.parametrize("first", [7, 10], ids=["between evaluations", "at an evaluation"])
def test_it_ends_as_a_straight_run(first, straight, tmp_path):
    short = run(toys.Toy(**ENDLESS), tmp_path, first)
    assert short.samples == 32 * first and not short.reached
    result = run(toys.Toy(**ENDLESS), tmp_path, STEPS, resume=True)
    whole, other = straight
    assert result.parameters_sha256 == whole.parameters_sha256
    assert (result.quality, result.samples) == (whole.quality, whole.samples)
    assert result.resumed == 1
    assert toys.keys(tmp_path) == toys.keys(other), "each line once, in order"
    read = [Scalars.read(folder / "run_0" / "scalars.jsonl") for folder in (tmp_path, other)]
    assert read[0] == read[1]
    assert compliance.check(tmp_path).findings == compliance.check(other).findings
    saved = json.loads((tmp_path / "run_0" / "config.json").read_text())
    assert saved["options"]["max_samples"] == 32 * STEPS


@pytest.mark.parametrize("toy", [toys.Beside, more_toys.Packed])
def test_other_toys(toy, tmp_path):
    benchmark = toy(**ENDLESS)
    whole = run(benchmark, tmp_path / "whole", 12)
    run(benchmark, tmp_path / "parts", 4)
    run(benchmark, tmp_path / "parts", 8, resume=True)
    result = run(benchmark, tmp_path / "parts", 12, resume=True)
    assert result.parameters_sha256 == whole.parameters_sha256
    assert toys.keys(tmp_path / "parts") == toys.keys(tmp_path / "whole")
    assert result.resumed == 2


def test_without_a_limit_it_goes_on_to_its_target(tmp_path):
    run(toys.Toy(), tmp_path, 3)
    assert run(toys.Toy(), tmp_path, None, resume=True).reached


def test_killed_while_it_goes_on_it_is_resumed_as_any(straight, tmp_path):
    run(toys.Toy(**ENDLESS), tmp_path, 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlperf_jax.core.loop.Loop._evaluate", killed)
        with pytest.raises(RuntimeError, match="killed"):
            run(toys.Toy(**ENDLESS), tmp_path, STEPS, checkpoint_every=4, resume=True)
    assert not RunFolder(tmp_path, 0).finished
    result = run(toys.Toy(**ENDLESS), tmp_path, STEPS, resume=True)
    assert result.parameters_sha256 == straight[0].parameters_sha256


def killed(loop):
    raise RuntimeError("killed")


def test_nothing_changes_where_there_is_nothing_to_extend(tmp_path):
    run(toys.Toy(**ENDLESS), tmp_path, 7)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for steps in (7, 5):
        with pytest.raises(
            UserError, match=r"holds no unfinished run: .* more than --max-samples 224"
        ):
            run(toys.Toy(**ENDLESS), tmp_path, steps, resume=True)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def gave_up(monkeypatch):
    monkeypatch.setattr(toys.Toy, "diverged", lambda self, quality: True)
    return toys.Toy(**ENDLESS), r"\(the model has diverged\)"


def at_its_own_limit(monkeypatch):
    return toys.Toy(**ENDLESS, sample_limit=320), r"\(the last allowed sample was seen\)"


@pytest.mark.parametrize("how", [gave_up, at_its_own_limit])
def test_what_ended_otherwise_is_not_extended(how, tmp_path, monkeypatch):
    benchmark, reason = how(monkeypatch)
    assert run(benchmark, tmp_path, 50).status == "aborted"
    result = (tmp_path / "run_0" / "result.json").read_bytes()
    with pytest.raises(UserError, match=f"cannot see more samples {reason}"):
        run(benchmark, tmp_path, 100, resume=True)
    assert (tmp_path / "run_0" / "result.json").read_bytes() == result


def test_a_run_that_is_scored_afterwards_is_not_extended(tmp_path):
    offline = toys.Offline(**ENDLESS)
    run(offline, tmp_path, 20)
    (tmp_path / "run_0" / "result.json").write_text('{"reached": false}')
    with pytest.raises(UserError, match="score it with"):
        run(offline, tmp_path, 30, resume=True)


def test_all_runs_of_a_set_are_extended(tmp_path):
    run(toys.Toy(**ENDLESS), tmp_path, 3, runs=2)
    results = run(toys.Toy(**ENDLESS), tmp_path, 5, runs=3, resume=True)
    assert [result.samples for result in results] == [160, 160, 160]
    with pytest.raises(UserError, match="no unfinished run"):
        next_run(RunSet(tmp_path), RunOptions(resume=True, runs=3, max_samples=160))


def test_its_story_goes_on(tmp_path, straight):
    run(toys.Toy(**ENDLESS), tmp_path, 15)
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlperf_jax.core.run.Run.conclude", lambda self, *_: told.append(self.story))
        run(toys.Toy(**ENDLESS), tmp_path, STEPS, resume=True)
    (story,) = told
    assert [samples for samples, _ in story.points["loss"]] == [320]
    assert [samples for samples, _ in story.points["accuracy"]] == [320]
    whole = Story.read(RunFolder(straight[1], 0))
    assert [samples for samples, _ in whole.points["accuracy"]] == [320, 640]


def test_a_refused_extension_leaves_it_extensible(tmp_path):
    run(toys.Toy(**ENDLESS), tmp_path, 3)
    config = (tmp_path / "run_0" / "config.json").read_bytes()
    with pytest.raises(UserError, match="has seed 1, not 2"):
        run(toys.Toy(**ENDLESS), tmp_path, 5, resume=True, seed=2)
    assert (tmp_path / "run_0" / "config.json").read_bytes() == config
    assert (tmp_path / "run_0" / "result.json").exists()
    assert run(toys.Toy(**ENDLESS), tmp_path, 5, resume=True).samples == 160


@pytest.mark.parametrize("at", ["RunFolder.save_config", "Log.__init__"])
def test_killed_while_it_is_opened_it_is_extended_by_the_same_command(tmp_path, at, monkeypatch):
    run(toys.Toy(**ENDLESS), tmp_path, 3)
    where = "runs" if at.startswith("Run") else "log"
    with monkeypatch.context() as patched:
        patched.setattr(f"mlperf_jax.results.{where}.{at}", killed_again)
        with pytest.raises(RuntimeError, match="killed"):
            run(toys.Toy(**ENDLESS), tmp_path, 5, resume=True)
    assert run(toys.Toy(**ENDLESS), tmp_path, 5, resume=True).samples == 160


def killed_again(*_, **__):
    raise RuntimeError("killed")


def test_a_run_of_a_version_that_noted_no_end_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        kept = Standing.kept
        patched.setattr(Standing, "kept", lambda self: {**kept(self), "before_end": None})
        run(toys.Toy(**ENDLESS), tmp_path, 3)
    with pytest.raises(UserError, match=r"cannot see more samples \(the last allowed"):
        run(toys.Toy(**ENDLESS), tmp_path, 5, resume=True)
    assert (tmp_path / "run_0" / "result.json").exists()


def test_what_may_be_given_is_said(tmp_path):
    run(toys.Toy(**ENDLESS), tmp_path, 3)
    with pytest.raises(UserError, match="or give more than --max-samples 96 or none"):
        run(toys.Toy(**ENDLESS), tmp_path, 3, resume=True)
    with pytest.raises(UserError, match=r"leave --resume out to begin one$"):
        run(toys.Toy(**ENDLESS), tmp_path / "none", 3, resume=True)

"""Comparisons that are trained: paired runs, a search before, kills, crashes, devices side by side."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import optax
import pytest
import toys

from mlperf_jax.core import loop, mesh as meshes, offline
from mlperf_jax.core.benchmark import Target
from mlperf_jax.core.comparison import compare as comparing
from mlperf_jax.core.comparison.entries import Tunable, entries_of
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import DataError, Interrupted, UserError
from mlperf_jax.results import log as logs
from mlperf_jax.results.comparison import reading
from mlperf_jax.results.runs import RunSet

TOY = toys.Plain(targets=(Target("accuracy", at_least=0.8),), sample_limit=32 * 60)
GIVEN = ("sgd:0.5", "recipe", "adam:3e-2")


def compared(folder, *optimizers, benchmark=TOY, seeds=(1, 2), tune=0, parallel=False, **more):
    """(what was found, the lines that were said)."""
    said = []
    options = RunOptions(output=str(folder), **{"mesh": None if parallel else "data=1", **more})
    given = optimizers[0] if optimizers and isinstance(optimizers[0], dict) else optimizers or GIVEN
    entries = entries_of(benchmark, given, tuned=tune > 0)
    found = comparing.compare(
        benchmark, entries, options, "", seeds=seeds, tune=tune, parallel=parallel, say=said.append
    )
    return found, [line for line in said if "note: " not in line]


def results(folder):
    """What each finished run is, by folder and seed, and when its result was written."""
    found = {}
    for path in sorted(folder.glob("**/run_*/result.json")):
        result = json.loads(path.read_text())
        kept = {
            name: result[name] for name in ("samples", "reached", "quality", "parameters_sha256")
        }
        found[path.parents[1].relative_to(folder).as_posix(), result["seed"]] = kept
    return found


def curve(log):
    lines = [line for line in logs.read(log) if line.key == "eval_accuracy"]
    return {line.metadata["samples_count"]: line.value for line in lines}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "here"
    found, said = compared(folder, evaluate_every=4)
    return folder, found, said


def test_each_entry_has_a_run_of_each_seed_seed_by_seed(undisturbed):
    folder, found, said = undisturbed
    assert [line.split(", seed")[0] for line in said] == [*GIVEN, *GIVEN]
    assert said[0].startswith("sgd:0.5, seed 1: target reached, accuracy ") and said[0].endswith(
        "(1 of 6)"
    )
    assert [entrant.label for entrant in found.entrants] == [*GIVEN]
    for entrant in found.entrants:
        assert [one.seed for one in entrant.outcomes] == [1, 2]
        for one in entrant.outcomes:
            assert one.ending == "reached" and one.samples == one.steps * 32 and one.seconds > 0
            assert one.samples % 128 == 0 or one.samples % 320 == 0
            assert one.curves["accuracy"][-1][1] >= 0.8
    assert found.budget == 32 * 60 and found.seeds == (1, 2) and found.device == "1 x cpu"
    assert len({one.samples for each in found.entrants for one in each.outcomes}) > 2
    assert reading.read(folder) == found


def test_a_run_is_that_of_a_run_alone_at_shared_steps_to_the_last_bit(tmp_path):
    benchmark = dataclasses.replace(
        TOY, targets=(Target("accuracy", above=1.0),), sample_limit=32 * 24
    )
    compared(tmp_path / "c", benchmark=benchmark, evaluate_every=4)
    for place, optimizer in (("sgd_0.5", "sgd:0.5"), ("recipe", None), ("adam_3e-2", "adam:3e-2")):
        toys.run(benchmark, tmp_path / place, seed=2, mesh="data=1", optimizer=optimizer)
        alone = curve(tmp_path / place / "result_0.txt")
        together = curve(tmp_path / "c" / place / "result_1.txt")
        assert sorted(alone) == [320, 640] and alone.keys() < together.keys()
        assert {samples: together[samples] for samples in alone} == alone
        digests = [
            json.loads((folder / "result.json").read_text())["parameters_sha256"]
            for folder in (tmp_path / place / "run_0", tmp_path / "c" / place / "run_1")
        ]
        assert digests[0] == digests[1]


def test_entries_of_a_seed_begin_with_the_same_weights_and_samples(tmp_path):
    still = optax.set_to_zero()
    found, _ = compared(tmp_path / "c", {"a": still, "b": optax.chain(still, still)}, seeds=(5, 6))
    a, b = ([one.curves for one in entrant.outcomes] for entrant in found.entrants)
    assert a == b and a[0] != a[1]
    assert all(one.ending == "limit" and one.seen == 32 * 60 for one in found.entrants[0].outcomes)


def test_settings_are_searched_with_a_seed_of_their_own_and_the_cost_is_told(tmp_path):
    found, said = compared(
        tmp_path / "c", "sgd:1e-3..10", "recipe:rate=1e-3..10", seeds=(0, 1), tune=3
    )
    assert [line.split(":")[0] for line in said[:2]] == ["sgd", "recipe"]
    assert ", trial 1 (learning_rate 0.1)" in said[0] and ", trial 1 (rate 0.1)" in said[1]
    assert len(said) == 6 + 4
    for entrant, place in zip(
        found.entrants, ("sgd_1e-3..10", "recipe_rate=1e-3..10"), strict=True
    ):
        tried = {}
        for trial in range(3):
            (run,) = RunSet(tmp_path / "c" / "tuning" / place / f"trial_{trial}").runs()
            assert run.seed == 2, "one that is none of those compared"
            tried[trial] = run.result()
        ranks = {
            n: (0, r.samples) if r.reached else (1, -r.quality["accuracy"])
            for n, r in tried.items()
        }
        number = min(ranks, key=lambda n: ranks[n])
        (chosen,) = entrant.tuning.chosen.values()
        assert chosen == (0.1, 0.01, 1.0)[number]
        assert entrant.tuning.trials == 3
        assert entrant.tuning.samples == sum(result.samples for result in tried.values())
        assert entrant.tuning.space.endswith("log-uniform from 0.001 to 10")
    config = RunSet(tmp_path / "c" / "sgd_1e-3..10").runs()[0].config()
    assert config["options"]["optimizer"] == found.entrants[0].optimizer
    assert (
        found.entrants[0].optimizer == f"sgd:{found.entrants[0].tuning.chosen['learning_rate']:g}"
    )


def test_where_no_trial_reaches_the_target_the_nearest_is_the_best(tmp_path):
    hopeless = dataclasses.replace(TOY, targets=(Target("accuracy", above=1.0),), sample_limit=640)
    found, _ = compared(
        tmp_path / "c", "sgd:1e-6..1", "adam:1e-6..1", benchmark=hopeless, seeds=(1,), tune=3
    )
    qualities = [
        RunSet(tmp_path / "c" / "tuning" / "sgd_1e-6..1" / f"trial_{n}")
        .runs()[0]
        .result()
        .quality["accuracy"]
        for n in range(3)
    ]
    settings = (1e-3, 3.16228e-05, 0.0316228)
    assert (
        found.entrants[0].tuning.chosen["learning_rate"]
        == settings[qualities.index(max(qualities))]
    )
    assert found.entrants[0].outcomes[0].ending == "limit"


def test_what_is_done_is_not_done_again(undisturbed):
    folder, found, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again, said = compared(folder, evaluate_every=4, resume=True)
    assert said == [] and again == found
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_a_run_that_a_batch_more_would_bring_over_its_limit_ended_there(tmp_path):
    found, said = compared(tmp_path / "c", max_samples=110, seeds=(1,))
    endings = [one.ending for entrant in found.entrants for one in entrant.outcomes]
    assert {*endings} == {"limit"} and found.entrants[0].outcomes[0].seen == 96
    assert len(said) == len(endings)


def test_another_comparison_is_refused_and_nothing_is_lost(undisturbed, tmp_path):
    folder, _, _ = undisturbed
    before = results(folder)
    for more, sentence in (
        ({}, "holds this comparison already: add --resume"),
        ({"resume": True, "seeds": (1, 2, 3)}, "holds another comparison .seeds was"),
        (
            {"resume": True, "evaluate_every": 5},
            "holds another comparison .evaluate_every was 4 and is now 5",
        ),
        (
            {"resume": True, "max_samples": 640},
            "holds another comparison .budget was 1920 and is now 640",
        ),
    ):
        with pytest.raises(UserError, match=sentence):
            compared(folder, **{"evaluate_every": 4, **more})
    with pytest.raises(UserError, match=r"holds another comparison \(the entry .* (was|is) "):
        compared(folder, "sgd:0.5", "recipe", evaluate_every=4, resume=True)
    assert results(folder) == before
    with pytest.raises(UserError, match="holds no comparison to go on with"):
        compared(tmp_path / "none", resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds something else than a comparison"):
        compared(tmp_path / "other")
    endless = dataclasses.replace(TOY, sample_limit=None)
    with pytest.raises(UserError, match="nothing ends a run of resnet that misses its target"):
        compared(tmp_path / "endless", benchmark=endless)
    wrong = optax.GradientTransformation(
        lambda _: (), lambda g, s, p=None: (jax.tree.map(lambda x: x[:1], g), s)
    )
    with pytest.raises(UserError, match=r"^b: the optimizer's update of"):
        compared(tmp_path / "wrong", {"a": "sgd:1", "b": wrong})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


def test_a_run_that_an_error_ends_is_a_result(tmp_path, monkeypatch):
    train = loop.train

    def failing(run, preemption=None):
        if run.options.optimizer == "adam:3e-2" and run.seed == 1:
            with run:
                run.begin_init()
                raise RuntimeError("INTERNAL: the chip caught fire\nand more")
        return train(run, preemption)

    monkeypatch.setattr(loop, "train", failing)
    found, said = compared(tmp_path / "c")
    assert (
        "adam:3e-2, seed 1: crashed: RuntimeError: INTERNAL: the chip caught fire (3 of 6)" in said
    )
    first, second = found.entrants[2].outcomes
    assert (first.ending, first.reason) == (
        "crashed",
        "RuntimeError: INTERNAL: the chip caught fire",
    )
    assert second.ending == "reached"
    aside = tmp_path / "c" / "crashed" / "adam_3e-2" / "seed_1"
    assert (aside / "result_0.txt").exists() and (aside / "run_0" / "config.json").exists()
    assert "and more" in json.loads((aside / "error.json").read_text())["traceback"]
    again, said = compared(tmp_path / "c", resume=True)
    assert said == [] and again == found


@pytest.mark.parametrize("error", [DataError("record 3 is damaged"), OSError(28, "No space left")])
def test_an_error_of_disk_or_data_is_no_result(tmp_path, monkeypatch, error):
    def failing(run, preemption=None):
        with run:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", failing)
        with pytest.raises(type(error)):
            compared(tmp_path / "c")
    found, said = compared(tmp_path / "c", resume=True)
    assert len(said) == 6 and all(
        one.ending == "reached" for e in found.entrants for one in e.outcomes
    )


def test_an_entry_all_of_whose_trials_crash_has_no_runs(tmp_path, monkeypatch):
    train = loop.train

    def failing(run, preemption=None):
        if str(run.options.optimizer).startswith("adam"):
            with run:
                raise ValueError("no")
        return train(run, preemption)

    monkeypatch.setattr(loop, "train", failing)
    found, said = compared(tmp_path / "c", "sgd:0.5", "adam:0.1", tune=2)
    assert len(said) == 4 + 2
    assert [one.ending for one in found.entrants[1].outcomes] == ["crashed"] * 2
    assert found.entrants[1].outcomes[0].reason == "every trial crashed: ValueError: no"


def test_what_is_scored_after_its_run_is_scored(tmp_path, monkeypatch):
    benchmark = toys.PlainOffline(targets=TOY.targets, sample_limit=32 * 30)
    scored, score = [], offline.score_run

    def stopping(plan, run=None, **more):
        if len(scored) == 2:
            scored.append(None)
            raise KeyboardInterrupt
        scored.append(run)
        return score(plan, run, **more)

    monkeypatch.setattr(offline, "score_run", stopping)
    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path / "c", benchmark=benchmark)
    found, said = compared(tmp_path / "c", benchmark=benchmark, resume=True)
    assert len(said) == 4, "the third is trained, and scored without being trained again"
    assert {one.ending for e in found.entrants for one in e.outcomes} <= {"reached", "limit"}
    assert [len(e.outcomes) for e in found.entrants] == [2, 2, 2]
    assert found.entrants[0].outcomes[0].curves["accuracy"]


def test_one_run_on_each_device_finds_the_same(undisturbed, tmp_path):
    folder, found, _ = undisturbed
    with meshes.only(jax.devices()[:3]):
        together, said = compared(tmp_path / "c", evaluate_every=4, parallel=True)
    assert sorted(line.rpartition(" (")[0].split(":")[0] for line in said) == sorted(
        line.rpartition(" (")[0].split(":")[0] for line in undisturbed[2]
    )
    assert results(tmp_path / "c") == results(folder)
    assert [[one.samples for one in e.outcomes] for e in together.entrants] == [
        [one.samples for one in e.outcomes] for e in found.entrants
    ]
    assert (
        json.loads((tmp_path / "c" / "recipe" / "run_0" / "result.json").read_text())[
            "device_count"
        ]
        == 1
    )


def test_an_error_of_one_of_several_ends_the_others_after_their_runs(tmp_path, monkeypatch):
    train = loop.train

    def failing(run, preemption=None):
        if run.options.optimizer == "sgd:0.5":
            with run:
                raise DataError("record 3 is damaged")
        return train(run, preemption)

    with monkeypatch.context() as patch, meshes.only(jax.devices()[:2]):
        patch.setattr(loop, "train", failing)
        with pytest.raises(DataError, match="record 3"):
            compared(tmp_path / "c", parallel=True)
    with meshes.only(jax.devices()[:2]):
        found, _ = compared(tmp_path / "c", parallel=True, resume=True)
    assert all(one.ending == "reached" for e in found.entrants for one in e.outcomes)


CHILD = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 3)
import test_compare
_, how, *more = sys.argv
print("begun", flush=True)
import pathlib
test_compare.compared(pathlib.Path(more[0]), evaluate_every=4, checkpoint_every=3, resume=how == "again",
                      parallel=more[1] == "parallel")
print("ended", flush=True)
"""


@pytest.mark.parametrize("parallel", ["one", pytest.param("parallel", marks=pytest.mark.slow)])
def test_killed_at_any_instant_it_goes_on_and_ends_the_same(
    undisturbed, tmp_path, parallel, compile_cache
):
    folder, _, _ = undisturbed
    place = tmp_path / "c"
    paths = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_COMPILATION_CACHE_DIR": compile_cache}
    numbers = [signal.SIGKILL, signal.SIGTERM]
    for turn in range(4):
        how = "again" if (place / "comparison.json").exists() else "anew"
        command = [sys.executable, "-c", CHILD, how, str(place), parallel]
        before = {path: path.stat().st_mtime_ns for path in place.glob("*/run_*/result.json")}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout.readline() == "begun\n"
            count = len(before)
            until = time.monotonic() + 240
            while child.poll() is None and turn < len(numbers) and time.monotonic() < until:
                if (
                    len([*place.glob("*/run_*/checkpoints/step_*")])
                    and len([*place.glob("*/run_*/result.json")]) > count
                ):
                    child.send_signal(numbers[turn])
                    break
                time.sleep(0.02)
            rest = child.stdout.read()
        now = {path: path.stat().st_mtime_ns for path in before}
        assert now == before, "a finished run is left as it is"
        if "ended" in rest:
            break
    assert results(place) == results(folder)
    assert not [*place.glob("crashed/*")]


def test_a_signal_between_two_runs_ends_the_comparison(tmp_path, monkeypatch):
    finish = loop.Run.finish

    def finishing(self, *args, **more):
        os.kill(os.getpid(), signal.SIGTERM)
        return finish(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "finish", finishing)
        with pytest.raises(Interrupted, match="between two runs; --resume trains the 5 left"):
            compared(tmp_path / "c")
    assert len(results(tmp_path / "c")) == 1
    found, said = compared(tmp_path / "c", resume=True)
    assert len(said) == 5 and all(len(e.outcomes) == 2 for e in found.entrants)


@pytest.mark.parametrize("signalled", [False, True])
def test_a_folder_that_is_removed_is_an_end_and_no_result(tmp_path, monkeypatch, signalled):
    say, place = loop.Run.say_quality, tmp_path / "c"

    def saying(self, *args, **more):
        say(self, *args, **more)
        if signalled:
            os.kill(os.getpid(), signal.SIGTERM)
        shutil.rmtree(place)

    monkeypatch.setattr(loop.Run, "say_quality", saying)
    with pytest.raises((UserError, Interrupted)):
        compared(place)
    assert not [*place.glob("crashed/*")], "nothing goes on in what is left"


def test_a_signal_at_the_last_trial_lets_no_compared_run_begin(tmp_path, monkeypatch):
    finish = loop.Run.finish

    def finishing(self, *args, **more):
        if str(self.root).endswith("adam_0.1/trial_0"):
            os.kill(os.getpid(), signal.SIGTERM)
        return finish(self, *args, **more)

    monkeypatch.setattr(loop.Run, "finish", finishing)
    with pytest.raises(Interrupted, match="--resume trains the 2 left"):
        compared(tmp_path / "c", "sgd:0.5", "adam:0.1", seeds=(1,), tune=1)
    assert len(results(tmp_path / "c")) == 2


def test_data_are_asked_for_once_and_not_before_what_needs_none_is_refused(tmp_path):
    asked = []
    entries = entries_of(TOY, ["sgd:0.5", "recipe"], tuned=False)
    (tmp_path / "letter.txt").write_text("dear")

    def compare(folder, optimizers):
        def data():
            asked.append("asked")
            return ""

        options = RunOptions(output=str(folder), mesh="data=1")
        comparing.compare(TOY, optimizers, options, data, seeds=(1,), say=lambda _: None)

    with pytest.raises(UserError, match="something else"):
        compare(tmp_path, entries)
    wrong = entries_of(TOY, ["sgdd:0.5", "recipe"], tuned=False)
    with pytest.raises(UserError, match="no optimizer 'sgdd'"):
        compare(tmp_path / "c", wrong)
    assert asked == []
    compare(tmp_path / "c", entries)
    assert asked == ["asked"]


def test_functions_of_settings_are_searched_too(tmp_path):
    tunable = Tunable(lambda tree, rate: optax.sgd(rate), {"rate": (1e-3, 10.0)})
    found, _ = compared(
        tmp_path / "c", {"mine": tunable, "sgd": "sgd:1e-3..10"}, seeds=(1,), tune=2
    )
    mine, sgd = found.entrants
    assert mine.tuning.chosen["rate"] == sgd.tuning.chosen["learning_rate"]
    assert mine.tuning.space == sgd.tuning.space.replace("learning_rate", "rate")
    assert mine.outcomes[0].ending == sgd.outcomes[0].ending == "reached"

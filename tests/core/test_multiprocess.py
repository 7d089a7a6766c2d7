"""Two processes of four devices each, over loopback, against one process of eight."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import more_toys
import playing_toys
import pytest
import toys

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks import registry
from mlperf_jax.core import generation, launch
from mlperf_jax.core.benchmark import Target
from mlperf_jax.core.checkpoints import Checkpoints
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import UserError
from mlperf_jax.results import compliance, log as logs
from mlperf_jax.results.result import Result

pytestmark = pytest.mark.usefixtures("compiled_quickly")
SCRIPT = pathlib.Path(__file__).parent.parent / "toy_run.py"
F64 = {"dtype": "float64"}
ENDLESS = {"max_samples": 32 * 8, "checkpoint_every": 3}
STOPPED = {**F64, "sample_limit": 32 * 10_000, "eval_every": 50}


@pytest.fixture(scope="module")
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def together(*tasks):
    """What the tasks said on each of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for process in (0, 1):
        where = {"coordinator": f"127.0.0.1:{port}", "processes": 2, "process": process}
        given = [
            {**task, "options": {**task["options"], **where, **task.get("own", ({}, {}))[process]}}
            for task in tasks
        ]
        processes.append(
            subprocess.Popen(
                [sys.executable, str(SCRIPT), "together", json.dumps(given)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
            )
        )
    found = []
    for process in processes:
        out, err = process.communicate(timeout=600)
        said = [json.loads(line)["said"] for line in out.splitlines() if line.startswith("{")]
        assert len(said) == len(tasks), err[-3000:]
        found.append(said)
    return found


def task(toy, output, **more):
    options = {"output": str(output), **more.pop("options", {})}
    return {"toy": toy, "fields": F64, "options": options, **more}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, x64):
    """(result, folder) of one process."""
    folder = tmp_path_factory.mktemp("alone")
    return toys.run(toys.Brief(**F64), folder), folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder of what two processes did: a set for each kind of toy, the last of which was stopped."""
    folder = tmp_path_factory.mktemp("pair")
    said = together(
        task("Brief", folder / "Brief"),
        task("BriefBeside", folder / "Beside", options={"mesh": "data=2,fsdp=4"}),
        task("Endless", folder / "Endless", options=ENDLESS),
        task("more_toys:Planned", folder / "Planned", options={"max_samples": 24 * 11}),
        task(
            "playing_toys:Prompted",
            folder / "Prompted",
            options={**ENDLESS, "mesh": "data=4,fsdp=2"},
        ),
        task(
            "playing_toys:OfflineJudged",
            folder / "Offline",
            options={"max_samples": 640, "data_dir": "data"},
        ),
        # the runtime looks for a signal once a second, so this run goes on until it has found it
        task("Hopeless", folder / "Stopped", stop=[1, 3], fields=STOPPED),
    )
    for *others, last in said:
        assert not any(others), others
        assert "Interrupted: stopped by signal 15" in last, last
    return folder


def weights(folder, cls=toys.Brief):
    """The trained weights of a finished run, from its last checkpoint."""
    path = folder / "run_0" / "checkpoints"
    with Checkpoints(path, identity={}) as some:
        identity = some.latest_meta()["identity"]
    abstract = toys.weights(toys.prepared(cls(**F64), "data=8").abstract)
    with Checkpoints(path, identity=identity) as some:
        found = some.restore(abstract, partial=True)
    assert found is not None
    return found[0]


def accuracies(folder):
    lines = logs.read(folder / "result_0.txt")
    return [(x.metadata["samples_count"], x.value) for x in lines if x.key == "eval_accuracy"]


def result_of(folder):
    return Result.load(folder / "run_0" / "result.json")


def test_they_train_the_same_weights(pair, alone):
    one, two = alone[0], result_of(pair / "Brief")
    assert two.reached and two.samples == one.samples and two.seed == one.seed
    assert two.mesh["data"] == two.device_count == 8
    assert toys.distance(weights(alone[1]), weights(pair / "Brief")) < 1e-12
    assert len(two.parameters_sha256) == 64, "whole copies are on each process"


def test_evaluations_agree_and_one_process_keeps_the_log(pair, alone):
    assert accuracies(pair / "Brief") == accuracies(alone[1])
    assert toys.keys(pair / "Brief") == toys.keys(alone[1])
    assert toys.scalar_steps(pair / "Brief") == toys.scalar_steps(alone[1])
    assert compliance.check(pair / "Brief").success


def test_rows_beside_the_steps_and_sharded_weights(pair, alone):
    assert accuracies(pair / "Beside") == accuracies(alone[1])
    assert toys.distance(weights(alone[1]), weights(pair / "Beside", toys.BriefBeside)) < 1e-12


@pytest.mark.parametrize("toy", [toys.Endless, playing_toys.Prompted])
def test_data_made_by_the_model(toy, pair, x64, tmp_path):
    name = toy.__name__
    one = toys.run(toy(**F64), tmp_path, **ENDLESS)
    assert one.samples == result_of(pair / name).samples
    assert toys.distance(weights(tmp_path, toy), weights(pair / name, toy)) < 1e-12
    generations = sorted((pair / name / "run_0" / "generated").iterdir())
    for folder in generations:
        same = tmp_path / "run_0" / "generated" / folder.name
        wanted, found = generation.read_records(same), generation.read_records(folder)
        assert toys.distance(wanted, found) < 1e-12 and wanted.keys() == found.keys()
    assert len(generations) == 2


def test_bucket_shapes_of_different_rows(pair, x64, tmp_path):
    one = toys.run(more_toys.Planned(**F64), tmp_path, max_samples=24 * 11)
    two = result_of(pair / "Planned")
    assert (one.samples, one.quality) == (two.samples, two.quality)
    found = [weights(folder, more_toys.Planned) for folder in (tmp_path, pair / "Planned")]
    assert toys.distance(*found) < 1e-12


def test_runs_that_are_scored_later(pair, x64, monkeypatch):
    with Checkpoints(pair / "Offline" / "run_0" / "checkpoints", identity={}) as some:
        assert some.sealed_steps() == [10, 20]
    monkeypatch.setattr(registry, "benchmark_class", lambda name: playing_toys.OfflineJudged)
    assert benchmarks.evaluate(pair / "Offline").scored == [320, 640]


def test_a_signal_to_one_process_stops_both_and_they_resume(pair, tmp_path):
    stopped, whole = pair / "Stopped", tmp_path / "whole"
    with Checkpoints(stopped / "run_0" / "checkpoints", identity={}) as some:
        step = max(some.steps())
    assert step >= 3

    ending = {"max_samples": 32 * (step + 5)}
    again = task("Hopeless", stopped, options={"resume": True, **ending}, fields=STOPPED)
    own = [{"optimizer": "adamw:1e-3", "log_every": rate} for rate in (10, 20)]
    own[1]["optimizer"] = "adamw:1e-1"
    (first, _, refused, differs), (second, _, told, differ) = together(
        again,
        task("Hopeless", whole, options=ending, fields=STOPPED),
        again,
        task("Hopeless", tmp_path / "differ", own=own),
    )
    assert first == second == ""
    for text in (differs, differ):
        assert "UserError: processes of the run differ from process 0 (process 1: optimizer" in text
        assert re.search(
            r"adamw:1e-1 .* against .*adamw:1e-3 .*, log_every 20 against 10\): start", text
        )
    assert not (tmp_path / "differ").exists(), "before there is a folder"
    assert result_of(stopped).parameters_sha256 == result_of(whole).parameters_sha256
    assert result_of(stopped).resumed == 1 and result_of(whole).resumed == 0
    assert toys.keys(stopped) == toys.keys(whole) and accuracies(stopped) == accuracies(whole)
    assert toys.scalar_steps(stopped) == toys.scalar_steps(whole)
    # there is nothing left to resume: process 0 alone sees that, and both end at once
    assert "UserError" in refused and "no unfinished run" in refused
    assert "process 0 gave up" in told and "no unfinished run" in told


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"processes": 2, "process": 0}, "need coordinator"),
        ({"coordinator": "127.0.0.1:1"}, "needs processes and process"),
    ],
)
def test_options_that_say_half_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        launch.connect(RunOptions(**options))


def test_targets_are_the_same_number_on_all_processes():
    # told as text: a float32 on the way would move a threshold by rounding
    value = 0.1 + 2**-50
    assert json.loads(json.dumps(value)) == value
    assert Target("accuracy", at_least=value).met({"accuracy": value})

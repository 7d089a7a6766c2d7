"""The checks can fail: each says in one sentence what does not hold."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import toys

import mlperf_jax
from mlperf_jax.benchmarks import registry
from mlperf_jax.core.benchmark import Target
from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.in_memory import InMemory
from mlperf_jax.results import log as logs
from mlperf_jax.testing import check_benchmark, checks, runs


class Fair(toys.Plain):
    """Of no round; what is wrong with the others is a line each."""

    name = "fair"
    ruleset = ""


def said(check, *given):
    with pytest.raises(AssertionError) as told:
        check(*given)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_a_fair_toy_passes(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {"fair": Fair})
    checks.configuration_is_plain(Fair())
    checks.evaluation_steps_increase(Fair())
    checks.absences_are_stated(Fair)
    checks.data_give_what_example_says(Fair(), "")
    checks.evaluation_counts_every_sample_once(Fair(), "")
    checks.untrained_model_misses_the_target(Fair(), "")


def test_a_configuration_that_json_does_not_keep(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {"fair": Fair})
    odd = Fair()
    object.__setattr__(odd, "rate", 0.1 + 1e-17j)  # what no annotation would have let through
    assert "JSON does not keep the configuration: rate" in said(checks.configuration_is_plain, odd)
    monkeypatch.setattr(checks, "MOST_FIELDS", 3)
    assert "3 are allowed" in said(checks.configuration_is_plain, Fair())


@pytest.mark.parametrize("steps", [[4, 8, 8], [0, 1, 2], [1, 2, 3]])
def test_evaluations_that_do_not_follow_one_another(steps):
    class Wrong(Fair):
        def eval_steps(self):
            return iter(steps)

    assert f"begins {steps}" in said(checks.evaluation_steps_increase, Wrong())


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"absent": ("recipes",), "ruleset": "4.0.0"}, "has no pictures and does not say so"),
        ({"absent": ("pictures",), "ruleset": "4.0.0"}, "has no recipes and does not say so"),
        ({"absent": ("recipes", "pictures"), "ruleset": "0.5.0"}, "has no ruleset and does not"),
        ({"absent": ("ruleset", "recipes", "pictures"), "ruleset": "4.0.0"}, "names ruleset in"),
        ({"generate": lambda self: None}, "has no training files and does not say so"),
        ({"picture": lambda self: None, "absent": ("pictures",)}, "names pictures in absent, and"),
        ({"absent": ("training files",)}, "names training files in absent, and has it"),
        ({"absent": ("data",)}, "it may name recipes, ruleset, pictures, training files"),
    ],
)
def test_silent_holes_and_false_absences(stated, words):
    name = "resnet" if stated.get("ruleset") else "fair"
    assert words in said(
        checks.absences_are_stated, type("Wrong", (Fair,), {"name": name, **stated})
    )


def test_an_absence_that_is_stated_and_true():
    stated = {"name": "resnet", "ruleset": "0.5.0", "absent": ("ruleset", "recipes", "pictures")}
    checks.absences_are_stated(type("Old", (Fair,), stated))


def arrays(train=256, validation=50, **changed):
    both = toys.problem(train, 1), toys.problem(validation, 2)
    for part in both:
        part |= {name: change(part[name]) for name, change in changed.items()}
    return InMemory(train=both[0], validation=both[1])


def test_data_that_are_not_what_example_says():
    class Wrong(Fair):
        def data(self):
            return arrays(x=lambda x: x.astype(np.float64))

    told = said(checks.data_give_what_example_says, Wrong(), "")
    assert told.startswith("in evaluation, the data gives float64[6] for 'x'")
    assert "float32[6]" in told


def test_an_evaluation_of_other_samples():
    class Wrong(Fair):
        def eval_data(self, data_dir):
            return arrays(validation=49).validation()

    told = said(checks.evaluation_counts_every_sample_once, Wrong(), "")
    assert told == "an evaluation sees 49 samples, eval_samples says 50"


def test_a_target_that_anything_meets():
    easy = Fair(targets=(Target("accuracy", at_least=0.0),))
    assert "an untrained model meets" in said(checks.untrained_model_misses_the_target, easy, "")


# -- three steps, as runs.few_steps leaves them ------------------------------------------------------


@pytest.fixture
def steps(tmp_path):
    """(end, weights, loss of the second step, lines of the log) -> what a run to this end leaves."""

    def leave(end, weights=(1.0, 2.0), loss=0.5, extra=(), dtype=np.float64):
        folder = tmp_path / end / "run_0"
        folder.mkdir(parents=True)
        np.savez(tmp_path / f"{end}.npz", **{"params/w": np.array(weights, dtype)})
        losses = [0.7, loss, 0.1]
        lines = [{"step": i + 1, "samples": i, "loss": value} for i, value in enumerate(losses)]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (folder / "scalars.jsonl").write_text(text)
        with logs.Log(tmp_path / end / "result_0.txt") as log:
            for key in ["submission_benchmark", "seed", "init_start", "init_stop", "run_start"]:
                log.event(key, 1)
            for key in [*extra, "eval_accuracy", "run_stop"]:
                log.event(key, 1, samples_count=4)
        return tmp_path

    return leave


def test_equal_runs_pass(steps):
    for end in ("one", "eight", "resumed"):
        folder = steps(end)
    checks.same_weights_on_one_and_eight_devices(folder)
    checks.killed_and_resumed_ends_equal(folder)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"weights": (1.0, 2.0 + 1e-9)}, "weights of eight devices are 4.5e-10 from those of one"),
        ({"loss": 0.5 + 1e-9}, "loss after step 2 is 0.500000001 on eight devices and 0.5 on one"),
    ],
)
def test_eight_devices_that_train_something_else(steps, wrong, words):
    steps("one")
    assert words in said(checks.same_weights_on_one_and_eight_devices, steps("eight", **wrong))


def test_weights_that_stay_single(steps):
    steps("one", dtype=np.float32)
    told = said(checks.same_weights_on_one_and_eight_devices, steps("eight", dtype=np.float32))
    assert "params/w is float32 in a run of float64" in told


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"weights": (1.0, np.nextafter(2.0, 3))}, "params/w is another after the run was killed"),
        ({"loss": np.nextafter(0.5, 1)}, "the scalars of a killed and resumed run are others"),
        ({"extra": ["run_start"]}, "result_0.txt has 2 lines run_start"),
        ({"extra": ["eval_accuracy"]}, "an evaluation was logged twice: after [4, 4] samples"),
    ],
)
def test_a_resumed_run_that_is_another(steps, wrong, words):
    steps("one")
    assert words in said(checks.killed_and_resumed_ends_equal, steps("resumed", **wrong))


def test_weights_that_never_move(steps):
    steps("one", weights=(0.0, 0.0))
    told = said(checks.killed_and_resumed_ends_equal, steps("resumed", weights=(0.0, 0.0)))
    assert told == "all weights are zero"


# -- whole runs --------------------------------------------------------------------------------------

RESULT = {"reached": True, "samples": 64, "quality": {"accuracy": 0.5}, "parameters_sha256": "a"}


def test_runs_that_end_without_their_target_or_otherwise():
    checks.reaches_its_target(RESULT)
    checks.two_runs_end_equal(RESULT, dict(RESULT))
    told = said(checks.reaches_its_target, {**RESULT, "reached": False})
    assert "ended at {'accuracy': 0.5} after 64 samples, without its target" in told
    told = said(checks.two_runs_end_equal, RESULT, {**RESULT, "parameters_sha256": "b"})
    assert told == "two runs with the same seed end with parameters_sha256 a and b"


def test_a_child_that_fails_says_why(tmp_path):
    settings = runs.settings(str(tmp_path), tmp_path / "a", mesh="data=3")
    with pytest.raises(AssertionError) as told:
        runs.one_after_another(str(tmp_path), "resnet", [{"settings": settings}])
    assert "a tiny run on data=3 failed: " in str(told.value)
    assert "not divided by the mesh data=3" in str(told.value)
    assert "Traceback" not in str(told.value)


# -- the whole battery -------------------------------------------------------------------------------


WINE = pathlib.Path(__file__).parents[1] / "benchmarks" / "wine.py"
TEMPLATE = pathlib.Path(mlperf_jax.__file__).parent / "template" / "my_benchmark.py"


@pytest.mark.parametrize(
    "place", [f"{WINE}:Wine", f"{TEMPLATE}:MyBenchmark"], ids=["wine", "template"]
)
def test_a_benchmark_of_ones_own_passes_the_battery(place):
    check_benchmark(place)


def test_a_class_that_no_process_can_load():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Local(Fair):
        name = "local"

    with pytest.raises(UserError, match="Local stands in no file: move it to the top level"):
        check_benchmark(Local)

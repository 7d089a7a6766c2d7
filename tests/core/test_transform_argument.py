"""`transform=`: a user's transforms in any benchmark's training data, checked, told apart and written down."""

import dataclasses
import json
import os
import subprocess
import sys

import grain
import numpy as np
import pytest
import toys

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks import registry
from mlperf_jax.core import preflight
from mlperf_jax.core.benchmark import Bucket, Target, f32, i32
from mlperf_jax.core.options import RunOptions
from mlperf_jax.core.transform_argument import (
    check_transforms,
    describe_transforms,
    load_transforms,
)
from mlperf_jax.errors import UserError

HARD = (Target("accuracy", above=1.0),)
SHORT = {"max_samples": 32 * 12}
OFFSET = 0.5


@dataclasses.dataclass
class Shifted(grain.transforms.Map):
    """Moves the features by so much."""

    by: object = 0.25

    def map(self, element):
        return element | {"x": element["x"] + np.float32(self.by)}


class Jitter(grain.transforms.RandomMap):
    def random_map(self, element, rng):
        return element | {"x": element["x"] + rng.normal(size=6).astype(np.float32)}


class Halved(grain.transforms.Map):
    """Of many rows at once."""

    batched = True

    def map(self, element):
        return element | {"x": element["x"] / 2}


# -- what may be given ---------------------------------------------------------------------------

FILE = """
import grain, numpy as np

SCALE = 2.0

class Scaled(grain.transforms.Map):
    def map(self, element):
        return element | {"x": element["x"] * np.float32(SCALE)}

def make():
    return [Scaled(), Scaled()]

ready = Scaled()
"""


def test_what_may_be_given(tmp_path):
    assert load_transforms(None) == ()
    one, two = Shifted(1), Jitter()
    assert load_transforms(one) == (one,)
    assert load_transforms([one, two]) == (one, two)
    (made,) = load_transforms(Shifted)
    assert made == Shifted()
    (tmp_path / "mine.py").write_text(FILE)
    for name, count in (("make", 2), ("ready", 1), ("Scaled", 1)):
        found = load_transforms(f"{tmp_path}/mine.py:{name}")
        assert [type(t).__name__ for t in found] == ["Scaled"] * count


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (3, "must be a grain.transforms.Map or RandomMap, or a list of them, not 3"),
        ([Jitter(), np.sin], "or a list of them, not <ufunc 'sin'>"),
        (lambda scale: Shifted(scale), "TypeError.*takes no arguments"),
        ("nowhere.py:make", "there is no file nowhere.py to take the transform from"),
        (type("Both", (Jitter,), {"batched": True}), "rows are seeded one by one"),
    ],
)
def test_what_is_refused(given, sentence):
    with pytest.raises(UserError, match=sentence):
        load_transforms(given)


def changes(**made):
    class Changes(grain.transforms.Map):
        def map(self, element):
            return {k: v for k, v in {**element, **made}.items() if v is not None}

    return Changes()


class Gives(grain.transforms.Map):
    def map(self, element):
        return None


class Divides(grain.transforms.Map):
    def map(self, element):
        return element["nothing"]


@pytest.mark.parametrize(
    ("transform", "sentence"),
    [
        (changes(x=np.zeros(6)), r"makes float64\[6\] of 'x', and the .* says float32\[6\]"),
        (changes(x=np.zeros(5, np.float32)), r"Changes makes float32\[5\] of 'x'"),
        (changes(y=np.int32(1)), r"makes int32\[\] of 'y', and .* says nothing: .* values alone"),
        (changes(label=None), r"makes nothing of 'label', and .* says int32\[\]"),
        (Gives(), "Gives gives NoneType; it must give a dict of arrays"),
        (Divides(), r"Divides fails on an example of zeros and ones \(KeyError.*, line \d+\)"),
        (type("All", (Halved,), {"map": lambda self, e: e | {"x": e["x"][0]}}), r"'x'"),
    ],
)
def test_values_alone_may_change(transform, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        toys.run(toys.Toy(), tmp_path / "out", transform=transform)
    assert not (tmp_path / "out").exists(), "before anything is touched"


def test_every_bucket_is_tried():
    class Wide(grain.transforms.Map):
        def map(self, element):
            return element | {"x": element["x"].reshape(2, 3)}

    check_transforms([Wide()], [Bucket(4, {"x": f32(2, 3), "mask": i32()})])
    with pytest.raises(UserError, match="cannot reshape"):
        check_transforms([Wide()], [Bucket(4, {"x": f32(2, 3)}), Bucket(4, {"x": f32(4)})])


def test_closed_runs_have_none():
    recipe = preflight.resolve_dtype(benchmarks.get("resnet"))
    with pytest.raises(UserError, match=r"transform of the training data.*say --division open"):
        preflight.resolve_division(recipe, RunOptions(transform=Shifted()))
    options = RunOptions(transform=Shifted(), division="open")
    assert preflight.resolve_division(recipe, options) == "open"


# -- runs ----------------------------------------------------------------------------------------


def test_it_is_applied_to_training_data_alone(tmp_path):
    plain = toys.run(toys.Toy(targets=HARD), tmp_path / "plain", **SHORT)
    none = toys.run(toys.Toy(targets=HARD), tmp_path / "none", transform=Shifted(0), **SHORT)
    moved = toys.run(toys.Toy(targets=HARD), tmp_path / "moved", transform=Shifted(1e4), **SHORT)
    assert none.parameters_sha256 == plain.parameters_sha256 != moved.parameters_sha256
    config = json.loads((tmp_path / "moved" / "run_0" / "config.json").read_text())
    assert "Shifted" in config["config"]["transform"] and config["options"]["transform"] is None


def test_killed_and_resumed_ends_equal_and_another_is_refused(tmp_path):
    given = [Jitter(), Halved()]
    whole = toys.run(toys.Toy(targets=HARD), tmp_path / "whole", transform=given, **SHORT)
    often = {"checkpoint_every": 5, **SHORT}
    with toys.failing(toys.Toy, 8), pytest.raises(UserError, match="damaged"):
        toys.run(toys.Toy(targets=HARD), tmp_path / "cut", transform=given, **often)
    for other in (None, Jitter(), [Halved(), Jitter()]):
        with pytest.raises(UserError, match=r"another configuration.*transform"):
            toys.run(toys.Toy(targets=HARD), tmp_path / "cut", resume=True, transform=other)
    again = toys.run(
        toys.Toy(targets=HARD),
        tmp_path / "cut",
        resume=True,
        transform=[Jitter(), Halved()],
        **often,
    )
    assert again.resumed == 1
    assert again.parameters_sha256 == whole.parameters_sha256
    with pytest.raises(UserError, match=r"another configuration.*transform"):
        toys.run(toys.Toy(targets=HARD), tmp_path / "whole", transform=Jitter(), **SHORT)


def test_worker_processes_and_devices_change_nothing(tmp_path):
    whole = toys.run(toys.Toy(targets=HARD), tmp_path / "a", transform=Jitter(), **SHORT)
    workers = toys.run(
        toys.Toy(targets=HARD), tmp_path / "b", transform=Jitter(), workers=2, **SHORT
    )
    assert workers.parameters_sha256 == whole.parameters_sha256


def test_worker_processes_know_what_stands_in_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    given = {"transform": f"{tmp_path}/mine.py:make", **SHORT}
    here = toys.run(toys.Toy(targets=HARD), tmp_path / "a", **given)
    there = toys.run(toys.Toy(targets=HARD), tmp_path / "b", workers=1, **given)
    assert there.parameters_sha256 == here.parameters_sha256


def test_it_may_come_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    name = f"{file}:make"
    result = toys.run(toys.Toy(targets=HARD), tmp_path / "out", transform=name, **SHORT)
    config = json.loads((tmp_path / "out" / "run_0" / "config.json").read_text())
    assert config["config"]["transform"] == f"{name}\n{FILE}"
    assert config["options"]["transform"] == name
    file.write_text(FILE.replace("2.0", "3.0"))
    other = toys.run(toys.Toy(targets=HARD), tmp_path / "other", transform=name, **SHORT)
    assert other.parameters_sha256 != result.parameters_sha256
    with pytest.raises(UserError, match=r"another configuration.*transform"):
        toys.run(toys.Toy(targets=HARD), tmp_path / "out", transform=name, **SHORT)


def test_scoring_after_a_run_needs_no_transform(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "benchmark_class", lambda name: toys.Offline)
    given = {"transform": Shifted(), "max_samples": 640, "data_dir": "data"}
    assert toys.run(toys.Offline(), tmp_path, **given) is None
    assert benchmarks.evaluate(tmp_path).samples == 640


# -- told apart ----------------------------------------------------------------------------------


def closed_over(value):
    class Around(grain.transforms.Map):
        def map(self, element):
            return element | {"x": element["x"] * value}

    return Around()


class Global(grain.transforms.Map):
    def map(self, element):
        return element | {"x": element["x"] * OFFSET}


def test_transforms_are_told_apart(monkeypatch):
    given = [
        Shifted(1),
        Shifted(2),
        Shifted([1, 2]),
        Shifted(np.arange(3)),
        Shifted(np.arange(3) + 1),
        Jitter(),
        Halved(),
        [Jitter(), Halved()],
        [Halved(), Jitter()],
        closed_over(1),
        closed_over(2),
        Global(),
    ]
    texts = [describe_transforms(one) for one in given]
    assert len(set(texts)) == len(given)
    assert describe_transforms(Shifted(np.arange(3))) == texts[3]
    assert describe_transforms(closed_over(1)) == texts[9]
    monkeypatch.setattr(sys.modules[__name__], "OFFSET", 0.75)
    assert describe_transforms(Global()) != texts[-1]
    assert describe_transforms(None) is None


def test_every_process_says_the_same():
    code = (
        f"import importlib; t = importlib.import_module({__name__!r})\n"
        "given = [t.Shifted(t.np.ones(2)), t.Jitter(), t.closed_over(3)]\n"
        "print(t.describe_transforms(given))"
    )
    here = describe_transforms([Shifted(np.ones(2)), Jitter(), closed_over(3)])
    path = os.pathsep.join(sys.path)
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "7"}
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert said.stdout.strip() == here

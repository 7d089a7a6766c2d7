"""What a benchmark lacks is named before its run has a folder."""

import itertools

import pytest
import toys

from mlperf_jax.core import members, preflight
from mlperf_jax.core.benchmark import Benchmark, Target
from mlperf_jax.errors import UserError


def without(name):
    """A toy that does not state this member, as one written by a newcomer."""
    base = toys.SelfMade if name == "generated_data" else toys.Toy
    return type("Wine", (base,), {name: Benchmark.__dict__[name]})


@pytest.mark.parametrize(
    "name",
    [
        "example",
        "model",
        "optimizer",
        "loss",
        "predict",
        "eval_steps",
        "data",
        "flops_per_sample",
        "lookups",  # of a toy with a table
        "generated_data",  # of one that makes its data
    ],
)
def test_a_missing_member_is_named_and_nothing_is_touched(name, tmp_path):
    with pytest.raises(UserError, match=rf"Wine does not state {name}, .*see Benchmark\.{name}"):
        preflight.preflight(without(name)(), toys.options(tmp_path / "output"), "data")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("name", ["lookups", "generated_data"])
def test_what_a_benchmark_does_not_use_it_need_not_state(name):
    members.check_members(type("Wine", (toys.Plain,), {name: Benchmark.__dict__[name]})())


def test_a_metric_must_be_stated():
    class Bare(Benchmark):
        name = "resnet"
        ruleset = "4.0.0"

    bare = Bare(
        batch_size=8, train_samples=8, eval_samples=8, targets=(Target("accuracy", at_least=0.5),)
    )
    with pytest.raises(UserError, match="Bare does not state metric"):
        members.check_members(bare)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"eval_steps": lambda self: iter([4, 8])},
            r"Wine\.eval_steps gives \[4, 8\].*without end",
        ),
        ({"eval_steps": lambda self: itertools.count(0, 4)}, r"gives \[0, 4, .*increasing"),
        ({"eval_steps": lambda self: itertools.repeat(4)}, "increasing steps from 1 on"),
        ({"flops_per_sample": None}, r"Wine\.flops_per_sample gives None: it must be a number"),
        ({"flops_per_sample": float("nan")}, "flops_per_sample gives nan"),
        ({"last_sample": 0}, r"last_sample gives 0"),
        ({"position": lambda self, step: {"epoch_num": 1}}, "samples_count by name"),
        ({"log": lambda self: {"opt_name": {1, 2}}}, r"log gives {'opt_name': {1, 2}}.*JSON"),
        ({"quality_lines": lambda self, quality: [0.5]}, "pairs of a value and its metadata"),
        ({"quality_lines": lambda self, quality: []}, "quality_lines gives"),
        ({"metric": toys.Slow(mode="sometime")}, "metric.mode gives 'sometime'.*offline"),
    ],
)
def test_what_a_member_gives_is_looked_at(changes, says):
    with pytest.raises(UserError, match=says):
        members.check_members(type("Wine", (toys.Toy,), changes)())


def test_a_target_of_another_name_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"gives no 'acuracy'.*did you mean 'accuracy'"):
        toys.Toy(targets=(Target("acuracy", at_least=0.5),))


def test_start_weights_are_asked_for_before_the_run_has_a_folder(tmp_path):
    class Weightless(toys.Started):
        def start(self, data_dir):
            raise UserError(f"{data_dir}/weights is missing")

    with pytest.raises(UserError, match="data/weights is missing"):
        preflight.preflight(Weightless(), toys.options(tmp_path / "output"), "data")
    assert not (tmp_path / "output").exists()

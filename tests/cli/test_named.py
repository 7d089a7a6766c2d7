"""What a command that takes a benchmark's name passes on."""

import dataclasses

import pytest

from mlperf_jax import benchmarks, cli
from mlperf_jax.benchmarks import registry
from mlperf_jax.cli import named
from mlperf_jax.core.benchmark import Target
from mlperf_jax.core.options import RunOptions


@pytest.mark.parametrize("name", benchmarks.names())
def test_no_field_is_named_like_a_run_option(name):
    fields = {f.name for f in dataclasses.fields(benchmarks.benchmark_class(name))}
    assert not fields & {f.name for f in dataclasses.fields(RunOptions)}
    assert not fields & registry.RESERVED


def test_help_of_run_shows_the_fields_with_their_values(capsys):
    assert cli.main(["run", "resnet", "--tiny", "--help"]) == 0
    out = capsys.readouterr().out
    for field in dataclasses.fields(RunOptions):
        assert "--" + field.name.replace("_", "-") in out
    tiny = benchmarks.get("resnet", tiny=True)
    assert f"(default: {tiny.batch_size}; samples, at least 1)" in out
    flowing = " ".join(out.replace("│", " ").split())
    for shown in (
        "--base-lr X (default: 2.5; at least 0)",
        "--momentum X (default: 0.9; at least 0 and below 1)",
        "--image-size N (default: 32; pixels, at least 1)",
        "--stages N ... (default: 1 1 1 1; at least 1)",
        "--opt-name {lars,sgd} (default: lars)",
        "--clip-norm X (above 0)",
        "--division {closed,open}",
        "(default: 30; seconds, at least 1)",
    ):
        assert shown in flowing
    assert "warm-up included" in out  # the comment behind the field
    assert "take up the unfinished run" in out  # the line under Attributes:


def test_only_what_was_typed_is_passed_on(ran):
    argv = "run resnet --batch-size 4096 --no-flip --stages 1 2 3 4 --base-lr=1e-3 --mesh data=8"
    assert cli.main(argv.split()) == 0
    assert ran == [
        {
            "name": "resnet",
            "batch_size": 4096,
            "flip": False,
            "stages": (1, 2, 3, 4),
            "base_lr": 1e-3,
            "mesh": "data=8",
        }
    ]


def test_switches_targets_and_none(ran):
    argv = "run --tiny resnet --resume --optimizer adamw:1e-3 --clip-norm none".split()
    assert cli.main([*argv, "--targets", "accuracy>=0.9", "accuracy > 0.5"]) == 0
    assert ran == [
        {
            "name": "resnet",
            "tiny": True,
            "resume": True,
            "optimizer": "adamw:1e-3",
            "clip_norm": None,
            "targets": (Target("accuracy", at_least=0.9), Target("accuracy", above=0.5)),
        }
    ]


def test_a_typed_batch_size_brings_its_recipe():
    given = {"name": "resnet", "batch_size": 4096, "seed": 3}
    benchmark, settings, rest = named.made(given)
    assert benchmark == benchmarks.get("resnet", batch_size=4096)
    assert benchmark.bn_span == 64
    assert settings == RunOptions(seed=3)
    assert rest == {}


def test_underscores_and_equals_are_accepted(ran):
    assert cli.main(["run", "resnet", "--data_dir=some=where", "--batch_size", "1632"]) == 0
    assert ran[0]["data_dir"] == "some=where"
    assert ran[0]["batch_size"] == 1632

"""The contract: values a configuration refuses, targets, positions."""

import json

import pytest
import toys

from mlperf_jax import metrics
from mlperf_jax.core.benchmark import Target
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import UserError, did_you_mean

GOOD = Target("accuracy", at_least=0.5)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of samples, at least 1, not 0"),
        ({"sample_limit": 31}, "sample_limit 31 is less than one batch of 32"),
        ({"gradient_accumulation_steps": 3}, "batch_size 32 is not a multiple of .* 3"),
        ({"batch_size": 512}, "exceeds the 256 training samples"),
        ({"nonfinite": "ignore"}, "nonfinite must be abort or skip, not 'ignore'"),
        ({"targets": ()}, r"targets must be one or more Targets, not \(\)"),
        ({"targets": [GOOD, Target("f1", above=0)]}, "the metric of resnet gives no 'f1'"),
        ({"batchsize": 64}, "has no field 'batchsize': did you mean 'batch_size'"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        toys.Toy().replace(**fields)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"division": "ajar"}, "division must be closed, open or None, not 'ajar'"),
        ({"show": "loud"}, "show must be auto, plain or none"),
        ({"status": "fine"}, "status must be onprem, cloud, preview or research"),
        ({"org": " "}, "org must be some text, not ' '"),
        ({"seed": 2**32}, "seed must be a whole number, from 0 to 4,294,967,295, or None"),
        (
            {"output": b"x"},
            "output must be a path, one that this system can look up, or None, not b'x'",
        ),
        ({"mesh": {"data": 3}}, "mesh must be some text or None, not {'data': 3}"),
        ({"runs": 2, "seed": 1}, "seeds of their own"),
        ({"seeds": (1, 2, 1)}, "seeds has 1 twice"),
        ({"seeds": (1, -2)}, "each from 0 to 4,294,967,295"),
        ({"seeds": ()}, "seeds must be one or more"),
        ({"seeds": (1, 2), "seed": 3}, "leave --seed out, or --seeds"),
        ({"seeds": (1, 2), "runs": 3}, "seeds are 2 and runs is 3: leave --runs out"),
        ({"processes": 2, "process": 2}, "process 2 of 2"),
    ],
)
def test_bad_options_are_refused_by_name(options, sentence):
    with pytest.raises(UserError, match=sentence):
        RunOptions(**options)


def test_targets():
    assert Target("dice", at_least=0.9).met({"dice": 0.9})
    assert not Target("dice", above=0.9).met({"dice": 0.9})
    assert Target("fid", at_most=90, above=0).met({"fid": 90.0})
    assert not Target("fid", at_most=90, above=0).met({"fid": 91.0})
    for bound in ({"at_least": 0}, {"at_most": 0}, {"above": 0}):
        assert not Target("loss", **bound).met({"loss": float("nan")})
    assert str(Target("fid", at_most=90, above=0)) == "fid <= 90 and fid > 0"
    with pytest.raises(UserError, match="'fid' states no bound"):
        Target("fid")
    for bounds in ({"at_least": 1, "at_most": 0.5}, {"above": 0.5, "at_most": 0.5}):
        with pytest.raises(UserError, match="no value is inside both bounds"):
            Target("fid", **bounds)
    for bad in (float("nan"), float("inf"), "0.9", True):
        with pytest.raises(UserError, match="at_least must be a number or None"):
            Target("fid", at_least=bad)


@pytest.mark.parametrize(
    "bounds", [{"at_least": 1.1}, {"at_least": -1}, {"above": 1}, {"at_most": 2}, {"at_most": -0.1}]
)
def test_a_target_outside_of_what_its_metric_can_be_is_refused(bounds):
    class Shares(toys.Toy):
        metric = metrics.Mean("accuracy", range=(0, 1))

    with pytest.raises(UserError, match=r"^targets: accuracy .* cannot be: .* from 0 to 1$"):
        Shares(targets=(Target("accuracy", **bounds),))
    for good in ({"at_least": 1}, {"at_least": 0}, {"above": 0.99}, {"at_most": 1}):
        Shares(targets=(Target("accuracy", **good),))


def test_positions_count_epochs_done():
    toy = toys.Toy()  # 8 steps an epoch
    assert toy.position(8) == {"epoch_num": 1, "samples_count": 256}
    assert toy.position(10) == {"epoch_num": 1.25, "samples_count": 320}
    assert isinstance(toy.position(16)["epoch_num"], int)


def test_a_configuration_is_plain_json():
    config = toys.Toy().config()
    assert json.loads(json.dumps(config))["benchmark"] == "resnet"
    assert config["targets"][0]["at_least"] == 0.9


def test_names_that_are_nearly_right():
    assert did_you_mean("resent", ["resnet", "bert"]) == ": did you mean 'resnet'?"
    assert did_you_mean("qqq", ["resnet", "bert"]) == "; known: bert, resnet"

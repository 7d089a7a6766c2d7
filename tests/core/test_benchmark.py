"""The contract: values a configuration refuses, targets, positions."""

import json

import pytest
import toys

from mlperf_jax.core.benchmark import Target
from mlperf_jax.core.fields import did_you_mean
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import UserError


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"batch_size": "64"}, "batch_size must be a whole number, not '64'"),
        ({"batch_size": 6.4}, "batch_size must be a whole number"),
        ({"batch_size": True}, "batch_size must be a whole number"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1"),
        ({"sample_limit": 0}, "sample_limit must be at least 1"),
        ({"gradient_accumulation_steps": 3}, "batch_size 32 is not a multiple of .* 3"),
        ({"batch_size": 512}, "exceeds the 256 training samples"),
        ({"nonfinite": "ignore"}, "nonfinite must be one of abort, skip, not 'ignore'"),
        ({"dtype": "float16"}, "dtype must be one of auto"),
        ({"size": "small"}, "size must be one of full, tiny"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\)"),
        ({"targets": ()}, "targets is empty"),
        ({"batchsize": 64}, "has no field 'batchsize': did you mean 'batch_size'"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        toys.Toy().replace(**fields)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"division": "ajar"}, "division must be open or closed"),
        ({"show": "loud"}, "show must be auto, plain or none"),
        ({"runs": 0}, "runs must be at least 1"),
        ({"keep_checkpoints": 0}, "keep_checkpoints must be at least 1"),
        ({"log_every": 0}, "log_every must be at least 1"),
        ({"max_samples": 0}, "max_samples must be at least 1"),
        ({"checkpoint_every": "10"}, "checkpoint_every must be a whole number"),
        ({"threads": -1}, "threads must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**32}, "seed must be in 0"),
        ({"runs": 2, "seed": 1}, "seeds of their own"),
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

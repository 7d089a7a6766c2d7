"""The first lines of a log."""

import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.results import rules
from mlperf_jax.results.log import Log, read
from mlperf_jax.results.opening import header

GOOD = {
    "division": "open",
    "org": "a lab",
    "platform": "1 x cpu",
    "status": "research",
}


def write(tmp_path, benchmark="resnet", ruleset=None, **changes):
    with Log(tmp_path / "result_0.txt") as log:
        header(log, rules.resolve(benchmark, ruleset), **(GOOD | changes))
    return read(tmp_path / "result_0.txt")


def test_the_order_and_the_values(tmp_path):
    lines = write(tmp_path, seed=5)
    assert [(line.key, line.value) for line in lines] == [
        ("submission_benchmark", "resnet"),
        ("submission_division", "open"),
        ("submission_org", "a lab"),
        ("submission_platform", "1 x cpu"),
        ("submission_status", "research"),
        ("cache_clear", True),
        ("seed", 5),
    ]


def test_the_call_site_is_the_callers(tmp_path):
    lines = write(tmp_path)
    assert {line.metadata["file"].rsplit("/", 1)[-1] for line in lines} == {"test_opening.py"}


@pytest.mark.parametrize(
    ("benchmark", "ruleset", "name"),
    [
        ("ssd", "1.1.0", "ssd"),
        ("retinanet", "4.0.0", "ssd"),
        ("retinanet", None, "retinanet"),
        ("rgat", "4.1", "gnn"),
        ("rgat", None, "rgat"),
    ],
)
def test_the_name_is_the_rounds_own(tmp_path, benchmark, ruleset, name):
    assert write(tmp_path, benchmark, ruleset)[0].value == name


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"division": "Open"}, "give one of closed, open"),
        ({"status": "mine"}, "onprem, cloud, preview, research"),
        ({"org": " "}, "org is empty"),
        ({"platform": ""}, "platform is empty"),
        ({"seed": "5"}, "must be an integer"),
    ],
)
def test_what_the_checker_would_reject_is_refused(tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        write(tmp_path, **changes)


@pytest.mark.parametrize(
    ("benchmark", "ruleset", "there"),
    [
        ("bert", "4.0", True),
        ("bert", "4.1", False),
        ("llama31_8b", None, False),
        ("oc20", "3.0", True),
    ],
)
def test_the_status_is_logged_as_long_as_the_rules_want_it(tmp_path, benchmark, ruleset, there):
    keys = {line.key for line in write(tmp_path, benchmark, ruleset)}
    assert ("submission_status" in keys) is there

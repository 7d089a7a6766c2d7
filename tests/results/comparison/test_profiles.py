"""Performance profiles: against the definition, and areas against a fine sum."""

import dataclasses
import doctest
import math

import numpy as np
import pytest
from made_comparisons import comparison, demo

from mlperf_jax.errors import UserError
from mlperf_jax.results.comparison import profiles as module
from mlperf_jax.results.comparison.profiles import median, profiles

INF = math.inf


@pytest.fixture
def two():
    return [
        comparison({"a": [6400] * 3, "b": [3200] * 3, "c": [None] * 3}),
        comparison({"b": [9600] * 3, "a": [6400] * 3, "c": [6400] * 3}, benchmark="bert"),
    ]


def test_examples():
    assert doctest.testmod(module).failed == 0


def test_ratios_are_to_the_best_of_each_problem(two):
    found = profiles(two)
    assert found.labels == ("a", "b", "c")
    assert found.problems == ("resnet (tiny)", "bert (tiny)")
    assert found.ratios.tolist() == [[2, 1], [1, 1.5], [INF, 1]]
    assert found.shares([1, 1.5, 2, 4]).tolist() == [
        [0.5, 0.5, 1, 1],
        [0.5, 1, 1, 1],
        [0.5, 0.5, 0.5, 0.5],
    ]
    assert found.shares([INF])[:, 0].tolist() == [1, 1, 0.5], "what never got there did not"
    assert found.steps("a") == [(1.0, 0.5), (2.0, 1.0), (4.0, 1.0)]
    assert found.steps("c") == [(1.0, 0.5), (4.0, 0.5)]


@pytest.mark.parametrize("tau_max", [2.0, 4.0])
@pytest.mark.parametrize("scale", ["log", "linear"])
def test_the_area_is_that_under_the_curve(scale, tau_max):
    found = profiles(demo(), tau_max=tau_max)
    u = (np.arange(100_000) + 0.5) / 100_000
    taus = tau_max**u if scale == "log" else 1 + u * (tau_max - 1)
    for label, shares in zip(found.labels, found.shares(taus), strict=True):
        assert found.areas(scale)[label] == pytest.approx(shares.mean(), abs=1e-4)


def test_the_best_everywhere_has_all_of_the_area(two):
    found = profiles(
        [
            comparison({"a": [6400], "b": [3200]}),
            comparison({"a": [64], "b": [64]}, benchmark="bert"),
        ]
    )
    assert found.areas() == {"a": pytest.approx(0.75), "b": 1}
    assert found.areas("linear")["a"] == pytest.approx((1 + 2 / 3) / 2)
    assert found.grid()[[0, -1]].tolist() == [1, 4]


def test_each_seed_can_be_a_problem():
    made = comparison({"a": [6400, 3200, None], "b": [3200, 6400]})
    found = profiles([made], per_seed=True)
    assert found.problems == ("resnet (tiny), seed 0", "resnet (tiny), seed 1")
    assert found.ratios.tolist() == [[2, 1], [1, 2]]
    early, late = made.entrants[0], made.entrants[1]
    early = dataclasses.replace(early, outcomes=early.outcomes[2:])
    apart = dataclasses.replace(made, entrants=(early, late))
    with pytest.raises(UserError, match="no seed has a run of every entry"):
        profiles([apart], per_seed=True)


def test_nobody_reaching_is_nobodys_win():
    found = profiles([comparison({"a": [None], "b": ["crashed"]})])
    assert found.ratios.tolist() == [[INF], [INF]]
    assert found.areas() == {"a": 0, "b": 0}


@pytest.mark.parametrize(
    ("ways", "expected"),
    [
        ([640, 1280, 1920], 1280),
        ([640, 1280], 960),
        ([640, 1280, None], 1280),
        ([640, None, None], INF),
        ([640, 1280, None, "stopped"], 1280),
        ([], INF),
    ],
)
def test_a_median_with_failures(ways, expected):
    made = comparison({"a": ways, "b": [640]})
    assert median(made.entrants[0].outcomes) == expected


def test_what_cannot_be_matched_is_refused(two):
    other = comparison({"a": [64], "d": [64]}, benchmark="bert")
    with pytest.raises(UserError, match=r"d is not on resnet \(tiny\), so it cannot be compared"):
        profiles([two[0], other])
    with pytest.raises(UserError, match="compared 2 times"):
        profiles([two[0], two[0]])
    with pytest.raises(UserError, match=r"c has no run on resnet \(tiny\) yet"):
        profiles([comparison({"a": [64], "c": []})])
    twice = dataclasses.replace(two[0], entrants=two[0].entrants[:1] * 2)
    with pytest.raises(UserError, match="a stands 2 times"):
        profiles([twice])
    with pytest.raises(UserError, match="no comparison"):
        profiles([])
    with pytest.raises(UserError, match="above 1, not 1"):
        profiles(two, tau_max=1)

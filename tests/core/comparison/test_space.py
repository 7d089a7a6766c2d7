"""Ranges, and which settings in them are tried."""

import numpy as np
import pytest
from scipy.stats import qmc

from mlperf_jax.core.comparison.space import Interval, trials, words
from mlperf_jax.errors import UserError


def test_a_range_of_a_decade_or_more_is_searched_by_its_logarithm():
    wide, narrow = Interval.of("rate", "1e-4..1e-1"), Interval.of("b1", "0.8..0.99")
    assert (str(wide), str(narrow)) == (
        "log-uniform from 0.0001 to 0.1",
        "uniform from 0.8 to 0.99",
    )
    assert [wide.at(share) for share in (0, 0.5, 1)] == pytest.approx(
        [1e-4, 10**-2.5, 1e-1], rel=1e-5
    )
    assert [narrow.at(share) for share in (0, 0.5, 1)] == pytest.approx([0.8, 0.895, 0.99])
    assert str(Interval.of("momentum", "-1..1")) == "uniform from -1 to 1"
    assert str(Interval.of("weight", "0..1")) == "uniform from 0 to 1"
    assert [Interval(1, 8, whole=True).at(share) for share in (0, 0.5, 1)] == [1, 4, 8]
    assert Interval.around(0.5) == Interval(0.05, 5.0)


@pytest.mark.parametrize("text", ["1..", "..1", "2..1", "1..1", "a..b", "nan..1", "1..inf", ".."])
def test_what_is_no_range_is_said(text):
    with pytest.raises(UserError, match="is no range for rate: write LOW"):
        Interval.of("rate", text)


def test_trials_are_the_halton_sequence_within_the_ranges():
    space = {"rate": Interval(1e-3, 1.0), "b1": Interval(0.8, 0.9)}
    found = trials(space, 7)
    points = qmc.Halton(2, scramble=False).random(8)[1:]
    assert [one["rate"] for one in found] == pytest.approx(1e-3 * 1000 ** points[:, 0], rel=1e-5)
    assert [one["b1"] for one in found] == pytest.approx(0.8 + 0.1 * points[:, 1], rel=1e-5)
    assert trials(space, 3) == found[:3], "more trials begin with the same"
    assert all(one == {name: float(f"{v:.6g}") for name, v in one.items()} for one in found)
    assert words(space) == "rate log-uniform from 0.001 to 1, b1 uniform from 0.8 to 0.9"


def test_trials_fill_their_range_more_evenly_than_chance():
    shares = np.sort(np.log10([one["rate"] for one in trials({"rate": Interval(1, 10)}, 31)]))
    assert np.abs(shares - (np.arange(31) + 1) / 32).max() < 1e-5

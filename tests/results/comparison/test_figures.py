"""Panels of a comparison: medians and ranges at samples that runs share, whatever their lengths."""

import dataclasses
import math

import pytest
from made_comparisons import comparison, demo

from mlperf_jax.results.comparison.figures import (
    PLACES,
    caption,
    names,
    panels,
    profile_panel,
    spread,
)
from mlperf_jax.results.comparison.model import Entrant, Outcome
from mlperf_jax.results.comparison.profiles import profiles


def entrant(*curves):
    runs = [Outcome(seed, "limit", curves={"loss": curve}) for seed, curve in enumerate(curves)]
    return Entrant("a", "a", tuple(runs))


def test_the_middle_and_the_quartiles_of_the_runs():
    found = spread(entrant(*(((10, v), (20, v + 10)) for v in (1.0, 2.0, 3.0, 4.0, 9.0))), "loss")
    assert found.samples == (10, 20)
    assert (found.low, found.median, found.high) == ((2, 12), (3, 13), (4, 14))
    whole = spread(entrant(*(((10, v),) for v in (1.0, 2.0, 9.0))), "loss", whole=True)
    assert (whole.low, whole.median, whole.high, whole.runs) == ((1,), (2,), (9,), 3)


def test_a_run_that_ended_keeps_its_last_value():
    found = spread(entrant(((10, 1.0), (20, 3.0)), ((10, 0.0), (20, 1.0), (30, 2.0))), "loss")
    assert found.samples == (10, 20, 30)
    assert found.median == (0.5, 2.0, 2.5)


def test_places_between_are_on_the_line_and_none_is_before_the_first_of_all():
    found = spread(entrant(((10, 0.0), (30, 2.0)), ((20, 5.0), (30, 5.0))), "loss", whole=True)
    assert found.samples == (20, 30)
    assert (found.low, found.high) == ((1, 2), (5, 5))


def test_what_is_not_finite_or_not_there_is_left_out():
    found = spread(entrant(((10, 1.0), (20, math.nan), (30, 3.0)), (), ((10, math.inf),)), "loss")
    assert (found.samples, found.median, found.runs) == ((10, 30), (1, 3), 1)
    assert spread(entrant(()), "loss") is None
    assert spread(entrant(((10, 1.0),)), "accuracy") is None


def test_many_places_are_thinned_and_keep_their_ends():
    found = spread(entrant(tuple((x, 1.0 * x) for x in range(1, 5001))), "loss")
    assert len(found.samples) == PLACES
    assert (found.samples[0], found.samples[-1]) == (1, 5000)


def test_panels_of_the_loss_and_of_each_quality_with_its_target():
    made = demo()[0]
    loss, accuracy = panels(made)
    assert [*loss.lines] == [*accuracy.bands] == [one.label for one in made.entrants]
    assert (loss.level, accuracy.level) == (None, 0.93)
    for label, line in accuracy.lines.items():
        for (x, middle), (other, low, high) in zip(line, accuracy.bands[label], strict=True):
            assert x == other and low <= middle <= high
    wide = panels(made, whole=True)[1].bands["lars"]
    assert all(w[1] <= b[1] and b[2] <= w[2] for w, b in zip(wide, accuracy.bands["lars"]))
    assert "quartiles" in caption([made]) and "smallest to largest" in caption([made], whole=True)
    late = dataclasses.replace(made, entrants=(*made.entrants, Entrant("late", "late")))
    assert "late" not in panels(late)[0].lines
    assert names(comparison({"a": []})) == [] == panels(comparison({"a": []}))


def test_the_median_meets_the_target_where_half_of_the_runs_have():
    made = comparison({"a": [6400, 12_800, 19_200]})
    line = dict(panels(made)[1].lines["a"])
    assert line[12_160] < 0.93 <= line[12_800] + 1e-3
    assert line[19_200] >= line[12_800]


def test_profiles_are_steps_from_one():
    found = profiles(demo())
    panel = profile_panel(found)
    assert (panel.begin, panel.stepped, panel.across) == (1, True, "times the best")
    assert panel.lines["muon"] == found.steps("muon")
    assert panel.lines["muon"][0] == (1, 1)
    assert all(line[-1][0] == found.tau_max for line in panel.lines.values())
    assert pytest.approx(panel.lines["sgd & warmup"][0][1]) == 0

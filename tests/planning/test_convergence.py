"""From samples to minutes and money, against the reference convergence points."""

import dataclasses

import pytest
from planning_toys import Decoder

from mlperf_jax import benchmarks
from mlperf_jax.errors import UserError
from mlperf_jax.planning import convergence, devices as names
from mlperf_jax.planning.timing import StepTime
from mlperf_jax.results import rcp, rules

V5P = names.parse("v5p:2x2x4")


def time(seconds=1.0, rate=64.0, evaluation=6.0):
    return StepTime(seconds, 0.25, 1, 1, 1, 0, "products", rate, 0.5, "", evaluation, "")


def test_epochs_become_samples():
    resnet = benchmarks.get("resnet", batch_size=3264)
    point = next(p for p in rcp.references("resnet", "4.0.0") if p.batch_size == 3264)
    mean, spread, source = convergence.samples_to_target(resnet)
    assert mean == pytest.approx(point.mean * 1_281_167)
    assert spread == pytest.approx(point.std * 1_281_167)
    assert source == "reference points of 4.0.0"


def test_between_two_points():
    low, high = rcp.references("llama31_8b", "5.1.0")[:2]
    size = (low.batch_size + high.batch_size) // 2
    mean, _, source = convergence.samples_to_target(Decoder(batch_size=size))
    assert low.mean < mean < high.mean
    assert source == f"interpolated between batches {low.batch_size} and {high.batch_size}"


def test_below_and_above_all_points():
    points = rcp.references("llama31_8b", "5.1.0")
    mean, _, source = convergence.samples_to_target(Decoder(batch_size=8))
    assert mean == points[0].mean and "smallest" in source
    with pytest.raises(UserError, match="no reference point reaches batch size 4,096"):
        convergence.samples_to_target(Decoder(batch_size=4096))


@pytest.mark.parametrize(
    ("unit", "scale"), [("epochs", 10_000), ("steps", 64), ("tokens", 1 / 256), ("samples", 1)]
)
def test_units(monkeypatch, unit, scale):
    official = dataclasses.replace(rules.resolve(Decoder.name), length_unit=unit)
    monkeypatch.setattr(rules, "resolve", lambda *_: official)
    assert convergence.samples_per_unit(Decoder()) == scale


def test_minutes_hours_and_price():
    benchmark = Decoder(batch_size=16)
    found, reason = convergence.to_target(benchmark, V5P, time(), 4.2)
    mean = convergence.samples_to_target(benchmark)[0]
    assert reason is None and found.steps == -(-mean // 16)
    assert found.evaluations == found.steps // 100
    seconds = mean / 16 * 1.0 + found.evaluations * 6.0
    assert found.minutes == pytest.approx(seconds / 60)
    assert found.minutes_low < found.minutes < found.minutes_high
    assert found.chip_hours == pytest.approx(seconds / 3600 * 16)
    assert found.price == pytest.approx(4.2 * found.chip_hours)


def test_without_a_price_and_without_points(monkeypatch):
    found, _ = convergence.to_target(Decoder(), V5P, time(), None)
    assert found.price is None

    def none(*_):
        raise UserError("the installed mlperf-logging has no reference convergence points")

    monkeypatch.setattr(rcp, "points_of", none)
    found, reason = convergence.to_target(Decoder(), V5P, time(), 1.0)
    assert found is None and "no reference convergence points" in reason


def test_a_tiny_run_has_no_reference():
    found, reason = convergence.to_target(Decoder(size="tiny"), V5P, time(), None)
    assert found is None and "tiny" in reason


def test_input_says_when_it_binds():
    resnet = benchmarks.get("resnet", batch_size=3264)
    on = names.parse("v5p:2x2x2")  # 2 hosts of 104 cores
    carried = list(convergence.input_notes(resnet, on, time(rate=2 * 104 * 400 * 0.9)))
    bound = list(convergence.input_notes(resnet, on, time(rate=2 * 104 * 400 * 1.1)))
    assert carried[-1].endswith("carried") and bound[-1].endswith("input bound")
    size = 224 * 224 * 3 * 4 + 4
    assert f"{104 * 400 * 1.1 * size / 1e6:,.0f} MB/s" in bound[0]

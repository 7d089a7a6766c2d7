"""From the speed of a step to minutes and money: samples to the target, evaluations, price, input.

Samples are those of the reference convergence points, interpolated between batch sizes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mlperf_jax.core.benchmark import Benchmark, Example
from mlperf_jax.errors import UserError
from mlperf_jax.planning import devices as names
from mlperf_jax.planning.timing import StepTime, samples_per_step
from mlperf_jax.results import rcp, rules

INIT_LIMIT = 30.0  # minutes from init_start to init_stop in the closed division, 240 in open


@dataclass(frozen=True)
class ToTarget:
    """What a run up to its target takes.

    Attributes:
        samples, spread: the references' mean and standard deviation at this batch size.
        source: where from.
        steps, evaluations: up to the mean.
        minutes: training and evaluation.
        minutes_low, minutes_high: with the spread of the samples and the error of the step's time.
        chip_hours: of the mean.
        price: of the mean, or None.
    """

    samples: float
    spread: float
    source: str
    steps: int
    evaluations: int
    minutes: float
    minutes_low: float
    minutes_high: float
    chip_hours: float
    price: float | None

    def lines(self) -> Iterator[str]:
        """For the report."""
        yield f"{self.samples:,.0f} ± {self.spread:,.0f} samples ({self.source})"
        yield (
            f"{self.steps:,} steps, {self.evaluations:,} evaluations: about {_minutes(self.minutes)} "
            f"({_minutes(self.minutes_low)} to {_minutes(self.minutes_high)})"
        )
        price = "" if self.price is None else f", a price of {self.price:,.2f}"
        yield f"{self.chip_hours:,.1f} chip-hours{price} a run"


def _minutes(value: float) -> str:
    return f"{value / 60:,.1f} hours" if value >= 180 else f"{value:.3g} minutes"


def to_target(
    benchmark: Benchmark, devices: names.Devices, time: StepTime, price: float | None
) -> tuple[ToTarget | None, str | None]:
    """The estimate, or a sentence that says why there is none."""
    if benchmark.is_tiny:
        return None, "tiny: no reference says how many samples it takes"
    try:
        samples, spread, source = samples_to_target(benchmark)
    except UserError as error:
        return None, f"no samples to the target: {error}"
    steps = benchmark.step_of(math.ceil(samples) - 1) + 1
    due = itertools.takewhile(lambda step: step <= steps, benchmark.eval_steps())
    evaluations = max(1, sum(1 for _ in due))
    evaluating, per_step = evaluations * (time.evaluation or 0.0), samples_per_step(benchmark)

    def minutes(samples: float, factor: float) -> float:
        return (samples / per_step * time.seconds + evaluating) * factor / 60

    mean = minutes(samples, 1)
    hours = mean / 60 * devices.chips
    found = ToTarget(
        samples=samples,
        spread=spread,
        source=source,
        steps=steps,
        evaluations=evaluations,
        minutes=mean,
        minutes_low=minutes(max(0.0, samples - spread), 1 / (1 + time.error)),
        minutes_high=minutes(samples + spread, 1 + time.error),
        chip_hours=hours,
        price=None if price is None else hours * price,
    )
    return found, None


def samples_to_target(benchmark: Benchmark) -> tuple[float, float, str]:
    """Mean and spread of the samples that the references took at this batch size, and which they are.

    Raises:
        UserError: there are no points, or none for so large a batch.
    """
    official = rules.resolve(benchmark.name, benchmark.ruleset)
    points = rcp.references(benchmark.name, benchmark.ruleset)
    kind, point = rcp.reference_at(points, benchmark.batch_size, official.runs)
    if point is None:
        raise UserError(
            f"no reference point reaches batch size {benchmark.batch_size:,}, the largest is "
            f"{points[-1].batch_size:,}"
        )
    scale = samples_per_unit(benchmark)
    source = f"reference points of {benchmark.ruleset}"
    if kind == "smaller":
        source = f"the smallest reference point's, batch {point.batch_size:,}"
    elif point.between is not None:
        low, high = point.between
        source = f"interpolated between batches {low:,} and {high:,}"
    return point.mean * scale, point.std * scale, source


def samples_per_unit(benchmark: Benchmark) -> float:
    """Samples of what the references count: an epoch, a sample, a step or a token."""
    samples = {
        "epochs": float(benchmark.train_samples),
        "samples": 1.0,
        "steps": samples_per_step(benchmark),
        "tokens": 1.0 / getattr(benchmark, "sequence_length", 1),
    }
    return samples[rules.resolve(benchmark.name, benchmark.ruleset).length_unit]


# -- input -----------------------------------------------------------------------------------------

# Virtual cores of a host, from Cloud TPU's pages; GPU nodes differ.
_CORES = {"v3": 96, "v4": 240, "v5e": 112, "v5p": 208, "v6e": 180, "tpu7x": 224}


def _megabytes(rate: float) -> str:
    """Bytes per second in words.

    >>> _megabytes(10_301_234_567), _megabytes(1_234_567)
    ('10,301 MB/s', '1.23 MB/s')
    """
    value = rate / 1e6
    return f"{value:,.0f} MB/s" if value >= 100 else f"{value:.3g} MB/s"


def _bytes(example: Example) -> int:
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in example.values())


def input_notes(benchmark: Benchmark, devices: names.Devices, time: StepTime) -> Iterator[str]:
    """Records and bytes per second that a host must read, and whether its cores carry the making of them."""
    rows, size = np.mean([(b.rows, b.rows * _bytes(b.example)) for b in benchmark.buckets()], 0)
    # a row is a record, though it may hold several samples
    each = time.samples_per_second * rows / samples_per_step(benchmark) / devices.hosts
    yield (
        f"input: {each:,.{0 if each >= 10 else 2}f} records a second on each of {devices.hosts:,} hosts, "
        f"{_megabytes(each * size / rows)} onto its devices"
    )
    per_core = benchmark.records_per_core
    if per_core is None:
        return
    needed, cores = each / per_core, _CORES.get(devices.family)
    if cores is None:
        yield f"input: needs {needed:,.1f} cores a host at {per_core:,} records a second and core"
        return
    verdict = "input bound" if needed > cores / 2 else "carried"  # two virtual cores are one
    yield (
        f"input: at {per_core:,} records a second and core it needs {needed:,.1f} of a host's "
        f"{cores // 2} cores: {verdict}"
    )

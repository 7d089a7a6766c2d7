"""Performance profiles: entries over several benchmarks at once.

The cost of an entry on a problem, divided by the least cost of any entry there, is its ratio; its profile at tau is
the share of problems on which the ratio is at most tau (E. D. Dolan and J. J. Moré, Benchmarking Optimization
Software with Performance Profiles, Mathematical Programming 91, 2002). So a profile at 1 says how often an entry is
best, and far to the right how often it gets there at all.

AlgoPerf makes one number of it, the area under the profile from 1 to a largest tau, over that range (G. E. Dahl et
al., Benchmarking Neural Network Training Algorithms, arXiv:2306.07179, 2023). The area depends on all entries that
are compared: it ranks these, and means nothing beside that of another comparison.

E entries · P problems
"""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.results.comparison.model import Comparison, Outcome
from mlperf_jax.results.comparison.paired import Measure

TAU_MAX = 4.0  # AlgoPerf's
POINTS = 61  # of the grid


@dataclass(frozen=True)
class Profiles:
    """The profiles of all entries.

    Attributes:
        labels: of the entries.
        problems: names of the benchmarks, or of their seeds.
        ratios: [E, P], each at least 1; infinite where the entry did not get there.
        tau_max: where the area ends.
    """

    labels: tuple[str, ...]
    problems: tuple[str, ...]
    ratios: np.ndarray
    tau_max: float

    def shares(self, taus: Sequence[float] | np.ndarray) -> np.ndarray:
        """The profiles at some ratios, [E, T]; at infinity the share of problems where the entry got there."""
        ratios = self.ratios[:, :, None]
        within = ratios <= np.asarray(taus, float) * (1 + 1e-12)
        return (within & np.isfinite(ratios)).mean(1)  # infinity is within infinity, and no success

    def grid(self) -> np.ndarray:
        """Ratios from 1 to the largest, evenly spread on a logarithmic scale."""
        return np.geomspace(1, self.tau_max, POINTS)

    def steps(self, label: str) -> list[tuple[float, float]]:
        """Where one entry's profile changes: (tau, share from there on), from 1 to the largest tau."""
        row = self.ratios[self.labels.index(label)]
        inside = sorted({float(ratio) for ratio in row if 1 < ratio < self.tau_max})
        taus = [1.0, *inside, self.tau_max]
        return [(tau, float(np.mean(row <= tau * (1 + 1e-12)))) for tau in taus]

    def areas(self, scale: Literal["log", "linear"] = "log") -> dict[str, float]:
        """The area under each profile up to the largest tau, in [0, 1]; exact, as profiles are steps.

        Args:
            scale: of tau. "log" counts twice as slow and half as fast alike; "linear" is the score as AlgoPerf's
                scoring code makes it.
        """
        ends = np.minimum(self.ratios, self.tau_max)
        if scale == "log":
            parts = 1 - np.log(ends) / math.log(self.tau_max)
        else:
            parts = (self.tau_max - ends) / (self.tau_max - 1)
        return {label: float(part) for label, part in zip(self.labels, parts.mean(1), strict=True)}


def profiles(
    comparisons: Sequence[Comparison],
    measure: Measure = "samples",
    *,
    per_seed: bool = False,
    tau_max: float = TAU_MAX,
) -> Profiles:
    """The profiles of the entries of several comparisons, which are matched by their labels.

    Args:
        comparisons: each of another benchmark.
        measure: the cost: samples, steps or seconds to the target.
        per_seed: each seed of a benchmark is a problem of its own; by default a benchmark is one, and the cost is
            the median over its seeds.
        tau_max: the largest ratio looked at.

    Raises:
        UserError: there is no comparison, two are of one benchmark, an entry is missing on a benchmark or stands
            there twice, or a largest ratio that is not above 1.
    """
    if not 1 < tau_max < math.inf:
        raise UserError(f"the largest ratio of a profile must be above 1, not {tau_max!r}")
    labels = _matched(comparisons)
    names, rows = [], []
    for comparison in comparisons:
        by_label = {one.label: one for one in comparison.entrants}
        for label in labels:
            if not by_label[label].outcomes:
                raise UserError(
                    f"{label} has no run on {comparison.title} yet: profiles need one of each entry on each benchmark"
                )
        if not per_seed:
            names.append(comparison.title)
            rows.append([median(by_label[label].outcomes, measure) for label in labels])
            continue
        for seed in comparison.seeds:
            runs = [by_label[label].outcome(seed) for label in labels]
            if all(runs):  # those still to be made are no failures
                names.append(f"{comparison.title}, seed {seed}")
                rows.append([cost(run, measure) for run in runs if run])
    if not rows:
        raise UserError("no seed has a run of every entry yet, so there are no profiles by seed")
    costs = np.maximum(np.asarray(rows, float).T, 1e-9)  # [E, P]
    best = costs.min(0)
    ratios = np.where(np.isfinite(costs), costs / np.where(np.isfinite(best), best, 1), math.inf)
    return Profiles(labels, tuple(names), ratios, tau_max)


def cost(outcome: Outcome, measure: Measure = "samples") -> float:
    """What a run took to the target; infinite where it did not get there, or its log does not say."""
    value = getattr(outcome, measure)
    return math.inf if outcome.ending != "reached" or value is None else float(value)


def median(outcomes: Sequence[Outcome], measure: Measure = "samples") -> float:
    """The median of what the runs took, those that failed later than all others.

    Infinite where more than half failed; of an even number of which half failed, the slowest that did not.
    """
    costs = sorted(cost(one, measure) for one in outcomes)
    if not costs:
        return math.inf
    whole = statistics.median(costs)
    return whole if math.isfinite(whole) else statistics.median_low(costs)


def _matched(comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """The labels of the entries, in the order of the first comparison; those of the others must be the same."""
    if not comparisons:
        raise UserError("there is no comparison to make profiles of")
    titles = collections.Counter(comparison.title for comparison in comparisons)
    for title, count in titles.items():
        if count > 1:
            raise UserError(f"{title} is compared {count} times: give each benchmark once")
    every = dict.fromkeys(one.label for comparison in comparisons for one in comparison.entrants)
    for comparison in comparisons:
        here = collections.Counter(one.label for one in comparison.entrants)
        for label in every:
            if here[label] > 1:
                raise UserError(
                    f"{label} stands {here[label]} times on {comparison.title}: give each entry its own label"
                )
            if not here[label]:
                raise UserError(
                    f"{label} is not on {comparison.title}, so it cannot be compared over all benchmarks: run it "
                    "there, or leave it out everywhere"
                )
    return tuple(every)

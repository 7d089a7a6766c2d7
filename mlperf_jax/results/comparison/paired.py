"""Entries of a comparison, seed by seed: how many times the samples one needs of another, and how sure that is.

Two runs with one seed start from the same weights and see the same samples, so their difference tells more than
two means do. It is taken of logarithms, d = log(samples of the one / samples of the first), so that an effect is a
ratio. Everything here is exact for few seeds, without a normal distribution or a simulation.

Assumed is that, were the two alike but for a constant ratio, each d would be symmetric about its logarithm: d - c
and c - d equally likely, seeds independent of each other. Under no effect this holds whatever the distribution is,
as exchanging the two entries turns the sign of d.

Then the signs of d - c may be flipped at will, which gives the p-value of their mean (R. A. Fisher, The Design of
Experiments, 1935, §21), and c lies with equal probability in each of the 2^n intervals into which the means of the
2^n - 1 subsets of the differences split the line (J. A. Hartigan, Using Subsample Values as Typical Values, JASA
64, 1969). The interval from the k-th smallest to the k-th largest of them covers c with probability 1 - 2k/2^n. It
leaves out 0 exactly where the p-value is at most 2k/2^n.

A run that did not reach the target is censored: what it would have taken lies between a bound and infinity, so d is
an interval. The lower ends give the lower end of the result, the upper ends its upper end, and the p-value is the
largest that any values inside could give: nothing is gained by failing.

n seeds with runs of both
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.results import rules
from mlperf_jax.results.comparison.model import Comparison, Entrant, Outcome
from mlperf_jax.results.scored import olympic_mean

Measure = Literal["samples", "steps", "seconds"]
CONFIDENCE = 0.95
MOST_BLOCKS = 20  # whose 2^20 subsets are looked at: a tenth of a second

_EQUAL = 1e-9  # of the largest difference: means nearer to 0 are 0, which rounding would move to either side
_SMALLEST = (
    1e-3  # stands for 0, which has no logarithm: a run may meet the target before its first step
)


@dataclass(frozen=True)
class SignFlip:
    """The centre of symmetric differences.

    Attributes:
        low, high: ends of its interval, infinite where censoring leaves them open; None where no interval has the
            confidence asked for.
        confidence: of the interval, at least the one asked for; 0 without one.
        p: that it is 0, two-sided.
    """

    low: float | None
    high: float | None
    confidence: float
    p: float


def sign_flip(
    lows: Sequence[float], highs: Sequence[float], confidence: float = CONFIDENCE
) -> SignFlip:
    """The centre of differences, with the p-value that it is 0.

    Above `MOST_BLOCKS` differences, each of that many blocks of them is flipped as a whole. These flips are a group
    too, so that interval and p-value stay exact, and no random numbers are drawn. Blocks go by the order of the
    differences, which must not depend on their values.

    >>> found = sign_flip([1.0, 2, 3, 4, 5, 6], [1.0, 2, 3, 4, 5, 6])
    >>> found.low, found.high, found.confidence, found.p
    (1.0, 6.0, 0.96875, 0.03125)

    Args:
        lows, highs: ends of each difference, equal where it is known; lows may be -inf, highs inf.
        confidence: of the interval, above 0 and below 1.

    Raises:
        UserError: a confidence that is none.
    """
    most = _left_out(confidence)
    low_means, high_means = _subset_means(lows), _subset_means(highs)
    intervals = len(low_means) + 1
    below, above = int((low_means <= 0).sum()), int((high_means >= 0).sum())
    p = min(1.0, 2 * (min(below, above) + 1) / intervals)
    k = math.floor(most / 2 * intervals + 1e-9)
    if k < 1:
        return SignFlip(None, None, 0.0, p)
    low = float(np.partition(low_means, k - 1)[k - 1])
    high = float(np.partition(high_means, -k)[-k])
    return SignFlip(low, high, 1 - 2 * k / intervals, p)


def seeds_needed(confidence: float = CONFIDENCE) -> int:
    """The smallest number of seeds with which an interval of this confidence exists.

    >>> seeds_needed(0.95), seeds_needed(0.99)
    (6, 8)
    """
    return math.ceil(math.log2(2 / _left_out(confidence)) - 1e-9)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several comparisons with the first, adjusted so that one false find among all is as rare as asked.

    S. Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6, 1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [1.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _left_out(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise UserError(
            f"a confidence of {confidence!r} is none: give one above 0 and below 1, such as 0.95"
        )
    return 1 - confidence


def _subset_means(values: Sequence[float]) -> np.ndarray:
    """Means of all subsets but the empty one, or of all unions of blocks."""
    given = np.asarray(values, float)
    blocks = [given[start::MOST_BLOCKS] for start in range(min(len(given), MOST_BLOCKS))]
    sums, counts = np.zeros(1), np.zeros(1)
    for block in blocks:
        sums = np.concatenate([sums, sums + block.sum()])
        counts = np.concatenate([counts, counts + len(block)])
    means = sums[1:] / counts[1:]
    finite = np.abs(given[np.isfinite(given)])
    means[np.abs(means) <= _EQUAL * finite.max(initial=0.0)] = 0.0
    return means


# -- entries ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paired:
    """What one entry needs, as a multiple of what the first needs.

    Attributes:
        label, first: of the two.
        measure: "samples", "steps" or "seconds" to the target.
        pairs: seeds with a run of both.
        censored: of these, those where one or both did not reach the target.
        ratio: the geometric mean over the seeds; None without a pair, and where a run is censored.
        low, high: of the ratio's interval, 0 and infinity where it is open; None where none exists.
        confidence: of the interval; `asked` is what it had to be at least.
        p: of a ratio of 1; `holm` the same, adjusted for all entries that are compared with the first.
    """

    label: str
    first: str
    measure: Measure
    pairs: int
    censored: int
    ratio: float | None
    low: float | None
    high: float | None
    confidence: float
    asked: float
    p: float
    holm: float

    @property
    def verdict(self) -> str:
        """ "fewer samples", "more samples" or "not told apart"; steps and seconds likewise."""
        if self.high is not None and self.high < 1:
            return f"fewer {self.measure}"
        if self.low is not None and self.low > 1:
            return f"more {self.measure}"
        return "not told apart"

    @property
    def words(self) -> str:
        """The ratio and its interval: "0.82 (0.75 to 0.91)"; where runs are censored the interval alone."""
        if not self.pairs:
            return "no pair of runs"
        return self.span if self.ratio is None else f"{self.ratio:.3g} ({self.span})"

    @property
    def span(self) -> str:
        """The interval in words: "0.75 to 0.91", "at most 0.91"."""
        if self.low is None or self.high is None:
            return f"{self.asked:.4g} needs {seeds_needed(self.asked)} seeds"
        if self.low > 0 and self.high < math.inf:
            return f"{self.low:.3g} to {self.high:.3g}"
        if self.high < math.inf:
            return f"at most {self.high:.3g}"
        return f"at least {self.low:.3g}" if self.low > 0 else "anything"

    @property
    def sentence(self) -> str:
        """All of it for a reader."""
        who = f"{self.label} against {self.first}"
        if not self.pairs:
            return f"{who}: no seed has runs of both"
        seeds = f"{self.pairs} seed{'s' * (self.pairs != 1)}"
        failed = (
            f"; in {self.censored} a run did not reach the target, which leaves the ratio open"
            if self.censored
            else ""
        )
        if self.low is None:
            return (
                f"{who}: {seeds}, and no interval of {self.asked:.1%} confidence exists with fewer "
                f"than {seeds_needed(self.asked)}{failed}"
            )
        much = "" if self.ratio is None else f"{self.ratio:.3g} of the {self.measure}, "
        return (
            f"{who}: {self.verdict}; {much}{self.span} with {self.confidence:.1%} confidence, {seeds}, "
            f"p = {self.p:.2g}{failed}"
        )


def paired(
    comparison: Comparison, measure: Measure = "samples", confidence: float = CONFIDENCE
) -> tuple[Paired, ...]:
    """Each further entry against the first, in their order.

    Args:
        measure: what is compared of each run, up to the evaluation that met the targets.
        confidence: of the intervals, each by itself; `holm` is for all of them together.

    Raises:
        UserError: no such measure or confidence.
    """
    if measure not in get_args(Measure):
        raise UserError(
            f"there is no measure {measure!r}: give one of {', '.join(get_args(Measure))}"
        )
    first, *others = comparison.entrants
    found = [_against(comparison, first, other, measure, confidence) for other in others]
    adjusted = holm([one.p for one in found])
    return tuple(replace(one, holm=p) for one, p in zip(found, adjusted, strict=True))


def _against(
    comparison: Comparison, first: Entrant, other: Entrant, measure: Measure, confidence: float
) -> Paired:
    pairs = comparison.pairs(first, other)
    lows, highs = [], []
    for one, another in pairs:
        base = bounds(comparison, first, one, measure)
        ours = bounds(comparison, other, another, measure)
        lows.append(_log_ratio(ours[0], base[1]))
        highs.append(_log_ratio(ours[1], base[0]))
    found = sign_flip(lows, highs, confidence)
    known = bool(pairs) and lows == highs
    return Paired(
        label=other.label,
        first=first.label,
        measure=measure,
        pairs=len(pairs),
        censored=sum(low != high for low, high in zip(lows, highs, strict=True)),
        ratio=math.exp(math.fsum(lows) / len(lows)) if known else None,
        low=None if found.low is None else math.exp(found.low),
        high=None if found.high is None else math.exp(found.high),
        confidence=found.confidence,
        asked=confidence,
        p=found.p,
        holm=found.p,
    )


def bounds(
    comparison: Comparison, entrant: Entrant, outcome: Outcome, measure: Measure
) -> tuple[float, float]:
    """What a run took to the target, or would have taken at least and at most.

    One that did not reach it would have taken the whole budget or more. A crash says nothing of what comes after
    it, so its bound is what it had seen. In steps and seconds the bound is what these samples take at the least
    per sample that is known: steps of any run of the comparison, seconds of the entry's own; 0 where none reached.
    """
    value = getattr(outcome, measure)
    if outcome.ending == "reached":
        return (0.0, math.inf) if value is None else (max(value, _SMALLEST),) * 2
    least = float(outcome.seen if outcome.ending == "crashed" else comparison.budget)
    if measure == "samples":
        return least, math.inf
    entrants = comparison.entrants if measure == "steps" else (entrant,)
    rates = [
        getattr(run, measure) / run.samples
        for each in entrants
        for run in each.outcomes
        if run.ending == "reached" and run.samples and getattr(run, measure) is not None
    ]
    return least * min(rates, default=0.0), math.inf


def _log_ratio(one: float, other: float) -> float:
    if one == 0 or other == math.inf:
        return -math.inf
    if one == math.inf or other == 0:
        return math.inf
    return math.log(one / other)


# -- the rules' own way ----------------------------------------------------------------------------


def left_out(benchmark: str) -> int:
    """How many of the fastest and how many of the slowest runs the rules leave out of a mean.

    >>> left_out("resnet"), left_out("my_own")
    (1, 0)
    """
    return rules.resolve(benchmark).drop if benchmark in rules.entries() else 0


def olympic(comparison: Comparison, entrant: Entrant, measure: Measure = "samples") -> float | None:
    """The mean without the fastest and the slowest run, as a score is made; a run that failed is the slowest.

    Returns:
        None where more failed than may be left out, or nothing remains.
    """
    values = [
        getattr(one, measure) if one.ending == "reached" else None for one in entrant.outcomes
    ]
    return olympic_mean(values, left_out(comparison.benchmark))

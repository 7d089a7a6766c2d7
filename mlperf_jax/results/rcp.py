"""Reference convergence points: may a set of runs have converged as fast as it did?

The organisers ran every reference at several batch sizes. A closed result that takes significantly
fewer samples than they did is refused; one that is faster within the bound is scaled as if it had
taken as many. What is significant is a one-sided t-test, here in closed form; the official checker
(`mlperf_logging.rcp_checker`) bisects for the same number.

Lengths are in the benchmark's own unit: epochs, samples, steps or tokens, its `Round.length_unit`.
"""

import bisect
import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mlperf_jax.errors import UserError
from mlperf_jax.results import rules

# A run that did not converge counts as this long in the official checker, whatever the unit. It is
# then the slowest, except among gpt3's tokens, which are more: there it is left out as the *fastest*.
_NEVER = 1e9

# Samples by which a Llama 3.1 405B result may be faster than the bound. Meant for v5.0; the official
# checker grants it in every later round too, and so do we.
_EXTRA_405B = 46_080

# Means that differ by less than this fraction are called equal.
_EQUAL = 5e-7

# From here on a percentage of fewer samples says nothing, and the two lengths are said instead.
_NEARLY_ALL = 0.995

Kind = Literal["found", "interpolated", "smaller", "missing", "unconverged"]


@dataclasses.dataclass(frozen=True)
class ReferencePoint:
    """A reference convergence point: how long the reference takes at one batch size.

    Attributes:
        name: the organisers' name for it.
        batch_size: the global batch.
        lengths: how long each run took, in the benchmark's own unit (epochs for resnet).
        hyperparameters: what the runs used; information, never compared by the official tools.
    """

    name: str
    batch_size: int
    lengths: tuple[float, ...]
    hyperparameters: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Reference:
    """How the reference converges at one batch size.

    Attributes:
        batch_size: global.
        mean: olympic mean of the reference's runs, in the benchmark's unit.
        std: their population standard deviation, the extremes included.
        bound: the smallest mean that a result may have here.
        between: the two batch sizes it was interpolated from, or None for a point of the file.
    """

    batch_size: int
    mean: float
    std: float
    bound: float
    between: tuple[int, int] | None = None

    @property
    def allowance(self) -> float:
        """How much faster than the mean a result may be, as a fraction of it; 1 means unbounded."""
        return 1 - self.bound / self.mean


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a set of runs converged credibly, against the reference.

    Attributes:
        passed: whether the official checker accepts it.
        kind: "found" (a point has this batch size), "interpolated" (between two points), "smaller"
            (below all points; compared with the smallest), "missing" (above all points) or
            "unconverged" (too many runs never reached the target).
        batch_size: of the result.
        mean: olympic mean of the result's lengths, or None when too few converged.
        reference: what it was compared with, or None.
        scaling_factor: what the time is multiplied by; above 1 when it passed with fewer samples.
        sentence: the verdict in words.
    """

    passed: bool
    kind: Kind
    batch_size: int
    mean: float | None
    reference: Reference | None
    scaling_factor: float
    sentence: str

    @property
    def faster_by(self) -> float | None:
        """By how much fewer samples than the reference's mean, as a fraction of it; below 0 for more."""
        if self.mean is None or self.reference is None:
            return None
        return 1 - self.mean / self.reference.mean

    def __str__(self) -> str:
        return self.sentence

    def to_dict(self) -> dict:
        """All of it as JSON knows it."""
        return dataclasses.asdict(self) | {"faster_by": self.faster_by}


def judge(
    benchmark: str,
    batch_size: int,
    lengths: Sequence[float | None],
    ruleset: str | None = None,
    *,
    full: bool = False,
    points: Sequence[ReferencePoint] | None = None,
) -> Verdict:
    """Compares a set of runs with the reference.

    Example:
        >>> verdict = judge("resnet", 3264, [34, 34, 35, 35, 36], "4.0.0")
        >>> verdict.passed, round(verdict.scaling_factor, 4)
        (True, 1.0141)

    Args:
        benchmark: our name.
        batch_size: the global batch size that all runs used.
        lengths: how long each run took to the target, as logged (`Round.length_field`); None for a run
            that did not reach it.
        ruleset: the round; the benchmark's last one by default.
        full: compare with all points; by default those are left out that the official checker prunes.
        points: other points than the installed ones, as from `read_points`.

    Raises:
        UserError: there are no points for that round, or fewer runs than the score leaves out.
    """
    official = rules.resolve(benchmark, ruleset)
    if len(lengths) <= 2 * official.drop:
        raise UserError(
            f"{len(lengths)} runs of {benchmark} cannot be compared with the reference: the "
            f"{official.drop} fastest and the {official.drop} slowest are left out; give {official.runs} runs"
        )
    known = references(benchmark, ruleset, points=points)
    known = known if full else pruned(known, official.runs)
    never = sum(length is None for length in lengths)
    if never > official.drop:
        sentence = (
            f"{never} of {len(lengths)} runs did not converge, {official.drop} may: not accepted"
        )
        return Verdict(False, "unconverged", batch_size, None, None, 1.0, sentence)
    mean = olympic([_NEVER if length is None else length for length in lengths], official.drop)
    kind, reference = reference_at(known, batch_size, official.runs)
    if kind == "missing":
        sentence = (
            f"no reference point reaches batch size {batch_size:,} (the largest is "
            f"{known[-1].batch_size:,}): not accepted until one is submitted"
        )
        return Verdict(False, kind, batch_size, mean, None, 1.0, sentence)
    assert reference is not None
    if official.benchmark == "llama31_405b":
        reference = dataclasses.replace(reference, bound=max(0.0, reference.bound - _EXTRA_405B))
    passed = bool(mean >= reference.bound)
    factor = max(1.0, reference.mean / mean) if passed else 1.0
    sentence = _sentence(kind, batch_size, mean, reference, passed, official.length_unit)
    return Verdict(passed, kind, batch_size, mean, reference, factor, sentence)


def references(
    benchmark: str,
    ruleset: str | None = None,
    *,
    points: Sequence[ReferencePoint] | None = None,
) -> list[Reference]:
    """Mean, spread and bound at every point of a benchmark, by batch size, none pruned.

    Raises:
        UserError: there are no points for that round, or one of them has too few runs.
    """
    official = rules.resolve(benchmark, ruleset)
    points = points_of(benchmark, ruleset) if points is None else points
    if not points:
        raise UserError(f"no reference convergence points are given for {benchmark}; give some")
    import numpy as np  # slow to import, and the command line has no need of it

    found = []
    for point in sorted(points, key=lambda point: point.batch_size):
        if len(point.lengths) <= 2 * official.drop:
            raise UserError(
                f"the reference point {point.name} of {benchmark} has {len(point.lengths)} runs; more "
                f"than {2 * official.drop} are needed"
            )
        mean, std = olympic(point.lengths, official.drop), float(np.std(point.lengths))
        count = len(point.lengths) - 2 * official.drop
        bound = smallest_mean(mean, std, count, official.runs)
        found.append(Reference(point.batch_size, mean, std, bound))
    return found


def points_of(benchmark: str, ruleset: str | None = None) -> list[ReferencePoint]:
    """The reference convergence points of a benchmark by batch size, from the official package.

    Args:
        benchmark: our name.
        ruleset: the round; the benchmark's last one by default.

    Raises:
        UserError: the package is not installed, or has no points for that round.
    """
    official = rules.resolve(benchmark, ruleset)
    folder = rules.official_package() / "rcp_checker" / f"{official.suite}_{official.ruleset}"
    path = folder / f"rcps_{official.log_name}.json"
    if not path.is_file():
        raise UserError(
            f"the installed mlperf-logging has no reference convergence points for {benchmark} in "
            f"{official.suite} {official.ruleset}; give another ruleset"
        )
    return read_points(path)


def read_points(path: pathlib.Path) -> list[ReferencePoint]:
    """The points of one file in the official form, by batch size.

    Raises:
        UserError: the file cannot be read, or a point in it lacks its batch size or its runs.
    """
    try:
        points = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        found = [_point(name, point) for name, point in points.items()]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is not a file of reference convergence points ({error!r}); it holds one object per "
            'point, with "BS" and "Epochs to converge"'
        ) from error
    return sorted(found, key=lambda point: point.batch_size)


def _point(name: str, point: Mapping[str, Any]) -> ReferencePoint:
    # two benchmarks' files name the field differently
    field = "samples to converge" if "samples to converge" in point else "Epochs to converge"
    return ReferencePoint(
        name=name,
        batch_size=int(point["BS"]),
        lengths=tuple(float(length) for length in point[field]),
        hyperparameters=point.get("Hyperparams", {}),
    )


def smallest_mean(mean: float, std: float, reference_runs: int, runs: int) -> float:
    """The smallest mean that is not significantly below the reference's.

    One-sided two-sample t-test with equal variances at p = 0.05, the result's spread taken to be the
    reference's. The official checker counts runs - 2 whatever is dropped, so do we. At least 0, which
    excludes nothing.

    Args:
        mean, std: of the reference.
        reference_runs: how many runs the reference's mean is over.
        runs: how many runs make a score.
    """
    from scipy.special import stdtrit  # slow to import: only those wait who need it

    count = runs - 2
    quantile = float(stdtrit(reference_runs + count - 2, 0.95))
    return max(0.0, mean - quantile * std * math.sqrt(1 / reference_runs + 1 / count))


def pruned(known: Sequence[Reference], runs: int) -> list[Reference]:
    """The points that are compared with: those that a larger batch does not make look slow.

    Below the fastest point all are left out; then each inner point that is slower than the line
    between its neighbours. As in the official checker, the result need not be convex.

    Args:
        known: by batch size.
        runs: how many runs make a score.
    """
    fastest = min(known, key=lambda point: point.mean)
    kept = [point for point in known if point.batch_size >= fastest.batch_size]
    i = 1
    while i < len(kept) - 1:
        line = _between(kept[i - 1], kept[i + 1], kept[i].batch_size, runs)
        if kept[i].mean > line.mean:
            del kept[i]  # the next one moves here, with a new neighbour on its left
        else:
            i += 1
    return kept


def olympic(values: Sequence[float], drop: int) -> float:
    """The mean of what is left without the `drop` smallest and the `drop` largest."""
    import numpy as np  # as above

    return float(np.mean(sorted(values)[drop : len(values) - drop]))


def reference_at(
    known: list[Reference], batch_size: int, runs: int
) -> tuple[Kind, Reference | None]:
    """What a batch size is compared with, of the points by batch size; None above all of them."""
    sizes = [point.batch_size for point in known]
    above = bisect.bisect_left(sizes, batch_size)
    if above < len(known) and sizes[above] == batch_size:
        return "found", known[above]
    if above == len(known):
        return "missing", None
    if above == 0:
        return "smaller", known[0]
    return "interpolated", _between(known[above - 1], known[above], batch_size, runs)


def _between(low: Reference, high: Reference, batch_size: int, runs: int) -> Reference:
    span, beyond = high.batch_size - low.batch_size, batch_size - low.batch_size
    mean = (high.mean - low.mean) / span * beyond + low.mean
    std = (high.std - low.std) / span * beyond + low.std
    # the official checker takes it for the mean of twice the runs of a score, none left out
    bound = smallest_mean(mean, std, 2 * runs, runs)
    return Reference(batch_size, mean, std, bound, between=(low.batch_size, high.batch_size))


def _sentence(
    kind: Kind, batch_size: int, mean: float, reference: Reference, passed: bool, words: str
) -> str:
    difference = 1 - mean / reference.mean
    found, allowed = _percents(abs(difference), reference.allowance)
    if abs(difference) < _EQUAL:
        text = f"converged in as many {words} as the reference mean"
    elif difference > _NEARLY_ALL:
        text = f"converged in {amount(mean, words)}; the reference mean is {amount(reference.mean, words)}"
    else:
        how = "fewer" if difference > 0 else "more"
        text = f"converged in {found} {how} {words} than the reference mean"
    if kind == "smaller":
        text += f" at the smallest reference batch size, {reference.batch_size:,}"
    if difference >= _EQUAL:
        where = "there" if kind == "smaller" else "at this batch size"
        if reference.between is not None:
            low, high = reference.between
            where += f" (interpolated between {low:,} and {high:,})"
        if reference.bound <= 0:
            text += (
                f"; the reference runs {where} are too few and too far apart to exclude anything"
            )
        else:
            text += f"; the bound {where} is {allowed}"
    if passed:
        return f"{text}: accepted"
    if kind == "smaller":
        return f"{text}: not accepted until a reference point at {batch_size:,} is submitted"
    return f"{text}: not accepted"


def amount(value: float, words: str) -> str:
    """A length with its unit.

    >>> amount(1, "samples"), amount(2_700_000, "samples"), amount(3.25, "epochs")
    ('1 sample', '2,700,000 samples', '3.25 epochs')
    """
    said = f"{value:,.0f}" if value >= 1000 else f"{value:.5g}"
    return f"{said} {words.removesuffix('s') if said == '1' else words}"


def _percents(*fractions: float) -> list[str]:
    """Percentages with as many decimals as tell them apart: 4.2 % and 4.3 %, 4.21 % and 4.24 %."""
    for decimals in range(1, 6):
        texts = [f"{fraction * 100:.{decimals}f} %" for fraction in fractions]
        if len(set(texts)) == len(texts):
            break
    return texts

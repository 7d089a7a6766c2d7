"""Where settings are searched, and which are tried: a low-discrepancy sequence, the same for everyone.

Random search with a quasi-random sequence is what AlgoPerf's external tuning does (Dahl et al. 2023, §4.4.1; Bousquet et
al. 2017). Trials are the points of the Halton sequence behind its first, which is the corner 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scipy.stats import qmc

from mlperf_jax.errors import UserError

DIGITS = 6  # that a setting is rounded to, so that its text says exactly what is trained
DECADE = 10.0


@dataclass(frozen=True)
class Interval:
    """The values that a setting may have.

    Attributes:
        low, high: the ends, both included.
        whole: whether only whole numbers are.

    >>> Interval(0.05, 5).at(0.5), Interval(0.8, 1.0).at(0.5), Interval(1, 4, whole=True).at(0.9)
    (0.5, 0.9, 4)
    """

    low: float
    high: float
    whole: bool = False

    @property
    def logarithmic(self) -> bool:
        """Whether its logarithm is searched evenly: where the ends are a factor of ten or more apart."""
        return self.low > 0 and self.high >= DECADE * self.low

    def at(self, share: float) -> float:
        """The value so far from low to high, in [0, 1]."""
        if self.logarithmic:
            value = self.low * (self.high / self.low) ** share
        else:
            value = self.low + share * (self.high - self.low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else float(f"{value:.{DIGITS}g}")

    def __str__(self) -> str:
        law = "log-uniform" if self.logarithmic else "uniform"
        return f"{law} from {self.low:g} to {self.high:g}"

    @classmethod
    def of(cls, name: str, text: str) -> Interval:
        """The interval that "1e-4..1e-1" says.

        Raises:
            UserError: an end is no finite number, or they are in the wrong order.
        """
        low, _, high = text.partition("..")
        try:
            ends = float(low), float(high)
        except ValueError:
            ends = math.nan, math.nan
        if not (all(map(math.isfinite, ends)) and ends[0] < ends[1]):
            raise UserError(
                f"{text!r} is no range for {name}: write LOW..HIGH, two numbers of which the second is larger"
            )
        return cls(*ends)

    @classmethod
    def around(cls, value: float) -> Interval:
        """A decade to either side of a positive value, which is what is searched where no range is said."""
        return cls(float(f"{value / DECADE:.6g}"), float(f"{value * DECADE:.6g}"))


Space = Mapping[str, Interval]  # by the name of the setting


def words(space: Space) -> str:
    """ "learning_rate log-uniform from 0.05 to 5"; several are joined by commas."""
    return ", ".join(f"{name} {interval}" for name, interval in space.items())


def trials(space: Space, count: int) -> list[dict[str, float]]:
    """The settings that are tried, the same for every space of the same names' number.

    >>> trials({"learning_rate": Interval(0.05, 5)}, 3)
    [{'learning_rate': 0.5}, {'learning_rate': 0.158114}, {'learning_rate': 1.58114}]
    """
    halton = qmc.Halton(len(space), scramble=False)
    halton.fast_forward(1)
    return [
        {name: interval.at(share) for (name, interval), share in zip(space.items(), point)}
        for point in halton.random(count).tolist()
    ]

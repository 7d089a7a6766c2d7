"""Comparisons as panels of curves: each entry's median over seeds with the range around it, and profiles.

Runs of one benchmark are evaluated after the same samples, so their values are taken there. A run that ended keeps
its last value from there on: left out, it would leave the slower ones to stand for all. So an entry's median meets
the target where half of its runs have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlperf_jax.pictures.curves import Panel
from mlperf_jax.results.comparison.model import Comparison, Entrant
from mlperf_jax.results.comparison.profiles import Profiles

LOSS = "loss"
PLACES = 200  # of a band: more than can be seen

_MIDDLE = (0.25, 0.5, 0.75)
_WHOLE = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Spread:
    """The values of an entry's runs after so many samples; all of one length.

    Attributes:
        samples: where.
        low, median, high: of the runs.
        runs: how many there are.
    """

    samples: tuple[float, ...]
    low: tuple[float, ...]
    median: tuple[float, ...]
    high: tuple[float, ...]
    runs: int


def spread(entrant: Entrant, name: str, *, whole: bool = False) -> Spread | None:
    """The values of one name over an entry's runs; None where no run has any.

    Args:
        name: of a quality, or "loss".
        whole: from the smallest to the largest; by default between the quartiles.
    """
    curves = [
        np.asarray(run.curves.get(name, ()), float).reshape(-1, 2) for run in entrant.outcomes
    ]
    curves = [curve[np.isfinite(curve).all(1)] for curve in curves]
    curves = [curve for curve in curves if len(curve)]
    if not curves:
        return None
    places = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
    places = places[places >= max(curve[0, 0] for curve in curves)]  # every run has a value
    if len(places) > PLACES:
        places = places[np.linspace(0, len(places) - 1, PLACES).round().astype(int)]
    values = [np.interp(places, curve[:, 0], curve[:, 1]) for curve in curves]
    low, median, high = np.quantile(values, _WHOLE if whole else _MIDDLE, axis=0).tolist()
    return Spread(tuple(places.tolist()), tuple(low), tuple(median), tuple(high), len(curves))


def names(comparison: Comparison) -> list[str]:
    """What is drawn: the loss, and each quality that has a target, as far as a run has values."""
    wanted = [LOSS, *(target.name for target in comparison.targets)]
    told = {name for one in comparison.entrants for run in one.outcomes for name in run.curves}
    return [name for name in dict.fromkeys(wanted) if name in told]


def panels(comparison: Comparison, *, whole: bool = False) -> list[Panel]:
    """The loss and each quality with its target, one colour per entry.

    Args:
        whole: bands from the smallest to the largest value; by default between the quartiles.
    """
    levels = {target.name: target.bound for target in comparison.targets}
    found = []
    for name in names(comparison):
        drawn = {one.label: spread(one, name, whole=whole) for one in comparison.entrants}
        known = {label: each for label, each in drawn.items() if each}
        found.append(
            Panel(
                name,
                {label: [*zip(each.samples, each.median)] for label, each in known.items()},
                level=levels.get(name),
                bands={
                    label: [*zip(each.samples, each.low, each.high)]
                    for label, each in known.items()
                },
            )
        )
    return found


def profile_panel(found: Profiles) -> Panel:
    """The profiles as steps, over the ratio to the best."""
    return Panel(
        f"share of {len(found.problems)} problems",
        {label: found.steps(label) for label in found.labels},
        across="times the best",
        begin=1,
        stepped=True,
    )


def caption(comparisons: Sequence[Comparison], *, whole: bool = False) -> str:
    """What the curves of comparisons are, in a sentence."""
    band = "smallest to largest" if whole else "between the quartiles"
    what = ", ".join(comparison.title for comparison in comparisons)
    return f"{what}: median over seeds, area {band}; a run that ended keeps its last value"

"""Area under the ROC curve of click predictions: exact, or from histograms for a display of progress.

The area is the share of (click, no click) pairs that the scores put in the right order, equal scores
counting half; so it depends on the order of the scores alone. That is the trapezoid rule over distinct
scores, as scikit-learn computes it.

Shape legend: B rows of an evaluation batch, P clicks and N other samples of the whole set, K bins.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.errors import UserError

_SHARE = 1 << 21  # scores that are worth a thread of their own
_QUERIES = 1 << 20  # scores looked up at once: what `searchsorted` returns is twice their size
_DROPPED = 14  # bits of a float32 that its bin does not tell apart: nine of the mantissa are left
_BINS = (0x3F80_0000 >> _DROPPED) + 1  # the last one is for 1.0


def signed(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Scores [B] of at least 0 with the labels [B] in their signs: minus (also -0.0) for a click.

    What `predict` returns for the two metrics below. All rows of an evaluation reach process 0, and this
    form is half of what two float32 arrays would be: 357 MB for Criteo's 89 M.
    """
    return jnp.copysign(scores, jnp.where(labels > 0, -1, 1).astype(scores.dtype))


@dataclass(frozen=True)
class Auc:
    """The exact area; `predict` returns `signed` scores, [B], or the pair (scores [B], labels [B]).

    Process 0 sorts clicks and others apart, and each of its cores looks the fewer up in its share of the
    many. Beside the scores that takes 6 bytes a sample, 0.5 GB for 89 M (`scripts/compare_auc.py`).

    Attributes:
        name: the quality's name.
        mode: see `core.protocols.Metric`; "beside" hides the sort behind the next steps.
    """

    name: str = "auc"
    mode: str = "inline"
    rows: ClassVar[bool] = True

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        return {self.name: (0, 1)}

    def sums(self, outputs: Any, mask: jax.Array) -> Mapping[str, jax.Array]:
        raise NotImplementedError("this metric takes rows")

    def result(self, total: Any) -> dict[str, float]:
        """Quality from all rows.

        Raises:
            UserError: a score is NaN, or all labels are alike.
        """
        if isinstance(total, tuple | list):
            scores, labels = total
            return {self.name: roc_auc(labels, scores)}
        clicked = np.signbit(total)
        return {self.name: _area(np.abs(total[clicked]), total[~clicked])}


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """The exact area under the ROC curve.

    Args:
        labels: [P + N], above 0 for a click.
        scores: [P + N], any real numbers; equal ones are ties.

    Raises:
        UserError: a score is NaN, or all labels are alike.

    >>> roc_auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
    0.75
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.shape != scores.shape or labels.ndim != 1:
        raise UserError(
            f"labels {list(labels.shape)} and scores {list(scores.shape)} must be of one length"
        )
    clicked = labels > 0
    return _area(scores[clicked], scores[~clicked])


def _area(clicks: np.ndarray, others: np.ndarray) -> float:
    """The area from the scores of clicks [P] and of the others [N], which it sorts in place."""
    if not len(clicks) or not len(others):
        raise _one_kind(len(clicks), len(others))
    few, many = sorted((clicks, others), key=len)
    few.sort()
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    parts = np.array_split(many, max(1, min(cores, len(many) // _SHARE)))
    with concurrent.futures.ThreadPoolExecutor(len(parts)) as pool:
        won = sum(pool.map(lambda part: twice_won(few, part), parts))
    pairs = 2 * len(clicks) * len(others)
    return (won if few is clicks else pairs - won) / pairs


def twice_won(few: np.ndarray, part: np.ndarray) -> int:
    """Twice the pairs in which a score of `few` exceeds one of `part`; equal ones count once.

    The counts of several parts add up, wherever the parts lie: no merged order of all scores is needed.

    Args:
        few: sorted.
        part: is sorted here, in place.

    Raises:
        UserError: a score is NaN.
    """
    part.sort()
    for scores in (few, part):
        if len(scores) and np.isnan(scores[-1]):  # they are sorted to the end
            raise UserError(
                "a score of the evaluation is NaN: the model has diverged; lower the learning rate"
            )
    won = 0
    for first in range(0, len(few), _QUERIES):
        wanted = few[first : first + _QUERIES]
        won += int(np.searchsorted(part, wanted, "left").sum())
        won += int(np.searchsorted(part, wanted, "right").sum())
    return won


def _one_kind(clicks: int, others: int) -> UserError:
    return UserError(
        f"the area under the ROC curve needs clicks and others, got {clicks:,} and {others:,}: look at the "
        "labels of the evaluation data"
    )


@dataclass(frozen=True)
class AucHistogram:
    """The area from two histograms that the device adds up: nothing but counts reaches the host.

    Scores must lie in [0, 1]; `predict` returns what it returns for `Auc`. Bins are the scores' first bits
    (exponent and nine bits of mantissa, 65,025 bins): each is at most 0.2 % of its score wide. Only pairs
    that share a bin can be counted wrong, and they count half; so the exact area lies within
    `<name>_error` = sum over bins of clicks times others / (2 P N), which is returned beside the area.

    Attributes:
        name: the quality's name.
        mode: see `core.protocols.Metric`.
    """

    name: str = "auc"
    mode: str = "inline"
    rows: ClassVar[bool] = False

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        return dict.fromkeys((self.name, f"{self.name}_error"), (0, 1))

    def sums(self, outputs: Any, mask: jax.Array) -> dict[str, jax.Array]:
        """Counts i32 [K] of clicks and of others over the rows whose mask [B] is true; NaN: "lost"."""
        if isinstance(outputs, tuple | list):
            outputs = signed(*outputs)
        outputs = outputs.astype(jnp.float32)
        clicked, score = jnp.signbit(outputs), jnp.abs(outputs)
        lost = mask & ~(score <= 1)
        bins = jax.lax.bitcast_convert_type(score, jnp.int32) >> _DROPPED  # of NaN beyond the last
        zeros = jnp.zeros(_BINS, jnp.int32)
        return {
            "clicks": zeros.at[bins].add((mask & clicked).astype(jnp.int32), mode="drop"),
            "others": zeros.at[bins].add((mask & ~clicked).astype(jnp.int32), mode="drop"),
            "lost": jnp.sum(lost, dtype=jnp.int32),
        }

    def result(self, total: Mapping[str, np.ndarray | float]) -> dict[str, float]:
        """The area and the bound of its error.

        Raises:
            UserError: a score is NaN or outside [0, 1], or all labels are alike.
        """
        if total["lost"]:
            raise UserError(
                f"{int(total['lost']):,} scores of the evaluation are NaN or outside [0, 1]: scores are "
                "probabilities, and NaN means that the model has diverged"
            )
        clicks = np.asarray(total["clicks"], np.float64)
        others = np.asarray(total["others"], np.float64)
        pairs = clicks.sum() * others.sum()
        if not pairs:
            raise _one_kind(int(clicks.sum()), int(others.sum()))
        within = float((clicks * others).sum() / pairs)
        below = float((clicks * (np.cumsum(others) - others)).sum() / pairs)
        return {self.name: below + within / 2, f"{self.name}_error": within / 2}

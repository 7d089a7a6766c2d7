"""Accuracy of rows that hold several things to be told, or none: masked tokens, seeds of a graph.

Shape legend: B rows of an evaluation batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.errors import UserError


@dataclass(frozen=True)
class WeightedAccuracy:
    """Weight of what was right over weight of all; `predict` returns both, [B] each, as `ops.losses.weighted_hits`.

    Both are added over all rows before they are divided: a long sequence, which has more masked tokens, weighs
    more. Weights are 0 or 1, so that sums in float32 are exact up to 16.7 million; bert's evaluation has 0.4 million.

    Attributes:
        name: the quality's name.
        also: names of what else `predict` returns, [B] each, behind the two; their sums are qualities as well.
        mode: see `core.protocols.Metric`.

    >>> WeightedAccuracy("accuracy").result({"hits": 3.0, "weight": 4.0})
    {'accuracy': 0.75}
    """

    name: str
    also: tuple[str, ...] = ()
    mode: str = "inline"
    rows: ClassVar[bool] = False

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        return {self.name: (0, 1)}

    def sums(self, outputs: tuple[jax.Array, ...], mask: jax.Array) -> dict[str, jax.Array]:
        # `where`, not a product: what a padded row predicts may be NaN
        sums = [jnp.sum(jnp.where(mask, values, 0)) for values in outputs]
        return dict(zip(("hits", "weight", *self.also), sums, strict=True))

    def result(self, total: Mapping[str, np.ndarray | float]) -> dict[str, float]:
        """The quotient of the added sums.

        Raises:
            UserError: the evaluation data have nothing to be told.
        """
        if not total["weight"]:
            raise UserError(
                f"{self.name}: nothing in the evaluation data is asked for: build the data again"
            )
        more = {name: float(total[name]) for name in self.also}
        return {self.name: float(total["hits"] / total["weight"]), **more}

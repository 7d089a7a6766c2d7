"""Accuracy of a masked language model: the share of masked tokens whose own logit is the largest.

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
class MaskedAccuracy:
    """Weight of right tokens over weight of all; `predict` returns both, [B] each, as `ops.losses.weighted_hits`.

    Both are added over all rows before they are divided: a long sequence, which has more masked tokens, weighs
    more. Weights are 0 or 1, so that sums in float32 are exact up to 16.7 million tokens; bert's evaluation has 0.4.

    Attributes:
        name: the quality's name.
        mode: see `core.protocols.Metric`.

    >>> MaskedAccuracy().result({"hits": 3.0, "weight": 4.0})
    {'mlm_accuracy': 0.75}
    """

    name: str = "mlm_accuracy"
    mode: str = "inline"
    rows: ClassVar[bool] = False

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        return {self.name: (0, 1)}

    def sums(self, outputs: tuple[jax.Array, jax.Array], mask: jax.Array) -> dict[str, jax.Array]:
        # `where`, not a product: what a padded row predicts may be NaN
        hits, weight = (jnp.sum(jnp.where(mask, values, 0)) for values in outputs)
        return {"hits": hits, "weight": weight}

    def result(self, total: Mapping[str, np.ndarray | float]) -> dict[str, float]:
        """The quotient of the added sums.

        Raises:
            UserError: the evaluation data has no masked token.
        """
        if not total["weight"]:
            raise UserError(
                f"{self.name}: no token of the evaluation data is masked: build the data again"
            )
        return {self.name: float(total["hits"] / total["weight"])}

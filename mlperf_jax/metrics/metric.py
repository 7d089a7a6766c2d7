"""The mean of a number per row; `core.protocols.Metric` says what a metric is.

Shape legend: B rows of an evaluation batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.errors import UserError


@dataclass(frozen=True)
class Mean:
    """The mean of one number per row: `predict` returns [B].

    Attributes:
        name: the quality's name.
        range: the least and the most it can be; (0, 1) of what is right or wrong.
        mode: see `Metric`.

    >>> Mean("accuracy", (0, 1)).result({"total": 3.0, "count": 4.0})
    {'accuracy': 0.75}
    """

    name: str
    range: tuple[float, float] = (-math.inf, math.inf)
    mode: str = "inline"
    rows: ClassVar[bool] = False

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        return {self.name: self.range}

    def sums(self, outputs: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        if outputs.shape != mask.shape:
            raise UserError(
                f"{self.name} is a mean over rows: predict must give [B], not {list(outputs.shape)}"
            )
        dtype = jnp.promote_types(outputs.dtype, jnp.float32)
        return {
            "total": jnp.sum(jnp.where(mask, outputs.astype(dtype), 0)),
            "count": jnp.sum(mask.astype(dtype)),
        }

    def result(self, total: Mapping[str, np.ndarray | float]) -> dict[str, float]:
        return {self.name: float(total["total"] / total["count"])}

"""What a metric is: sums on the device or rows on the host, and a result.

The core runs `predict` on every evaluation batch. A metric with `rows = False` turns each batch's
outputs into a few sums on the device, which the core adds up in float64; one with `rows = True` is given
every output row in data order, padding removed, as NumPy arrays on process 0.

Shape legend: B rows of an evaluation batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np


class Metric(Protocol):
    """The protocol of `Benchmark.metric`.

    Attributes:
        names: of what `result` always gives.
        mode: "inline" (training waits), "beside" (`result` runs while training goes on; the evaluated
            state is the one that counts), or "offline" (sealed checkpoints are scored after the run).
        rows: whether `result` gets rows instead of sums.
    """

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def mode(self) -> str: ...

    @property
    def rows(self) -> bool: ...

    def sums(self, outputs: Any, mask: jax.Array) -> Mapping[str, jax.Array]:
        """Sums over the rows of one batch whose mask [B] is true; traced under jit."""
        ...

    def result(self, total: Any) -> dict[str, float]:
        """Quality by name, from added sums (float64) or from rows; on the host."""
        ...


@dataclass(frozen=True)
class Mean:
    """The mean of one number per row: `predict` returns [B].

    >>> Mean("accuracy").result({"total": 3.0, "count": 4.0})
    {'accuracy': 0.75}
    """

    name: str
    mode: str = "inline"
    rows: ClassVar[bool] = False

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def sums(self, outputs: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        dtype = jnp.promote_types(outputs.dtype, jnp.float32)
        return {
            "total": jnp.sum(jnp.where(mask, outputs.astype(dtype), 0)),
            "count": jnp.sum(mask.astype(dtype)),
        }

    def result(self, total: Mapping[str, np.ndarray | float]) -> dict[str, float]:
        return {self.name: float(total["total"] / total["count"])}

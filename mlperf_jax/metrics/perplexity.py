"""Log perplexity of a language model: nats per token over the whole evaluation set.

Shape legend: B rows (sequences) of an evaluation batch.
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
class LogPerplexity:
    """Loss per scored token; `predict` returns (sum [B], count [B]), as `ops.cross_entropy.sequence_xent`.

    By tokens (GPT3, Llama 3.1): the sum over all sequences divided by the number of scored tokens, never
    a mean of batch means. By sequences (Llama 2 LoRA): the mean of each sequence's own mean; a sequence
    without a scored token counts neither above nor below the line, as in NVIDIA's submission (the
    reference would give NaN).

    Attributes:
        name: the quality's name.
        by: "tokens" or "sequences".
        mode: see `core.protocols.Metric`.

    >>> LogPerplexity().result({"total": 10.0, "count": 4})
    {'log_perplexity': 2.5}
    """

    name: str = "log_perplexity"
    by: str = "tokens"
    mode: str = "inline"
    rows: ClassVar[bool] = False

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        return {self.name: (0, math.inf)}

    def __post_init__(self) -> None:
        if self.by not in ("tokens", "sequences"):
            raise UserError(f"log perplexity is taken by tokens or sequences, not by {self.by!r}")

    def sums(self, outputs: tuple[jax.Array, jax.Array], mask: jax.Array) -> dict[str, jax.Array]:
        """Sum and count (int32, exact) over the rows of one batch whose mask [B] is true."""
        total, count = outputs
        total = total.astype(jnp.promote_types(total.dtype, jnp.float32))
        if self.by == "sequences":
            total = total / jnp.maximum(count, 1).astype(total.dtype)
            count = count > 0
        # `where`, not a product: what a padded row predicts may be NaN
        scored = mask & (count > 0)
        return {
            "total": jnp.sum(jnp.where(scored, total, 0)),
            "count": jnp.sum(jnp.where(scored, count, 0), dtype=jnp.int32),
        }

    def result(self, total: Mapping[str, np.ndarray | float]) -> dict[str, float]:
        """The quotient of the added sums.

        Raises:
            UserError: the evaluation data has no scored token.
        """
        if not total["count"]:
            raise UserError(
                f"{self.name}: no token of the evaluation data is scored: every label is masked; "
                "check the data's label mask"
            )
        return {self.name: float(total["total"] / total["count"])}

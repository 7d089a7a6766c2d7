"""The sizes of a BERT; no arrays, no JAX.

L layers · D width · F feed-forward width · V vocabulary rows · N heads
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from mlperf_jax.errors import UserError

EPSILON = 1e-12  # of all layer norms


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """One BERT; the defaults are BERT-large.

    Attributes:
        layers, width, heads: L, D and N; heads are D / N wide.
        hidden: F, the inner width of the feed-forward part.
        vocab: V.
        max_positions: rows of the table of learned positions, the longest sequence.
        types: rows of the table of token types.
        dropout: on the embeddings, attention weights, and both branches of a layer.
        init_std: of matrices and embeddings, normal and cut at two deviations.
        remat: what the forward pass keeps per layer, see `ops.stack.Stack`.
        attention: back end of `ops.attention.attention`.
    """

    layers: int = 24
    width: int = 1024
    heads: int = 16
    hidden: int = 4096
    vocab: int = 30_522
    max_positions: int = 512
    types: int = 2
    dropout: float = 0.1
    init_std: float = 0.02
    remat: str | None = None
    attention: str = "auto"

    def __post_init__(self) -> None:
        for field in ("layers", "width", "heads", "hidden", "vocab", "max_positions", "types"):
            if getattr(self, field) < 1:
                raise UserError(f"bert: {field} is {getattr(self, field)}; give at least 1")
        if self.width % self.heads:
            raise UserError(
                f"bert: width {self.width} is not divided by {self.heads} heads; choose heads that do"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"bert: dropout is {self.dropout}; give a number in [0, 1)")

    def replace(self, **changes: Any) -> Self:
        """A copy with these fields changed."""
        return dataclasses.replace(self, **changes)

    def flops(self, tokens: int, masked: int, *, training: bool = True) -> float:
        """Floating-point operations of the model for one sequence.

        Training triples the forward pass; recomputation is not counted, nor the next-sentence head
        (six millionths of a whole sequence).

        Args:
            tokens: of the sequence; count padding in or not, and say which.
            masked: slots of the masked-token head.
            training: whether the backward pass counts.

        >>> round(BertConfig().flops(512, 76) / 1e12, 3), round(BertConfig().flops(256, 38) / 1e12, 2)
        (1.02, 0.49)
        """
        layer = 4 * self.width**2 + 2 * self.width * self.hidden
        encoder = self.layers * tokens * (2 * layer + 4 * tokens * self.width)
        head = 2 * masked * self.width * (self.width + self.vocab)
        return (3.0 if training else 1.0) * (encoder + head)

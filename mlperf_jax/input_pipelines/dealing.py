"""How the rows of a partial batch are dealt over groups that share something.

Statistics of batch norm and a detector's candidates are taken over groups of consecutive rows, whatever the
mesh. Were the last batch of an epoch filled from its front, its first groups would be full and its last
ones empty; dealt like cards, every group gets as many real rows as any other, give or take one.

Shape legend: B rows of a global batch, N rows of a group, n micro-batches.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mlperf_jax.errors import UserError

PADDING = -1  # the record, and the position, of a row that holds none


@dataclasses.dataclass(frozen=True)
class Groups:
    """Groups of rows as a recipe states them.

    Attributes:
        span: N, consecutive rows of a micro-batch that make a group.
        micro_batches: n, into which the step splits a batch: row b goes to micro-batch b mod n.
    """

    span: int
    micro_batches: int = 1

    def __post_init__(self) -> None:
        if self.span < 1 or self.micro_batches < 1:
            raise UserError(
                f"groups of {self.span} rows in {self.micro_batches} micro-batches: both must be at least 1"
            )

    def dealt(self, real: int, rows: int) -> np.ndarray:
        """Which of the real rows, 0 … real - 1, stands at each place of a batch.

        Args:
            real: rows that there are.
            rows: B.

        Returns:
            int [B], -1 for padding. A whole batch keeps its order.

        Raises:
            UserError: the groups do not divide the batch, or there are more rows than places.

        >>> Groups(span=4).dealt(5, 8).tolist()
        [0, 2, 4, -1, 1, 3, -1, -1]
        """
        if rows % (self.span * self.micro_batches):
            raise UserError(
                f"a batch of {rows} rows has no whole groups of {self.span} in {self.micro_batches} "
                "micro-batches: choose a size that has"
            )
        if not 0 <= real <= rows:
            raise UserError(f"{real} rows do not fit a batch of {rows}")
        if real == rows:
            return np.arange(rows)
        # [groups of a micro-batch, N, n] -> [N, n, groups]: the first row of each group, the second, …
        places = np.arange(rows).reshape(-1, self.span, self.micro_batches)
        order = places.transpose(1, 2, 0).ravel()
        found = np.full(rows, PADDING)
        found[order[:real]] = np.arange(real)
        return found

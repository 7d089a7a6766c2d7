"""The in-edges of a relation by destination: what csc.py builds and opens, and sampling.py draws from.

Shape legend: N nodes where a relation's edges end, E its edges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.igbh.arrays import Mapped
from mlperf_jax.input_pipelines.igbh.sizes import Relation


@dataclasses.dataclass(frozen=True, eq=False)
class InEdges:
    """The edges of one relation; what lies in files is mapped, and travels to worker processes by its name.

    Attributes:
        relation: from `source` to `target`.
        indptr: int64 [N + 1]; the in-edges of node i are indptr[i] … indptr[i + 1] - 1.
        indices: int32 [E] (int64 of arrays of one's own), the node of the type `source` where each begins.
    """

    relation: Relation
    indptr: Mapped | np.ndarray
    indices: Mapped | np.ndarray

    def of(self, node: int) -> np.ndarray:
        """Where the edges begin that end at a node, [degree]."""
        first, last = np.asarray(self.indptr)[node : node + 2]
        return np.asarray(self.indices)[first:last]

    def check(self, nodes: Mapping[str, int]) -> None:
        """Nothing, if the arrays can be of a graph of so many nodes; reads two of their values.

        Raises:
            UserError: they cannot.
        """
        relation, (indptr, indices) = self.relation, map(np.asarray, (self.indptr, self.indices))
        key = f"relation {relation.key}"
        for part in relation:
            if "__" in part or not part:
                raise UserError(f"{key}: {part!r} is no name: give one without '__'")
        for kind in (relation.source, relation.target):
            if kind not in nodes:
                raise UserError(f"{key}: the graph has no {kind} nodes, only {', '.join(nodes)}")
        for name, array, dtypes in (
            ("indptr", indptr, ("int64",)),
            ("indices", indices, ("int32", "int64")),
        ):
            if array.dtype.name not in dtypes or array.ndim != 1 or not array.flags.c_contiguous:
                raise UserError(
                    f"{key}: {name} is {array.dtype} of shape {array.shape}; give a contiguous vector of "
                    f"{' or '.join(dtypes)}"
                )
        count = nodes[relation.target]
        if len(indptr) != count + 1:
            raise UserError(
                f"{key}: indptr has {len(indptr):,} values; {count:,} {relation.target} nodes take {count + 1:,}"
            )
        if indptr[0] != 0 or indptr[-1] != len(indices):
            raise UserError(
                f"{key}: indptr goes from {indptr[0]:,} to {indptr[-1]:,}; it goes from 0 to the {len(indices):,} "
                "edges of indices: build the two anew"
            )

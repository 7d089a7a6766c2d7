"""The sizes of an R-GAT and of the samples it is given; no arrays, no JAX.

L layers · hop k: what lies k edges from the nearest seed
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from mlperf_jax.errors import UserError, did_you_mean


class Relation(Protocol):
    """Edges of one kind: messages go from nodes of type `source` to nodes of type `target`.

    `key` is the relation as one word, as IGBH names its folders: "paper__cites__paper".
    """

    @property
    def source(self) -> str: ...

    @property
    def target(self) -> str: ...

    @property
    def key(self) -> str: ...


@dataclass(frozen=True)
class Reach:
    """How many rows of a padded sample lie near the seeds: static, the same for all samples of a shape.

    Rows of a type are ordered by hop, and edges by the hop of their target, padding within each hop, so
    that what a layer needs is a beginning of each array.

    Attributes:
        nodes: by type L + 1 numbers, the rows within 0, 1 … L hops; the last is the number of all.
        edges: by relation's key L numbers, the edges into rows within 0, 1 … L - 1 hops.
    """

    nodes: Mapping[str, tuple[int, ...]]
    edges: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        for field in ("nodes", "edges"):
            counts = {name: tuple(map(int, c)) for name, c in getattr(self, field).items()}
            for name, numbers in counts.items():
                if any(a > b for a, b in itertools.pairwise((0, *numbers))):
                    raise UserError(
                        f"rgat: {field} of {name!r} are {list(numbers)}; give how many there are within "
                        "each number of hops, which never falls"
                    )
            object.__setattr__(self, field, counts)

    def __hash__(self) -> int:
        return hash((frozenset(self.nodes.items()), frozenset(self.edges.items())))


@dataclass(frozen=True, kw_only=True)
class RgatConfig:
    """One R-GAT; the defaults are the benchmark's.

    Attributes:
        relations: the graph's, each of which has weights of its own in each layer.
        labelled: the type of the seeds.
        features: width of what is known of each node.
        layers: L.
        heads, head_width: of the attention; a layer is heads * head_width wide.
        classes: of the seeds.
        dropout: between layers.
        slope: of the leaky ReLU between layers.
        score_slope: of the one around the scores.
    """

    relations: tuple[Relation, ...]
    labelled: str = "paper"
    features: int = 1024
    layers: int = 3
    heads: int = 4
    head_width: int = 128
    classes: int = 2983
    dropout: float = 0.2
    slope: float = 0.01
    score_slope: float = 0.2

    def __post_init__(self) -> None:
        for field in ("features", "layers", "heads", "head_width", "classes"):
            if getattr(self, field) < 1:
                raise UserError(f"rgat: {field} is {getattr(self, field)}; give at least 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"rgat: dropout is {self.dropout}; give a number in [0, 1)")
        keys = [relation.key for relation in self.relations]
        for key in keys:
            if keys.count(key) > 1:
                raise UserError(f"rgat: relation {key!r} is given twice; name each once")
        reached = {relation.target for relation in self.relations}
        for node in (self.labelled, *(relation.source for relation in self.relations)):
            if node not in reached:
                raise UserError(
                    f"rgat: no relation leads to {node!r} nodes, so a layer would leave nothing of "
                    "them; add a relation into them, such as the reverse of one out of them"
                )

    @property
    def width(self) -> int:
        """Of a layer's output."""
        return self.heads * self.head_width

    @property
    def types(self) -> tuple[str, ...]:
        """The types of nodes, in alphabetical order."""
        return tuple(sorted({node for r in self.relations for node in (r.source, r.target)}))

    def replace(self, **changes: Any) -> Self:
        """A copy with these fields changed."""
        return dataclasses.replace(self, **changes)

    def check(self, reach: Reach) -> None:
        """Raises UserError unless `reach` tells of every type and relation what L layers need."""
        keys = [relation.key for relation in self.relations]
        for field, names, length in (
            ("nodes", self.types, self.layers + 1),
            ("edges", keys, self.layers),
        ):
            counts = getattr(reach, field)
            for name in names:
                if name not in counts:
                    raise UserError(
                        f"rgat: the sample says nothing of {field} of {name!r}{did_you_mean(name, counts)}; "
                        "give zeros where there are none"
                    )
                if len(counts[name]) != length:
                    raise UserError(
                        f"rgat: {field} of {name!r} are given for {len(counts[name])} hops; "
                        f"{self.layers} layers need {length} numbers"
                    )
        if not reach.nodes[self.labelled][0]:
            raise UserError(f"rgat: the sample has no seeds; give {self.labelled!r} rows at hop 0")

    def flops(
        self,
        nodes: Mapping[str, Sequence[float]],
        edges: Mapping[str, Sequence[float]],
        *,
        training: bool = True,
    ) -> float:
        """Floating-point operations of one sample, by the formula of GAT as it is written down.

        Each relation projects its sources and targets (once where they are of one type), scores both and
        sums its messages, in each layer only for rows and edges that the seeds can see. Training triples
        that, but for the gradient that the first layer does not send into the features. It counts the
        algorithm, not the program: ours computes scores of targets without projecting them.

        Args:
            nodes: by type, as of `Reach`; for a throughput give means of real rows, not padded ones.
            edges: by relation's key, as of `Reach`.
            training: whether the backward pass counts.

        >>> from mlperf_jax.input_pipelines.igbh.sizes import CITES
        >>> config = RgatConfig(relations=(CITES,), layers=1)
        >>> config.flops({"paper": (2, 10)}, {"paper__cites__paper": (20,)}, training=False)
        16625664.0
        """
        total, into_features = 2.0 * nodes[self.labelled][0] * self.width * self.classes, 0.0
        for layer in range(self.layers):
            hops = self.layers - 1 - layer
            inputs = self.width if layer else self.features
            for relation in self.relations:
                targets = nodes[relation.target][hops]
                if not targets:
                    continue
                rows = nodes[relation.source][hops + 1]
                if relation.source != relation.target:
                    rows += targets
                projection = 2.0 * rows * inputs * self.width
                total += projection + 2.0 * (rows + edges[relation.key][hops]) * self.width
                into_features += 0.0 if layer else projection
        return 3 * total - into_features if training else total

"""What IGBH consists of: types of nodes, relations between them, and the five sizes in which it is handed out.

Reference: IGB-Datasets (Khatua et al., KDD 2023, arXiv 2302.13522); relations as mlcommons/training reads them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from mlperf_jax.errors import UserError, did_you_mean

WIDTH = 1024  # of a node's features
CLASSES = (2983, 19)  # of the two label files; the benchmark's first
MOST_NODES = 2**31 - 1  # of a type: ids are int32
# in-edges drawn, from the seeds outwards; a list in DGL's order reads [5, 10, 15]
FANOUTS = (15, 10, 5)


class Relation(NamedTuple):
    """Edges of one kind, from nodes of type `source` to nodes of type `target`."""

    source: str
    name: str
    target: str

    @property
    def key(self) -> str:
        """As its folder is named: "paper__cites__paper"."""
        return "__".join(self)

    @property
    def reversed(self) -> Relation:
        """The same edges the other way round."""
        return Relation(self.target, f"rev_{self.name}", self.source)


CITES = Relation("paper", "cites", "paper")
STORED = (  # relations that have a file; the reverse of each but `CITES` is read from the same one
    CITES,
    Relation("paper", "written_by", "author"),
    Relation("author", "affiliated_to", "institute"),
    Relation("paper", "topic", "fos"),
    Relation("paper", "published", "journal"),
    Relation("paper", "venue", "conference"),
)


@dataclasses.dataclass(frozen=True)
class Size:
    """One size of the graph.

    Attributes:
        name: of its folder.
        nodes: how many of each type; types that are not named are not there, nor are their relations.
        labelled: how many papers have labels, the first ids, by the classes of the label file.
        raw: whether papers' and authors' features and the labels are stored without a header.
        replaced: so many papers, the last ids, had bad features in what was handed out before 7 November 2023.
        width: of a node's features.
    """

    name: str
    nodes: Mapping[str, int]
    labelled: Mapping[int, int]
    raw: bool = False
    replaced: int = 0
    width: int = WIDTH

    def __post_init__(self) -> None:
        large = [kind for kind, count in self.nodes.items() if not 0 < count <= MOST_NODES]
        if large:
            raise UserError(
                f"size {self.name} has {self.nodes[large[0]]:,} nodes of type {large[0]}: ids are int32, between 1 "
                f"and {MOST_NODES:,} nodes are possible"
            )
        if not set(self.labelled) <= set(CLASSES):
            raise UserError(
                f"size {self.name} has labels of {', '.join(map(str, self.labelled))} classes: there are files of "
                f"{' and '.join(map(str, CLASSES))}"
            )
        labels = [count for count in self.labelled.values() if not 0 < count <= self.nodes["paper"]]
        if labels:
            raise UserError(
                f"size {self.name} has {self.nodes['paper']:,} papers, {labels[0]:,} of which cannot have labels"
            )

    @property
    def stored(self) -> tuple[Relation, ...]:
        """The relations whose edges have a file: four, or six where there are journals and conferences."""
        return tuple(r for r in STORED if {r.source, r.target} <= set(self.nodes))

    @property
    def relations(self) -> tuple[Relation, ...]:
        """All relations, each followed by its reverse: seven or eleven.

        >>> [relation.name for relation in SIZES["tiny"].relations][:4]
        ['cites', 'written_by', 'rev_written_by', 'affiliated_to']
        """
        both = ((r,) if r == CITES else (r, r.reversed) for r in self.stored)
        return tuple(relation for pair in both for relation in pair)


def _size(name: str, paper: int, author: int, fos: int, institute: int, *others: int) -> Size:
    nodes = {"paper": paper, "author": author, "institute": institute, "fos": fos}
    nodes |= dict(zip(("journal", "conference"), others))
    return Size(name, nodes, dict.fromkeys(CLASSES, paper), raw=bool(others))


_FULL = _size("full", 269_346_174, 277_220_883, 712_960, 26_918, 49_052, 4_547)
SIZES: Mapping[str, Size] = {
    size.name: size
    for size in (
        _size("tiny", 100_000, 357_041, 84_220, 8_738),
        _size("small", 1_000_000, 1_926_066, 190_449, 14_751),
        _size("medium", 10_000_000, 15_544_654, 415_054, 23_256),
        _size("large", 100_000_000, 116_959_896, 649_707, 26_524, 48_820, 4_490),
        dataclasses.replace(
            _FULL, labelled={2983: 157_675_969, 19: 227_130_858}, replaced=4_957_567
        ),
    )
}


def named(name: str) -> Size:
    """The size of this name.

    Raises:
        UserError: there is none.
    """
    if name not in SIZES:
        raise UserError(f"IGBH has no size {name!r}{did_you_mean(name, SIZES)}")
    return SIZES[name]

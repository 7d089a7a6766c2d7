"""A small graph with planted communities in IGBH's folders, to stand in for it.

Each node but institutes belongs to one of 19 communities, which are the papers' labels. Features of papers and
authors point to their community so faintly that no model of them alone tells it from the others; edges lead within
a community more often than not, so that what a hundred neighbours say together does.
"""

from __future__ import annotations

import pathlib

import numpy as np

from mlperf_jax.input_pipelines import building
from mlperf_jax.input_pipelines.igbh.sampling_shape import Shape
from mlperf_jax.input_pipelines.igbh.sizes import CLASSES, Relation, Size

COMMUNITIES = CLASSES[1]
SIZE = Size(
    "planted",
    {
        "paper": 84_000,
        "author": 20_000,
        "institute": 60,
        "fos": 600,
        "journal": 120,
        "conference": 60,
    },
    {19: 80_000, 2983: 80_000},
    raw=True,
    width=16,
)
SEEDS, FANOUTS = 32, (6, 4)
# scripts/bench_sampling.py --shape --planted --seeds 32
ROOMS = {
    (SEEDS, FANOUTS): Shape(
        {
            "paper": (32, 200, 1_320),
            "author": (0, 72, 392),
            "institute": (0, 0, 56),
            "fos": (0, 72, 304),
            "journal": (0, 40, 112),
            "conference": (0, 40, 72),
        },
        {
            "paper__cites__paper": (200, 856),
            "paper__written_by__author": (0, 272),
            "author__rev_written_by__paper": (64, 392),
            "author__affiliated_to__institute": (0, 0),
            "institute__rev_affiliated_to__author": (0, 72),
            "paper__topic__fos": (0, 288),
            "fos__rev_topic__paper": (64, 392),
            "paper__published__journal": (0, 152),
            "journal__rev_published__paper": (32, 200),
            "paper__venue__conference": (0, 144),
            "conference__rev_venue__paper": (32, 200),
        },
    ),
}
MEANS = {
    (SEEDS, FANOUTS): Shape(
        {
            "paper": (32, 173, 1_196),
            "author": (0, 64, 342),
            "institute": (0, 0, 39),
            "fos": (0, 60, 249),
            "journal": (0, 28, 89),
            "conference": (0, 25, 56),
        },
        {
            "paper__cites__paper": (190, 753),
            "paper__written_by__author": (0, 255),
            "author__rev_written_by__paper": (64, 345),
            "author__affiliated_to__institute": (0, 0),
            "institute__rev_affiliated_to__author": (0, 64),
            "paper__topic__fos": (0, 242),
            "fos__rev_topic__paper": (64, 345),
            "paper__published__journal": (0, 112),
            "journal__rev_published__paper": (32, 173),
            "paper__venue__conference": (0, 100),
            "conference__rev_venue__paper": (32, 173),
        },
    ),
}
# of a relation: edges of each node at its beginning, and the share of them that stay in the community
_EDGES = {
    "cites": (3, 0.8),
    "written_by": (2, 0.7),
    "affiliated_to": (1, 0.0),
    "topic": (2, 0.8),
    "published": (1, 0.5),
    "venue": (1, 0.3),
}
_FAINT = 0.3  # what a feature says of the community, in standard deviations of its noise
_SEED = 19


def write(data_dir: str) -> None:
    """Writes `<data_dir>/planted/processed`, which appears only when it is whole."""
    place = pathlib.Path(data_dir, SIZE.name, "processed")
    with building.alone(place) as target:
        if not target.exists():
            with building.unfinished(target) as part:
                _write(part)


def communities() -> dict[str, np.ndarray]:
    """Of each node of each type, its community."""
    rng = np.random.default_rng(_SEED)
    counts = SIZE.nodes.items()
    return {kind: rng.permutation(np.arange(count) % COMMUNITIES) for kind, count in counts}


def centres() -> np.ndarray:
    """What each community adds to the features of its papers and authors, [communities, width]."""
    return _FAINT * np.random.default_rng([_SEED, 1]).normal(size=(COMMUNITIES, SIZE.width))


def _write(place: pathlib.Path) -> None:
    homes, rng = communities(), np.random.default_rng([_SEED, 2])
    for kind, home in homes.items():
        (place / kind).mkdir(parents=True)
        values = rng.normal(size=(len(home), SIZE.width))
        if kind in ("paper", "author"):
            (values + centres()[home]).astype("<f4").tofile(place / kind / "node_feat.npy")
        else:
            np.save(place / kind / "node_feat.npy", values.astype("<f4"))
    homes["paper"].astype("<f4").tofile(place / "paper" / "node_label_19.npy")
    homes["paper"].astype("<f4").tofile(place / "paper" / "node_label_2K.npy")
    for relation in SIZE.stored:
        (place / relation.key).mkdir()
        edges = _edges(relation, homes, rng).astype("<i4")
        np.save(place / relation.key / "edge_index.npy", edges)


def _edges(
    relation: Relation, homes: dict[str, np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """[edges, 2]: most lead to a node of the same community, the others anywhere."""
    (many, faithful), home = _EDGES[relation.name], homes[relation.target]
    begin = np.repeat(np.arange(len(homes[relation.source])), many)
    by_home = np.argsort(home, kind="stable")
    counts = np.bincount(home, minlength=COMMUNITIES)
    wanted = homes[relation.source][begin]
    within = np.floor(rng.random(len(begin)) * counts[wanted]).astype(np.int64)
    same = by_home[(np.cumsum(counts) - counts)[wanted] + within]
    anywhere = rng.integers(0, len(home), len(begin))
    return np.stack([begin, np.where(rng.random(len(begin)) < faithful, same, anywhere)], 1)

"""A toy of IGBH in the real layout, and a slow twin of its in-edges."""

import pathlib

import numpy as np

from mlperf_jax.input_pipelines.igbh.sizes import CITES, CLASSES, Relation, Size

NODES = {"paper": 60, "author": 45, "institute": 7, "fos": 11, "journal": 5, "conference": 3}
EDGES = {"cites": 300, "written_by": 130, "affiliated_to": 50, "topic": 150, "published": 40}
LABELS = {2983: "node_label_2K.npy", 19: "node_label_19.npy"}
WIDTH = 8


def toy_size(name="toy", raw=True, **changed) -> Size:
    """Like the full size, or without `raw` like the small ones, which have no journals and conferences."""
    nodes = NODES if raw else {kind: NODES[kind] for kind in list(NODES)[:4]}
    labelled = {2983: 40, 19: 50} if raw else dict.fromkeys(CLASSES, NODES["paper"])
    settings = {"raw": raw, "replaced": 20 if raw else 0, "width": WIDTH, **changed}
    return Size(name, nodes, labelled, **settings)


def edges_of(size: Size, relation: Relation, ids=np.int64) -> np.ndarray:
    """Random edges; of `cites` some stand twice, in both directions, or begin and end at one paper.

    Paper 11 and the last ones have no edges, and the very last cites itself alone.
    """
    rng = np.random.default_rng(len(relation.key))
    few = {kind: count - 4 if count > 20 else count for kind, count in size.nodes.items()}
    ends = few[relation.source], few[relation.target]
    found = rng.integers(0, ends, (EDGES.get(relation.name, 20), 2)).astype(ids)
    if relation == CITES:
        last = size.nodes["paper"] - 1
        found[found == 11] = 12
        found = np.concatenate(
            [found, found[:9], found[20:26, ::-1], [(7, 7), (3, 3), (last, last)]]
        )
    return found.astype(ids)


def write(data_dir, size: Size | None = None, ids=np.int64) -> pathlib.Path:
    """Writes `<data_dir>/<size>/processed`, and returns it."""
    size, rng = size or toy_size(), np.random.default_rng(3)
    place = pathlib.Path(data_dir, size.name, "processed")
    for kind, count in size.nodes.items():
        values = rng.normal(0, 1, (count, size.width)).astype(np.float32)
        _write(place / kind / "node_feat.npy", values, size.raw and kind in ("paper", "author"))
    for classes, name in LABELS.items():
        labels = np.zeros(size.nodes["paper"], np.float32)
        labels[: size.labelled[classes]] = rng.integers(0, classes, size.labelled[classes])
        _write(place / "paper" / name, labels, size.raw)
    for relation in size.stored:
        _write(place / relation.key / "edge_index.npy", edges_of(size, relation, ids), False)
    return place


def _write(path: pathlib.Path, values: np.ndarray, raw: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if raw:
        values.tofile(path)
    else:
        np.save(path, values)


def slow_in_edges(size: Size, relation: Relation, edges: np.ndarray) -> list[list[int]]:
    """Of each node of the target's type, where its in-edges begin; `edges` as stored, one after another."""
    found: list[list[int]] = [[] for _ in range(size.nodes[relation.target])]
    for a, b in edges.tolist():
        if relation != CITES:
            begin, end = (b, a) if relation.name.startswith("rev_") else (a, b)
            found[end].append(begin)
        elif a != b:
            found[b].append(a)
            found[a].append(b)
    if relation == CITES:
        different = edges[edges[:, 0] != edges[:, 1]]
        for paper in range(int(different.max(initial=-1)) + 1):
            found[paper] += [paper, paper]
    return found

"""IGBH's folders as they are handed out: features, labels and edges, memory-mapped.

`<data>/<size>/processed` holds `<type>/node_feat.npy`, float32 [N, 1024], `paper/node_label_2K.npy` and
`paper/node_label_19.npy`, float32 [papers], and `<source>__<name>__<target>/edge_index.npy`, int64 or
int32 [edges, 2]. In the sizes large and full, papers' and authors' features and the labels have no header. Opening
reads headers and sizes alone; labels are checked by `read_labels`, ids of edges by the build of csc.py.

Reference: IGB-Datasets, igb/dataloader.py; graphlearn-for-pytorch, examples/igbh/dataset.py.
Shape legend: N nodes of a type, W width of a node's features.
"""

from __future__ import annotations

import calendar
import dataclasses
import os
import pathlib
import time
from collections.abc import Mapping

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import records
from mlperf_jax.input_pipelines.igbh import features
from mlperf_jax.input_pipelines.igbh.arrays import Mapped, open_npy, open_raw
from mlperf_jax.input_pipelines.igbh.sizes import CLASSES, Relation, Size, named

_FETCH = "fetch it (mlperf-jax data fetch rgat says how), or give another --data-dir"
_LABELS: Mapping[int, str] = dict(zip(CLASSES, ("node_label_2K.npy", "node_label_19.npy")))
_RAW = ("paper", "author")  # types whose features have no header in large sizes
_FLOAT, _IDS = np.dtype("<f4"), (np.dtype("<i8"), np.dtype("<i4"))
# Outside of these years a file's time is not the time when it was written.
_BEGUN, _REPLACED = (calendar.timegm((*day, 0, 0, 0)) for day in ((2022, 1, 1), (2023, 11, 7)))
_CHUNK = 1 << 22  # labels read at once


@dataclasses.dataclass(frozen=True)
class Graph:
    """An opened graph.

    Attributes:
        folder: `<data>/<size>`.
        size: of the graph.
        features: [N, W] of each type, float32 or what `features.write_copies` made of it.
        labels: float32 [papers].
        classes: of the labels.
        edges: [edges, 2] of each relation that has a file, first where they begin, then where they end.
    """

    folder: pathlib.Path
    size: Size
    features: Mapping[str, Mapped]
    labels: Mapped
    classes: int
    edges: Mapping[Relation, Mapped]

    @property
    def labelled(self) -> int:
        """How many papers have labels: the first ids."""
        return self.size.labelled[self.classes]


def open_graph(
    data_dir: str | os.PathLike,
    size: str | Size = "full",
    *,
    classes: int = CLASSES[0],
    dtype: str = "float32",
) -> Graph:
    """Opens a graph, and checks what headers, sizes and times of its files tell.

    Args:
        data_dir: the folder that holds `<size>/processed`.
        size: "tiny", "small", "medium", "large", "full", or one of one's own.
        classes: of the labels, 2,983 or 19.
        dtype: of the features: "float32" as handed out, or "float16" or "float8_e4m3fn" of `features.write_copies`.

    Raises:
        UserError: files are missing, cut short, of another shape or type, or the features are from before
            7 November 2023.
    """
    size = named(size) if isinstance(size, str) else size
    if classes not in size.labelled:
        known = " or ".join(map(str, size.labelled))
        raise UserError(f"IGBH has no labels of {classes} classes: choose {known}")
    data_dir = records.local(data_dir)
    if "://" in data_dir:
        raise UserError(f"{data_dir}: IGBH is memory-mapped, copy it to a local disk")
    folder = pathlib.Path(data_dir, size.name)
    place = folder / "processed"
    paths = {kind: place / kind / "node_feat.npy" for kind in size.nodes}
    labels = place / "paper" / _LABELS[classes]
    edges = {r: place / r.key / "edge_index.npy" for r in size.stored}
    wanted = [labels, *edges.values(), *(paths.values() if dtype == "float32" else ())]
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        raise UserError(
            f"{place} lacks {len(missing)} of {len(wanted)} files, the first is {missing[0].relative_to(place)}: "
            f"{_FETCH}"
        )
    if dtype == "float32":
        found = {kind: _features(path, size, kind) for kind, path in paths.items()}
        check_age(size, paths["paper"])
    else:
        found = features.open_copies(folder, size, dtype)
    return Graph(
        folder,
        size,
        found,
        _labels(labels, size),
        classes,
        {r: open_npy(path, (None, 2), _IDS, c_order=False) for r, path in edges.items()},
    )


def _features(path: pathlib.Path, size: Size, kind: str) -> Mapped:
    shape = size.nodes[kind], size.width
    raw = size.raw and kind in _RAW
    found = open_raw(path, shape, _FLOAT) if raw else open_npy(path, shape, (_FLOAT,))
    return dataclasses.replace(found, scattered=True)


def _labels(path: pathlib.Path, size: Size) -> Mapped:
    papers = size.nodes["paper"]
    if size.raw:
        return open_raw(path, (papers,), _FLOAT)
    return open_npy(path, (papers,), (_FLOAT,))


def read_labels(graph: Graph) -> np.ndarray:
    """The classes of the labelled papers, int16 [labelled].

    Raises:
        UserError: a label is no whole number, or not one of the classes; names the paper.
    """
    found = np.empty(graph.labelled, np.int16)
    labels = graph.labels.array
    for first in range(0, graph.labelled, _CHUNK):
        piece = labels[first : min(first + _CHUNK, graph.labelled)]
        # NaN compares false with everything
        good = (piece >= 0) & (piece < graph.classes) & (np.floor(piece) == piece)
        if not good.all():
            at = int(np.argmin(good))
            raise UserError(
                f"{graph.labels.path}, paper {first + at:,}: label {piece[at]} is no class, a whole number from 0 to "
                f"{graph.classes - 1}: fetch it again"
            )
        found[first : first + len(piece)] = piece
    return found


# -- what was replaced -----------------------------------------------------------------------------


def check_age(size: Size, path: str | os.PathLike) -> None:
    """Nothing, unless papers' features were last written before bad ones were replaced on 7 November 2023.

    `wget` and `rclone` keep the time of the source. A copy that does not keep it, and times before 2022, tell
    nothing; neither does the size, which is the same.

    Raises:
        UserError: they were.
    """
    written = os.stat(path).st_mtime
    if size.replaced and _BEGUN <= written < _REPLACED:
        day = time.strftime("%Y-%m-%d", time.gmtime(written))
        raise UserError(
            f"{path} was last written on {day}: the features of its last {size.replaced:,} papers were bad until "
            "they were replaced on 2023-11-07; fetch it again, or, if only its time is wrong, set it with touch"
        )


def check_replaced(graph: Graph, rows: int = 4096, seed: int = 0) -> None:
    """Samples features of the papers that were replaced; nothing, if each is finite, not zero, and unlike the others.

    What was wrong with them was not published. Features that are missing, or are filled with one row, are found;
    those that belong to other papers are not, and nothing that a file holds tells them.

    Args:
        graph: opened, with features of any type.
        rows: how many are read, spread at random.
        seed: of the sample.

    Raises:
        UserError: a row is bad, or two are equal; names the papers.
    """
    papers, count = graph.size.nodes["paper"], graph.size.replaced
    rows = min(rows, count)
    random = np.random.default_rng(seed)
    # one of each of so many equal parts: distinct, and spread
    edges = papers - count + np.arange(rows + 1, dtype=np.int64) * count // max(rows, 1)
    ids = random.integers(edges[:-1], edges[1:])
    path, seen = graph.features["paper"].path, {}
    for paper in ids.tolist():
        row = np.asarray(graph.features["paper"].array[paper])
        values = row.astype(np.float32)
        known = seen.setdefault(row.tobytes(), paper)
        if not np.isfinite(values).all():
            what = "not finite"
        elif not values.any():
            what = "zero"
        elif known != paper:
            what = f"those of paper {known:,}"
        else:
            continue
        raise UserError(
            f"{path}, paper {paper:,}: its features are {what}; the last {count:,} were bad in what was handed out "
            "before 2023-11-07: fetch the file again"
        )

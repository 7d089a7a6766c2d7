"""IGBH, the graph of 547 million nodes: samples of its neighbourhoods, and the features of its nodes.

The folder is the organisers', read where it lies. Beside it a build puts what the rules let be made beforehand: the
in-edges by destination (csc.py), and the features in fewer bytes (features.py).
Reference: mlcommons/training, retired_benchmarks/rgat.

Shape legend: N nodes of a type, W width of a feature, S seeds of a sample.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import pipeline, records
from mlperf_jax.input_pipelines.igbh import (
    compiler,
    csc,
    drawing,
    features,
    planted,
    rooms,
    sampling_shape,
    split,
)
from mlperf_jax.input_pipelines.igbh.arrays import Mapped
from mlperf_jax.input_pipelines.igbh.graph import Graph, check_replaced, open_graph, read_labels
from mlperf_jax.input_pipelines.igbh.sampling_shape import Shape
from mlperf_jax.input_pipelines.igbh.sizes import CLASSES, FANOUTS, Size
from mlperf_jax.input_pipelines.sources import Batch

if TYPE_CHECKING:
    from mlperf_jax.input_pipelines.igbh.rows import Rows
    from mlperf_jax.input_pipelines.igbh.sampling import Sampler
    from mlperf_jax.input_pipelines.igbh.sampling_shape import Sample

# samples that a check draws, and standard deviations beyond their mean that must find room: one sample in three
# million has more, and room was made for six
_CHECKED, _DEVIATIONS = 48, 5.0


@dataclasses.dataclass(frozen=True)
class Igbh:
    """The data set: every method takes the folder that holds `<size>/processed`.

    Attributes:
        size: of the graph.
        shape: room for the sample of S seeds.
        batch_size: seeds of a training batch.
        classes: of the labels.
        fanouts: in-edges of a node under a relation at most, from the seeds outwards.
        feature_dtype: of the features: "float32" as handed out, "float16" or "float8_e4m3fn".
        bins: type -> (block, bins) of types whose nodes a batch lists bin by bin: consecutive nodes make blocks, which
            are dealt to the bins.
    """

    size: Size
    shape: Shape
    batch_size: int
    classes: int = CLASSES[0]
    fanouts: tuple[int, ...] = FANOUTS
    feature_dtype: str = "float8_e4m3fn"
    bins: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    @property
    def tiny(self) -> bool:
        """Whether it is the planted graph."""
        return self.size == planted.SIZE

    def graph(self, folder: records.Folder) -> Graph:
        """The graph, opened; copies of its features must have been written.

        Raises:
            UserError: files are missing, cut short or others, or were not built.
        """
        place = records.mapped(folder)
        if self.tiny and not os.path.exists(f"{place}/{self.size.name}"):
            raise UserError(records.missing_tiny("planted graph", "rgat", str(folder)))
        return open_graph(place, self.size, classes=self.classes, dtype=self.feature_dtype)

    def features(self, folder: records.Folder, kind: str) -> Mapped:
        """The features of a type, [N, W]; raises as `graph`."""
        return self.graph(folder).features[kind]

    def train(self, folder: records.Folder) -> pipeline.Split:
        """Training's batches; an epoch's last one is short, and its rows without a seed are padding.

        Raises:
            UserError: as `graph`, or the in-edges were not built.
        """
        rows = self._rows(folder, self.batch_size)
        return pipeline.training(rows, plan=rows.plan())

    def validation(self, folder: records.Folder) -> pipeline.Split:
        """The papers that validate, in the order of the split; raises as `train`."""
        return pipeline.evaluation(self._rows(folder, None))

    def drawn(self, rows: int, example: Mapping[str, Any], rng: np.random.Generator) -> Batch:
        """All of a row: samples with as many nodes and edges as on average; see `DrawsBatches`."""
        means = planted.MEANS if self.tiny else rooms.MEANS
        mean = rooms.of(means, self.size, self.shape.seeds, self.fanouts)
        common = mean, self.shape, self.size.nodes, self.classes, self.bins, rng
        made = [drawing.row(*common) for _ in range(rows)]
        found = {name: np.stack([row[name] for row in made]) for name in made[0]}
        return {**found, "mask": np.ones(rows, bool)}

    def _rows(self, folder: records.Folder, batch_size: int | None) -> Rows:
        from mlperf_jax.input_pipelines.igbh.rows import Papers, Rows

        opened = self.graph(folder)
        return Rows(Papers(opened), self._sampler(opened), self.shape, batch_size, self.bins)

    def _sampler(self, opened: Graph) -> Sampler:
        from mlperf_jax.input_pipelines.igbh.sampling import Sampler

        edges = tuple(csc.open_edges(opened).values())
        return Sampler(opened.size.nodes, edges, fanouts=self.fanouts)

    def counts(self, folder: records.Folder) -> dict[str, int]:
        """Papers that train and that validate; raises as `train`, and where numba is missing."""
        compiler.numba()  # a run asks for the counts first, and samples when its clock runs
        opened = self.graph(folder)
        csc.open_edges(opened)
        return dict(zip(("train", "validation"), split.sizes(opened.labelled)))

    def build(self, folder: records.Folder, source: records.Folder | None = None) -> None:
        """Builds the in-edges, and the features' copies; what is there is kept.

        Args:
            folder: holds `<size>/processed`, or gets a link to it.
            source: the folder that holds it, where that is another one.

        Raises:
            UserError: files are missing, damaged or others, there is no room on the disk, or numba is missing.
        """
        compiler.numba()
        place = records.mapped(folder)
        if self.tiny:
            planted.write(place)
        elif source is not None:
            self._link(pathlib.Path(place), pathlib.Path(records.mapped(source)))
        say = (lambda text: None) if self.tiny else functools.partial(print, flush=True)
        handed_out = open_graph(place, self.size, classes=self.classes)
        csc.build(handed_out, say)
        if self.feature_dtype != "float32":
            features.write_copies(handed_out.folder, handed_out.features, self.feature_dtype, say)

    def _link(self, folder: pathlib.Path, source: pathlib.Path) -> None:
        link, target = (place / self.size.name / "processed" for place in (folder, source))
        if link.exists() or not target.exists():
            return  # what is missing is said when it is opened
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target.absolute(), target_is_directory=True)

    def check(self, folder: records.Folder) -> list[str]:
        """Reads all labels and some of the features that were once bad, and draws samples.

        Returns:
            A report, line by line; what begins with "problem:" needs mending.
        """
        opened = self.graph(folder)
        report = [f"{opened.folder}: {sum(opened.size.nodes.values()):,} nodes"]
        for relation, edges in csc.open_edges(opened).items():
            report.append(f"{relation.key}: {len(edges.indices):,} edges")
        try:
            read_labels(opened)
            check_replaced(opened)
            report += self._room(opened)
        except UserError as error:
            report.append(f"problem: {error}")
        return report

    def _room(self, opened: Graph) -> list[str]:
        """How much of its room a sample takes."""
        seeds, sampler = self.shape.seeds, self._sampler(opened)
        papers = split.papers(opened.labelled)[0]

        def samples() -> Iterator[Sample]:
            for i in range(min(_CHECKED, len(papers) // seeds)):
                yield sampler(papers[i * seeds : (i + 1) * seeds], seed=0, batch=i)

        need = sampling_shape.measured(samples(), _DEVIATIONS, multiple=1)
        share = need.share_of(self.shape)
        said = f"samples of {seeds} seeds need {share:.3f} of the room that the recipe has for them"
        if share > 1:
            return [
                f"warning: {said}: give room={share:.2f} times what it is, or some edges are dropped"
            ]
        return [said]

"""KiTS19: 210 CT volumes with kidneys and tumours, 168 to train on and 42 to evaluate.

Read as the reference's preparation and ours leave them: `case_00000_x.npy` (f32) and `case_00000_y.npy`
(u8: 0 background, 1 kidney, 2 tumour), both [1, D, H, W], by memory map. Beside our folder lies an index,
`kits19.jsonl`, with the shape, the foreground's boxes and the MD5 sums of each case; without it the boxes
are found when a case is first read.

Reference: mlcommons/training, retired_benchmarks/unet3d/pytorch, data_loading/data_loader.py.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building, pipeline, records
from mlperf_jax.input_pipelines.kits19 import files, patches
from mlperf_jax.input_pipelines.sources import Batch


@dataclasses.dataclass(frozen=True)
class Kits19:
    """The data set: every method takes the folder that holds `kits19`, or is that of the `.npy` pairs.

    Attributes:
        side: S, of training patches and of windows; volumes are padded to at least this when prepared.
        shape: D, H, W that whole volumes are padded to.
        oversampling: share of training patches around foreground.
        augmentation: see `kits19.patches.Patch`.
        tiny: phantoms in the place of KiTS19.
    """

    side: int = 128
    shape: tuple[int, ...] = (448, 448, 448)
    oversampling: float = 0.4
    augmentation: patches.Augmentation = "reference"
    tiny: bool = False

    def train(self, folder: records.Folder) -> pipeline.Split:
        """Training patches {"image": f32 [S, S, S, 1], "label": u8 [S, S, S]}, one per volume and epoch.

        Where the batch does not divide the volumes, batches run on into the next epoch's order: every one
        is full, as the rules' padded epoch has it.

        Raises:
            UserError: no data there, or incomplete pairs.
        """
        patch = patches.Patch(self.side, self.oversampling, self.augmentation)
        source = files.open_split(folder, "train", self.tiny)
        return pipeline.training(source, patch, last_batch="mix")

    def validation(self, folder: records.Folder) -> pipeline.Split:
        """Whole volumes, each once; see `kits19.patches.WholeVolume`; raises as `train`.

        Those with the most windows come first, so that the devices of a batch have about as much to do.
        """
        source = files.open_split(folder, "validation", self.tiny)

        def windows(name: str) -> int:
            entry = source.index.get(name)
            sides = entry.shape if entry else source[source.names.index(name)].label.shape
            return int(np.prod([patches.fit(n, self.side).windows for n in sides]))

        source.names = tuple(sorted(source.names, key=lambda name: (-windows(name), name)))
        depth, height, width = self.shape
        whole = patches.WholeVolume((depth, height, width), self.side)
        return pipeline.evaluation(source, whole)

    def drawn(self, rows: int, example: Mapping[str, Any], rng: np.random.Generator) -> Batch:
        """{"label", "windows"}: kidneys in a tenth of the blocks, tumours in a third of them; see `DrawsBatches`."""
        shape, block = example["label"].shape, self.side // 8
        coarse = rng.choice(3, (rows, *(-(-side // block) for side in shape)), p=(0.9, 0.07, 0.03))
        label = coarse.astype(np.uint8)
        for axis, side in enumerate(shape, start=1):
            label = np.repeat(label, block, axis).take(range(side), axis)
        most = [patches.fit(side, self.side).windows for side in shape]
        windows = rng.integers(1, most, (rows, len(most)), np.int32, endpoint=True)
        return {"label": label, "windows": windows}

    def counts(self, folder: records.Folder) -> dict[str, int]:
        """{"train": n, "validation": n} from the listing and the index; opens no volume; raises as `train`."""
        return {split: len(files.open_split(folder, split, self.tiny)) for split in files.SPLITS}

    def class_names(self, folder: records.Folder) -> tuple[str, ...]:
        """Names of the classes above 0, whatever the folder."""
        return files.CLASSES

    def build(self, folder: records.Folder, source: records.Folder | None = None) -> None:
        """Prepares what is not prepared yet; see `kits19.builder`.

        Args:
            folder: where `kits19` and `kits19.jsonl` (tiny: `kits19_tiny`) go.
            source: the folder with `case_00000/imaging.nii.gz` and so on, or one that holds it as `data` or
                `kits19/data`; `folder` by default.

        Raises:
            UserError: nothing to build from, a case is incomplete or damaged, or the disk is full.
        """
        from mlperf_jax.input_pipelines.kits19 import builder

        target = f"{records.local(folder)}/{files.TINY_NAME if self.tiny else files.NAME}"
        builder.write(target, records.local(source or folder), self.tiny, self.side)

    def check(self, folder: records.Folder) -> list[str]:
        """Reads every volume once: labels, values, and the MD5 sums of index and organisers."""
        found = files.locate(folder, self.tiny)
        official = {} if self.tiny else files.official_md5()
        report, same = [found], 0
        ids = range(files.TINY_CASES if self.tiny else files.LABELLED)
        for split in files.SPLITS:
            cases = files.open_split(found, split, self.tiny)
            expected = sum((i in files.VALIDATION) == (split == "validation") for i in ids)
            report.append(f"{split}: {len(cases)} cases")
            if len(cases) != expected:
                report.append(f"problem: {split} has {len(cases)} cases, KiTS19 has {expected}")
            with concurrent.futures.ThreadPoolExecutor() as pool:
                for lines, equal in pool.map(
                    lambda i, cases=cases: _examine(cases, i, official), range(len(cases))
                ):
                    report += lines
                    same += equal
        if official:
            report.append(f"{same} of {len(official)} files have the organisers' MD5 sum")
        return report


def _examine(cases: files.Cases, index: int, official: Mapping[str, str]) -> tuple[list[str], int]:
    """Findings of one case, and how many of its files have the organisers' sum."""
    name, found, same = cases.names[index], [], 0
    try:
        case = cases[index]
    except UserError as error:
        return [f"problem: {error}"], 0
    if not np.isfinite(case.image).all():
        found.append(f"problem: {name}_x.npy holds values that are not finite")
    labels = np.flatnonzero(np.bincount(case.label.ravel(), minlength=3))
    if labels[-1] > 2:
        found.append(f"problem: {name}_y.npy holds the label {labels[-1]}; allowed are 0, 1, 2")
    if labels[-1] == 0:
        found.append(f"problem: {name}_y.npy is empty: it marks neither kidney nor tumour")
    entry = cases.index.get(name)
    for file in files.pair(name):
        summed = building.md5(f"{cases.folder}/{file}")
        same += official.get(file) == summed
        if entry is not None and entry.md5.get(file) != summed:
            found.append(f"problem: {file} has changed since it was built; delete it, build again")
        elif file in official and official[file] != summed:
            found.append(f"note: {file} differs from the organisers' MD5 sum")
    return found, same

"""Criteo's 1 TB click logs with multi-hot ids, for DLRM-DCNv2: 4.2 G training samples, 89 M to validate.

A folder holds the organisers' day files (`criteo.files`) for days 0 .. 23, or HugeCTR's `train_data.bin`
and `val_data.bin`. Days 0 .. 22 are shuffled already and are read as they lie, in large blocks from memory
maps; validation is the first half of day 23, rounded up. `Criteo.build` makes the day files from the raw
logs; tiny is a small stand-in of the same form.

Reference: mlcommons/training, recommendation_v2/torchrec_dlrm.
Shape legend: B rows of a global batch, k ids of a table's bag, K ids of all bags together (214).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import drawing, pipeline, records
from mlperf_jax.input_pipelines.criteo import files, tiny as criteo_tiny
from mlperf_jax.input_pipelines.criteo.click_log import ClickLog
from mlperf_jax.input_pipelines.sources import Batch

NAME, TINY_NAME, VERSION = "criteo_multihot", "criteo_tiny", "1.0.0"
DAYS, VALIDATION_DAY = range(24), 23
RECORD_FILES = {"train": "train_data.bin", "validation": "val_data.bin"}
# fmt: off
ROWS = (
    40_000_000, 39_060, 17_295, 7_424, 20_265, 3, 7_122, 1_543, 63, 40_000_000, 3_067_956, 405_282, 10,
    2_209, 11_938, 155, 4, 976, 14, 40_000_000, 40_000_000, 40_000_000, 590_152, 12_973, 108, 36,
)
BAGS = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)
# fmt: on
_LOOKED_AT = 4096  # samples at either end of a part that `check` reads
_HASHED = 1 << 34  # bytes of the largest file whose checksum `check` computes unasked
_CLICKS = 0.034  # share of samples that are clicks
_PRIME = 2_654_435_761  # divides no table's rows
TINY_ROWS, TINY_BAGS = criteo_tiny.ROWS, criteo_tiny.BAGS
COUNTS = {
    NAME: {"train": 4_195_197_692, "validation": 89_137_319},
    TINY_NAME: {"train": 73_728, "validation": 8_193},
}


@dataclasses.dataclass(frozen=True)
class Criteo:
    """The data set: every method takes the folder with the files, or the one that holds `criteo_multihot`.

    Attributes:
        rows: of each table.
        bags: bag size of each table.
        round_ids: `build` rounds the training days' ids above 2^24 as float32 does, before the modulo. The
            official data, and with it every reference convergence point, has this rounding; without it
            training and validation agree on what an id means.
        tiny: the small stand-in, `criteo_tiny/1.0.0`, which has `TINY_ROWS` and `TINY_BAGS`.
    """

    rows: tuple[int, ...] = ROWS
    bags: tuple[int, ...] = BAGS
    round_ids: bool = True
    tiny: bool = False

    def train(self, folder: records.Folder) -> pipeline.Split:
        """The training samples, in the order of the files: days 0 .. 22, or `train_data.bin`.

        An epoch's last partial batch is left out, as in the reference convergence runs.

        Raises:
            UserError: a file is missing, cut short, or of other bag sizes.
        """
        return pipeline.training(self.log(folder, "train"), shuffle=False)

    def validation(self, folder: records.Folder) -> pipeline.Split:
        """The validation samples: the first half of day 23, rounded up, or `val_data.bin`; raises as `train`."""
        return pipeline.evaluation(self.log(folder, "validation"))

    def log(self, folder: records.Folder, split: str) -> ClickLog:
        """The samples of "train" or "validation"; raises as `train`."""
        found, form = locate(folder, self.tiny)
        if form == "records":
            parts = [files.open_records(f"{found}/{RECORD_FILES[split]}", self.bags)]
        elif split == "validation":
            day = files.open_day(found, VALIDATION_DAY, self.bags)
            parts = [day.head((day.rows + 1) // 2)]
        else:
            days = [day for day in _days(self.tiny) if day != VALIDATION_DAY]
            parts = [files.open_day(found, day, self.bags) for day in days]
        return ClickLog(tuple(parts), self.rows, self.bags)

    def drawn(self, rows: int, example: Mapping[str, Any], rng: np.random.Generator) -> Batch:
        """{"ids", "label"}: ids of power laws, hashed as theirs are, and clicks as rare; see `DrawsBatches`."""
        tables = zip(self.rows, self.bags, strict=True)
        ids = [_hashed(drawing.log_uniform(rng, n, (rows, bag)), n) for n, bag in tables]
        clicks = rng.random(rows) < _CLICKS
        return {"ids": np.concatenate(ids, 1), "label": clicks.astype(np.float32)}

    def counts(self, folder: records.Folder) -> dict[str, int]:
        """{"train": n, "validation": n} from headers and sizes alone; raises as `train`."""
        return {split: len(self.log(folder, split)) for split in RECORD_FILES}

    def build(self, folder: records.Folder, source: records.Folder | None = None) -> None:
        """Writes the day files; does nothing if they are there already and no header says otherwise.

        Args:
            folder: `criteo_multihot` (tiny: `criteo_tiny/1.0.0`, in about a second) is made in it.
            source: folder with the raw logs `day_0` .. `day_23` (or `.gz`), or with the one-hot arrays
                `day_0_sparse.npy`, …; `folder` by default.

        Raises:
            UserError: nothing to build from, or not enough room on the disk.
        """
        with contextlib.suppress(UserError):
            self.counts(folder)
            return
        target = f"{records.local(folder)}/{_folder_name(self.tiny)}"
        if self.tiny:
            criteo_tiny.write(target, self.rows, self.bags)
            return
        from mlperf_jax.input_pipelines.criteo import builder
        from mlperf_jax.input_pipelines.criteo.plan import BuildPlan

        given = records.local(source or folder)
        plan = BuildPlan(given, target, tuple(DAYS), self.rows, self.bags, self.round_ids)
        builder.write(plan.with_processes(pipeline.usable_cores()))

    def check(self, folder: records.Folder, *, whole: bool = False) -> list[str]:
        """Opens every file, reads the first and last samples of each part, and compares checksums.

        Args:
            folder: as for the other methods.
            whole: compare all files that have a published checksum, a third of a terabyte and more; else
                the labels and dense features of days 0 and 23, 23 GB.

        Returns:
            A report, line by line; lines that begin with "problem:" need mending, those with "warning:" say
            that a file differs from the published one.
        """
        from mlperf_jax.input_pipelines.criteo import builder

        found, form = locate(folder, self.tiny)
        report = [f"{found} ({form})"]
        for split in RECORD_FILES:
            try:
                log = self.log(folder, split)
            except UserError as error:
                report.append(f"problem: {error}")
                continue
            expected = COUNTS[TINY_NAME if self.tiny else NAME][split]
            report.append(f"{split}: {len(log):,} samples in {len(log.parts)} parts")
            if len(log) != expected:
                report.append(f"problem: {split} has {len(log):,} samples, expected {expected:,}")
            starts = itertools.accumulate((part.rows for part in log.parts), initial=0)
            for start, part in zip(starts, log.parts):
                few = min(part.rows, _LOOKED_AT)
                for first in (start, start + part.rows - few):
                    samples = np.arange(first, first + few)
                    try:
                        log.read(samples, log.begin(samples))
                    except UserError as error:
                        report.append(f"problem: {error}")
        return report + builder.verify(found, 1 << 62 if whole else _HASHED)


# -- what is in a folder -----------------------------------------------------------------------


def _days(tiny: bool) -> tuple[int, ...]:
    return tuple(criteo_tiny.DAYS) if tiny else tuple(DAYS)


def locate(data_dir: records.Folder, tiny: bool = False) -> tuple[str, str]:
    """Returns the folder that holds the files, and their form: "days" or "records".

    Raises:
        UserError: there is no data set, or some of its files are missing; says which and how to get them.
    """
    data_dir = records.mapped(data_dir)
    forms = {"days": [name for day in _days(tiny) for name in files.day_files(day)]}
    if not tiny:
        forms["records"] = list(RECORD_FILES.values())
    partial = []
    for folder in (data_dir, f"{data_dir}/{_folder_name(tiny)}"):
        have = records.listing(folder) or {}
        for form, wanted in forms.items():
            missing = [name for name in wanted if name not in have]
            if not missing:
                return folder, form
            if len(missing) < len(wanted):
                partial.append(
                    f"{folder} lacks {len(missing)} of {len(wanted)} files, the first is {missing[0]}; copy or "
                    "build the rest"
                )
    if partial:
        raise UserError(partial[0])
    raise UserError(_missing(data_dir, tiny))


def _folder_name(tiny: bool) -> str:
    return f"{TINY_NAME}/{VERSION}" if tiny else NAME


def _missing(data_dir: str, tiny: bool) -> str:
    if tiny:
        return records.missing_tiny(_folder_name(tiny), "dlrm_dcnv2", data_dir)
    return (
        f"no multi-hot Criteo click logs in {data_dir}: expected day_0_labels.npy, day_0_dense.npy, "
        "day_0_sparse_multi_hot.npz, … for days 0 to 23, or HugeCTR's train_data.bin and val_data.bin; fetch "
        "them (mlperf-jax data fetch dlrm_dcnv2 says how), or build them from the "
        f"raw logs: mlperf-jax data build dlrm_dcnv2 --data-dir {data_dir} --source FOLDER"
    )


def _hashed(ids: np.ndarray, rows: int) -> np.ndarray:
    """Each id at a place of its own among so many rows, the frequent ones far from each other."""
    return (ids.astype(np.int64) * _PRIME % rows).astype(np.int32)

"""KiTS19 on disk: pairs of `.npy` files and their index, found and opened; no volume is read."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import records
from mlperf_jax.input_pipelines.kits19 import patches

NAME, TINY_NAME = "kits19", "kits19_tiny"
LABELLED = 210  # cases from here on have no public segmentation
TINY_CASES = 44
SPLITS, CLASSES = ("train", "validation"), ("kidney", "tumour")
# 42 of the 210; 8 of the first 44, which a tiny set holds
VALIDATION = frozenset(
    map(
        int,
        """0 3 5 6 12 24 34 41 44 49 52 56 61 65 66 70 76 78 80 84 86 87 92 111 112 125 128 138 157 160
        161 162 169 171 176 185 187 189 198 203 206 207""".split(),
    )
)
_FILE = re.compile(r"(case_(\d{5}))_([xy])\.npy")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of the index: a prepared case.

    Attributes:
        case: "case_00000".
        shape: D, H, W.
        boxes: the largest components by class, as `patches.largest_boxes` finds them.
        md5: of the two files, by their names.
        notes: what the preparation found odd.
    """

    case: str
    shape: tuple[int, int, int]
    boxes: Mapping[int, Sequence[patches.Box]]
    md5: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Entry:
        given = json.loads(line)
        boxes = {
            int(number): tuple(patches.Box(tuple(start), tuple(stop)) for start, stop in found)
            for number, found in given["boxes"].items()
        }
        depth, height, width = given["shape"]
        for box in (box for found in boxes.values() for box in found):
            for start, stop, side in zip(*box, given["shape"], strict=True):
                if not 0 <= start < stop <= side:
                    raise ValueError(f"{box} does not lie within {given['shape']}")
        return cls(
            given["case"], (depth, height, width), boxes, given["md5"], tuple(given["notes"])
        )


class Case:
    """One opened volume: image f32 and label u8, [D, H, W], and the largest boxes by class.

    They are memory maps, so that a patch costs its own pages only; `image_path` and `label_path` are their files.
    """

    def __init__(self, folder: str, name: str, entry: Entry | None):
        self.image_path, self.label_path = (f"{folder}/{file}" for file in pair(name))
        self.image = open_volume(self.image_path, np.float32)
        self.label = open_volume(self.label_path, np.uint8)
        if self.image.shape != self.label.shape:
            raise UserError(
                f"{self.image_path} has {self.image.shape} voxels and its _y.npy {self.label.shape}; prepare this case again"
            )
        self._boxes = None if entry is None else entry.boxes

    @property
    def boxes(self) -> Mapping[int, Sequence[patches.Box]]:
        if self._boxes is None:
            self._boxes = patches.largest_boxes(self.label)
        return self._boxes


class Cases:
    """The cases of one split, as a source of records."""

    def __init__(self, folder: str, names: Sequence[str], index: Mapping[str, Entry]):
        self.folder, self.names, self.index = folder, tuple(names), index
        self._opened: dict[str, Case] = {}  # mapped, not read; the boxes of a case are found once

    def __getstate__(self) -> dict[str, Any]:  # a pickled memory map is the whole file
        return {**self.__dict__, "_opened": {}}

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Cases({self.folder}, {len(self)} cases)"

    def describe(self, index: int) -> str:
        return f"{self.folder}/{self.names[index]}_x.npy"

    def __getitem__(self, index: int) -> Case:
        name = self.names[index]
        if name not in self._opened:
            self._opened[name] = Case(self.folder, name, self.index.get(name))
        return self._opened[name]


def pair(case: str) -> tuple[str, str]:
    """Names of a case's image and segmentation."""
    return f"{case}_x.npy", f"{case}_y.npy"


def sizes(entry: Entry) -> dict[str, int]:
    """Bytes of a case's files, by their names."""
    voxels = int(np.prod(entry.shape))
    # the header of a .npy of four axes, then f32 and u8
    return {file: 128 + voxels * item for file, item in zip(pair(entry.case), (4, 1))}


def open_volume(path: str | os.PathLike, dtype: Any) -> np.ndarray:
    """The [D, H, W] of a [1, D, H, W] file, mapped.

    Raises:
        UserError: there is no such file, it is cut short, or holds something else.
    """
    try:
        with open(path, "rb") as file:
            shape, found, order = records.npy_header(file)
            offset = file.tell()
    except FileNotFoundError:
        raise UserError(f"{path} is missing; prepare this case again") from None
    except ValueError:
        raise UserError(f"{path} is no .npy file of a volume; prepare this case again") from None
    if len(shape) != 4 or shape[0] != 1 or found != np.dtype(dtype):
        raise UserError(
            f"{path} holds {found.str}{list(shape)}, expected {np.dtype(dtype).str}[1, D, H, W]; is this a "
            "prepared case of KiTS19?"
        )
    try:
        return np.memmap(path, dtype, "r", offset, shape, order)[0]
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged or cut short ({error}); prepare it again") from error


# -- where the data are ------------------------------------------------------------------------------


def locate(data_dir: records.Folder, tiny: bool = False) -> str:
    """The folder with the `.npy` pairs: `data_dir/kits19`, or `data_dir` itself.

    Raises:
        UserError: neither holds any; says how to get them.
    """
    data_dir = records.mapped(data_dir)
    for folder in (f"{data_dir}/{TINY_NAME if tiny else NAME}", data_dir):
        if any(_FILE.fullmatch(name) for name in records.listing(folder) or ()):
            return folder
    if tiny:
        raise UserError(records.missing_tiny(TINY_NAME, "unet3d", data_dir))
    raise UserError(
        f"no prepared KiTS19 in {data_dir}: expected {NAME}/case_00000_x.npy and so on; get the volumes "
        f"(mlperf-jax data fetch unet3d says how; non-commercial licence) and run: mlperf-jax data build unet3d "
        f"--data-dir {data_dir} --source {data_dir}/kits19_raw/data"
    )


def index_path(folder: str) -> pathlib.Path:
    """Where the index of a folder lies: beside it, since the reference's own check counts its files."""
    return pathlib.Path(f"{folder.rstrip('/')}.jsonl")


def read_index(folder: str) -> dict[str, Entry]:
    """The index by case; a line cut short by a kill, or of a damaged file, counts as not written."""
    found = {}
    path = index_path(folder)
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entry = Entry.from_json(line)
        except (ValueError, KeyError, TypeError):
            continue
        found[entry.case] = entry
    return found


def open_split(data_dir: records.Folder, split: str, tiny: bool = False) -> Cases:
    """Opens "train" or "validation" by the official list of cases; reads names and the index alone.

    Raises:
        UserError: no data there, a file of a pair is missing, or its size is not what the index says.
    """
    folder = locate(data_dir, tiny)
    files = records.listing(folder) or {}
    index = read_index(folder)
    found = [match for match in map(_FILE.fullmatch, files) if match and int(match[2]) < LABELLED]
    names = sorted({match[1] for match in found})
    for name in names:
        lost = [file for file in pair(name) if file not in files]
        if lost:
            there = next(file for file in pair(name) if file in files)
            raise UserError(f"{folder}: {there} has no {lost[0]} beside it; prepare the case again")
        for file, size in sizes(index[name]).items() if name in index else ():
            if files[file] != size:
                raise UserError(
                    f"{folder}/{file} has {files[file]:,} bytes, its index says {size:,}; copy it again, or "
                    "delete it and build again"
                )
    wanted = split == "validation"
    return Cases(folder, [n for n in names if (int(n[5:]) in VALIDATION) == wanted], index)


# -- checksums ---------------------------------------------------------------------------------------


def official_md5() -> dict[str, str]:
    """MD5 sums by name of the 420 prepared files, as the organisers published them.

    A file that differs is told, never refused: at least case 43 was corrected upstream after the list was
    made (mlcommons/training #545).
    Source: mlcommons/training, retired_benchmarks/unet3d/pytorch, checksum.json.

    >>> official_md5()["case_00108_y.npy"]
    '432172445752cb875e8a0a28410cc092'
    """
    sums = {}
    for line in pathlib.Path(__file__).with_name("checksums.txt").read_text().splitlines()[1:]:
        case, image, label = line.split()
        sums |= {f"case_{case}_x.npy": image, f"case_{case}_y.npy": label}
    return sums

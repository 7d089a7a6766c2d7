"""GovReport on disk: packed rows as arrays, `<name>_<split>_{inputs,labels}.npy`, int32 [rows, L].

Shape legend: L tokens of a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import records

NAME, TINY_NAME = "govreport", "tiny_reports"
SPLITS = ("train", "validation")


def stem(folder: records.Folder, tiny: str = "") -> str:
    """The path that the names of the four arrays begin with; `tiny` says which stand-in it is."""
    below = f"{TINY_NAME}_{tiny}/{TINY_NAME}" if tiny else NAME
    return f"{records.local(folder)}/{below}"


def path(stem: str, split: str, what: str) -> str:
    """The file of "inputs" or "labels"."""
    return f"{stem}_{split}_{what}.npy"


class PackedRows:
    """The rows of one split, memory mapped. Opening reads the headers, no row."""

    def __init__(self, stem: str, split: str):
        self._given = stem, split
        self.paths = [path(stem, split, what) for what in ("inputs", "labels")]
        self.arrays = [_mapped(path) for path in self.paths]
        inputs, labels = self.arrays
        if inputs.shape != labels.shape:
            raise UserError(
                f"{self.paths[0]} has shape {inputs.shape} and {self.paths[1]} {labels.shape}; build both "
                "again"
            )

    @property
    def length(self) -> int:
        """L, tokens of a row."""
        return self.arrays[0].shape[1]

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __repr__(self) -> str:
        return f"PackedRows({self.paths[0]}, {len(self):,} rows of {self.length})"

    def __reduce__(self) -> Any:  # by its path: a pickled memory map is the whole file
        return PackedRows, self._given

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels, int32 [L] each."""
        return self.arrays[0][index], self.arrays[1][index]

    def describe(self, index: int) -> str:
        return f"{self.paths[0]}, row {index}"


def _mapped(path: str) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            shape, kind, order = records.npy_header(file)
            offset = file.tell()
        rows = np.memmap(path, kind, "r", offset, shape, order) if all(shape) else np.zeros(0)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; build it with: mlperf-jax data build llama2_70b_lora"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or cut short ({error}); build it again") from error
    if rows.ndim != 2 or rows.dtype != np.int32 or order != "C":
        how = " in Fortran order" if order != "C" else ""
        raise UserError(
            f"{path} holds {kind} of shape {shape}{how}; expected int32 [rows, tokens]: build it again"
        )
    return rows

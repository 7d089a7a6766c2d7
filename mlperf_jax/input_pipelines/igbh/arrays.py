"""Arrays in files, with the header of a `.npy` or without one, memory-mapped when they are first looked at.

What header and size tell is checked when a file is opened; no entry is read.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import mmap
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import records

# What NumPy's header cannot name is stored as bytes. Without infinities and up to 448: the form in hardware.
FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
_MAGIC = b"\x93NUMPY"


@dataclasses.dataclass(frozen=True)
class Mapped:
    """An array that lies in a file. It travels to worker processes by its name.

    Attributes:
        path: of the file.
        shape, dtype: of the array, which lies there in C order, or in Fortran order.
        offset: bytes before it.
        fortran: the first axis is the one whose entries are neighbours.
        scattered: rows are read here and there, so that the system should not read ahead.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int = 0
    fortran: bool = False
    scattered: bool = False

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """For `np.asarray`, which then copies nothing."""
        return np.array(self.array, dtype, copy=copy) if dtype or copy else self.array

    def __reduce__(self) -> Any:
        return Mapped, tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows first..last, in memory of their own: quicker than the map where all of them are wanted.

        Raises:
            UserError: the file has gone or was cut since it was opened.
        """
        if self.fortran:
            return np.array(self.array[first:last])
        row = math.prod(self.shape[1:])
        at = self.offset + first * row * self.dtype.itemsize
        try:
            found = np.fromfile(self.path, self.dtype, (last - first) * row, offset=at)
            return found.reshape(last - first, *self.shape[1:])
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path} cannot be read ({error}); fetch it again") from error

    @functools.cached_property
    def array(self) -> np.ndarray:
        """The array itself, read-only.

        Raises:
            UserError: the file has gone or was cut since it was opened.
        """
        try:
            with open(self.path, "rb") as file:
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if self.scattered and hasattr(mmap, "MADV_RANDOM"):
                memory.madvise(mmap.MADV_RANDOM)
            order = "F" if self.fortran else "C"
            return np.ndarray(self.shape, self.dtype, memory, self.offset, order=order)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{self.path} cannot be mapped ({error}); fetch it again") from error


def open_npy(
    path: str | os.PathLike,
    shape: Sequence[int | None],
    dtypes: Sequence[np.dtype],
    *,
    c_order: bool = True,
    again: str = "fetch it again",
) -> Mapped:
    """Opens a `.npy` file.

    Args:
        path: of the file.
        shape: of the array; None where any length will do.
        dtypes: types it may have.
        c_order: refuse Fortran order.
        again: what to do about a file that is not as it should be.

    Raises:
        UserError: it is missing, damaged, cut short, or of another shape or type; names what was found.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            found, dtype, order = records.npy_header(file)
            offset = file.tell()
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: {again}") from error
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no .npy file of numbers ({error}): {again}") from error
    fortran = order == "F" and len(found) > 1
    if dtype not in dtypes or (fortran and c_order):
        wanted = " or ".join(str(d) for d in dtypes)
        how = " in Fortran order" if fortran else ""
        where = " in C order" if fortran and c_order else ""
        raise UserError(f"{path} holds {dtype}{how}, expected {wanted}{where}: {again}")
    if len(found) != len(shape) or any(n not in (None, m) for n, m in zip(shape, found)):
        raise UserError(f"{path} has shape {_said(found)}, expected {_said(shape)}: {again}")
    need = math.prod(found) * dtype.itemsize
    if size - offset < need:
        raise UserError(
            f"{path} is cut short: {_said(found)} of {dtype} need {need:,} bytes after the header and there are "
            f"{size - offset:,}: {again}"
        )
    return Mapped(path, found, dtype, offset, fortran)


def open_raw(path: str | os.PathLike, shape: tuple[int, ...], dtype: np.dtype) -> Mapped:
    """Opens a file that holds an array in C order and nothing else.

    Raises:
        UserError: it is missing, or of another number of bytes.
    """
    path, need = os.fspath(path), math.prod(shape) * dtype.itemsize
    try:
        with open(path, "rb") as file:
            size, begin = os.fstat(file.fileno()).st_size, file.read(len(_MAGIC))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): fetch it again") from error
    if size != need:
        why = "it was cut short, or is of another size of the graph"
        if begin == _MAGIC:
            why = "it begins with the header of a .npy file, which this size of the graph has not"
        raise UserError(
            f"{path} has {size:,} bytes, expected {need:,} for {_said(shape)} of {dtype} without a header: {why}; "
            "fetch it again"
        )
    return Mapped(path, shape, dtype)


def create_npy(path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    """A new `.npy` file to be written in memory, with its room on the disk, and zeros where nothing is written.

    Raises:
        OSError: the disk is full; memory that has no room on it would end the process.
    """
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        offset, need = file.tell(), math.prod(shape) * dtype.itemsize
        file.flush()
        if need and hasattr(os, "posix_fallocate"):  # elsewhere a full disk ends the process
            os.posix_fallocate(file.fileno(), offset, need)
    return np.memmap(path, dtype, "r+", offset, shape)


def _said(shape: Sequence[int | None]) -> str:
    return f"[{', '.join('any' if n is None else f'{n:,}' for n in shape)}]"

"""Which file may be replaced: one that this library wrote, told by a mark in it, and no other."""

from __future__ import annotations

import os
import pathlib

from mlperf_jax.errors import UserError

# in every page, picture and JSON file that a command writes where the user says; in no log and no run's own files
MARK = "made by mlperf_jax"
_LOOKED_AT = 1 << 16  # bytes at either end


def check_replaceable(path: os.PathLike | str) -> None:
    """Nothing, if no file is there, or one that carries the mark.

    Raises:
        UserError: there is another file, which would be lost, or a folder.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a file in it")
    if os.path.lexists(path) and not (path.is_file() and MARK.encode() in _ends(path)):
        raise UserError(
            f"{path} is there already and was not written by this command: give another name, or move it away first"
        )


def _ends(path: pathlib.Path) -> bytes:
    try:
        with open(path, "rb") as file:
            head = file.read(_LOOKED_AT)
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOOKED_AT))
            return head + file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give another name") from error

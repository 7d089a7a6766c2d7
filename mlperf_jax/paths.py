"""Paths that a user gives: whether they can be looked up, and which file may be replaced.

That is one that this library wrote, told by a mark in it, and no other.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from typing import Any

from mlperf_jax.errors import UserError

# in every page, picture and JSON file that a command writes where the user says; in no log and no run's own files
MARK = "made by mlperf_jax"
_LOOKED_AT = 1 << 16  # bytes at either end


def path_fault(path: str) -> str | None:
    """Why no file system can look the path up, in words; None if one can, whether something is there or not.

    >>> path_fault("x" * 300), path_fault("mine/run_0")
    ('File name too long', None)
    """
    try:
        os.lstat(pathlib.Path(path).expanduser())
    except FileNotFoundError:
        return None if os.path.isabs(path) else directory_fault()
    except (NotADirectoryError, PermissionError):
        return None  # it is a path, and whoever opens it says more
    except OSError as error:
        return error.strerror
    except ValueError:
        return "a name has the character NUL in it"
    except RuntimeError:
        return "no user of this name has a home"
    return None


def check_path(path: Any, what: str) -> pathlib.Path:
    """The path, if it is one; `what` names whose it is.

    Raises:
        UserError: it is no path, or none that this system can look up.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise UserError(f"{what} must be a path, not {path!r}")
    text = os.fspath(path)
    if "://" not in text and (fault := path_fault(text)):
        shown = text if len(text) <= 80 else f"{text[:40]}…{text[-20:]}"
        raise UserError(f"{what} {shown!r} is no path here ({fault}): give another")
    return pathlib.Path(text)


def check_writable(path: os.PathLike | str) -> None:
    """Nothing, if a file can be written there and none is lost by it; asked before the work that fills it.

    Raises:
        UserError: its folder is not there or may not be written, or another file is there.
    """
    path = check_path(path, "the file").expanduser()
    check_replaceable(path)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UserError(f"{path}: there is no folder {folder}, so make it, or give another file")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise UserError(f"cannot write {path}: give a file in a folder that may be written")


def write(path: os.PathLike | str, content: bytes) -> None:
    """Writes a file of ours, which is there whole or not at all; `check_writable` says beforehand whether it may be.

    Raises:
        UserError: it cannot be written, as on a full disk.
    """
    whole = pathlib.Path(path).expanduser()
    half = whole.with_name(f".{whole.name}.{os.getpid()}")
    try:
        half.write_bytes(content)
        half.replace(whole)
    except OSError as error:
        with contextlib.suppress(OSError):
            half.unlink()
        raise UserError(f"output {path} cannot be written: {error.strerror or error}") from error


def check_new(path: Any, what: str) -> pathlib.Path:
    """The path of a folder that is to be made, if nothing is there yet; `what` names whose it is.

    Raises:
        UserError: there is something, or it is no path.
    """
    new = check_path(path, what).expanduser()
    if os.path.lexists(new):
        raise UserError(f"{new} is there already: give another name, or move it away first")
    return new


def directory_fault() -> str | None:
    """What is wrong with the working directory, in words; None if it is there."""
    try:
        os.getcwd()
    except OSError:
        return "the working directory was removed, so change to one that is there"
    return None


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

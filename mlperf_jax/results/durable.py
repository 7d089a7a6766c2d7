"""Files that survive a kill: whole lines, whole JSON documents, cut back exactly.

A process may die at any byte. What is appended line by line can therefore end in half a line, which
is dropped when the file is next opened; what is written whole is written beside itself and renamed.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import stat
from typing import Any

from mlperf_jax.errors import UserError

_CHUNK = 1 << 16


def plain(value: Any, where: str = "value") -> Any:
    """A value made of what JSON knows: dict, list, str, int, float, bool, None.

    NumPy and JAX arrays become lists, their scalars numbers, tuples and sets lists, paths text.
    Not-a-number and the infinities stay floats, which Python's json writes as `NaN` and `Infinity`
    (the official readers take these literals).

    Args:
        value: what to convert.
        where: how to name the value in an error.

    Raises:
        UserError: something in it has no JSON form, such as a complex number or a function.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):  # subclasses, np.float64 among them, become plain
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, dict):
        return {str(k): plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, set | frozenset):
        return [plain(v, where) for v in sorted(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "__array__"):
        import numpy as np  # which help need not wait for

        array = np.asarray(value)
        if array.dtype.kind in "biuU":
            return array.tolist()
        if array.dtype.kind in "fV" and array.dtype.names is None:  # V: bfloat16 and its like
            with contextlib.suppress(TypeError, ValueError):
                return array.astype(np.float64).tolist()
    raise UserError(
        f"{where} is a {type(value).__name__}, which has no JSON form; "
        "give a number, a string, a list or a dict"
    )


def same(a: Any, b: Any) -> bool:
    """Whether two plain values are equal, not-a-number being equal to itself."""
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b


def digest(text: str) -> str:
    """Eight hex digits that tell a text from others."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]


def brief(text: str, most: int) -> str:
    """A text as it is, or in a few words and with its hash: configurations hold whole files.

    >>> brief("adamw:3e-4", 80), brief("import optax\\n" * 99, 80)
    ('adamw:3e-4', 'text e1783c8f (99 lines)')

    Args:
        most: characters that are shown of a single line.
    """
    lines = len(text.splitlines())
    if lines > 1:
        return f"text {digest(text)} ({lines:,} lines)"
    if len(text) <= most:
        return text
    return f"{text[:most]} … ({len(text):,} characters, {digest(text)})"


def told(value: Any) -> str:
    """A value of a configuration in a sentence; a long text as `brief` has it."""
    text = brief(value, 200) if isinstance(value, str) else value
    return text if text != value else repr(value)


def cannot_write(path: os.PathLike | str, error: OSError) -> UserError:
    """The error for a full disk, a missing permission and their like."""
    reason = error.strerror or str(error)
    return UserError(
        f"{path} cannot be written ({reason}); free space or give another output folder, "
        "then resume: what was written before is kept"
    )


def write_json(path: pathlib.Path, document: Any) -> None:
    """Writes a JSON file that is at every instant either the old one or the new one, whole.

    Of one file one process at a time: what a killed one leaves beside it, the next one replaces.

    Raises:
        UserError: the disk is full, or the folder is missing or may not be written.
    """
    text = json.dumps(plain(document, path.name), indent=2) + "\n"
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with open(beside, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise cannot_write(path, error) from error


def not_a_file(path: pathlib.Path) -> str:
    """What stands in a file's place, which reading would wait for or stumble over: "a pipe"; "" for a file, or nothing."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return ""
    if stat.S_ISREG(mode):
        return ""
    return {stat.S_IFIFO: "a pipe", stat.S_IFDIR: "a folder"}.get(stat.S_IFMT(mode), "a device")


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: the file is missing, is none, or holds something else.
    """
    if unusual := not_a_file(path):
        raise UserError(f"{path} is {unusual}, where a file of JSON should be: move it away")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not a JSON file ({error}); mend or restore it, or move the run that it is of away "
            "and start another"
        ) from error


def sync_folder(folder: pathlib.Path) -> None:
    """Makes the names in a folder durable; a no-op where folders cannot be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def whole_lines(path: pathlib.Path) -> int:
    """Bytes up to and including the file's last newline; 0 for an empty or missing file."""
    try:
        with open(path, "rb") as f:
            end = f.seek(0, os.SEEK_END)
            while end > 0:
                start = max(0, end - _CHUNK)
                f.seek(start)
                newline = f.read(end - start).rfind(b"\n")
                if newline >= 0:
                    return start + newline + 1
                end = start
    except FileNotFoundError:
        pass
    return 0


def cut(path: pathlib.Path, offset: int) -> None:
    """Cuts a file of lines back to its first `offset` bytes; half a line at the end goes too.

    Args:
        path: the file.
        offset: bytes to keep, as a writer's `offset` said: the end of a line.

    Raises:
        UserError: the file is shorter, or no line ends there: it is not the file that was written.
    """
    have = whole_lines(path)
    if have < offset:
        raise UserError(
            f"{path} holds {have} bytes of whole lines, but the checkpoint was taken at byte {offset}: "
            "the file was cut or replaced since; restore it, or start a new run"
        )
    try:
        with open(path, "r+b" if path.exists() else "w+b") as f:
            if offset > 0:
                f.seek(offset - 1)
                if f.read(1) != b"\n":
                    raise UserError(
                        f"{path} has no line that ends at byte {offset}, where the checkpoint was taken: "
                        "the file was edited since; restore it, or start a new run"
                    )
            f.truncate(offset)
            os.fsync(f.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error


class Appending:
    """An append-only file, written past Python's buffers.

    What cannot be written whole is taken back, so the file never keeps a part of it while this
    process lives; `offset` is then still the end of what was written before.

    Args:
        path: the file; made when missing, else gone on with.
    """

    def __init__(self, path: os.PathLike | str):
        self.path = pathlib.Path(path)
        try:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            self.offset = self._whole()
            if os.fstat(self._file).st_size > self.offset:
                os.ftruncate(self._file, self.offset)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        sync_folder(self.path.parent)

    def _whole(self) -> int:
        """How many of the file's bytes are kept when it is opened."""
        return os.fstat(self._file).st_size

    def append_bytes(self, data: bytes, *, sync: bool) -> None:
        """Appends these bytes; with `sync` they are on the disk on return.

        Raises:
            UserError: the disk is full, or the file can no longer be written.
        """
        try:
            written = 0
            while written < len(data):  # a nearly full disk takes a part
                written += os.write(self._file, data[written:])
            if sync:
                os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self.offset)
            raise cannot_write(self.path, error) from error
        self.offset += len(data)

    def sync(self) -> None:
        """Returns when all that was appended is on the disk."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Lines(Appending):
    """An append-only file of text lines, which never keeps half of one.

    Args:
        path: the file; made when missing. Half a line at its end is dropped.
        resume_at: cut the file back to this many bytes first.
    """

    def __init__(self, path: os.PathLike | str, *, resume_at: int | None = None):
        if resume_at is not None:
            cut(pathlib.Path(path), resume_at)
        super().__init__(path)

    def _whole(self) -> int:
        return whole_lines(self.path)

    def append(self, line: str, *, sync: bool) -> None:
        """Appends one line (given without its newline); with `sync` it is on the disk on return.

        Raises:
            UserError: the disk is full, the file can no longer be written, or somebody removed it.
        """
        self.append_bytes(line.encode("utf-8") + b"\n", sync=sync)
        self.check_there()

    def check_there(self) -> None:
        """Nothing, if the file still has a name: what is written is else seen by nobody, and gone with this process.

        Raises:
            UserError: somebody removed it.
        """
        if os.fstat(self._file).st_nlink == 0:
            raise UserError(
                f"{self.path} was removed while the run wrote it: put its folder back from a copy to resume, "
                "or start another run"
            )

"""The official log line, written one by one and synced, and read back.

One line of text is the token, a space and one JSON object with six members:

    :::MLLOG {"namespace": "", "time_ms": 1700000001000, "event_type": "POINT_IN_TIME",
              "key": "seed", "value": 4711, "metadata": {"file": "train.py", "lineno": 10}}

The format is the one of mlcommons/logging (`mllog`); the writer is ours because a line must be on the
disk before training goes on, and because a resumed run cuts the log back to where its checkpoint was.
"""

import dataclasses
import json
import os
import pathlib
import re
import sys
import time
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.results import durable, early

TOKEN = early.TODAY

# The official checker of reference convergence points searches the raw text of every line for these
# words and takes what it finds as that value, so no line with another key may contain one.
RESERVED = ("global_batch_size", "eval_accuracy", "eval_error", "submission_benchmark")

# Values that the official tools calculate with; text or null there ends them with a traceback.
_INTEGERS = (
    "seed",
    "global_batch_size",
    "gradient_accumulation_steps",
    "train_samples",
    "eval_samples",
)
_SCORES = ("eval_accuracy", "eval_error")

# what a line that is none ends its reader with: brackets nested too deep and numbers too large among it
DAMAGE = (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError)

LONGEST = 1 << 16  # characters of a line; the official parser takes minutes over one of a million

# what the first bytes say of a file that is no log
_COMPRESSED = {
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd",
}  # fmt: skip

_HERE = os.path.dirname(os.path.abspath(__file__))


class Log:
    """Writes a run's log; every line is on the disk when the call returns.

    Example:
        >>> import tempfile, os
        >>> with Log(os.path.join(tempfile.mkdtemp(), "result_0.txt")) as log:
        ...     log.event("seed", 4711)
        ...     log.start("init_start")
        >>> [line.key for line in read(log.path)]
        ['seed', 'init_start']

    Args:
        path: the file; made when missing, continued otherwise (half a line at its end is dropped).
            None writes nothing, for the processes of a run that do not keep its log.
        resume_at: cut the file back to this `offset` first, so nothing is logged twice.

    Raises:
        UserError: the file cannot be written, or is not the one that `resume_at` was taken from.
    """

    def __init__(self, path: os.PathLike | str | None, *, resume_at: int | None = None):
        self.path = None if path is None else pathlib.Path(path)
        self._lines = None if self.path is None else durable.Lines(self.path, resume_at=resume_at)

    @property
    def offset(self) -> int:
        """Bytes written so far; what a checkpoint keeps and `resume_at` takes."""
        return 0 if self._lines is None else self._lines.offset

    def start(
        self, key: str, value: Any = None, *, time_ms: int | None = None, **metadata: Any
    ) -> None:
        """Logs the start of an interval, such as `run_start`."""
        self._write("INTERVAL_START", key, value, time_ms, metadata)

    def stop(
        self, key: str, value: Any = None, *, time_ms: int | None = None, **metadata: Any
    ) -> None:
        """Logs the end of an interval, such as `run_stop` with `status="success"`."""
        self._write("INTERVAL_END", key, value, time_ms, metadata)

    def event(
        self, key: str, value: Any = None, *, time_ms: int | None = None, **metadata: Any
    ) -> None:
        """Logs a point in time: a hyperparameter, or `eval_accuracy` with `epoch_num=3`.

        Args:
            key: the official key.
            value: anything JSON can hold, NumPy and JAX numbers included.
            time_ms: milliseconds since 1970 to stamp the line with, instead of now. An evaluation
                after the run stamps `run_stop` with the time of the checkpoint that passed.
            **metadata: further members of the line's metadata.

        Raises:
            UserError: the key or a value would break the official readers, or the disk is full.
        """
        self._write("POINT_IN_TIME", key, value, time_ms, metadata)

    def _write(self, event_type: str, key: str, value: Any, time_ms: int | None, metadata: dict):
        if self._lines is None:
            return
        value = durable.plain(value, f"the log value of {key!r}")
        _refuse_unreadable(key, value)
        now = time.time_ns() // 1_000_000 if time_ms is None else int(time_ms)
        file, lineno = _call_site()
        for name, word in (("file", file), ("lineno", lineno)):
            if name in metadata:
                raise UserError(f"metadata {name!r} of log key {key!r} is set by the log itself")
            metadata[name] = word
        members = {
            "namespace": "",
            "time_ms": now,
            "event_type": event_type,
            "key": key,
            "value": value,
            "metadata": durable.plain(metadata, f"the log metadata of {key!r}"),
        }
        text = json.dumps(members)
        _refuse_reserved(key, text)
        # The readers cut a line at its *last* token; inside a string, JSON may spell it differently.
        self._lines.append(f"{TOKEN} {text.replace(TOKEN, chr(92) + 'u003a::MLLOG')}", sync=True)

    def check_there(self) -> None:
        """Nothing, if the file still has a name.

        Raises:
            UserError: somebody removed it.
        """
        if self._lines is not None:
            self._lines.check_there()

    def close(self) -> None:
        """Closes the file; the log can be opened again to go on."""
        if self._lines is not None:
            self._lines.close()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _refuse_unreadable(key: str, value: Any) -> None:
    if not isinstance(key, str) or not re.fullmatch(r"\w+", key):
        raise UserError(
            f"log key {key!r} is not a name; use letters, digits and underscores, as the official keys do"
        )
    if key in _INTEGERS and (not isinstance(value, int) or isinstance(value, bool)):
        raise UserError(f"log key {key!r} has the value {value!r}; it must be an integer")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if key in _SCORES and not is_number and not isinstance(value, dict):
        raise UserError(
            f"log key {key!r} has the value {value!r}; it must be a number, or a dict of numbers"
        )


def _refuse_reserved(key: str, text: str) -> None:
    for word in RESERVED:
        if text.count(word) > (key == word):
            raise UserError(
                f"the log line of {key!r} contains the word {word!r}, which the official convergence "
                f"checker would take for that key's own line; rename the key or the value"
            )


def _call_site() -> tuple[str, int]:
    """File and line of the nearest caller outside this folder, as a user knows them.

    Files of this package are named from the package on, so that logs do not show where it is
    installed. A path with a reserved word in it is shortened to what is harmless.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and os.path.dirname(frame.f_code.co_filename) == _HERE:
        frame = frame.f_back
    file = frame.f_code.co_filename
    root = os.path.dirname(os.path.dirname(_HERE))
    if file.startswith(os.path.dirname(_HERE) + os.sep):
        file = os.path.relpath(file, root)
    if any(word in file for word in RESERVED):
        file = os.path.basename(file)
    if any(word in file for word in RESERVED):
        file = "<file>"
    return file, frame.f_lineno


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a log, as the official readers see it."""

    key: str
    value: Any
    metadata: dict[str, Any]
    time_ms: float
    event_type: str
    lineno: int  # in the file, from 1
    text: str  # from the token on


def read(path: os.PathLike | str) -> list[Line]:
    """The lines of a log that carry the token; those of the first two rounds as today's.

    As tolerant as the official reader: text before the last token of a line is cut off, lines without
    it are skipped, bytes are taken as Latin-1, `NaN` and `Infinity` are numbers. Half a line at the
    end, as left by a run that was killed, is skipped.

    Raises:
        UserError: the file cannot be read, or a whole line is not what the format says.
    """
    path = pathlib.Path(path)
    if unusual := durable.not_a_file(path):
        raise UserError(f"the log {path} is {unusual}: give a file of text, or move it away")
    try:
        content = path.read_text(encoding="latin-1")
    except OSError as error:
        raise UserError(f"the log {path} cannot be read ({error.strerror})") from error
    raw_lines = content.split("\n")  # the last has no newline: empty, or half a line
    lines = []
    token = early.form(content) or TOKEN
    for lineno, raw in enumerate(raw_lines, start=1):
        start = raw.rfind(token + " ")
        if start < 0:
            continue
        try:
            lines.append(_parse(token, raw[start:].strip(), lineno))
        except DAMAGE as error:
            if lineno == len(raw_lines):
                break
            raise UserError(
                f"line {lineno} of the log {path} cannot be read: {reason(error)}; the official tools reject "
                "the whole file for it; restore the line or remove it"
            ) from error
    return lines


def no_log(path: pathlib.Path) -> str:
    """What a file without any line of a log is instead, "empty" or "compressed by gzip".

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        beginning = file.read(4096)
    if not beginning.strip():
        return "empty"
    for sign, how in _COMPRESSED.items():
        if beginning.startswith(sign):
            return f"compressed by {how}, and a log is plain text"
    wide = (b"\xff\xfe", b"\xfe\xff")
    if beginning.startswith(wide) or any(
        TOKEN.encode(f"utf-16-{e}") in beginning for e in ("le", "be")
    ):
        return "in UTF-16, and a log is in UTF-8"
    if b"\0" in beginning:
        return "binary, and a log is plain text"
    return f"no log: no line of it holds {TOKEN}"


def too_long(characters: int) -> str:
    """What is said of a line of more than `LONGEST` characters."""
    return f"it has {characters:,} characters, more than any log needs, and the official checker takes minutes over it"


def reason(error: Exception) -> str:
    """What is wrong with a line, in the words of the error that reading it ended with."""
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)


def end_of_line(path: os.PathLike | str, key: str) -> int:
    """The byte after the first line with this key.

    Raises:
        UserError: there is none.
    """
    end = 0
    for raw in pathlib.Path(path).read_bytes().splitlines(keepends=True):
        end += len(raw)
        if f'"key": "{key}"'.encode() in raw:
            return end
    raise UserError(f"{path} has no {key} line")


def _parse(token: str, text: str, lineno: int) -> Line:
    members = early.members(token, text[len(token) :])
    metadata = members["metadata"]
    if not isinstance(members["key"], str):
        raise TypeError("its key is no text")
    return Line(
        key=members["key"],
        value=members["value"],
        metadata=metadata if isinstance(metadata, dict) else {},
        time_ms=float(members["time_ms"]),
        event_type=members.get("event_type", ""),
        lineno=lineno,
        text=text,
    )

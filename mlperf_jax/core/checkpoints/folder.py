"""The folder that checkpoints lie in: which of them are whole, and how one becomes whole or goes.

    FOLDER/step_00000300/meta.json   step, identity, counters of the loop, leaves with their checksums
                         arrays/     the leaves, as Orbax writes a nest of dicts
                         small_00000 small leaves of process 0; so of each (packed.py)
                         sealed      present when the checkpoint must outlive retention
    FOLDER/newest        the name of the last one that became whole

A folder is a checkpoint if and only if it holds a `meta.json`. That file is written last and renamed
into place, and deleted first. So a process killed at any instant leaves checkpoints and rubbish, told
apart by one file, on a disk as on an object store; the next save sweeps the rubbish. Saving a step
again writes `step_00000300_1`, and only then deletes the older folder. Where `newest` names one and none is whole,
somebody took it away.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

from etils import epath

Meta = dict[str, Any]  # of a checkpoint, as JSON holds it

FOLDER_NAME = re.compile(r"step_(\d+)(?:_(\d+))?")
# TensorStore raises ValueError for all that goes wrong; these say that a disk or network did.
STORAGE_CODES = re.compile(
    r"os_error_code|OS error"
    r"|\b(RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAVAILABLE|DATA_LOSS|ABORTED|OUT_OF_RANGE|NOT_FOUND)\b"
)


class Place(NamedTuple):
    """A checkpoint's step and how often that step had been saved before; sorts oldest first."""

    step: int
    attempt: int

    def __str__(self):
        return f"step_{self.step:08d}" + (f"_{self.attempt}" if self.attempt else "")


@dataclass(frozen=True)
class Folder:
    """Finds, makes, completes and deletes the checkpoints under a path (local or gs://)."""

    root: epath.Path

    def path(self, place: Place) -> epath.Path:
        """Returns the folder of one checkpoint."""
        return self.root / str(place)

    def places(self) -> list[Place]:
        """Returns the complete checkpoints, oldest first."""
        try:
            found = [self._parsed(path) for path in self.root.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(place for place in found if place is not None and self.complete(place))

    def place(self, step: int) -> Place | None:
        """Returns the newest complete checkpoint of this step, if there is one."""
        return max((place for place in self.places() if place.step == step), default=None)

    def complete(self, place: Place) -> bool:
        """Returns whether all of this checkpoint has been written."""
        return (self.path(place) / "meta.json").exists()

    def sealed(self, place: Place) -> bool:
        """Returns whether retention must leave this checkpoint alone."""
        return (self.path(place) / "sealed").exists()

    def meta(self, place: Place) -> Meta:
        """Returns the checkpoint's meta data.

        Raises:
            OSError, ValueError: they cannot be read, or are not what was written.
        """
        record = json.loads((self.path(place) / "meta.json").read_text())
        if not isinstance(record, dict) or record.get("digest") != _digest(record.get("meta")):
            raise ValueError("meta.json is not what was written")
        return record["meta"]

    def sweep(self) -> None:
        """Deletes the note of the newest checkpoint that a killed run has left half-written."""
        with contextlib.suppress(OSError):
            (self.root / "newest.half").unlink(missing_ok=True)

    def make(self, step: int) -> Place:
        """Sweeps what killed runs left half-written and makes the folder of a new checkpoint."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.sweep()
        for path in self.root.iterdir():
            left = self._parsed(path)
            if left is not None and not self.complete(left):
                self.delete(left)
        older = self.place(step)
        place = Place(step, older.attempt + 1 if older else 0)
        (self.path(place) / "arrays").mkdir(parents=True)
        return place

    def commit(self, place: Place, meta: Meta) -> None:
        """Makes the checkpoint complete; nothing of it may be written afterwards."""
        text = json.dumps({"digest": _digest(meta), "meta": meta}, indent=1)
        write_whole(self.path(place) / "meta.json", text)
        write_whole(self.root / "newest", str(place))

    def lost(self) -> epath.Path | None:
        """The newest checkpoint's `meta.json`, where there was a checkpoint and none is whole any more."""
        try:
            name = (self.root / "newest").read_text()
        except OSError:
            return None
        return None if self.places() else self.root / name / "meta.json"

    def delete(self, place: Place) -> None:
        """Deletes a checkpoint, or what there is of it; a kill halfway leaves no half of one."""
        path = self.path(place)
        try:
            (path / "meta.json").unlink(missing_ok=True)
            if _is_local(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.rmtree(missing_ok=True)
        except OSError:
            pass  # it takes up room, and does no harm; the next save tries again

    def delete_for_good(self, place: Place) -> None:
        """Deletes what there is of a checkpoint whose writing failed, until it stays away.

        Orbax gives up at the first write that fails; the others go on for a moment, unseen, and bring
        their folder back. What comes later than that moment, the next save sweeps.
        """
        end, quiet = time.monotonic() + 2, 0
        while quiet < 3 and time.monotonic() < end:
            quiet = quiet + 1 if not self.path(place).exists() else 0
            self.delete(place)
            time.sleep(0.05)

    def _parsed(self, path: epath.Path) -> Place | None:
        match = FOLDER_NAME.fullmatch(path.name)
        return Place(int(match[1]), int(match[2] or 0)) if match else None


def absolute(folder: os.PathLike | str) -> epath.Path:
    """Returns the path as Orbax wants it: absolute, with ~ expanded; gs:// paths stay as they are."""
    path = epath.Path(folder).expanduser()
    return epath.Path(os.path.abspath(path)) if _is_local(path) else path


def write_whole(path: epath.Path, content: str | bytes) -> None:
    """Writes a file that others see either whole, and on the disk, or not at all."""
    data = content.encode() if isinstance(content, str) else content
    if not _is_local(path):
        path.write_bytes(data)  # object stores show a file when it is complete
        return
    half = f"{path}.half"
    with open(half, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(half, path)
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def is_storage_error(error: BaseException) -> bool:
    """Returns whether the disk is to blame (full, read-only, not permitted), not our code."""
    return isinstance(error, OSError) or bool(STORAGE_CODES.search(str(error)))


def says_system_error(error: BaseException) -> bool:
    """Returns whether the error holds the operating system's own words."""
    return isinstance(error, OSError) or "os_error_code" in str(error)


def reason(error: BaseException) -> str:
    """Returns what went wrong first, briefly: in the system's own words where it gave any."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    text = " ".join(str(error).split()).removesuffix(".") or type(error).__name__
    told = re.search(r": ([^:]+?) \[os_error_code=", text)  # the system's own words
    if told:
        return told[1]
    if text.startswith("NOT_FOUND"):
        gone = re.findall(r'local file "([^"]+)"', text)
        return f"{gone[-1]} is gone" if gone else "a file of it is gone"
    told = re.search(r'^(\w+): .*?Error (\w+) "([^"]+)" in OCDBT', text)
    if told and told[1] == "OUT_OF_RANGE":
        return f"{told[3]} was cut short"
    if told:
        return f"{told[1]} {told[2]} {told[3]}"  # DATA_LOSS reading params.conv.kernel/0.0
    return text if len(text) <= 300 else text[:300] + " …"


def _digest(meta: Meta | None) -> str:
    text = json.dumps(meta, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _is_local(path: epath.Path) -> bool:
    return "://" not in str(path) and not str(path).startswith("gs:/")

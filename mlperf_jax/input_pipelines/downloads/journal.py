"""What is known of the files of a data folder: which are whole, and of which file the begun ones are the beginning."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import threading
from typing import Any

from mlperf_jax.input_pipelines import building
from mlperf_jax.input_pipelines.downloads.manifest import Digest

NAME = ".fetched.json"


class Journal:
    """A small file beside the data, written whenever a file is begun or finished; threads may share it.

    Lost or damaged it costs time alone: sums are computed again, and what was begun is asked for by its size.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.path = pathlib.Path(folder) / NAME
        self._lock = threading.Lock()
        self._whole: dict[str, Any] = {}
        self._begun: dict[str, list[Any]] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(self.path.read_text())
            self._whole, self._begun = dict(kept["whole"]), dict(kept["begun"])

    def whole(self, path: str, found: os.stat_result, digest: Digest | None) -> bool:
        """Whether a file was found to be whole, with this sum, and was not touched since."""
        return self._whole.get(path) == _mark(found, digest)

    def begun(self, path: str) -> tuple[str, int | None]:
        """What the server called the file whose beginning lies there, and how large it said that is."""
        validator, size = self._begun.get(path, ("", None))
        return validator, size

    def begin(self, path: str, validator: str, size: int | None) -> None:
        """Notes what the server calls the file that is fetched now, and how large it says that is."""
        with self._lock:
            if self._begun.get(path) != [validator, size]:
                self._begun[path] = [validator, size]
                self._write()

    def finish(self, path: str, found: os.stat_result, digest: Digest | None) -> None:
        """Notes that a file is whole, and has its sum if one is stated."""
        with self._lock:
            self._begun.pop(path, None)
            self._whole[path] = _mark(found, digest)
            self._write()

    def _write(self) -> None:
        with building.unfinished(self.path) as part:
            part.write_text(json.dumps({"whole": self._whole, "begun": self._begun}, indent=1))


def _mark(found: os.stat_result, digest: Digest | None) -> list[Any]:
    return [found.st_size, found.st_mtime_ns, str(digest) if digest else None]

"""What was compiled once is not compiled again; and one compiler at a time.

Results are kept by the content of what was compiled (the lowered program, the devices, the compiler's
version), and by the request that led there, so that a second look does not even trace.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mlperf_jax
from mlperf_jax.core import python_file


def folder() -> pathlib.Path:
    """`$XDG_CACHE_HOME/mlperf_jax/plan`; deleting it costs only time."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "mlperf_jax" / "plan"


def read(digest: str) -> Any:
    """What is kept under a digest, or None; a damaged file is as good as none."""
    try:
        return json.loads((folder() / f"{digest}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write(digest: str, document: Any) -> None:
    """Keeps a document; a full or read-only disk costs only the next look's time."""
    _write(folder() / f"{digest}.json", json.dumps(document).encode())


def _write(path: pathlib.Path, content: bytes) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(content)
        part.replace(path)


def read_text(digest: str) -> str | None:
    """A text kept under a digest, or None."""
    try:
        return gzip.decompress((folder() / f"{digest}.gz").read_bytes()).decode()
    except (OSError, EOFError, zlib.error):
        return None


def write_text(digest: str, text: str) -> None:
    """Keeps a text, compressed: the program of GPT3 in 0.5 MB."""
    _write(folder() / f"{digest}.gz", gzip.compress(text.encode(), 6, mtime=0))


def digest(*parts: Any) -> str:
    """A digest of JSON values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def sources() -> str:
    """A digest of the package's source files."""
    root = pathlib.Path(mlperf_jax.__file__).parent
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode())
        found.update(path.read_bytes())
    return found.hexdigest()


@contextlib.contextmanager
def turn(say: Callable[[str], None]) -> Iterator[None]:
    """Waits until no other plan of this user compiles for TPUs: their compiler runs once per machine."""
    try:
        import fcntl
    except ImportError:  # not a Unix: there is no TPU compiler either
        yield
        return
    path = folder() / "libtpu.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another plan is compiling; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file gives the lock back, also after a kill


def request(cls: type, asked: Mapping[str, Any]) -> str:
    """The digest of a request: what is asked, this package's sources and the user's, and the versions."""
    from mlperf_jax.planning.programs import compiler_versions

    flags = os.environ.get("LIBTPU_INIT_ARGS", "")
    return digest(asked, python_file.code(cls), sources(), compiler_versions(), flags)

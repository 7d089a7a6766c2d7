"""What the builders share: one build at a time, room on the disk, work that is taken up, names given at the end.

A build that was killed leaves unfinished names alone, and the next one of the same settings goes on from them.
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import contextlib
import fcntl
import functools
import hashlib
import json
import multiprocessing
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from mlperf_jax.errors import UserError

Job = TypeVar("Job")
_PIECES, _PIECE = 256, 1 << 16  # of a file's fingerprint, and bytes of each: 16 MB
_INDICES = {".json", ".idx"}
SETTINGS = "settings.json"  # in a folder of unfinished work: what it was begun with


@contextlib.contextmanager
def alone(target: str | os.PathLike, *, resumes: bool = False) -> Iterator[pathlib.Path]:
    """Lets one process at a time build a file or folder, whose parent is made; gives its path.

    The lock is a file beside it, and the system frees that of a killed process. Whoever waited must look
    whether there is something left to build.

    Args:
        target: what is built; it need not be there yet.
        resumes: the next build goes on where this one stops, which messages then say.

    Raises:
        UserError: it lies in a bucket, or may not be written.
    """
    if os.fspath(target).startswith("gs://"):
        raise UserError("build writes to a local folder; copy the result to gs:// afterwards")
    path = pathlib.Path(target)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f".building.{path.name}")):
            yield path
    except OSError as error:
        kept = "; what is finished is kept, run the build again" if resumes else ""
        raise UserError(f"cannot write {path}: {error.strerror or error}{kept}") from error


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    while True:
        file = open(path, "w")  # noqa: SIM115
        # Some network file systems have no locks; then two builds at once are the user's to avoid.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        # The process waited for removes the file: a third one would lock another of the same name.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        file.close()
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def check_room(folder: str | os.PathLike, need: int, who: str = "the build") -> None:
    """Nothing, if the disk of a folder, which need not be there yet, has so many bytes left.

    Args:
        folder: what is written goes below it.
        need: bytes.
        who: what needs them, as the message says it.

    Raises:
        UserError: it has not.
    """
    place = pathlib.Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < need:
        raise UserError(
            f"{folder} has {free / 1e9:,.1f} GB free and {who} needs {need / 1e9:,.1f} GB: free space, "
            "or give another --data-dir"
        )


def available_memory() -> int | None:
    """Bytes of memory that may be taken without swapping; None where the system does not say."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


def md5(path: str | os.PathLike) -> str:
    """The MD5 sum of a file, to compare with a published one."""
    return checksum(path, "md5")


def checksum(path: str | os.PathLike, algorithm: str) -> str:
    """The sum of a file in hexadecimal digits, by an algorithm's name in hashlib."""
    with open(path, "rb") as file:
        made = functools.partial(hashlib.new, algorithm, usedforsecurity=False)
        return hashlib.file_digest(file, made).hexdigest()


def fingerprint(path: str | os.PathLike) -> list[Any]:
    """Bytes and checksum of a file, to tell it from another of its kind: of a large one, of pieces all over it."""
    found = os.stat(path)
    return [found.st_size, _summed(os.fspath(path), found.st_size, found.st_mtime_ns, found.st_ino)]


@functools.lru_cache(maxsize=256)
def _summed(path: str, size: int, *state: int) -> str:
    whole = size <= _PIECES * _PIECE
    total = hashlib.sha256(usedforsecurity=False)
    with open(path, "rb") as file:
        for number in range(_PIECES):
            if not whole:
                file.seek((size - _PIECE) * number // (_PIECES - 1))
            total.update(file.read(_PIECE))
    return total.hexdigest()[:32]


def begin(work: pathlib.Path, settings: Mapping[str, Any], *, restart: bool = False) -> None:
    """Makes a folder for unfinished work; work that lies there is taken up under the same settings alone.

    Args:
        work: the folder; `SETTINGS` in it says what the work was begun with.
        settings: what its parts depend on, as JSON holds it.
        restart: remove work of other settings, instead of refusing it.

    Raises:
        UserError: the work was begun with other settings.
    """
    note, mine = work / SETTINGS, json.loads(json.dumps(settings))
    theirs = _noted(note) if note.exists() else mine
    other = [name for name in mine if theirs.get(name) != mine[name]]
    if other and not restart:
        raise UserError(
            f"{work} was begun with another {other[0]} ({theirs.get(other[0])}, now {mine[other[0]]}): "
            "remove this folder to start over, or build with what it was begun with"
        )
    if other:
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    with unfinished(note) as part:
        part.write_text(json.dumps(mine))


def _noted(note: pathlib.Path) -> dict[str, Any]:
    """The settings that a note holds; none of a damaged one, so that they are others."""
    try:
        found = json.loads(note.read_text())
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


@contextlib.contextmanager
def unfinished(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """The name under which a file or folder is written, which becomes `path` when the block ends well.

    Otherwise what was written is removed; only a killed build leaves it, and the next one removes it.
    """
    path = pathlib.Path(path)
    part = path.with_name(f"incomplete.{path.name}")
    _remove(part)
    try:
        yield part
        publish(part, path)
    except BaseException:
        _remove(part)
        raise


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def publish(part: pathlib.Path, path: pathlib.Path) -> None:
    """Gives what is complete its name, a file after its bytes are on the disk.

    A folder that has that name already, because it is damaged, gets the files in place of its own; others that lie in
    it stay.
    """
    if part.is_file():
        with open(part, "rb") as file:
            os.fsync(file.fileno())
    if not (part.is_dir() and path.is_dir()):
        part.replace(path)
        return
    # an index, which says that all is there, comes last
    for child in sorted(part.iterdir(), key=lambda child: (child.suffix in _INDICES, child.name)):
        publish(child, path / child.name)
    part.rmdir()


# -- many jobs -------------------------------------------------------------------------------------


def in_threads(work: Callable[[Job], None], jobs: Iterable[Job]) -> None:
    """Does all jobs, one per core at a time; after an error those under way are finished, no other is begun."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        running = [pool.submit(work, job) for job in jobs]
        try:
            for job in concurrent.futures.as_completed(running):
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def in_processes(
    work: Callable[[Job], None],
    jobs: Sequence[Job],
    processes: int,
    report: Callable[[int], None] = lambda done: None,
) -> None:
    """Does all jobs in processes of their own, or in this one if they would be one.

    A script that asks for more than one needs the guard `if __name__ == "__main__"`.

    Args:
        work: a function of a module, or a `functools.partial` of one.
        jobs: what it is called with.
        processes: at most so many at a time.
        report: is told how many jobs are done.

    Raises:
        UserError: one of the processes was killed.
    """
    processes = min(processes, len(jobs))
    if processes <= 1:
        for number, job in enumerate(jobs, start=1):
            work(job)
            report(number)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit the threads of JAX
    pool = concurrent.futures.ProcessPoolExecutor(processes, spawn, initializer=_end_with_parent)
    try:
        pending = [pool.submit(work, job) for job in jobs]
        for number, done in enumerate(concurrent.futures.as_completed(pending), start=1):
            done.result()
            report(number)
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            "a process of the build was killed, perhaps for want of memory: run the build again, it keeps "
            "what is finished"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Ends this process when its parent is gone: after a SIGKILL the pool would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

"""Files fetched over HTTP, several at a time, each taken up at its last byte and named when its sum is right.

A file is written as `incomplete.NAME` beside its place; a connection that breaks off is tried again from the last
byte on, as is a whole run that was stopped or killed. A server that hands out another file meanwhile (`If-Range`),
or knows no ranges, makes it begin anew. A file that is there and whole is not asked for.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import requests

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building
from mlperf_jax.input_pipelines.downloads import listing, web
from mlperf_jax.input_pipelines.downloads.journal import NAME, Journal
from mlperf_jax.input_pipelines.downloads.listing import File
from mlperf_jax.input_pipelines.downloads.manifest import Part, in_words
from mlperf_jax.input_pipelines.downloads.progress import Progress

T = TypeVar("T")
CONNECTIONS = 4  # files at a time
_ASKING = 16  # files at a time whose sizes are asked for
_LONGEST_PAUSE = 30.0  # seconds


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long a connection that breaks off is tried again.

    Attributes:
        tries: that bring no byte, one after the other.
        pause: seconds behind the first of them, doubled behind each.
        answer: seconds to be connected, and to be sent the next byte.
    """

    tries: int = 6
    pause: float = 1.0
    answer: tuple[float, float] = web.PATIENCE


class _Stopped(Exception):
    """Another file's failure, or the user, stops this one."""


def fetch_parts(
    parts: Sequence[Part],
    folder: str | os.PathLike,
    progress: Progress,
    *,
    connections: int = CONNECTIONS,
    patience: Patience = Patience(),
) -> int:
    """Fetches the files of some parts that are not there yet; gives how many those were.

    A set whose list is not handed out does not keep the other parts from being fetched.

    Args:
        parts: of one manifest.
        folder: the data folder.
        progress: is told how far it has come.
        connections: files at a time.
        patience: with connections that break off.

    Raises:
        UserError: as `fetch`; a list cannot be had or used.
    """
    files: dict[str, File] = {}
    failed: list[UserError] = []
    with web.session(1) as session:
        for part in parts:
            try:
                found = _patiently(
                    functools.partial(listing.files, part, session), patience, progress
                )
            except web.Unreachable:
                raise
            except UserError as error:
                progress.say(f"not fetched: {part.key}: {error}")
                failed.append(error)
            else:
                files.update((file.path, file) for file in found)
    done = fetch([*files.values()], folder, progress, connections=connections, patience=patience)
    if failed:
        raise failed[0]
    return done


def fetch(
    files: Sequence[File],
    folder: str | os.PathLike,
    progress: Progress,
    *,
    connections: int = CONNECTIONS,
    patience: Patience = Patience(),
) -> int:
    """Fetches the files that are not there yet; gives how many those were.

    One that its server does not hand out, or whose sum is wrong, does not keep the others from being fetched. What
    came of a file is kept for the next time unless its sum is wrong.

    Args:
        files: what to have.
        folder: the data folder, which need not be there yet.
        progress: is told how far it has come.
        connections: files at a time.
        patience: with connections that break off.

    Raises:
        UserError: a file is not handed out, or is another one; no connection; no room on the disk, or it may not be
            written to; a file in the way.
    """
    if not files:
        return 0
    place = os.path.expanduser(os.fspath(folder))
    if "://" in place:
        raise UserError(
            f"data are fetched to a folder of this machine, and {place} is none: copy them afterwards"
        )
    with (
        building.alone(f"{place}/{NAME}") as journal,
        web.session(max(connections, _ASKING)) as session,
    ):
        work = _Work(journal.parent, Journal(journal.parent), session, progress, patience)
        left = [file for file in files if not work.there(file)]
        if left:
            work.ask_sizes(left)
            work.make_room(left)
            work.fetch(left, connections)
        return len(left)


class _Work:
    """One fetch into a folder."""

    def __init__(
        self,
        folder: pathlib.Path,
        journal: Journal,
        session: requests.Session,
        progress: Progress,
        patience: Patience,
    ) -> None:
        self.folder, self.journal, self.session = folder, journal, session
        self.progress, self.patience = progress, patience
        self.sizes: dict[str, int] = {}
        self.stop = threading.Event()

    # -- what is there ---------------------------------------------------------------------------

    def there(self, file: File) -> bool:
        """Whether a file lies at its place, whole; one that is not the stated file is in the way."""
        target = self.folder / file.path
        if not os.path.lexists(target):
            return False
        if not target.is_file():
            raise UserError(f"{target} is no file and in the way of one: move it")
        found = target.stat()
        if self.journal.whole(file.path, found, file.digest):
            return True
        size = file.size
        if size is None and file.digest is None:
            size = self._said_size(file)
        if size is not None and found.st_size != size:
            raise UserError(
                f"{target} has {found.st_size:,} bytes and its source {size:,}: remove it, or give "
                "another --data-dir"
            )
        if file.digest:
            self.progress.say(f"checking {file.path}")
            value = building.checksum(target, file.digest.algorithm)
            if value != file.digest.value:
                raise UserError(
                    f"{target} has the {file.digest.algorithm.upper()} {value}, and {file.digest.value} is "
                    "stated: remove it, or give another --data-dir"
                )
        self.journal.finish(file.path, found, file.digest)
        return True

    def _begun(self, file: File) -> pathlib.Path:
        target = self.folder / file.path
        return target.with_name(f"incomplete.{target.name}")

    # -- before the first byte -------------------------------------------------------------------

    def ask_sizes(self, files: Sequence[File]) -> None:
        """Asks the servers how large the files are, as far as they say so."""

        def ask(file: File) -> tuple[File, int | None]:
            return file, self._said_size(file)

        for file, said in self._in_threads(ask, files, _ASKING):
            size = said if file.size is None else file.size
            if size is not None:
                self.sizes[file.path] = size

    def _said_size(self, file: File) -> int | None:
        def ask() -> int | None:
            return web.size(self.session, file.address, self.patience.answer)

        try:
            return self._patiently(ask)
        except (web.Refused, web.Busy):
            return None  # said again, and told of, when it is fetched

    def make_room(self, files: Sequence[File]) -> None:
        """Begins the display, and looks whether the disk has room for what is still to come."""
        had = {file.path: _size(self._begun(file)) for file in files}
        to_come = sum(max(0, size - had[path]) for path, size in self.sizes.items() if path in had)
        building.check_room(self.folder, to_come, "the download")
        known = all(file.path in self.sizes for file in files)
        total = sum(self.sizes[file.path] for file in files) if known else None
        self.progress.begin(total, sum(had.values()))
        said = in_words(to_come) if known else f"{in_words(to_come)} and what nobody states"
        self.progress.say(f"fetching {len(files):,} files, {said}, to {self.folder}")

    # -- the bytes -------------------------------------------------------------------------------

    def fetch(self, files: Sequence[File], connections: int) -> None:
        """Fetches files; what is not handed out is told of at the end."""
        failed: list[UserError] = []

        def one(file: File) -> None:
            try:
                self._one(file)
            except (web.Refused, web.Busy) as error:
                self.progress.say(f"not fetched: {error}")
                failed.append(error)

        for _ in self._in_threads(one, files, connections):
            pass
        if failed:
            more = f" (and {len(failed) - 1} more files, told of above)" if failed[1:] else ""
            raise UserError(f"{failed[0]}{more}")

    def _one(self, file: File) -> None:
        part, target = self._begun(file), self.folder / file.path
        with _writing(part):
            target.parent.mkdir(parents=True, exist_ok=True)
        most = 0

        def come_on() -> bool:
            """Further than ever: a file that is begun anew again and again does not."""
            nonlocal most
            came, most = _size(part) > most, max(_size(part), most)
            return came

        self._patiently(functools.partial(self._go_on, file, part), come_on)
        if file.digest:
            value = building.checksum(part, file.digest.algorithm)
            if value != file.digest.value:
                part.unlink()
                raise web.Refused(
                    f"what came from {file.address} has the {file.digest.algorithm.upper()} {value}, and "
                    f"{file.digest.value} is stated: it was removed, fetch again, and if it stays so tell those "
                    "who keep this library"
                )
        with _writing(target):
            building.publish(part, target)
            self.journal.finish(file.path, target.stat(), file.digest)

    def _go_on(self, file: File, part: pathlib.Path) -> None:
        """Brings a begun file to its end, as far as the connection holds."""
        begin, known = _size(part), self.sizes.get(file.path)
        validator, before = self.journal.begun(file.path)
        if known is not None and (begin > known or before not in (None, known)):
            self._anew(part, begin)
            begin = 0
        if known is not None and begin == known and part.exists():
            return  # stopped between its last byte and its name
        try:
            answer = web.ask(
                self.session,
                file.address,
                begin=begin,
                validator=validator,
                patience=self.patience.answer,
            )
        except web.Beyond as beyond:
            if beyond.size == begin and known is None:
                return
            self._anew(part, begin)
            raise web.Unreachable(f"{file.address} became shorter meanwhile") from None
        with answer.response:
            if answer.begins != begin or (
                None not in (known, answer.size) and answer.size != known
            ):
                self._anew(part, begin)
                if answer.begins:
                    raise web.Unreachable(f"{file.address} became another file meanwhile")
            if None not in (file.size, answer.size) and file.size != answer.size:
                raise web.Refused(
                    f"{file.address} has {answer.size:,} bytes, and {file.size:,} are stated: it was changed at "
                    "its source, tell those who keep this library"
                )
            expected = known if answer.size is None else answer.size
            if expected is not None:
                self.sizes[file.path] = expected
            with _writing(part):
                self.journal.begin(file.path, answer.validator, answer.size)
                self._write(part, answer)
        size = _size(part)
        if expected is not None and size != expected:
            if size > expected:
                self._anew(part, size)
            raise web.Unreachable(f"{file.address} sent {size:,} of {expected:,} bytes")

    def _write(self, part: pathlib.Path, answer: web.Answer) -> None:
        with open(part, "ab") as out:
            for block in answer.blocks():
                out.write(block)
                self.progress.add(len(block))
                if self.stop.is_set():
                    raise _Stopped

    def _anew(self, part: pathlib.Path, had: int) -> None:
        part.unlink(missing_ok=True)
        self.progress.add(-had)

    # -- again and again, side by side -----------------------------------------------------------

    def _patiently(self, work: Callable[[], T], came_on: Callable[[], bool] = lambda: False) -> T:
        return _patiently(work, self.patience, self.progress, self.stop, came_on)

    def _in_threads(
        self, work: Callable[[File], T], files: Iterable[File], threads: int
    ) -> Iterator[T]:
        """Results as they come; after an error, or when the user stops it, the others stop at their next byte."""
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            running = [pool.submit(work, file) for file in files]
            try:
                for each in concurrent.futures.as_completed(running):
                    yield each.result()
            except BaseException:
                self.stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _patiently(
    work: Callable[[], T],
    patience: Patience,
    progress: Progress,
    stop: threading.Event | None = None,
    came_on: Callable[[], bool] = lambda: False,
) -> T:
    """Does what needs a connection, again when that breaks off; a try that brought something costs none."""
    failures, stop = 0, stop or threading.Event()
    came_on()
    while True:
        try:
            return work()
        except (web.Unreachable, web.Busy) as error:
            failures = 0 if came_on() else failures + 1
            if failures >= patience.tries:
                raise type(error)(
                    f"{error}: given up after {failures} tries, and what came is kept for the next fetch"
                ) from error
            pause = min(patience.pause * 2 ** max(0, failures - 1), _LONGEST_PAUSE)
            progress.say(f"{error}; again in {pause:.0f} s")
            stop.wait(pause)
            if stop.is_set():
                raise _Stopped from None


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    """Tells of what the disk refuses; what is about the connection has its own sentence already."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; what came is kept, fetch again when that is mended"
        ) from error


def _size(path: pathlib.Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0

"""What stress.py does to runs: a command in a session of its own, an instant of its life, and the damages.

Children are ended by their process group alone. A full disk is a small tmpfs and a read-only folder a bind
mount where this user may mount; elsewhere a limit on the size of files stands for the one, and permissions for the
other, which a superuser who may not mount does not feel.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from scripts import forks

ROOT = pathlib.Path(__file__).resolve().parent.parent
DISK = 256 << 20  # bytes of the disk that is filled
POLL = 0.002  # seconds between two looks at a run


# -- a run, and an instant of its life -------------------------------------------------------------


class Watch:
    """Counts what appears in a set's folder: lines of the log, steps in the scalars, names of files."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.counts = dict.fromkeys(("line", "step", "name"), 0)
        self._files = {"line": folder / "result_0.txt", "step": folder / "run_0" / "scalars.jsonl"}
        self._folders = [folder, folder / "run_0", folder / "run_0" / "checkpoints"]
        self._sizes, self._names = self._sizes_now(), self._names_now()

    def look(self) -> None:
        sizes, names = self._sizes_now(), self._names_now()
        for what, size in sizes.items():
            self.counts[what] += size > self._sizes[what]
        self.counts["name"] += len(names - self._names)
        self._sizes, self._names = sizes, names

    def _sizes_now(self) -> dict[str, int]:
        return {what: _size(path) for what, path in self._files.items()}

    def _names_now(self) -> set[str]:
        found: set[str] = set()
        for folder in self._folders:
            with contextlib.suppress(OSError):
                found |= {f"{folder.name}/{name}" for name in os.listdir(folder)}
        with contextlib.suppress(
            OSError, ValueError
        ):  # inside the checkpoint that is being written
            newest = max(name for name in os.listdir(self._folders[2]) if name != "newest")
            found |= {f"{newest}/{name}" for name in os.listdir(self._folders[2] / newest)}
        return found


def _size(path: pathlib.Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


@dataclass(frozen=True)
class When:
    """An instant: after a share of the seconds that a run takes, or of the lines, steps or names that appear.

    Attributes:
        what: "second", "line", "step" or "name".
        share: of those of an undisturbed run, more than 0.
        later: seconds that pass then.
    """

    what: str
    share: float
    later: float

    @classmethod
    def any(cls, rng: random.Random) -> When:
        what = rng.choice(("second", "line", "line", "step", "step", "name", "name", "name"))
        return cls(what, 1 - rng.random(), rng.choice((0.0, 0.0, rng.uniform(0, 0.03))))

    def reached(self, launch: Launch, all_of_it: Mapping[str, float], left: float) -> bool:
        """Whether it has come; `left` is the share of the run that its checkpoint leaves to do."""
        if self.what == "second":
            return launch.seconds >= self.share * all_of_it["second"]
        return launch.watch.counts[self.what] >= max(1, self.share * left * all_of_it[self.what])

    def __str__(self) -> str:
        return f"{self.share:.0%} of {self.what}s"


class Launch:
    """The command in a session of its own, read until it ends.

    Args:
        words: behind `mlperf-jax`.
        folder: the set's, which is watched.
        place: where it works; its temporary files go below.
        cache: of compiled programs.
        forked: whether it is a fork of this process, which has imported what it needs.
    """

    def __init__(
        self,
        words: Sequence[str],
        folder: pathlib.Path,
        place: pathlib.Path,
        cache: pathlib.Path,
        forked: bool,
    ) -> None:
        self.words, self.watch, self.begun = words, Watch(folder), time.monotonic()
        temporary = place / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        more = {**forks.compiled_once(cache), "PYTHONPATH": path, "TMPDIR": str(temporary)}
        more["PYTHONFAULTHANDLER"] = "1"  # a run that hangs shows where
        self._process: subprocess.Popen | forks.Fork = (
            forks.Fork(words, place, more)
            if forked
            else subprocess.Popen(
                [sys.executable, "-m", "mlperf_jax", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=place,
                env={**os.environ, **more},
                start_new_session=True,
                preexec_fn=forks.hear_all,
            )
        )
        self.pid = self._process.pid
        self._said = {"stdout": b"", "stderr": b""}
        self._pipes = selectors.DefaultSelector()
        for name in self._said:
            self._pipes.register(getattr(self._process, name), selectors.EVENT_READ, name)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.begun

    def said(self, name: str = "stderr") -> str:
        return self._said[name].decode("utf-8", "replace")

    def signal(self, number: int) -> None:
        """To its process group, as a terminal and a scheduler send them."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def limit_files(self, size: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size, size))

    def close(self, name: str) -> None:
        """Takes the reader of one of its streams away."""
        with contextlib.suppress(KeyError, ValueError):
            self._pipes.unregister(getattr(self._process, name))
        getattr(self._process, name).close()

    def ended(self) -> bool:
        """Whether it has ended; takes what it says, and looks at its folder, meanwhile."""
        self.watch.look()
        over = self._process.poll() is not None
        for key, _ in self._pipes.select(0) if self._pipes.get_map() else ():
            piece = os.read(key.fd, 1 << 16)
            self._said[key.data] += piece
            if piece:
                over = False  # there may be more
            else:
                self.close(key.data)
        return over

    def run(self, limit: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Returns at an instant, or when it has ended; whether the instant came.

        Raises:
            TimeoutError: it took longer than the limit and was ended; its stacks are in what it said.
        """
        try:
            while not self.ended():
                if until():
                    return True
                if self.seconds > limit:
                    self.signal(signal.SIGABRT)
                    time.sleep(1)
                    self.ended()
                    raise TimeoutError(f"it hangs: not over after {limit:.0f} s")
                time.sleep(POLL)
        except BaseException:
            self.end()
            raise
        return False

    @property
    def code(self) -> int:
        return self._process.wait()

    def end(self) -> None:
        """Whatever becomes of it."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        self._process.wait()
        for name in self._said:
            self.close(name)
        self._pipes.close()


# -- disks -----------------------------------------------------------------------------------------


def _mount(*words: str) -> bool:
    command = shutil.which(words[0])
    return (
        bool(command) and not subprocess.run([command, *words[1:]], capture_output=True).returncode
    )


def may_mount(place: pathlib.Path) -> bool:
    """Whether this user may mount a disk."""
    place.mkdir(parents=True, exist_ok=True)
    try:
        return _mount("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place))
    finally:
        _mount("umount", str(place))


@contextlib.contextmanager
def disk(place: pathlib.Path, mounted: bool) -> Iterator[None]:
    """A folder that is a small disk of its own, where that may be."""
    place.mkdir(parents=True, exist_ok=True)
    mounted = mounted and _mount("mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place))
    try:
        yield
    finally:
        if mounted and not _mount("umount", str(place)):
            raise OSError(f"{place} cannot be unmounted: somebody still uses it")


# -- the damages -----------------------------------------------------------------------------------


@dataclass
class Scene:
    """What a damage is done to.

    Attributes:
        launch: the run.
        folder: of the set, in `above`.
        above: a folder of the round's own; a disk of its own where `mounts`.
        mounts: whether this user may mount.
        again: starts the command once more, with these words more, on the same folder.
        rng: what is random.
        undo: what mends it once the run has ended.
        second: the exit code of another process.
    """

    launch: Launch
    folder: pathlib.Path
    above: pathlib.Path
    mounts: bool
    again: Callable[[Sequence[str]], int]
    rng: random.Random
    undo: list[Callable[[], object]] = field(default_factory=list)
    second: int | None = None


@dataclass(frozen=True)
class Damage:
    """How it is done, and the exit codes that the documentation has for it, beside those of a run's end."""

    do: Callable[[Scene], None]
    codes: frozenset[int] = frozenset()


def _signals(*numbers: int) -> Callable[[Scene], None]:
    def do(scene: Scene) -> None:
        for number in numbers:
            scene.launch.signal(number)

    return do


def _two_signals(scene: Scene) -> None:
    kinds = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    scene.launch.signal(scene.rng.choice(kinds))
    time.sleep(scene.rng.choice((0, scene.rng.uniform(0, 0.05), scene.rng.uniform(0, 0.5))))
    scene.launch.signal(scene.rng.choice(kinds))


def _stop_and_go(scene: Scene) -> None:
    scene.launch.signal(signal.SIGSTOP)
    time.sleep(scene.rng.uniform(0.05, 1))
    scene.launch.signal(signal.SIGCONT)


def _close(*names: str) -> Callable[[Scene], None]:
    def do(scene: Scene) -> None:
        for name in names:
            scene.launch.close(name)

    return do


def _fill(scene: Scene) -> None:
    left = scene.rng.choice((0, scene.rng.randrange(1 << 14), scene.rng.randrange(1 << 21)))
    if not os.path.ismount(scene.above):  # never the disk of this machine
        scene.launch.limit_files(left)
        return
    ballast = scene.above / "ballast"
    scene.undo.append(lambda: ballast.unlink(missing_ok=True))
    with open(ballast, "wb", buffering=0) as file:
        free = shutil.disk_usage(scene.above).free
        with contextlib.suppress(OSError):  # the run was faster
            os.posix_fallocate(file.fileno(), 0, max(1, free - left))
        if not left:
            with contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass


def _write_protect(scene: Scene) -> None:
    above = str(scene.above)
    if scene.mounts:
        if _mount("mount", "--bind", above, above):
            scene.undo.append(lambda: _mount("umount", above))
            _mount("mount", "-o", "remount,bind,ro", above)
        return
    changed = [path for path in (scene.above, *scene.above.rglob("*")) if path.is_dir()]
    modes = [(path, path.stat().st_mode) for path in changed]
    for path, mode in modes:
        path.chmod(mode & ~0o222)
    scene.undo.append(lambda: [path.chmod(mode) for path, mode in modes if path.exists()])


def _remove(scene: Scene) -> None:
    shutil.rmtree(scene.folder, ignore_errors=True)


def _second(scene: Scene) -> None:
    """Another process on the same folder: one of the two is refused, and the other goes on."""
    scene.second = scene.again(scene.rng.choice(([], ["--resume"])))


DAMAGES = {
    "kill": Damage(_signals(signal.SIGKILL), frozenset({-9})),
    "term": Damage(_signals(signal.SIGTERM), frozenset({143, -15})),
    "int": Damage(_signals(signal.SIGINT), frozenset({130})),
    "hangup": Damage(_signals(signal.SIGHUP), frozenset({129, -1})),
    "two": Damage(_two_signals, frozenset({143, -15, 130, 129, -1})),
    "stop": Damage(_stop_and_go),
    "stderr": Damage(_close("stderr")),
    "stdout": Damage(_close("stdout"), frozenset({141})),
    "both": Damage(_close("stderr", "stdout"), frozenset({141})),
    "full": Damage(_fill, frozenset({2})),
    "read-only": Damage(_write_protect, frozenset({2})),
    "removed": Damage(_remove, frozenset({2})),
    "second": Damage(_second, frozenset({2})),
}

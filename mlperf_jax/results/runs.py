"""The folder a set of runs leaves behind, as the official tools expect it.

    output/result_0.txt … result_4.txt      one log per run, side by side
    output/run_0/config.json                what was trained, resolved, with its hash
    output/run_0/scalars.jsonl              one JSON object per line: step, samples, loss …; null: not finite
    output/run_0/tensorboard/               the same as event files, where that was asked for (events.py)
    output/run_0/checkpoints/               written by the training loop
    output/run_0/trained.json               that it is trained, of a run that is scored afterwards
    output/run_0/result.json                how it ended; only a finished run has one
    output/run_0/lock                       held by the process that writes this run

A set holds runs of one configuration: the score of a benchmark is taken over all of them.
"""

import contextlib
import itertools
import json
import math
import os
import pathlib
import re
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.paths import check_path
from mlperf_jax.results import durable, log
from mlperf_jax.results.result import Result, config_hash

try:
    import fcntl
except ImportError:  # Windows has no such locks; runs there are not guarded
    fcntl = None

_CHANGES = "optimizer_changes"  # in a configuration: the programs of the optimizers before
_held: set[pathlib.Path] = (
    set()
)  # locks belong to a process, so a second one here needs our own check


class RunFolder:
    """One run of a set: its files, and whether it is finished.

    Args:
        root: the set's folder.
        index: the run's number in it, from 0.
    """

    def __init__(self, root: os.PathLike | str, index: int):
        self.root = pathlib.Path(root)
        self.index = index
        self.path = self.root / f"run_{index}"
        self.log_path = self.root / f"result_{index}.txt"
        self.config_path = self.path / "config.json"
        self.scalars_path = self.path / "scalars.jsonl"
        self.trained_path = self.path / "trained.json"
        self.result_path = self.path / "result.json"
        self.checkpoints = self.path / "checkpoints"
        self._lock: tuple[pathlib.Path, int] | None = None

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def started(self) -> bool:
        """Whether `run_start` was logged: from then on the run is resumed, not begun anew."""
        return self._logged("run_start")

    @property
    def finished(self) -> bool:
        """Whether the run ended: its log has `run_stop` and its result is saved."""
        return self.result_path.exists() and self._logged("run_stop")

    def _logged(self, key: str) -> bool:
        return self.log_path.exists() and any(line.key == key for line in log.read(self.log_path))

    @property
    def seed(self) -> int | None:
        """The run's seed as its log has it, else its configuration; None before either is written."""
        seed = self._logged_seed()
        if seed is None and self.config_path.exists():
            return self.config()["options"].get("seed")
        return seed

    def _logged_seed(self) -> int | None:
        lines = log.read(self.log_path) if self.log_path.exists() else []
        return next((line.value for line in lines if line.key == "seed"), None)

    def config(self) -> dict[str, Any]:
        """The saved `config.json`: `config_hash`, `config` and `options`."""
        document = durable.read_json(self.config_path)
        if not isinstance(document, dict) or "config_hash" not in document:
            raise UserError(
                f"{self.config_path} is not a run's configuration; it was edited: restore it, "
                "or start a new run"
            )
        return document

    def check_config(self) -> None:
        """Nothing, if `config.json` is what the run saved, as far as its hash and the log can tell.

        Raises:
            UserError: a run that has a log lacks it, or it was edited.
        """
        logged = self._logged_seed()
        mend = (
            f"restore it, or move {self.path} and {self.log_path.name} away and start another run"
        )
        if not self.config_path.exists():
            if logged is None and not self.started:
                return  # killed before it was written
            raise UserError(
                f"{self.config_path} is gone, and with it what the run was given: {mend}"
            )
        saved = self.config()
        seed = saved.get("options", {}).get("seed")
        if logged is not None and seed != logged:
            raise UserError(
                f"{self.config_path} was edited, as it has seed {seed} and {self.log_path.name} {logged}: {mend}"
            )
        if config_hash(saved.get("config", {})) != saved["config_hash"]:
            raise UserError(f"{self.config_path} was edited, as its hash is another: {mend}")

    def check_log(self) -> None:
        """Nothing, if the log is there or the run had not begun to train.

        Raises:
            UserError: what it left says that it had, and its log is gone, empty, or cut before `run_start`.
        """
        if self.started:
            return
        trained = [self.result_path, self.trained_path, self.path / "resumed.json"]
        left = [path for path in (*trained, self.scalars_path) if _holds_something(path)]
        if self.checkpoints.is_dir():
            left += sorted(self.checkpoints.glob("step_*"))
        if left:
            there = "is cut short or empty" if self.log_path.exists() else "is gone"
            raise UserError(
                f"{self.log_path} {there}, though the run had begun ({left[0]}): put it back from a copy, or move "
                f"{self.path} away and start another run"
            )

    def save_config(self, config: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """Writes `config.json`.

        Args:
            config: the benchmark's fields, resolved; these are hashed.
            options: where and how it runs; kept for the reader.
        """
        document = {
            "config_hash": config_hash(dict(config)),
            "config": dict(config),
            "options": dict(options),
        }
        durable.write_json(self.config_path, document)

    def save_result(self, result: Result) -> None:
        """Writes `result.json`, which makes the run a finished one.

        Raises:
            UserError: the run is finished already, or the disk is full.
        """
        if self.finished:
            raise UserError(f"{self.path} is a finished run; its result is not overwritten")
        durable.write_json(self.result_path, result.to_dict())

    def go_on(self, max_samples: int | None) -> None:
        """Makes a finished run an unfinished one, which may see so many samples; a no-op for others."""
        if not self.result_path.exists():
            return
        self.result_path.unlink()
        saved = self.config()
        self.save_config(saved["config"], saved["options"] | {"max_samples": max_samples})

    def result(self) -> Result:
        """The saved result."""
        return Result.load(self.result_path)

    def reset(self) -> None:
        """Removes log and scalars of a run that was killed before `run_start`; it begins anew.

        Raises:
            UserError: the run had started.
        """
        if self.started:
            raise UserError(f"{self.path} has started; resume it, or give another output folder")
        for path in (self.log_path, self.scalars_path, self.result_path):
            path.unlink(missing_ok=True)

    def acquire(self) -> "RunFolder":
        """Takes the run's lock; the system gives it back when this process ends, however it ends.

        A file system that has no locks (a bucket mounted as a folder) is written unguarded.

        Raises:
            UserError: another process, or another run in this one, writes the run now.
        """
        path = self.path / "lock"
        key = path.resolve()
        if key in _held:
            raise self._taken("this very process")
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise durable.cannot_write(path, error) from error
        if fcntl is not None:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                owner = os.read(handle, 200).decode("utf-8", "replace").strip()
                os.close(handle)
                raise self._taken(owner or "another process") from None
            except OSError:
                pass  # no locks on this file system
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        _held.add(key)
        self._lock = (key, handle)
        return self

    def _taken(self, owner: str) -> UserError:
        return UserError(
            f"{self.path} is being written by {owner}; wait for it, end it, or give another output folder"
        )

    def release(self) -> None:
        """Gives the lock back; a no-op when it is not held."""
        if self._lock is not None:
            key, handle = self._lock
            self._lock = None
            _held.discard(key)
            os.close(handle)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


class RunSet:
    """The runs below one output folder.

    Example:
        >>> import tempfile
        >>> runs = RunSet(tempfile.mkdtemp())
        >>> with runs.create({"batch_size": 64}, {"seed": 1}) as run:
        ...     run.index, run.finished, runs.unfinished().index
        (0, False, 0)

    Args:
        path: the folder; made, with its parents, when the first run is created.
    """

    def __init__(self, path: os.PathLike | str):
        self.path = pathlib.Path(path)

    def runs(self) -> list[RunFolder]:
        """All runs of the set by number, a log without a folder and a folder without a log included."""
        found = set()
        if self.path.is_dir():
            for name in os.listdir(self.path):
                match = re.fullmatch(r"run_(\d+)|result_(\d+)\.txt", name)
                if match:
                    found.add(int(match[1] or match[2]))
        return [RunFolder(self.path, index) for index in sorted(found)]

    def unfinished(self) -> RunFolder | None:
        """The first run that was not brought to its end, or None. A foreign log is not ours to end."""
        return next((run for run in self.runs() if run.path.is_dir() and not run.finished), None)

    def untrained(self) -> list[RunFolder]:
        """The runs that were not trained to their end, by number."""
        begun = [run for run in self.runs() if run.path.is_dir() and not run.finished]
        return [run for run in begun if not run.trained_path.exists()]

    def create(self, config: Mapping[str, Any], options: Mapping[str, Any]) -> RunFolder:
        """Makes the next run: the lowest number that neither a folder nor a log has, locked.

        Args:
            config: the benchmark's resolved fields.
            options: the run's options.

        Raises:
            UserError: the folder holds runs of another configuration, or one with this seed, or cannot
                be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise durable.cannot_write(self.path, error) from error
        with _alone(self.path):
            self._refuse_other(config, options)
            self._refuse_seed(options.get("seed"))
            taken = {run.index for run in self.runs()}
            for index in itertools.count():
                if index in taken:
                    continue
                run = RunFolder(self.path, index)
                try:
                    run.path.mkdir()  # fails when another process was faster, where nothing locks
                    break
                except FileExistsError:
                    continue
                except OSError as error:
                    raise durable.cannot_write(run.path, error) from error
            run.acquire()
            run.save_config(config, options)
        return run

    def resume(
        self, config: Mapping[str, Any], options: Mapping[str, Any], run: RunFolder | None = None
    ) -> RunFolder | None:
        """A run, the first unfinished one by default, locked; None when there is none.

        Its `config.json` is kept as it is, or written when the run was killed before that. With the option
        `new_optimizer` it may go on with another optimizer, and its configuration then tells of both.

        Raises:
            UserError: it has another configuration, or lost its own, or another process writes it.
        """
        run = run or self.unfinished()
        if run is None:
            return None
        run.check_config()
        run.check_log()
        run.acquire()
        try:
            if run.config_path.exists():
                if options.get("new_optimizer"):
                    self._change_optimizer(run, config, options)
                past = run.config().get("config", {}).get(_CHANGES)
                own = config if past is None else {**config, _CHANGES: past}
                self._refuse_other(own, options, [run])
            else:
                run.save_config(config, options)
        except BaseException:
            run.release()
            raise
        return run

    def _change_optimizer(
        self, run: RunFolder, config: Mapping[str, Any], options: Mapping[str, Any]
    ) -> None:
        """Writes down that a run goes on with another optimizer, if all else is its own."""
        saved, new = run.config().get("config", {}), durable.plain(dict(config))
        differ = {n for n in {*saved, *new} if not durable.same(saved.get(n), new.get(n))}
        if differ - {_CHANGES} != {"optimizer"}:
            return
        if len(self.runs()) > 1:
            raise UserError(
                f"{self.path} holds other runs, and a set has one optimizer: leave --new-optimizer out, or copy "
                f"{run.path.name} and {run.log_path.name} to a folder of their own"
            )
        was, now = (o.get("optimizer_state") for o in (run.config().get("options", {}), options))
        if was != now:
            raise UserError(
                f"the state that the optimizer of {run.path} has left does not fit the new one: give an "
                "optimizer with the same state, or another output folder"
            )
        past = [*saved.get(_CHANGES, []), saved["optimizer"]]
        run.save_config({**config, _CHANGES: past}, {**options, "seed": run.seed})

    def _refuse_seed(self, seed: int | None) -> None:
        same = next((run for run in self.runs() if run.seed == seed is not None), None)
        if same is not None:
            unfinished = (
                "" if same.finished else ", or --resume, which takes it up as it is unfinished"
            )
            raise UserError(
                f"{same.path} has seed {seed} already, and runs of one set need seeds of their own: give "
                f"another seed, or another output folder{unfinished}"
            )

    def _refuse_other(
        self,
        config: Mapping[str, Any],
        options: Mapping[str, Any],
        runs: list[RunFolder] | None = None,
    ) -> None:
        for run in self.runs() if runs is None else runs:
            if not run.config_path.exists():
                continue
            saved = run.config()
            if saved["config_hash"] != config_hash(dict(config)):
                changes = config_changes(saved.get("config", {}), config)
                upgrade = _upgrade(saved.get("options", {}), options)
                raise UserError(
                    f"{self.path} holds runs of another configuration ({'; '.join([*changes, *upgrade])}); a set "
                    "is one configuration: give another output folder, or the same configuration"
                )


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """One process at a time: the system gives the lock back when it ends. File systems without locks are unguarded."""
    if fcntl is None:
        yield
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise durable.cannot_write(folder, error) from error
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def runs_at(path: os.PathLike | str) -> list[RunFolder]:
    """The runs of a path that have a configuration: the one of a run's folder (`…/run_0`), all of a set's."""
    folder = check_path(path, "the folder")
    one = re.fullmatch(r"run_(\d+)", folder.name)
    runs = [RunFolder(folder.parent, int(one[1]))] if one else RunSet(folder).runs()
    return [run for run in runs if run.config_path.exists()]


def _holds_something(path: pathlib.Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _upgrade(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What may have made another optimizer of the same one: libraries of another version."""
    was, now = (each.get("optimizer_traced_by") for each in (old, new))
    if not was or not now or was == now:
        return []
    return [f"its optimizer was traced by {was}, which may trace it otherwise than {now}"]


def config_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two configurations, field by field: `batch_size was 64 and is now 128`.

    Of a whole file in a field its hash is told: `transform was text 1f2e3d4c (40 lines) and is now …`.
    """
    old, new = durable.plain(dict(old)), durable.plain(dict(new))
    changes = []
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in new:
            changes.append(f"{name} was {durable.told(old[name])} and is gone")
        elif name not in old:
            changes.append(f"{name} is new: {durable.told(new[name])}")
        elif not durable.same(old[name], new[name]):
            changes.append(
                f"{name} was {durable.told(old[name])} and is now {durable.told(new[name])}"
            )
    return changes


class Scalars(durable.Lines):
    """Writes a run's `scalars.jsonl`: one JSON object per line with `step`, `samples` and values.

    Lines go to the system at once, so a killed process loses none; `sync` puts them on the disk, and is
    to be called before a checkpoint is taken, which keeps `offset`.
    """

    def write(self, *, step: int, samples: int, **values: Any) -> None:
        """Appends one line.

        Args:
            step: this run's batches so far.
            samples: training samples so far.
            **values: numbers by name, such as `loss=2.3`. One that is not finite is written as null, as
                JSON has no other word for it.
        """
        line = durable.plain({"step": step, "samples": samples, **values}, "scalars")
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in line.items()
        }
        self.append(json.dumps(finite, allow_nan=False), sync=False)

    @staticmethod
    def read(path: os.PathLike | str) -> list[dict[str, Any]]:
        """The lines of a file, without half a line at its end; null is not-a-number.

        Raises:
            UserError: the file is missing, or a whole line is damaged.
        """
        path = pathlib.Path(path)
        if unusual := durable.not_a_file(path):
            raise UserError(f"{path} is {unusual}, where a run's scalars should be: move it away")
        try:
            content = path.read_bytes()[: durable.whole_lines(path)]
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from error
        lines = []
        for number, raw in enumerate(content.splitlines(), start=1):
            try:
                line = json.loads(raw)
                line["step"]
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"line {number} of {path} is damaged ({error}); remove that line, then try again"
                ) from error
            lines.append({name: math.nan if v is None else v for name, v in line.items()})
        return lines

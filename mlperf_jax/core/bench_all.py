"""The speed of several benchmarks, each measured in a process of its own.

A crash, or a device without room, costs a row and no more. What matters most comes first: ours, then the same steps by
another program, the twin, then ours in other ways. What there is no time left for is told as such.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import datetime
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlperf_jax.core.bench_suite import OURS, TWIN, Measured, Suite
from mlperf_jax.errors import UserError

OUTPUT = "mlperf_bench"
SECONDS = 3.0  # of a pass of steps
SHARE = 3  # times its even share of the time that is left may one row take
LEAST = 30.0  # seconds that a row may take, if so many are left
# JAX's own three quarters would leave out what fits
ENVIRONMENT = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
COMPILING = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # several at a time share a device


@dataclass(frozen=True)
class Variant:
    """Another way to run ours.

    Attributes:
        name: what the table calls it.
        benchmarks: those that may gain by it.
        words: behind the command.
        flags: of XLA, beside those of the environment.
        environment: further variables.
    """

    name: str
    benchmarks: tuple[str, ...]
    words: tuple[str, ...] = ()
    flags: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A row to be measured: the process that does it, and the file that it writes."""

    benchmark: str
    side: str
    command: tuple[str, ...]
    file: pathlib.Path
    environment: Mapping[str, str] = field(default_factory=dict)


def bench_all(
    names: Sequence[str],
    variants: Sequence[Variant] = (),
    *,
    tiny: bool = False,
    minutes: float = 6.0,
    output: str | os.PathLike = OUTPUT,
    twins: str | os.PathLike | None = None,
    profile: bool = True,
    steps: int = 50,
    warmup: int = 2,
    memory: float | None = None,
    jobs: int | None = None,
    say: Callable[[str], None] = print,
) -> Suite:
    """Measures the training step of benchmarks at the largest scale that the devices have room for.

    Args:
        names: of the benchmarks, as `bench` takes them.
        variants: measured behind the others, of the benchmarks among them that they name.
        tiny: the small stand-ins.
        minutes: that all may take; rows that find no time left are told.
        output: folder of a JSON file, the words and a trace for each row.
        twins: a Python file, or a folder that Python runs, which measures the same steps by another library:
            `python TWINS ROW.json OUT.json` reads our report and writes `step_seconds`, `examples_per_second`,
            `batch_size` and what else it knows of one.
        profile: write xprof traces, and tell what took most of the time.
        steps, warmup: as in `bench`; slow steps are fewer.
        memory: GiB of a device that may be used.
        jobs: programs that are compiled at a time before anything is measured; a third of the cores by default, and
            with fewer than two each is compiled when it is measured.
        say: takes a line about each row.

    Raises:
        UserError: the twins are not there.
    """
    begin, folder = time.monotonic(), pathlib.Path(output)
    given = None if twins is None else pathlib.Path(twins)
    if given and not (given.is_file() or (given / "__main__.py").is_file()):
        raise UserError(f"{given} is no Python file and no folder with a __main__.py: give one")
    folder.mkdir(parents=True, exist_ok=True)
    words = ["--fit", "--no-evaluation", f"--steps={steps}", f"--warmup={warmup}"]
    words += [f"--seconds={SECONDS}", *(["--tiny"] if tiny else [])]
    words += [f"--memory={memory}"] if memory else []

    def ours(name: str, side: str = OURS, more: Sequence[str] = (), **environment: str) -> Task:
        file = folder / f"{_safe(name)}-{_safe(side)}.json"
        traced = ["--profile", f"--output={file.with_suffix('')}"] if profile else []
        command = (sys.executable, "-m", "mlperf_jax", "bench", name, *words, *traced, *more)
        return Task(name, side, (*command, f"--json={file}"), file, environment)

    tasks = [ours(name) for name in names]
    if twins is not None:
        tasks += [_twin(task, twins) for task in tasks]
    for variant in variants:
        flags = f"{os.environ.get('XLA_FLAGS', '')} {variant.flags}".strip()
        more = {**variant.environment, **({"XLA_FLAGS": flags} if variant.flags else {})}
        known = [name for name in names if name in variant.benchmarks]
        tasks += [ours(name, variant.name, variant.words, **more) for name in known]
    deadline = begin + 60 * minutes
    jobs = (os.cpu_count() or 1) // 3 if jobs is None else jobs
    if jobs > 1:
        _compile([task for task in tasks if task.side != TWIN], jobs, deadline, say)
    rows = list(_measured(tasks, deadline, say))
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Suite(rows, minutes, time.monotonic() - begin, date)


def _twin(task: Task, twins: str | os.PathLike) -> Task:
    file = task.file.with_name(f"{_safe(task.benchmark)}-{TWIN}.json")
    command = (sys.executable, os.fspath(twins), str(task.file), str(file))
    return Task(task.benchmark, TWIN, command, file)


def _compile(tasks: Sequence[Task], jobs: int, deadline: float, say: Callable[[str], None]) -> None:
    """Compiles what will be measured, several at a time, into the compile cache."""
    begin = time.monotonic()

    def one(task: Task) -> None:
        log = task.file.with_suffix(".compile.txt")
        words = [word for word in task.command if not word.startswith(("--json", "--profile"))]
        _run([*words, "--compile-only"], log, {**task.environment, **COMPILING}, deadline)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, tasks))
    say(f"compiled {len(tasks)} programs, {jobs} at a time, in {time.monotonic() - begin:.0f} s")


def _measured(
    tasks: Sequence[Task], deadline: float, say: Callable[[str], None]
) -> Iterator[Measured]:
    """A row for each task, told when it is there."""
    without: set[str] = set()  # benchmarks of which ours has no figures
    for number, task in enumerate(tasks):
        begin, found, error = time.monotonic(), None, None
        left = deadline - begin
        task.file.unlink(missing_ok=True)
        if task.side != OURS and task.benchmark in without:
            error = "ours has no figures that it could stand beside"
        elif left <= 1:
            error = "no time was left: give more --minutes, or fewer benchmarks"
        else:
            allowed = min(left, max(LEAST, SHARE * left / (len(tasks) - number)))
            log = task.file.with_suffix(".txt")
            error = _run(task.command, log, task.environment, begin + allowed)
            if error is None:
                found, error = _read(task.file)
        if error is not None and task.side == OURS:
            without.add(task.benchmark)
        row = Measured(task.benchmark, task.side, found, error, time.monotonic() - begin)
        told = error or f"{1e3 * row.found['step_seconds']:.4g} ms a step"  # pyright: ignore[reportOptionalSubscript]
        say(f"{task.benchmark}, {task.side}: {told} ({row.seconds:.0f} s)")
        yield row


def _read(file: pathlib.Path) -> tuple[dict[str, Any] | None, str | None]:
    """The figures that a process wrote, or what is wrong with them."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        lacks = {"step_seconds", "examples_per_second", "batch_size"} - found.keys()
    except (OSError, ValueError, AttributeError) as error:
        return None, f"it left no figures in {file}: {error}"
    return (None, f"{file} has no {', '.join(sorted(lacks))}") if lacks else (found, None)


def _run(
    command: Sequence[str], log: pathlib.Path, environment: Mapping[str, str], end: float
) -> str | None:
    """Runs a process and all that it begins until `end` at most; None, or why it did not come to its end."""
    full = {**ENVIRONMENT, **os.environ, **environment}
    allowed = max(0.0, end - time.monotonic())
    with log.open("wb") as words:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=subprocess.STDOUT,
            env=full,
            start_new_session=True,
        )
        try:
            code = process.wait(allowed)
        except subprocess.TimeoutExpired:
            return f"it was ended after {allowed:.0f} s: give more --minutes, or fewer benchmarks"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code == 0:
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    said = lines[-1].strip() if lines else "it said nothing"
    ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"{said} ({ended}; {log})"


def _safe(name: str) -> str:
    """A name as part of a file's."""
    return "".join(c if c.isalnum() or c in "._" else "_" for c in name)

"""A process that is a fork of this one and runs the command: `subprocess.Popen` as far as stress.py needs it.

Importing takes as long as the rest of a short run. A fork of a process that has imported JAX, and not used it,
saves that; what it leaves out is the first seconds of a process.
"""

from __future__ import annotations

import atexit
import faulthandler
import importlib
import os
import pathlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NoReturn


def compiled_once(cache: pathlib.Path) -> dict[str, str]:
    """An environment in which runs on CPUs keep their programs in this folder."""
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }


def hear_all() -> None:
    """Has this process take signals as a new one does, whatever `nohup` and a shell in the background pass on."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def prepare(names: Sequence[str], cache: pathlib.Path) -> None:
    """Imports what runs of these benchmarks need, once for all forks."""
    os.environ.update(compiled_once(cache))
    for module in ("cli", "core.launch", "core.offline"):
        importlib.import_module(f"mlperf_jax.{module}")
    from mlperf_jax import benchmarks

    for name in names:
        benchmarks.benchmark_class(name)


_reading: list[IO[bytes]] = []  # ends of pipes that a fork must not hold open


class Fork:
    """The command in a fork of this process, which leads a session of its own.

    Args:
        words: behind `mlperf-jax`.
        place: where it works.
        environment: what it finds there besides.
        run: what is done in place of the command; returns the exit code.
    """

    def __init__(
        self,
        words: Sequence[str],
        place: pathlib.Path,
        environment: Mapping[str, str],
        run: Callable[[], int] | None = None,
    ) -> None:
        pipes = [os.pipe(), os.pipe()]
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            for file in _reading:
                file.close()
            for reading, _ in pipes:
                os.close(reading)
            _become(words, place, environment, [writing for _, writing in pipes], run)
        for _, writing in pipes:
            os.close(writing)
        self.stdout, self.stderr = (open(reading, "rb", 0) for reading, _ in pipes)  # noqa: SIM115
        _reading[:] = [file for file in (*_reading, self.stdout, self.stderr) if not file.closed]
        self._code: int | None = None

    def poll(self) -> int | None:
        return self._wait(os.WNOHANG)

    def wait(self) -> int:
        found = self._wait(0)
        assert found is not None
        return found

    def _wait(self, how: int) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, how)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code


def _become(
    words: Sequence[str],
    place: pathlib.Path,
    environment: Mapping[str, str],
    outputs: list[int],
    run: Callable[[], int] | None,
) -> NoReturn:
    """The rest of a fork's life."""
    code: Any = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, output in enumerate(outputs, start=1):
            os.dup2(output, number)
            os.close(output)
        sys.stdout, sys.stderr = _text(1), _text(2)
        faulthandler.enable()
        hear_all()
        os.chdir(place)
        os.environ.update(environment)
        from mlperf_jax.cli import main

        sys.argv = ["mlperf-jax", *words]
        code = (run or main)()
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    code = code if isinstance(code, int) else 0 if code is None else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or 120
    os._exit(code)


def _text(number: int) -> IO[str]:
    return open(number, "w", encoding="utf-8", buffering=1, closefd=False)

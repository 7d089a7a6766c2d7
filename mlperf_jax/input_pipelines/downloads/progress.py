"""What a person sees while files are fetched: one live line on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO

import rich.console
import rich.progress

from mlperf_jax.input_pipelines.downloads.manifest import in_words

PLAIN_SECONDS = 10.0  # between plain lines


class Progress:
    """Plain lines, for pipes and log files; shows itself from `with` on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._began = self._last = time.monotonic()
        self._total: int | None = None
        self._had = self._done = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None: ...

    def begin(self, total: int | None, had: int) -> None:
        """So many bytes are to be fetched, unless nobody says, and so many of them lie there."""
        self._began = self._last = time.monotonic()
        self._total, self._had, self._done = total, had, had

    def add(self, count: int) -> None:
        """So many bytes more have come; a negative number when a file is begun anew."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._last < PLAIN_SECONDS:
                return
            self._last = now
            self.say(self._line(now))

    def say(self, text: str) -> None:
        """A line that stays."""
        print(text, file=self._stream, flush=True)

    def _line(self, now: float) -> str:
        rate = (self._done - self._had) / max(now - self._began, 1e-9)
        of = f" of {in_words(self._total)}" if self._total is not None else ""
        line = f"{in_words(self._done)}{of} · {in_words(max(rate, 0))}/s"
        if self._total is not None and rate > 0:
            line += f" · {duration((self._total - self._done) / rate)} left"
        return line


class Live(Progress):
    """A bar with bytes, rate and the time that is left."""

    def __enter__(self) -> Live:
        self._bar = rich.progress.Progress(
            rich.progress.BarColumn(bar_width=24),
            rich.progress.DownloadColumn(),
            rich.progress.TransferSpeedColumn(),
            rich.progress.TimeRemainingColumn(),
            console=rich.console.Console(file=self._stream),
            transient=True,
            refresh_per_second=5,
        )
        self._task = self._bar.add_task("", total=None)
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, total: int | None, had: int) -> None:
        self._bar.reset(self._task, total=total, completed=had)

    def add(self, count: int) -> None:
        self._bar.advance(self._task, count)

    def say(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, "2:13:05"."""
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def make(stream: TextIO | None = None) -> Progress:
    """The display that suits a stream, stderr by default."""
    to = stream or sys.stderr
    return Live(to) if to.isatty() else Progress(to)

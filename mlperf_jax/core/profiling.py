"""`--profile`: an xprof trace of a few steady steps, written into the run's folder; and what took most of it."""

from __future__ import annotations

import collections
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax

SKIP = 10  # steps before the trace, so that caches and the input pipeline are warm
STEPS = 10  # steps traced


@dataclass(frozen=True)
class Operation:
    """Operations of one name in a trace: those of XLA on TPUs and CPUs, kernels on GPUs.

    Attributes:
        name: without the number that XLA puts behind it.
        share: of the time of all operations, in [0, 1].
        seconds: in the whole trace, of all devices and threads.
        count: how many there were.
    """

    name: str
    share: float
    seconds: float
    count: int

    def __str__(self) -> str:
        return f"{self.name} {100 * self.share:.0f} %"


def operations(folder: pathlib.Path | str, most: int = 20) -> list[Operation]:
    """What took most of the time in the newest trace of a folder, the longest first; nothing where there is none."""
    traces = sorted(
        pathlib.Path(folder).rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime
    )
    if not traces:
        return []
    spent: collections.Counter[str] = collections.Counter()
    count: collections.Counter[str] = collections.Counter()
    for event in _events(jax.profiler.ProfileData.from_file(str(traces[-1]))):
        name = re.sub(r"([._]\d+)+$", "", event.name)
        spent[name] += event.duration_ns / 1e9
        count[name] += 1
    total = spent.total() or 1.0
    return [Operation(n, s / total, s, count[n]) for n, s in spent.most_common(most)]


def _events(data: Any) -> Iterator[Any]:
    """The operations of a trace, each once, whoever recorded them."""
    for plane in data.planes:
        lines = list(plane.lines)
        if plane.name.startswith("/device:"):
            # what a line of streams tells kernel by kernel, others tell again by step and module
            whole = [line for line in lines if line.name == "XLA Ops"]
            for line in whole or [line for line in lines if line.name.startswith("Stream")]:
                yield from line.events
        elif plane.name == "/host:CPU":
            for line in lines:
                if line.name.startswith("tf_XLA"):  # threads that compute
                    yield from (e for e in line.events if _is_operation(e.name))


def _is_operation(name: str) -> bool:
    """Whether a CPU's event is no part of the runtime.

    >>> _is_operation("ynn_fusion"), _is_operation("end: dot.3"), _is_operation("ThunkExecutor::Execute")
    (True, False, False)
    """
    return "::" not in name and not name.startswith("end: ") and bool(re.match(r"[a-z]", name))


class Trace:
    """Starts and stops the profiler by step number; does nothing when `folder` is None.

    View it with `xprof --logdir FOLDER` (extra `profile`) or ui.perfetto.dev.
    """

    def __init__(
        self, folder: pathlib.Path | str | None, skip: int = SKIP, steps: int = STEPS
    ) -> None:
        self._folder = folder
        self._skip, self._steps = skip, steps
        self._seen = 0
        self._on = False

    def step(self, number: int) -> None:
        """Called before each step is dispatched."""
        if self._folder is None:
            return
        if self._seen == self._skip:
            jax.profiler.start_trace(str(self._folder))
            self._on = True
        elif self._seen == self._skip + self._steps:
            self.close()
        self._seen += 1

    def close(self) -> None:
        """Ends the trace if one is running."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
            self._folder = None

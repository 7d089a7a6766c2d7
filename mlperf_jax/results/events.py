"""A run's scalars and qualities as an event file of TensorBoard (extra `tensorboard`).

    output/run_0/tensorboard/events.out.tfevents.…    one file per run

`scalars.jsonl` and the log stay what counts: the file is made of them, added to while the run goes on, and
made anew when it is resumed, so that no point stands twice and none is lost. The horizontal axis
("step") is training samples, as in `curves`; values are float32, as TensorBoard has them; what is not
finite is not-a-number, as `scalars.jsonl` says no more of it.

The records are those of the package `tensorboard`, which needs neither TensorFlow nor torch. Its own writer
leaves the disk to a thread, where an error ends nothing; here a record is with the system when the call returns.
"""

from __future__ import annotations

import bisect
import functools
import io
import json
import math
import os
import pathlib
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any

from mlperf_jax.errors import UserError, optional
from mlperf_jax.results import durable, log as logs, story
from mlperf_jax.results.runs import RunFolder, Scalars, runs_at

FOLDER = "tensorboard"
_PREFIX = "events.out.tfevents."  # by which TensorBoard knows its files
_HEADER, _FOOTER = 12, 4  # bytes of a record around its event: length and checksums


@functools.cache
def _library(name: str) -> Any:
    return optional(f"tensorboard.{name}", "tensorboard", "a file of TensorBoard events")


def check_extra() -> None:
    """Nothing, if event files can be written.

    Raises:
        UserError: the extra `tensorboard` is not installed.
    """
    for name in ("summary.writer.record_writer", "plugins.hparams.summary_v2"):
        _library(name)


def files(run: RunFolder) -> list[pathlib.Path]:
    """A run's event files: one at most, unless somebody put more there."""
    return sorted((run.path / FOLDER).glob(f"{_PREFIX}*"))


class Events(durable.Appending):
    """A run's event file, which begins with all that the run has told so far.

    Args:
        run: its folder; scalars and log are read, event files that are there are replaced.

    Raises:
        UserError: the extra is missing, scalars or log are damaged, or the disk is full.
    """

    def __init__(self, run: RunFolder):
        check_extra()
        times = _Times(run)
        content = b"".join(map(_record, _told(run, times)))
        folder, earlier = run.path / FOLDER, files(run)
        beside = folder / "unfinished.tmp"  # no name that TensorBoard would read
        try:
            folder.mkdir(exist_ok=True)
            beside.unlink(missing_ok=True)
            super().__init__(beside)
            self.append_bytes(content, sync=True)
            for path in earlier:
                path.unlink()
            # a later name than before: TensorBoard, which may be looking on, takes it for what goes on
            self.path = folder / f"{_PREFIX}{int(time.time()):010}.{run.path.name}"
            os.replace(beside, self.path)
        except OSError as error:
            raise durable.cannot_write(folder, error) from error
        durable.sync_folder(folder)

    def record(self, samples: int, values: Mapping[str, Any]) -> None:
        """Appends scalars of training, of now."""
        self._append(_scalars("train", samples, values, time.time()))

    def evaluated(self, samples: int, name: str, value: Any, time_ms: float | None = None) -> None:
        """Appends the quality of an evaluation; its time is now by default."""
        when = time.time() if time_ms is None else time_ms / 1000
        self._append(_scalars("eval", samples, {name: value}, when))

    def _append(self, event: Any) -> None:
        self.append_bytes(_record(event), sync=False)

    def close(self) -> None:
        """Puts what was appended on the disk and closes the file; a second call does nothing."""
        if self._file >= 0:
            try:
                self.sync()
            finally:
                super().close()


def convert(*paths: os.PathLike | str) -> list[pathlib.Path]:
    """Writes the event files of runs that were trained without them; `mlperf-jax tensorboard`.

    A point's time is then read off the log, between the lines that say how many samples were done when.

    Args:
        *paths: folders of runs (`…/run_0`) or of sets, all runs of which are converted.

    Returns:
        The files, in the runs' order; such as were there before are replaced.

    Raises:
        UserError: the extra is missing, there is no run, its files are damaged, or a process is writing it.
    """
    check_extra()
    runs = []
    for path in paths:
        found = runs_at(path)
        if not found:
            raise UserError(
                f"{path} is not the folder of a run: give what a run was given as its output, or a run_0, "
                "run_1 … in it"
            )
        runs += found
    written = []
    for run in runs:
        with run.acquire():
            made = Events(run)
            made.close()
        written.append(made.path)
    return written


# -- what a run told -------------------------------------------------------------------------------


def _told(run: RunFolder, times: _Times) -> Iterator[Any]:
    """Events of all that a run's files tell: its configuration, its scalars, its qualities."""
    document = run.config()
    config = document.get("config")
    if not isinstance(config, dict):
        raise UserError(f"{run.config_path} has no configuration: restore it")
    event = _library("compat.proto.event_pb2").Event
    yield event(wall_time=times.begin, file_version="brain.Event:2")
    text = json.dumps({name: document.get(name) for name in ("config", "options")}, indent=2)
    described = _library("plugins.text.summary_v2").text_pb("config", f"```\n{text}\n```")
    yield event(wall_time=times.begin, summary=described)
    settings = {
        name: value for name, value in config.items() if isinstance(value, bool | int | float | str)
    }
    hparams = _library("plugins.hparams.summary_v2").hparams_pb(
        settings, start_time_secs=times.begin
    )
    yield event(wall_time=times.begin, summary=hparams)
    for line in Scalars.read(run.scalars_path) if run.scalars_path.exists() else ():
        values = {name: value for name, value in line.items() if name not in story.NO_VALUES}
        samples = _samples(line.get("samples"), run.scalars_path)
        when = times.of("train", samples, values)
        yield _scalars("train", samples, values, when)
    targets = story.targets_of(run)
    for name, line in story.qualities(run.log_path, targets[0].name if targets else "quality"):
        samples = line.metadata["samples_count"]
        yield _scalars("eval", samples, {name: line.value}, line.time_ms / 1000)


def _samples(given: Any, path: pathlib.Path) -> int:
    if isinstance(given, int) and 0 <= given < 2**63:
        return given
    raise UserError(
        f"{path} has a line with samples {given!r}, which no run wrote: restore it, or move it away"
    )


def _scalars(kind: str, samples: int, values: Mapping[str, Any], when: float) -> Any:
    """One event: "train/loss" and the like after so many samples; what is no number is left out."""
    values = durable.plain(dict(values), kind)
    summary = _library("compat.proto.summary_pb2").Summary()
    for name, value in values.items():
        if isinstance(value, int | float):
            finite = float(value) if math.isfinite(value) else math.nan
            summary.value.add(tag=f"{kind}/{name}", simple_value=finite)
    event = _library("compat.proto.event_pb2").Event
    return event(wall_time=when, step=samples, summary=summary)


class _Times:
    """When a run's points were recorded: as its earlier event file says, else as its log makes likely.

    Attributes:
        begin: seconds since 1970 at which the run began, or now.
    """

    def __init__(self, run: RunFolder) -> None:
        lines = logs.read(run.log_path) if run.log_path.exists() else []
        stamps = {"block_start": None, "block_stop": None, "run_start": 0}
        done = [
            (line.metadata.get("samples_count", stamps[line.key]), line.time_ms / 1000)
            for line in lines
            if line.key in stamps
        ]
        self._done = sorted((n, when) for n, when in done if isinstance(n, int))
        self.begin = lines[0].time_ms / 1000 if lines else time.time()
        self._known: dict[tuple[str, int], float] = {}
        for path in files(run):
            for event in _read(path):
                for value in event.summary.value:
                    self._known.setdefault((value.tag, event.step), event.wall_time)

    def of(self, kind: str, samples: int, values: Mapping[str, Any]) -> float:
        """Seconds since 1970 of the point of these values."""
        for name in values:
            if (kind + "/" + name, samples) in self._known:
                return self._known[kind + "/" + name, samples]
        at = bisect.bisect(self._done, (samples, math.inf))
        before, after = self._done[max(at - 1, 0) : at], self._done[at : at + 1]
        if not before or not after:  # later than the last line, or than all
            return (before or after or [(0, self.begin)])[0][1]
        (low, begin), (high, end) = before[0], after[0]
        return begin + (end - begin) * (samples - low) / (high - low)


# -- records ---------------------------------------------------------------------------------------


def _record(event: Any) -> bytes:
    file = io.BytesIO()
    _library("summary.writer.record_writer").RecordWriter(file).write(event.SerializeToString())
    return file.getvalue()


def _read(path: pathlib.Path) -> Iterator[Any]:
    """The events of a file up to where it ends, is cut, or is no event file."""
    from google.protobuf.message import DecodeError

    try:
        content = path.read_bytes()
    except OSError:
        return
    at = 0
    while at + _HEADER <= len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        end = at + _HEADER + length
        if end + _FOOTER > len(content):
            return
        try:
            event = _library("compat.proto.event_pb2").Event.FromString(content[at + _HEADER : end])
        except DecodeError:
            return
        yield event
        at = end + _FOOTER

"""What a run has left in its folder, and what of it was lost: the judge of stress.py.

Nothing here starts a run: folders, exit codes and messages are all it sees. Each function returns sentences,
one for each loss, so that none means that nothing was lost.
"""

from __future__ import annotations

import dataclasses
import fcntl
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlperf_jax.core.checkpoints.folder import Folder, absolute
from mlperf_jax.errors import UserError
from mlperf_jax.results import log as logs
from mlperf_jax.results.runs import RunFolder

PROG = "mlperf-jax: "
ENDS = frozenset({0, 1})  # exit codes of a run that came to its end
# of a finished set's folder, below it
_ARRAYS = r"run_0/checkpoints/step_\d+(_\d+)?/arrays"
_NAMES = re.compile(
    r"result_0\.txt|run_0(/(config|resumed|trained|scores|result)\.json|/scalars\.jsonl|/lock)?"
    rf"|run_0/checkpoints(/newest|/step_\d+(_\d+)?(/meta\.json|/sealed|/small_\d+)?)?|{_ARRAYS}(/.*)?"
)
# what a display, and a run that is told to stop, say on stderr
_SAID = re.compile(
    r"step [\d,]+ · |epoch [\d.e+-]+ · |target (not )?reached|resumed (after step|from the start)|note: "
    r"|no checkpoint yet: resumed from the start|trained; score it with |mlperf-jax: \S"
)
_TOLD = frozenset({2, 129, 130, 143})  # exit codes that come with a sentence
_SHOWN = 200  # characters of a message that is quoted


@dataclass(frozen=True)
class Left:
    """What there is of the first run of a set at one instant.

    Attributes:
        log: the bytes of its log.
        step: of the newest whole checkpoint; None without one.
        whole: how many checkpoints are whole.
        offset: bytes of the log that nothing may take back: up to that checkpoint, or to `run_start`, all of a
            finished run's.
        trained: whether it is trained, and waits to be scored or is.
        result: what `result.json` holds.
    """

    log: bytes = b""
    step: int | None = None
    whole: int = 0
    offset: int = 0
    trained: bool = False
    result: bytes | None = None

    @property
    def lines(self) -> bytes:
        """The log without half a line at its end."""
        return self.log[: self.log.rfind(b"\n") + 1]


def look(folder: pathlib.Path) -> Left:
    """What there is in a set's folder now, which a run may be writing."""
    for _ in range(20):
        try:
            return _look(RunFolder(folder, 0))
        except (OSError, ValueError, UserError):  # it was replaced or deleted meanwhile
            continue
    return Left(_bytes(folder / "result_0.txt") or b"")


def _look(run: RunFolder) -> Left:
    result, trained = _bytes(run.result_path), _bytes(run.trained_path)
    files = Folder(absolute(run.checkpoints))
    places = files.places()
    offset = files.meta(places[-1])["log_offset"] if places else None
    log = _bytes(run.log_path) or b""
    if trained is not None:
        offset = json.loads(trained)["log_offset"]
    if offset is None:
        offset = next(
            (end for line, end in _ends(log) if b'"run_start"' in line and line.endswith(b"\n")), 0
        )
    whole = log.rfind(b"\n") + 1
    return Left(
        log,
        places[-1].step if places else None,
        len(places),
        whole if result else offset,
        trained is not None,
        result,
    )


def _bytes(path: pathlib.Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _ends(log: bytes) -> Iterator[tuple[bytes, int]]:
    """The lines of a log, and the byte after each."""
    lines = log.splitlines(keepends=True)
    return zip(lines, itertools.accumulate(map(len, lines)))


# -- after a damage --------------------------------------------------------------------------------


def gone(begun: Left, before: Left, after: Left) -> Iterator[str]:
    """What was on the disk before a damage and is not after it.

    Args:
        begun: what there was when the process began: it may cut the log back to its checkpoint, once.
        before: what there was just before the damage.
        after: what there is when the process has ended.
    """
    cut = before.lines == begun.lines
    kept = begun.log[: begun.offset] if cut else before.lines
    if not after.log.startswith(kept):
        yield f"of {len(kept)} bytes of the log that were on the disk, some are gone or others"
    if (after.step or 0) < (before.step or 0):
        yield f"the checkpoint of step {before.step} is gone: the newest is {after.step}"
    if before.step is not None and after.step is None:
        yield f"the checkpoint of step {before.step} is gone, and no other is whole"
    if before.trained and not after.trained:
        yield "trained.json is gone"
    if before.result not in (None, after.result):
        yield "result.json is gone, or another"


def misbehaved(code: int, said: str, expected: frozenset[int], after: Left) -> Iterator[str]:
    """What is wrong with the way in which a process ended.

    Args:
        code: its exit code, negative for a signal that killed it.
        said: on stderr.
        expected: exit codes that the documentation has for what was done to it.
        after: what it has left.
    """
    lines = said.splitlines()
    if code not in expected:
        allowed = ", ".join(map(str, sorted(expected)))
        yield f"exit code {code}, not one of {allowed}: {(lines or ['(silence)'])[-1][:_SHOWN]}"
    foreign = next((line for line in lines if line and not _SAID.match(line)), None)
    if foreign is not None:
        yield f"stderr has a line that is no sentence of ours: {foreign[:_SHOWN]}"
    told = [line for line in lines if line.startswith(PROG)]
    if code in _TOLD:
        if len(told) != 1 or lines[-1] != told[0]:
            yield f"exit code {code} comes with {len(told)} sentences at its end, not one"
    elif told:
        yield f"exit code {code} comes with a sentence of failure: {told[0][:_SHOWN]}"
    stopped = re.search(r"stopped by signal \d+ after step (\d+)", said)
    if stopped and after.step != int(stopped[1]):
        yield f"it says that it stopped after step {stopped[1]}, and its checkpoint is of {after.step}"


def went_back(begun: Left, said: str) -> Iterator[str]:
    """A resumed run that did not go on from the newest checkpoint that there was."""
    resumed = re.search(r"resumed after step ([\d,]+)", said)
    step = resumed and int(resumed[1].replace(",", ""))
    if begun.step is not None and not begun.trained and step != begun.step:
        yield f"there was a checkpoint of step {begun.step}, and it resumed from {step or 'the start'}"
    if begun.step is None and step:
        yield f"there was no checkpoint, and it resumed after step {step}"


# -- at the end ------------------------------------------------------------------------------------


def differs(folder: pathlib.Path, undisturbed: pathlib.Path) -> Iterator[str]:
    """What a finished run has otherwise than one that nobody disturbed."""
    ours, theirs = RunFolder(folder, 0), RunFolder(undisturbed, 0)
    if not ours.finished:
        yield "the run is not finished"
        return
    found, wanted = dataclasses.asdict(ours.result()), dataclasses.asdict(theirs.result())
    for name in ("parameters_sha256", "quality", "samples", "status", "reached", "seed", "scored"):
        if found[name] != wanted[name]:
            yield f"result.json has {name} {found[name]}, and undisturbed it is {wanted[name]}"
    lines, others = (told(run.log_path) for run in (ours, theirs))
    pairs = itertools.zip_longest(lines, others, fillvalue="nothing")
    for number, (line, other) in enumerate(pairs, start=1):
        if line != other:
            yield f"line {number} of the log is {line}, and undisturbed it is {other}"[: 3 * _SHOWN]
            break
    times = [line.time_ms for line in logs.read(ours.log_path)]
    if times != sorted(times) and not ours.trained_path.exists():
        yield "the times of the log's lines go back"
    if _bytes(ours.scalars_path) != _bytes(theirs.scalars_path):
        yield "scalars.jsonl is another than undisturbed"
    files = Folder(absolute(ours.checkpoints))
    if files.places()[-1:] != Folder(absolute(theirs.checkpoints)).places()[-1:] and (
        look(folder).step != look(undisturbed).step
    ):
        yield f"the last checkpoint is of step {look(folder).step}, not {look(undisturbed).step}"


def told(log: pathlib.Path) -> list[tuple[Any, ...]]:
    """What the lines of a log say, but for when."""
    return [(line.event_type, line.key, line.value, line.metadata) for line in logs.read(log)]


def rubbish(folder: pathlib.Path, keep: int = 2) -> Iterator[str]:
    """What nobody will sweep any more, and what still holds a finished set."""
    run = RunFolder(folder, 0)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    strange = [
        name
        for name in names
        if not _NAMES.fullmatch(name) or re.search(r"tmp|\.half|__lock|\.part\b", name)
    ]
    if strange:
        yield f"{strange[0]} stays{f', and {len(strange) - 1} more' if strange[1:] else ''}"
    files = Folder(absolute(run.checkpoints))
    whole = {str(place) for place in files.places()}
    halves = {path.name for path in run.checkpoints.glob("step_*")} - whole
    if halves:
        yield f"{sorted(halves)[0]} stays, which is half a checkpoint"
    spare = [place for place in files.places() if not files.sealed(place)]
    if len(spare) > keep:
        yield f"{len(spare)} checkpoints stay, where {keep} are kept"
    if held(folder):
        yield "its lock outlives its owner"


def held(folder: pathlib.Path) -> bool:
    """Whether somebody holds the run's lock."""
    try:
        handle = os.open(folder / "run_0" / "lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def strays(session: int) -> Iterator[str]:
    """Processes that a launch has left behind, by the session that it began."""
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        text = _bytes(stat) or b""
        state, _, _, own = (text.rpartition(b") ")[2].split() + [b""] * 4)[:4]
        if own == str(session).encode() and state != b"Z":
            yield f"process {stat.parent.name} outlives the run: {text.split(b')')[0].decode()})"

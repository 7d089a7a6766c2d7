"""What an entry of the catalogue is, and whether what was seen is what must be seen.

An entry is a command (or a call in Python), what is done to the folder before it, and what must be seen after: the
exit code, one sentence that matches, a folder in which nothing is lost, a limit of time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

PROG = "mlperf-jax: "
LONGEST = 700  # characters of a sentence
Damage = Callable[[pathlib.Path], object]


@dataclass(frozen=True)
class Entry:
    """One bad input.

    Attributes:
        line: the words behind `mlperf-jax`, as a shell would split them; or with `python` a statement.
        says: found in the one sentence on stderr, as a regular expression.
        code: the exit code; with `python` it is 2 for a UserError.
        damage: done to the working folder before.
        begins_with: a folder that is there before the damage, by its name in the fixture `folders`.
        may: paths that may be there afterwards and were not before, as a regular expression; all else must be as
            it was.
        notes: whether other lines may stand before the sentence: notes, and what a run says of its steps.
        seconds: it may take, of two quiet cores.
        environment: variables that differ.
        python: whether the line is Python, in which `benchmarks`, `results` and `core` are there.
        name: of the damage, in the test's own name.
    """

    line: str
    says: str
    code: int = 2
    damage: Damage | None = None
    begins_with: str = ""
    may: str = ""
    notes: bool = False
    seconds: float = 20.0
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    python: bool = False
    name: str = ""

    def __str__(self) -> str:
        shown = self.line if len(self.line) < 90 else f"{self.line[:60]}…{len(self.line)}"
        words = " ".join(word for word in (shown, self.name) if word)
        words += "".join(f" {k}={v}" for k, v in self.environment.items())
        return words.encode("ascii", "backslashreplace").decode()


@dataclass(frozen=True)
class Seen:
    """What a command did."""

    code: int | None
    out: str
    err: str
    seconds: float


def files(folder: pathlib.Path) -> dict[str, str]:
    """Path below a folder -> what is there: a digest, where a link leads, or its kind."""
    found = {}
    for root, below, names in os.walk(folder):
        for name in (*below, *(name for name in names if name != "lock")):  # says who held it last
            path = pathlib.Path(root, name)
            found[path.relative_to(folder).as_posix()] = _what(path)
    return found


def _what(path: pathlib.Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"link to {os.readlink(path)}"
    if stat.S_ISREG(mode):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return "folder" if stat.S_ISDIR(mode) else "special"


def lost(entry: Entry, before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What is not as it was, or was made and may not be."""
    found = [f"{path} is gone" for path in before if path not in after]
    found += [f"{p} was changed" for p in before if p in after and before[p] != after[p]]
    new = (path for path in after if path not in before)
    return found + [f"{p} was made" for p in new if not re.fullmatch(entry.may, p)]


def faults(entry: Entry, seen: Seen, flags: frozenset[str]) -> list[str]:
    """What is wrong with the answer; nothing is right.

    Args:
        entry: what was asked.
        seen: what came of it.
        flags: every option that there is, which a sentence may name.
    """
    found = []
    if seen.code is None:
        return [f"it did not end within its time; stderr: {seen.err[-300:]!r}"]
    if seen.code != entry.code:
        found.append(f"exit code {seen.code}, not {entry.code}")
    if "Traceback" in seen.err or "Traceback" in seen.out:
        return [*found, f"a traceback: {seen.err[-500:]}"]
    said = [line for line in seen.err.splitlines() if line.startswith(PROG)]
    others = [line for line in seen.err.splitlines() if not line.startswith(PROG)]
    if entry.code in (0, 1):
        said = [seen.out + seen.err]
    elif len(said) != 1 or (others and not entry.notes):
        return [*found, f"not one sentence: {seen.err[-500:]!r}"]
    told = said[0]
    if not re.search(entry.says, told):
        found.append(f"{told!r} does not say {entry.says!r}")
    if entry.code in (0, 1):
        return found + _unprintable(told.replace("\n", ""))
    told = told.removeprefix(PROG)
    if len(told) > LONGEST:
        found.append(f"{len(told)} characters: {told[:200]}…")
    if told.endswith("."):
        found.append(f"ends with a full stop: {told!r}")
    advised = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*\b", told)) - set(
        re.split(r"[\s=]", entry.line)
    )
    found += [f"advises {flag}, which is no option" for flag in sorted(advised - flags)]
    return found + _unprintable(told)


def _unprintable(text: str) -> list[str]:
    bad = sorted({sign for sign in text if not sign.isprintable()})
    return [f"prints {bad}"] if bad else []


# -- damages ---------------------------------------------------------------------------------------


def written(path: str, content: str | bytes = b"") -> Damage:
    def write(place: pathlib.Path) -> None:
        target = place / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def to_each(pattern: str, do: Callable[[pathlib.Path], object]) -> Damage:
    """Does something to all files of a pattern, of which there is at least one."""

    def each(place: pathlib.Path) -> None:
        paths = list(place.glob(pattern))
        assert paths, f"there is no {pattern}"
        for path in paths:
            do(path)

    return each


def removed(pattern: str) -> Damage:
    return to_each(pattern, pathlib.Path.unlink)


def overwritten(pattern: str, content: bytes) -> Damage:
    return to_each(pattern, lambda path: path.write_bytes(content))


def cut(pattern: str) -> Damage:
    return to_each(pattern, lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]))


def folder(path: str) -> Damage:
    return lambda place: (place / path).mkdir(parents=True)


def fifo(path: str) -> Damage:
    def make(place: pathlib.Path) -> None:
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(place / path)

    return make


def link(path: str, to: str) -> Damage:
    def make(place: pathlib.Path) -> None:
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).symlink_to(to)

    return make


def both(*damages: Damage) -> Damage:
    def each(place: pathlib.Path) -> Any:
        for damage in damages:
            damage(place)

    return each

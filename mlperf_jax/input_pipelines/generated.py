"""Data that are generated, as tiny's are: what was written is noted, so that what is lost or damaged is made again.

All is made in a folder of its own and moved from there, file by file. So nothing that somebody else put beside it is
touched, and what is whole already stays.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

from mlperf_jax.input_pipelines import building

_NOTE = ".generated.json"  # in the data folder: what -> file -> checksum
_WORK = "incomplete.generated"

Sums = dict[str, str]


def make(
    folder: str | os.PathLike, what: str, write: Callable[[str], None], *, mend: bool
) -> list[str]:
    """Makes generated data below a folder: what is not there, and to mend what is not as it was made.

    Args:
        folder: of the data, of which several sets may share parts.
        what: which data, and all they depend on.
        write: writes them below a folder; keeps what is there already.
        mend: files that lie there are replaced where they differ. Otherwise a part (what lies in the folder itself,
            mostly another folder) that is there stays as it is.

    Returns:
        The files that were put in place.

    Raises:
        UserError: the folder may not be written, or what `write` raises.
    """
    base = pathlib.Path(folder)
    with building.alone(base / "generated"):
        noted = _noted(base)
        mine = noted.get(what)
        if mine and (_same(base, mine) if mend else all((base / p).exists() for p in _parts(mine))):
            return []
        work = base / _WORK
        shutil.rmtree(work, ignore_errors=True)  # of a build that was killed
        try:
            work.mkdir()
            _take_whole(base, work, mine or {})
            write(os.fspath(work))
            made = _sums(work)
            kept = set() if mend else {part for part in _parts(made) if (base / part).exists()}
            placed = _place(base, work, {p: s for p, s in made.items() if _part(p) not in kept})
            noted[what] = made
            if not _same(base, made):  # what was left as it was is not as it would be made
                del noted[what]
            with building.unfinished(base / _NOTE) as note:
                note.write_text(json.dumps(noted))
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return placed


def _noted(base: pathlib.Path) -> dict[str, Sums]:
    """What was noted; nothing where the note is damaged, as then all is compared with what is made."""
    try:
        found = json.loads((base / _NOTE).read_text())
        return {what: {str(p): str(s) for p, s in sums.items()} for what, sums in found.items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _take_whole(base: pathlib.Path, work: pathlib.Path, mine: Sums) -> None:
    """Copies the parts all of whose noted files are as they were made, which then need not be made."""
    parts: dict[str, Sums] = {}
    for path, summed in mine.items():
        parts.setdefault(_part(path), {})[path] = summed
    for sums in parts.values():
        if _same(base, sums):
            for path in sums:
                (work / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(base / path, work / path)


def _place(base: pathlib.Path, work: pathlib.Path, made: Sums) -> list[str]:
    placed = [path for path, summed in made.items() if _sum(base / path) != summed]
    for path in placed:
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        building.publish(work / path, base / path)
    return placed


def _same(base: pathlib.Path, sums: Sums) -> bool:
    return all(_sum(base / path) == summed for path, summed in sums.items())


def _sums(work: pathlib.Path) -> Sums:
    return {os.fspath(p.relative_to(work)): _sum(p) or "" for p in _files(work)}


def _files(work: pathlib.Path) -> Iterator[pathlib.Path]:
    return (path for path in sorted(work.rglob("*")) if path.is_file())


def _sum(path: pathlib.Path) -> str | None:
    """The checksum of a file; None where there is none."""
    return building.checksum(path, "sha256") if path.is_file() else None


def _part(path: str) -> str:
    return path.split(os.sep, 1)[0]


def _parts(sums: Sums) -> set[str]:
    return {_part(path) for path in sums}

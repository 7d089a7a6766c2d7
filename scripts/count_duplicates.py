"""Counts pairs of blocks that say the same: `python scripts/count_duplicates.py [FOLDER]`, the package by default.

`--third FOLDER …` fails, as `make lint` does, where ten lines stand three times.

A block is a run of at least six lines of code. Blank lines, comments, docstrings, imports and lines without a
letter or digit are passed over, and so is white space. A pair is counted once however long it is; three equal
blocks are three pairs.
"""

from __future__ import annotations

import ast
import collections
import io
import itertools
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

LINES = 6
THIRD = 10  # lines of which a third copy is refused
ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "mlperf_jax"

Lines = list[tuple[int, str]]  # of code, each with its number
Place = tuple[str, int]


@dataclass(frozen=True)
class Pair:
    """Two equal blocks: their files, the numbers of their first lines, and how many lines of code they are."""

    one: str
    first: int
    other: str
    second: int
    lines: int

    def __str__(self) -> str:
        return f"{self.lines} lines: {self.one}:{self.first} {self.other}:{self.second}"


def code_lines(text: str) -> Lines:
    """The lines of code of a file, each with its number and without what does not count."""
    passed_over = set()
    for node in ast.walk(ast.parse(text)):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or isinstance(node, ast.Import | ast.ImportFrom):
            passed_over |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    kept = (
        (number, " ".join(line.split()))
        for number, line in enumerate(lines, start=1)
        if number not in passed_over
    )
    return [(number, line) for number, line in kept if re.search(r"\w", line)]


def pairs(folder: pathlib.Path) -> list[Pair]:
    """The pairs of equal blocks of all Python files of a folder."""
    files = _files([folder], folder)
    found = []
    for here in _places(files, LINES).values():
        for (one, i), (other, j) in itertools.combinations(here, 2):
            before = i and j and files[one][i - 1][1] == files[other][j - 1][1]
            apart = one != other or j - i >= LINES
            if apart and not before:  # else it is the middle of a longer block
                length = sum(1 for _ in _alike(files[one][i:], files[other][j:]))
                found.append(Pair(one, files[one][i][0], other, files[other][j][0], length))
    return sorted(found, key=lambda pair: (-pair.lines, pair.one, pair.first))


def third_copies(folders: Iterable[pathlib.Path], root: pathlib.Path) -> list[str]:
    """The first places, "core/loop.py:12", of each block of ten lines that stands three times or more."""
    files = _files(folders, root)
    found = []
    for here in _places(files, THIRD).values():
        apart = [p for i, p in enumerate(here) if not i or _apart(here[i - 1], p, THIRD)]
        before = {files[name][at - 1][1] if at else name for name, at in apart}
        if len(apart) > 2 and len(before) > 1:  # else it is the middle of a longer block
            found.append(" ".join(f"{name}:{files[name][at][0]}" for name, at in apart))
    return found


def _apart(one: Place, other: Place, lines: int) -> bool:
    return one[0] != other[0] or other[1] - one[1] >= lines


def _files(folders: Iterable[pathlib.Path], root: pathlib.Path) -> dict[str, Lines]:
    """The lines of code of all Python files below, by path from the root."""
    paths = sorted(path for folder in folders for path in folder.rglob("*.py"))
    return {p.relative_to(root).as_posix(): code_lines(p.read_text("utf-8")) for p in paths}


def _places(files: Mapping[str, Lines], length: int) -> Mapping[tuple[str, ...], list[Place]]:
    """Where each block of so many lines begins: file, and index of its first line of code."""
    places = collections.defaultdict(list)
    for name, lines in files.items():
        for at in range(len(lines) - length + 1):
            places[tuple(line for _, line in lines[at : at + length])].append((name, at))
    return places


def _alike(one: Lines, other: Lines) -> Iterator[str]:
    for (_, here), (_, there) in zip(one, other):
        if here != there:
            return
        yield here


def main() -> int:
    words = sys.argv[1:]
    if words[:1] == ["--third"]:
        copies = third_copies([ROOT / word for word in words[1:]], ROOT)
        for places in copies:
            print(f"{THIRD} lines stand three times; let one place have them: {places}")
        return int(bool(copies))
    found = pairs(pathlib.Path(words[0]) if words else PACKAGE)
    for pair in found:
        print(pair)
    print(f"{len(found)} pairs of blocks of {LINES} lines or more")
    return 0


if __name__ == "__main__":
    sys.exit(main())

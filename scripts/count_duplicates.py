"""Counts pairs of blocks of the package that say the same: `python scripts/count_duplicates.py [FOLDER]`.

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
from collections.abc import Iterator
from dataclasses import dataclass

LINES = 6
PACKAGE = pathlib.Path(__file__).parent.parent / "mlperf_jax"


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


def code_lines(text: str) -> list[tuple[int, str]]:
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
    files = {
        path.relative_to(folder).as_posix(): code_lines(path.read_text(encoding="utf-8"))
        for path in sorted(folder.rglob("*.py"))
    }
    places = collections.defaultdict(list)  # LINES lines -> where they begin
    for name, lines in files.items():
        for at in range(len(lines) - LINES + 1):
            places[tuple(line for _, line in lines[at : at + LINES])].append((name, at))
    found = []
    for here in places.values():
        for (one, i), (other, j) in itertools.combinations(here, 2):
            before = i and j and files[one][i - 1][1] == files[other][j - 1][1]
            apart = one != other or j - i >= LINES
            if apart and not before:  # else it is the middle of a longer block
                length = sum(1 for _ in _alike(files[one][i:], files[other][j:]))
                found.append(Pair(one, files[one][i][0], other, files[other][j][0], length))
    return sorted(found, key=lambda pair: (-pair.lines, pair.one, pair.first))


def _alike(one: list[tuple[int, str]], other: list[tuple[int, str]]) -> Iterator[str]:
    for (_, here), (_, there) in zip(one, other):
        if here != there:
            return
        yield here


if __name__ == "__main__":
    found = pairs(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE)
    for pair in found:
        print(pair)
    print(f"{len(found)} pairs of blocks of {LINES} lines or more")

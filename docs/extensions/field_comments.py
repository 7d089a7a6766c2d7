"""What the comments beside a dataclass's fields say, read from its source.

A comment above a field that begins with "hyperparameters" or "sizes" begins a group; any other one is a note on
the field below it, and so is a comment at the end of the field's line.
"""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

_GROUPS = ("hyperparameters", "sizes")


@dataclass(frozen=True)
class Comment:
    """Of one field: the title of its group, or "", and a note, or ""."""

    group: str
    note: str


def comments(cls: type) -> dict[str, Comment]:
    """Of every field of a dataclass and its bases, a base's first, a field where it was declared last."""
    found: dict[str, Comment] = {}
    for base in reversed(cls.__mro__):
        if base is not object:
            for name, comment in _own(base):
                found.pop(name, None)
                found[name] = comment
    return found


def _own(cls: type) -> Iterator[tuple[str, Comment]]:
    source = textwrap.dedent(inspect.getsource(cls))
    said = _comments_by_line(source)
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    group = ""
    for node in definition.body:
        if not isinstance(node, ast.AnnAssign) or "ClassVar" in ast.unparse(node.annotation):
            continue
        assert isinstance(node.target, ast.Name) and node.end_lineno
        above = _above(said, node.lineno)
        if above.startswith(_GROUPS):
            group, above = above, ""
        beside = " ".join(
            text
            for line in range(node.lineno, node.end_lineno + 1)
            for text, _ in [said.get(line, ("", False))]
            if text
        )
        yield node.target.id, Comment(group, "; ".join(filter(None, (above, beside))))


def _comments_by_line(source: str) -> dict[int, tuple[str, bool]]:
    """Line -> the comment there, and whether it has the line to itself."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: (token.string.lstrip("# "), not token.line[: token.start[1]].strip())
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _above(said: dict[int, tuple[str, bool]], line: int) -> str:
    """The lines of comment right above a line, as one text."""
    first = line
    while said.get(first - 1, ("", False))[1]:
        first -= 1
    return " ".join(said[each][0] for each in range(first, line))

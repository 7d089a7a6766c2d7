"""The package's docstrings as reStructuredText: single backticks are code, indented blocks are too.

Napoleon knows Google's sections. What it passes on is reStructuredText, in which an indented block would be a
quotation, an example's lines one paragraph, and a star or a bar the beginning of something.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
import textwrap
from collections.abc import Iterator

from mlperf_jax.core import fields

# sections whose lines napoleon reads itself; what follows in them is no code
_LISTS = ("Args:", "Attributes:", "Raises:", "Returns:", "Yields:")
_LIST_ITEM = re.compile(r" *([*-] |\d+\. )")
_GLUED = re.compile(r"(`[^`]+`)(?=\w)")  # `Mesh`es
_LETTER = re.compile(r"^( *(?:\w+: )?)(?=[A-Za-z]\. )")  # "rows: B. Where" begins no list
_MARKS = re.compile(r"([*|](?=\S)|(?<=\S)[*|])")
_EXAMPLE = re.compile(r"( *)(Example|Examples):$")


def marked(lines: list[str]) -> Iterator[str]:
    """The lines with a directive before each block of code.

    >>> list(marked(["Call it:", "", "    f(1)", "", "Done, with `X`s."]))
    ['Call it:', '', '.. code-block:: python', '', '    f(1)', '', 'Done, with `X`\\\\ s.']
    """
    section, after_blank, number = False, True, 0
    while number < len(lines):
        line = lines[number]
        indent = len(line) - len(line.lstrip())
        if line.strip() in _LISTS:
            section = True
        elif line.strip() and not indent:
            section = False
        example = _EXAMPLE.match(line)
        block = _block(lines[number + bool(example) :], indent + (4 if example else 0))
        if example or (indent and after_blank and not section and not _LIST_ITEM.match(line)):
            code = textwrap.dedent("\n".join(block)).splitlines()
            yield from [line] if example else []
            if code and code[0].startswith(">>>"):
                yield from block
            else:
                margin = " " * (indent + 4) if example else ""
                yield from (f"{margin}.. code-block:: {language(code)}", "")
                yield from (f"{margin}    {each}".rstrip() for each in code)
            number += bool(example) + len(block)
            after_blank = False
            continue
        yield escaped(line)
        after_blank, number = not line.strip(), number + 1


def escaped(line: str) -> str:
    """The line with its stars and bars as they are; those before an argument's name are napoleon's.

    >>> escaped("|a - b| of `a | b`, *args")
    '\\\\|a - b\\\\| of `a | b`, \\\\*args'
    """
    line = _LETTER.sub(r"\1\\", _GLUED.sub(r"\1\\ ", line))
    head = re.match(r" *\*{0,2}(?=\w+:)", line)
    start = head.end() if head else 0
    parts = re.split(r"(`[^`]*`)", line[start:])
    return line[:start] + "".join(p if p[:1] == "`" else _MARKS.sub(r"\\\1", p) for p in parts)


def _block(lines: list[str], indent: int) -> list[str]:
    """The first lines that are indented by so much at least, without the empty ones behind them."""
    block = list(
        itertools.takewhile(
            lambda line: not line.strip() or len(line) - len(line.lstrip()) >= indent, lines
        )
    )
    while block and not block[-1].strip():
        block.pop()
    return block


def language(code: list[str]) -> str:
    """Python where it is that, else text."""
    try:
        ast.parse("\n".join(code))
    except SyntaxError:
        return "text"
    return "python"


def described(cls: type) -> Iterator[str]:
    """A section that says of each field what it is, what it may hold and what it holds by default."""
    hints, helps = fields.hints_of(cls), fields.helps_of(cls)
    yield from ("", "Attributes:")
    for field in dataclasses.fields(cls):
        default = "" if field.default is dataclasses.MISSING else f"; {field.default!r} by default"
        text = "; ".join(filter(None, (helps.get(field.name), fields.allowed(hints[field.name]))))
        yield f"    {field.name}: {text}{default}"

"""Reads the package's docstrings as they are written: single backticks are code, indented blocks are too.

Napoleon knows Google's sections. What it passes on is reStructuredText, in which an indented block would be a
quotation and an example's lines one paragraph.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole

from mlperf_jax.benchmarks import RunOptions
from mlperf_jax.core import fields
from mlperf_jax.core.benchmark import Benchmark

# classes whose fields say in their annotations what they are and may hold
WITH_FIELDS = (RunOptions, Benchmark)

# sections whose lines napoleon reads itself; what follows in them is no code
_LISTS = ("Args:", "Attributes:", "Raises:", "Returns:", "Yields:")
_LIST_ITEM = re.compile(r" *([*-] |\d+\. )")
_GLUED = re.compile(r"(`[^`]+`)(?=\w)")  # `Mesh`es
_MARKS = re.compile(r"([*|](?=\S)|(?<=\S)[*|])")
_EXAMPLE = re.compile(r"( *)(Example|Examples):$")


class CodeOrName(SphinxRole):
    """Code that leads to the documentation of the name it is, where that name is known from here."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        literal = nodes.literal(self.rawtext, self.text, classes=["code"])
        context = self.env.ref_context
        if not re.fullmatch(r"[A-Za-z_][\w.]*", self.text):
            return [literal], []
        name = addnodes.pending_xref(
            "",
            literal,
            refdomain="py",
            reftype="obj",
            reftarget=self.text,
            refdoc=self.env.docname,
            refwarn=False,
            ours=True,
            **{"py:module": context.get("py:module"), "py:class": context.get("py:class")},
        )
        return [name], []


def unknown_name(
    app: Sphinx, env: Any, node: addnodes.pending_xref, contnode: nodes.Element
) -> nodes.Element | None:
    """Plain code, where a name in backticks is none that the site documents."""
    return contnode if node.get("ours") else None


def prepare(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Marks code, in place, before napoleon reads the sections, and says what fields may hold."""
    lines[:] = marked(lines)
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # napoleon would take what stands before a colon for a type
    if isinstance(obj, type) and obj in WITH_FIELDS:
        lines += described(obj)


def short(app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: Any, returns: Any) -> Any:
    """No list of forty fields in the signature of a class whose fields are described below it."""
    several = isinstance(obj, type) and obj in WITH_FIELDS
    return ("(**fields)", returns) if several else None


def skip(app: Sphinx, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Leaves out a named tuple's fields that say no more than their place."""
    return str(getattr(obj, "__doc__", "")).startswith("Alias for field") or None


def described(cls: type) -> Iterator[str]:
    """A section that says of each field what it is, what it may hold and what it holds by default."""
    hints, helps = fields.hints_of(cls), fields.helps_of(cls)
    yield from ("", "Attributes:")
    for field in dataclasses.fields(cls):
        default = "" if field.default is dataclasses.MISSING else f"; {field.default!r} by default"
        text = "; ".join(filter(None, (helps.get(field.name), fields.allowed(hints[field.name]))))
        yield f"    {field.name}: {text}{default}"


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
    line = _GLUED.sub(r"\1\\ ", line)
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


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_role("code_or_name", CodeOrName())
    app.connect("missing-reference", unknown_name)
    app.connect("autodoc-process-docstring", prepare, priority=400)  # napoleon's is 500
    app.connect("autodoc-process-signature", short)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

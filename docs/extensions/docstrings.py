"""Passes the package's docstrings on to napoleon, and makes of single backticks code that leads where it can."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from flax import nnx
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole
from sphinx.util.inspect import signature as signature_of, stringify_signature

import plain_text
from mlperf_jax.benchmarks import RunOptions
from mlperf_jax.core.benchmark import Benchmark

# classes whose fields say in their annotations what they are and may hold
WITH_FIELDS = (RunOptions, Benchmark)


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
    inherited = lines[:1] == ["Call self as a function."]  # of `type`, where a class says nothing
    lines[:] = [] if inherited else plain_text.marked(lines)
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # napoleon would take what stands before a colon for a type
    if isinstance(obj, type) and obj in WITH_FIELDS:
        lines += plain_text.described(obj)


def signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, given: str | None, returns: Any
) -> tuple[str, Any] | None:
    """Of a class what its constructor takes; where fields are described below it, no list of forty of them."""
    if not isinstance(obj, type):
        return None
    if obj in WITH_FIELDS:
        return "(**fields)", returns
    if getattr(obj, "_is_protocol", False):
        return "", returns  # nobody makes one
    if issubclass(obj, nnx.Module) and obj.__init__ is not nnx.Module.__init__:
        taken = signature_of(obj.__init__)  # that of the class is its metaclass's
        taken = taken.replace(parameters=[*taken.parameters.values()][1:])
        return stringify_signature(taken, unqualified_typehints=True), returns
    return None


def skip(app: Sphinx, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Leaves out a named tuple's fields that say no more than their place."""
    return str(getattr(obj, "__doc__", "")).startswith("Alias for field") or None


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_role("code_or_name", CodeOrName())
    app.connect("missing-reference", unknown_name)
    app.connect("autodoc-process-docstring", prepare, priority=400)  # napoleon's is 500
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Links to files of the repository lead to pages of the site that show them, so that none is dead.

A relative link of a Markdown page to a file, such as ../scripts/tiny_seeds.py, and the "source" of every documented
object lead there. A link to a file that is not there is a warning of the Markdown reader, hence an error.
"""

from __future__ import annotations

import html
import inspect
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform

from passages import ROOT

ALWAYS = ("LICENSE",)  # the footer links to it
LEXERS = {".py": "python", ".toml": "toml", ".sh": "bash", ".json": "json", ".txt": "text"}


class ToRepository(SphinxTransform):
    """Turns links to files, downloads to the reader, and to folders into references to their pages."""

    default_priority = 400

    def apply(self, **kwargs: Any) -> None:
        for node in list(self.document.findall(addnodes.pending_xref)):
            if node.get("reftype") == "myst" and self._path(node).is_dir():
                node.replace_self(reference(self.env, self._path(node), node.children))
        for node in list(self.document.findall(addnodes.download_reference)):
            if self._path(node).is_relative_to(ROOT):
                node.replace_self(reference(self.env, self._path(node), node.children))

    def _path(self, node: nodes.Element) -> pathlib.Path:
        _, path = self.env.relfn2path(node["reftarget"], self.env.docname)
        return pathlib.Path(path).resolve()


class InRepository(SphinxPostTransform):
    """Gives references to files' pages their address, which depends on the page that they stand on."""

    default_priority = 5
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        for node in list(self.document.findall(addnodes.pending_xref)):
            if node.get("reftype") == "repository":
                uri = self.app.builder.get_relative_uri(self.env.docname, node["reftarget"])
                link = nodes.reference("", "", internal=True, refuri=uri + node["anchor"])
                link["classes"] += node["classes"]
                link += node.children
                node.replace_self(link)


def reference(
    env: BuildEnvironment, path: pathlib.Path, children: list[nodes.Node], line: int = 0
) -> addnodes.pending_xref:
    """A reference to the page of a file, which is then made."""
    name = path.relative_to(ROOT).as_posix()
    linked(env).setdefault(env.docname, set()).add(name)
    node = addnodes.pending_xref(reftype="repository", refdomain="", reftarget=f"source/{name}")
    node["anchor"] = f"#L-{line}" if line else ""
    node += children
    return node


def linked(env: BuildEnvironment) -> dict[str, set[str]]:
    """The files that each page links to."""
    if not hasattr(env, "mlperf_jax_linked"):
        env.mlperf_jax_linked = {}  # pyright: ignore[reportAttributeAccessIssue]
    return env.mlperf_jax_linked  # pyright: ignore[reportAttributeAccessIssue]


def link_sources(app: Sphinx, doctree: nodes.document) -> None:
    """Puts "source" behind the signature of each documented object."""
    for signature in doctree.findall(addnodes.desc_signature):
        module, name = signature.get("module"), signature.get("fullname")
        if module and name and (place := source_of(module, name)):
            text = nodes.inline("", "source", classes=["viewcode-link"])
            signature += reference(app.env, place[0], [text], place[1])


def source_of(module: str, name: str) -> tuple[pathlib.Path, int] | None:
    """File and line of a class or function; None for what has none, such as a field."""
    found = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    found = inspect.unwrap(found) if callable(found) else getattr(found, "fget", None)
    if not (inspect.isfunction(found) or inspect.isclass(found)):
        return None
    path = pathlib.Path(inspect.getfile(found)).resolve()
    if not path.is_relative_to(ROOT):
        return None
    return path, inspect.getsourcelines(found)[1]


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for every file that is linked to; of a folder one that lists its files, and theirs."""
    names = set(ALWAYS).union(*linked(app.env).values())
    for folder in sorted(name for name in names if (ROOT / name).is_dir()):
        files = sorted(path.name for path in (ROOT / folder).iterdir() if path.suffix in LEXERS)
        names |= {f"{folder}/{file}" for file in files}
        place = pathlib.Path(folder).name
        items = (
            f'<li><a href="{place}/{file}.html">{html.escape(file)}</a></li>' for file in files
        )
        yield _page(folder, f"<ul>{''.join(items)}</ul>")
    for name in sorted(name for name in names if (ROOT / name).is_file()):
        text = (ROOT / name).read_text(encoding="utf-8")
        lexer = LEXERS.get(pathlib.Path(name).suffix, "text")
        shown = app.builder.highlighter.highlight_block(text, lexer, lineanchors="L")  # pyright: ignore
        yield _page(name, shown)


def _page(name: str, body: str) -> tuple[str, dict[str, Any], str]:
    text = f"<h1>{html.escape(name)}</h1>\n{body}"
    return f"source/{name}", {"title": name, "body": text, "parents": []}, "page.html"


def forget(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    linked(env).pop(docname, None)


def merge(app: Sphinx, env: BuildEnvironment, docnames: set[str], other: BuildEnvironment) -> None:
    linked(env).update(linked(other))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_transform(ToRepository)
    app.add_post_transform(InRepository)
    app.connect("doctree-read", link_sources)
    app.connect("env-purge-doc", forget)
    app.connect("env-merge-info", merge)
    app.connect("html-collect-pages", pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

"""Writes the pages that are made from code before the site is read, and puts sections of other files into pages.

Pages about benchmarks come from `benchmark_pages`, that of the commands from their own `--help`, those of notebooks
from the cells. They lie beside the written ones and are no part of the repository.
"""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
from typing import TYPE_CHECKING, Any
from unittest import mock

import benchmark_pages
import passages
import plain_text
from mlperf_jax import cli

if TYPE_CHECKING:
    from sphinx.application import Sphinx

GENERATED = ("benchmarks/*.md", "notebooks/*.md", "commands.md")
NOTEBOOKS = passages.ROOT / "notebooks"
LIST = "<!-- list of notebooks -->"  # where a page has it


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", lambda app, config: write())
    app.connect("source-read", put_sections)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write() -> None:
    """Writes every page that differs, so that an unchanged one is not built again; removes what is no more."""
    made = {f"benchmarks/{name}.md": text for name, text in benchmark_pages.pages().items()}
    made |= {f"notebooks/{path.stem}.md": notebook(path) for path in notebooks()}
    made["commands.md"] = commands()
    for path in (path for pattern in GENERATED for path in passages.DOCS.glob(pattern)):
        if str(path.relative_to(passages.DOCS)) not in made:
            path.unlink()
    for name, text in made.items():
        path = passages.DOCS / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def put_sections(app: Sphinx, docname: str, source: list[str]) -> None:
    """The page with the sections of other files that it names."""
    path = app.env.doc2path(docname)
    if path.suffix == ".md":
        folders = {NOTEBOOKS} if LIST in source[0] else set()  # a folder's page is read each time
        try:
            text = passages.with_what_is_shown(source[0], path.parent)
        except (KeyError, OSError) as missing:
            from sphinx.errors import ExtensionError  # the tests make pages without Sphinx

            raise ExtensionError(f"{path} shows what is not there: {missing}") from None
        source[0] = text.replace(LIST, listed())
        for needed in folders | passages.files_shown(path):
            app.env.note_dependency(str(needed))


def commands() -> str:
    """A page of what every command answers to `--help`."""
    _, about = (cli.__doc__ or "").split("\n\n", 1)
    parts = [f"# Commands\n\n{about.strip()}\n\n```\n{cli.overview()}\n```\n"]
    with mock.patch.dict("os.environ", COLUMNS="100"):  # argparse asks for it
        for name in cli.COMMANDS:
            parts.append(f"## {name}\n\n```\n{_help(name).rstrip()}\n```\n")
    return "\n".join(parts)


def _help(command: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        cli.main([*command.split(), "--help"])
    return said.getvalue()


# -- notebooks -------------------------------------------------------------------------------------


def notebooks() -> list[pathlib.Path]:
    """The repository's notebooks, by name."""
    return sorted(NOTEBOOKS.glob("*.ipynb"))


def notebook(path: pathlib.Path) -> str:
    """A notebook as a page: its texts, and its code without what it printed."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"]).strip()
        if cell["cell_type"] == "code":
            parts.append(f"```{plain_text.language(text.splitlines())}\n{text}\n```")
        elif cell["cell_type"] == "markdown":
            parts.append(passages.moved(text, path.parent, passages.DOCS / "notebooks"))
    title = "" if parts and parts[0].startswith("# ") else f"# {path.stem}\n\n"
    return title + "\n\n".join(parts) + "\n"


def listed() -> str:
    """What puts the notebooks' pages below this one; "" while there are none."""
    names = "\n".join(f"notebooks/{path.stem}" for path in notebooks())
    return f"```{{toctree}}\n:hidden:\n\n{names}\n```\n" if names else ""

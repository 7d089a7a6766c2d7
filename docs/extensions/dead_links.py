"""After the build every link within the site is followed, whoever wrote it: a page, a docstring, the theme.

Links to other hosts are looked at for their form alone, as none can be asked.
"""

from __future__ import annotations

import html.parser
import pathlib
import urllib.parse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx


class Page(html.parser.HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.add(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def dead(root: pathlib.Path) -> Iterator[str]:
    """A sentence for each link of the pages below a folder that leads nowhere."""
    pages = {path: Page(path) for path in sorted(root.rglob("*.html"))}
    for path, page in pages.items():
        for link in sorted(page.links):
            url = urllib.parse.urlsplit(link)
            where = f"{path.relative_to(root)} links to {link}"
            if url.scheme in ("http", "https"):
                if "." not in url.netloc or " " in link:
                    yield f"{where}, which is no address"
            elif not url.scheme:
                target = (
                    (path.parent / urllib.parse.unquote(url.path)).resolve() if url.path else path
                )
                anchor = urllib.parse.unquote(url.fragment)
                if not target.exists():
                    yield f"{where}, which is not there"
                elif anchor and target in pages and anchor not in pages[target].anchors:
                    yield f"{where}, and that page has no such place"


def follow(app: Sphinx, error: Exception | None) -> None:
    """Fails the build, and names the links, where there are dead ones."""
    from sphinx.util import logging  # the tests follow links without Sphinx

    if error is None and app.builder.name == "html":
        for link in dead(pathlib.Path(app.outdir).resolve()):
            logging.getLogger(__name__).warning(link)
            app.statuscode = 1


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("build-finished", follow, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Markdown that stands in one file and is shown in another: sections, rows of tables, links that move along."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"

# <!-- section of README.md: Your own optimizer -->, a whole file: <!-- content of CHANGELOG.md -->, or what
# stands before the first section: <!-- opening of README.md -->
_SHOWN = re.compile(r"^<!-- (section|content|opening) of (\S+?)(?:: (.+))? -->$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]+)?\)")
_FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)


def section(text: str, heading: str, level: int = 2) -> str:
    """What stands below a heading, up to the next one of its level or above.

    Raises:
        KeyError: there is no such heading.
    """
    for found, body in sections(text, level):
        if found == heading:
            return body
    raise KeyError(f"no heading {'#' * level} {heading}")


def opening(text: str) -> str:
    """What stands between the title and the first section."""
    _, body = next(sections(text, level=1))
    return body.partition("\n## ")[0].strip() + "\n"


def sections(text: str, level: int = 2) -> Iterator[tuple[str, str]]:
    """Each heading of a level and what stands below it; what looks like one in a code block is none."""
    heading, lines = "", list[str]()
    fenced = False
    for line in [*text.splitlines(), "# end"]:
        fenced ^= line.startswith("```")
        marks = re.match(r"(#+) ", line)
        if marks and not fenced and len(marks[1]) <= level:
            if heading:
                yield heading, "\n".join(lines).strip() + "\n"
            heading = line[level + 1 :].strip() if len(marks[1]) == level else ""
            lines = []
        else:
            lines.append(line)


def rows_of(text: str, first: str, name: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Header and matching rows of every table whose header begins with `first`: those that begin with `name`."""
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        header, _, *rows = (cells(line) for line in table.splitlines())
        mine = [row for row in rows if row[0] == name]
        if header[0] == first and mine:
            yield header, mine


def cells(line: str) -> list[str]:
    """The cells of a table's line.

    >>> cells("| a | `b` |")
    ['a', '`b`']
    """
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a bar within a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    shown = ([str(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in shown)


# -- showing what stands elsewhere -----------------------------------------------------------------


def shown_elsewhere() -> Mapping[str, str]:
    """Which page shows a file of the root, or a section of one: "README.md#install" -> "install.md"."""
    found = {}
    for page in sorted(DOCS.glob("*.md")):
        for _, file, heading in _SHOWN.findall(page.read_text(encoding="utf-8")):
            found[f"{file}#{anchor(heading)}" if heading else file] = page.name
    return found


def files_shown(page: pathlib.Path) -> set[pathlib.Path]:
    """The files of the root that a page shows something of."""
    return {ROOT / file for _, file, _ in _SHOWN.findall(page.read_text(encoding="utf-8"))}


def anchor(heading: str) -> str:
    """A heading's anchor, as GitHub makes it.

    >>> anchor("resnet: ImageNet (ILSVRC 2012)")
    'resnet-imagenet-ilsvrc-2012'
    """
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def with_what_is_shown(text: str, folder: pathlib.Path = DOCS) -> str:
    """A page of `folder` with the sections it names put in, and its links leading to pages of the site.

    Raises:
        KeyError: a section is named that its file does not have.
    """

    def put(match: re.Match[str]) -> str:
        form, file, heading = match.groups()
        body = (ROOT / file).read_text(encoding="utf-8")
        if form != "content":
            body = section(body, heading) if form == "section" else opening(body)
        return moved(body, (ROOT / file).parent, folder)

    return moved(_SHOWN.sub(put, text), folder, folder)


def moved(text: str, source: pathlib.Path, folder: pathlib.Path) -> str:
    """Text of a file in `source` as it stands in one of `folder`: relative links lead where they led.

    Links to notebooks, and to files of the root that a page shows, lead to those pages. What is no file stays as it is.
    """
    pages = shown_elsewhere()

    def link(match: re.Match[str]) -> str:
        path, fragment = match[1], match[2] or ""
        target = pathlib.Path(os.path.normpath(source / path))
        if "://" in path or not target.exists():
            return match[0]
        if target.suffix == ".ipynb":
            target = DOCS / "notebooks" / f"{target.stem}.md"  # made with the site
        for shown, rest in ((f"{target.name}{fragment}", ""), (target.name, fragment)):
            if target.parent == ROOT and shown in pages:
                target, fragment = DOCS / pages[shown], rest
                break
        return f"]({os.path.relpath(target, folder)}{fragment})"

    parts = _FENCE.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)

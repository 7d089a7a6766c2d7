"""Says where this repository is published, in all places that need it: badges of the notebooks, and what they install.

python scripts/notebook_badges.py OWNER/NAME             # on github.com
python scripts/notebook_badges.py OWNER/NAME --branch v0.1

README.md's table of notebooks and each notebook's first cell get a badge for Colab and one for Kaggle; the notebooks install from
that repository, and pyproject.toml names it. Run again, for another place, it replaces what it wrote.
"""

from __future__ import annotations

import argparse
import pathlib
import re
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parent.parent
COLAB = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/{})"
KAGGLE = "[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/{})"
_BADGES = r"(?: ?\[!\[Open in [^\]]*\]\([^)]*\)\]\([^)]*\))*"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repository", metavar="OWNER/NAME")
    parser.add_argument("--branch", default="main", help="or a tag; default: %(default)s")
    given = parser.parse_args()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", given.repository):
        parser.error(f"{given.repository!r} is no OWNER/NAME of github.com")
    publish(ROOT, given.repository, given.branch)


def publish(root: pathlib.Path, repository: str, branch: str) -> None:
    """Writes the repository's address into the files below `root`."""

    def badges(name: str) -> str:
        place = f"{repository}/blob/{branch}/notebooks/{name}.ipynb"
        return f"{COLAB.format(place)} {KAGGLE.format(place)}"

    source = f"git+https://github.com/{repository}@{branch}"
    change(
        root / "README.md",
        rf"(\]\(notebooks/(\w+)\.ipynb\)){_BADGES}",
        lambda found: f"{found[1]} {badges(found[2])}",
    )
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        title = rf'("source": \[\n +"# [^"\n]*?)(?:\\n\\n{_BADGES})?((?:\\n)?")'
        shown = badges(path.stem)
        change(path, title, lambda found, shown=shown: f"{found[1]}\\n\\n{shown}{found[2]}", 1)
        change(path, r'SOURCE = \\"[^"]*\\"', lambda _: f'SOURCE = \\"{source}\\"')
    urls = f'[project.urls]\nRepository = "https://github.com/{repository}"\n\n'
    change(
        root / "pyproject.toml",
        r"(?:\[project\.urls\]\nRepository = \"[^\"]*\"\n\n)?\[project\.scripts\]",
        lambda _: f"{urls}[project.scripts]",
    )


def change(
    path: pathlib.Path, pattern: str, new: Callable[[re.Match[str]], str], count: int = 0
) -> None:
    """Replaces what matches in a file, where something must."""
    text, found = re.subn(pattern, new, path.read_text(encoding="utf-8"), count=count)
    if not found:
        raise SystemExit(f"{path} has no place for the address: nothing matches {pattern}")
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

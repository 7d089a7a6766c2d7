"""Badges of the notebooks, written for the place where the repository is published."""

import json
import shutil
import sys
import tomllib

import nbformat
import pytest
import selection

sys.path.insert(0, str(selection.ROOT / "scripts"))
import notebook_badges

PLACES = ("README.md", "pyproject.toml", "notebooks")


@pytest.fixture
def copy(tmp_path):
    for name in PLACES:
        source = selection.ROOT / name
        put = shutil.copytree if source.is_dir() else shutil.copy
        put(source, tmp_path / name)
    return tmp_path


def texts(root):
    paths = [root / "README.md", root / "pyproject.toml", *sorted(root.glob("notebooks/*.ipynb"))]
    return {path.name: path.read_text() for path in paths}


def test_every_place_names_the_repository(copy):
    notebook_badges.publish(copy, "someone/mlperf_jax", "main")
    readme = (copy / "README.md").read_text()
    for path in sorted(copy.glob("notebooks/*.ipynb")):
        book = nbformat.read(path, as_version=4)
        nbformat.validate(book)
        place = f"github.com/someone/mlperf_jax/blob/main/notebooks/{path.name}"
        colab = f"colab.research.google.com/github/{place.partition('/')[2]}"
        for text in (readme, book.cells[0].source):
            assert text.count(f"src=https://{place})") == 1 and text.count(colab) == 1
        assert book.cells[0].source.startswith("# ")
        (install,) = [c.source for c in book.cells if "SOURCE = " in c.source]
        assert 'SOURCE = "git+https://github.com/someone/mlperf_jax@main"' in install
    project = tomllib.loads((copy / "pyproject.toml").read_text())["project"]
    assert project["urls"] == {"Repository": "https://github.com/someone/mlperf_jax"}
    assert project["scripts"]


def test_another_place_takes_the_first_ones(copy):
    notebook_badges.publish(copy, "a/b", "main")
    notebook_badges.publish(copy, "someone/mlperf_jax", "v1.0")
    twice = texts(copy)
    notebook_badges.publish(copy, "someone/mlperf_jax", "v1.0")
    assert texts(copy) == twice
    assert not any("a/b" in text for text in twice.values())
    assert all(json.loads(text) for name, text in twice.items() if name.endswith(".ipynb"))

"""Generated data: made once, made again where they are damaged, and nobody else's files touched."""

import json
import os
import pathlib

import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import generated


class Maker:
    """Writes two parts, and counts which of them it had to write."""

    def __init__(self, parts=("a", "b")):
        self.parts, self.wrote = parts, []

    def __call__(self, folder: str) -> None:
        for part in self.parts:
            path = pathlib.Path(folder, part, "x.bin")
            if not path.exists():
                path.parent.mkdir()
                path.write_text(f"data of {part}")
                (path.parent / "x.json").write_text("{}")
                self.wrote.append(part)


def tree(folder):
    return {
        os.fspath(p.relative_to(folder)): p.read_text()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".generated.json"
    }


def test_what_is_whole_is_not_made_again(tmp_path):
    maker = Maker()
    placed = generated.make(tmp_path / "data", "it", maker, mend=True)
    assert sorted(placed) == ["a/x.bin", "a/x.json", "b/x.bin", "b/x.json"]
    stamp = (tmp_path / "data" / "a" / "x.bin").stat().st_mtime_ns
    for mend in (True, False):
        assert generated.make(tmp_path / "data", "it", maker, mend=mend) == []
    assert maker.wrote == ["a", "b"]
    assert (tmp_path / "data" / "a" / "x.bin").stat().st_mtime_ns == stamp
    assert sorted(os.listdir(tmp_path / "data")) == [".generated.json", "a", "b"]


@pytest.mark.parametrize("noted", ["as it was", "[]", "{", None])
def test_what_is_damaged_is_made_again_and_the_rest_stays(tmp_path, noted):
    generated.make(tmp_path, "it", Maker(), mend=True)
    known = tree(tmp_path)
    (tmp_path / "a" / "x.bin").write_text("damage of a")
    (tmp_path / "a" / "mine.txt").write_text("mine")
    (tmp_path / "c").mkdir()
    note, maker = tmp_path / ".generated.json", Maker()
    if noted is None:
        note.unlink()
    elif noted != "as it was":
        note.write_text(noted)
    assert generated.make(tmp_path, "it", maker, mend=False) == []
    assert (tmp_path / "a" / "x.bin").read_text() == "damage of a"
    maker.wrote.clear()
    assert generated.make(tmp_path, "it", maker, mend=True) == ["a/x.bin"]
    assert maker.wrote == (["a"] if noted == "as it was" else ["a", "b"])
    assert tree(tmp_path) == known | {"a/mine.txt": "mine"}
    assert (tmp_path / "c").is_dir()


def test_a_part_that_is_missing_is_added(tmp_path):
    generated.make(tmp_path, "it", Maker(), mend=True)
    known = tree(tmp_path)
    for name in ("x.bin", "x.json"):
        (tmp_path / "b" / name).unlink()
    (tmp_path / "b").rmdir()
    assert generated.make(tmp_path, "it", Maker(), mend=False) == ["b/x.bin", "b/x.json"]
    assert tree(tmp_path) == known


def test_parts_are_shared(tmp_path):
    generated.make(tmp_path, "it", Maker(), mend=True)
    other = Maker(("a", "c"))
    assert generated.make(tmp_path, "other", other, mend=False) == ["c/x.bin", "c/x.json"]
    noted = json.loads((tmp_path / ".generated.json").read_text())
    assert {what: sorted({p[0] for p in sums}) for what, sums in noted.items()} == {
        "it": ["a", "b"],
        "other": ["a", "c"],
    }


def test_a_maker_that_fails_leaves_all_as_it_was(tmp_path):
    generated.make(tmp_path, "it", Maker(), mend=True)
    (tmp_path / "a" / "x.bin").write_text("damage")
    known = tree(tmp_path)

    def fails(folder):
        pathlib.Path(folder, "b").mkdir(exist_ok=True)
        raise UserError("no room")

    with pytest.raises(UserError, match="no room"):
        generated.make(tmp_path, "it", fails, mend=True)
    assert tree(tmp_path) == known
    assert sorted(os.listdir(tmp_path)) == [".generated.json", "a", "b"]

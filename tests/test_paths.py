"""Paths that can be none; a command's output replaces what a command wrote, and nothing else."""

import doctest
import json
import os
import pathlib

import pytest
from PIL import Image

from mlperf_jax import paths, pictures
from mlperf_jax.cli import output
from mlperf_jax.errors import UserError
from mlperf_jax.paths import check_path, check_replaceable, check_writable, write
from mlperf_jax.pictures.curves import svg
from mlperf_jax.results.report import Report
from mlperf_jax.results.story import Curves


def test_examples():
    assert doctest.testmod(paths).failed == 0


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("x" * 300, "File name too long"),
        ("/".join(["y" * 200] * 25), "File name too long"),
        ("a\0b", "the character NUL"),
        ("~nobody_of_this_name/runs", "no user of this name"),
        (None, "must be a path, not None"),
        (b"bytes", "must be a path, not b'bytes'"),
        (3, "must be a path, not 3"),
    ],
)
def test_what_can_be_no_path_is_refused(path, words):
    with pytest.raises(UserError, match=words) as caught:
        check_path(path, "the folder")
    assert len(str(caught.value)) < 200


def test_a_relative_path_in_a_folder_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UserError, match="the working directory was removed"):
        check_path("runs", "output")
    assert check_path(str(tmp_path), "output") == tmp_path


def test_links_that_lead_to_themselves(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="Too many levels of symbolic links"):
        check_path(str(tmp_path / "loop" / "runs"), "output")


@pytest.mark.parametrize("path", ["runs/mine", "gs://bucket/" + "x" * 300, "/etc/passwd/x", "."])
def test_what_may_be_a_path(path):
    assert str(check_path(path, "output")) == str(pathlib.Path(path))


def test_a_file_in_no_folder_is_refused_before_the_work(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        check_writable(tmp_path / "missing" / "a.html")
    check_writable(tmp_path / "a.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", [b"", b":::MLLOG {}\n", b"\x89PNG", b"{}", bytes(200_000)], ids=len
)
def test_another_file_is_kept(tmp_path, content):
    path = tmp_path / "file"
    check_replaceable(path)
    path.write_bytes(content)
    with pytest.raises(UserError, match="is there already and was not written by this command"):
        check_replaceable(path)


def test_links_folders_and_pipes_are_kept(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(UserError, match="is there already"):
            check_replaceable(tmp_path / name)
    with pytest.raises(UserError, match="is a folder"):
        check_replaceable(tmp_path)


def page(path):
    Report((), ()).save(path)


def picture(path):
    pictures.save(Image.new("RGB", (2, 2)), path)


def curves(path):
    drawn = Curves.__new__(Curves)
    drawn.svg = svg([])
    drawn.save(path)


class Figures:
    def to_dict(self):
        return {"figure": 1}


def numbers(path):
    output.say(Figures(), output.json_target({"json": str(path)}))
    assert json.loads(path.read_text())["figure"] == 1


@pytest.mark.parametrize(
    ("write", "name"),
    [(page, "a.html"), (picture, "a.png"), (curves, "a.svg"), (numbers, "a.json")],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_what_was_written_is_replaced_and_a_log_never(write, name, tmp_path):
    path = tmp_path / name
    write(path)
    write(path)
    log = b":::MLLOG {}\n"
    path.write_bytes(log)
    with pytest.raises(UserError, match="is there already"):
        write(path)
    assert path.read_bytes() == log


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.csv"
    write(path, b"one")
    write(path, b"two")
    assert path.read_bytes() == b"two"

    def full(self, content):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(UserError, match=r"x\.csv cannot be written: No space left on device"):
        write(path, b"three")
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_bytes() == b"two"

"""A command's output replaces what a command wrote, and nothing else."""

import json
import os

import pytest
from PIL import Image

from mlperf_jax import pictures
from mlperf_jax.cli import output
from mlperf_jax.errors import UserError
from mlperf_jax.overwriting import check_replaceable
from mlperf_jax.pictures.curves import svg
from mlperf_jax.results.report import Report
from mlperf_jax.results.story import Curves


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

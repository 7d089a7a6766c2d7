"""The README, done from top to bottom as a reader would: its blocks of Python in one session, its commands in one folder.

Blocks marked `python` and `sh` are run; `console` marks what this test cannot do within itself, such as `make test`.
"""

import contextlib
import io
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def shell(commands: str, folder: pathlib.Path, cache: str) -> None:
    """Does the commands of a block one after the other; each must end well."""
    environment = {
        **os.environ,
        "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": cache,
    }
    for command in re.sub(r" \\\n\s*", " ", commands).splitlines():
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch, compile_cache):
    pytest.importorskip("PIL")
    monkeypatch.chdir(tmp_path)
    names = {}
    for language, text in blocks():
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(text, names)
        elif language == "sh":
            shell(text, tmp_path, compile_cache)
    for made in ("runs/first", "first.svg", "digits.png", "report.html", "submission", "wine.py"):
        assert (tmp_path / made).exists(), f"the README makes no {made} any more"


def test_every_block_says_what_it_is():
    """A block without a language is what a program said; one that is neither run nor spoken would be a gap."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    opened = re.findall(r"^```(\w*)$", text, re.MULTILINE)[::2]
    assert set(opened) <= {"", "python", "sh", "console"}
    for said in re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        assert not re.match(r"mlperf-jax|python|pip|make", said)
    indented = re.findall(r"^    (?=\S)(?:mlperf-jax|python|pip|make) .*$", text, re.MULTILINE)
    assert indented == []


def test_it_holds_no_placeholder():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not re.search(r"\b[A-Z]*REPOSITORY\b|OWNER/NAME|\bTODO\b|\bXXX\b", text)

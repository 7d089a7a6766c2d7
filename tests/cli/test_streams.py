"""Standard streams that are closed or full: the work goes on, and nothing is written where it does not belong."""

import doctest
import os
import pathlib
import subprocess
import sys

import pytest

from mlperf_jax.cli import streams

ROOT = pathlib.Path(__file__).parents[2]


def mlperf_jax(words: str, folder: pathlib.Path) -> subprocess.CompletedProcess:
    """The command in a shell of its own, with redirections."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = f"{sys.executable} -m mlperf_jax {words}"
    return subprocess.run(
        line, shell=True, cwd=folder, env=environment, capture_output=True, text=True
    )


def test_examples():
    assert doctest.testmod(streams).failed == 0


@pytest.mark.parametrize(
    ("closed", "heard"), [("2>&-", True), ("2>/dev/full", True), ("<&- >&- 2>&-", False)]
)
def test_a_run_needs_nobody_to_listen(closed, heard, tmp_path, compile_cache, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", compile_cache)
    words = "run resnet --tiny --max-samples 640 --log-every 1 --show plain --seed 1 --output x"
    done = mlperf_jax(f"{words} {closed}", tmp_path)
    assert done.returncode == 1 and done.stderr == ""
    assert ("640 samples in" in done.stdout) is heard
    assert (tmp_path / "x" / "run_0" / "result.json").exists()
    log = (tmp_path / "x" / "result_0.txt").read_text()
    assert all(line.startswith(":::MLLOG") for line in log.splitlines())


def test_an_output_that_is_full_is_a_sentence(tmp_path):
    done = mlperf_jax("list >/dev/full", tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "mlperf-jax: the output cannot be written (No space left on device): give it another place"
    )


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    assert mlperf_jax("list | head -1", tmp_path).stderr == ""

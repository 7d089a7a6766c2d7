"""Ctrl-C while the command is loaded, and when its work is done: no traceback."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def python(code: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )


def test_while_it_is_loaded():
    ended = python("""
import runpy, sys

class Interrupts:
    def find_spec(self, name, *_):
        if name == "mlperf_jax.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupts())
runpy.run_module("mlperf_jax", run_name="__main__")
""")
    assert (ended.returncode, ended.stderr) == (130, "mlperf-jax: interrupted\n")


def test_when_the_work_is_done():
    ended = python("""
import atexit, os, signal, sys

atexit.register(os.kill, os.getpid(), signal.SIGINT)
from mlperf_jax.cli import main

sys.argv = ["mlperf-jax", "--version"]
sys.exit(main())
""")
    assert ended.returncode in (0, -2) and ended.stderr == ""
    assert ended.stdout.startswith("mlperf-jax ")

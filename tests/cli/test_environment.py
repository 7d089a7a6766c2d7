"""Where the command is started: a folder that is gone, flags that XLA does not know, devices that are not there."""

import os
import subprocess
import sys

import pytest

from mlperf_jax.cli import environment
from mlperf_jax.errors import UserError


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--nonsense", "Unknown flag in XLA_FLAGS: --nonsense; correct it, or unset it"),
        ("--xla_force_host_platform_device_count=abc", "Couldn't interpret value abc for flag"),
        ("no_file", 'Could not open file "no_file"'),
    ],
)
def test_flags_that_xla_does_not_take(flags, words):
    with pytest.raises(UserError) as caught:
        environment.check_flags({**os.environ, "XLA_FLAGS": flags})
    assert words in str(caught.value) and f"XLA_FLAGS='{flags}'" in str(caught.value)


def test_flags_that_it_takes():
    environment.check_flags({"XLA_FLAGS": " "})
    environment.check_flags({**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"})


def begun(words, folder, **variables):
    return subprocess.run(
        [sys.executable, "-m", "mlperf_jax", *words.split()],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"XLA_FLAGS": "--nonsense"}, "XLA does not take XLA_FLAGS='--nonsense'"),
        ({"JAX_PLATFORMS": "cuda"}, "JAX finds no device of JAX_PLATFORMS='cuda'"),
        ({"JAX_PLATFORMS": "abacus"}, "JAX finds no device of JAX_PLATFORMS='abacus'"),
    ],
    ids=str,
)
def test_a_run_that_cannot_begin_says_why(variables, words, tmp_path):
    done = begun("run resnet --tiny --output out", tmp_path, **variables)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"mlperf-jax: {words}")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_gone(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'rmdir "$PWD"; exec "$0" -m mlperf_jax run resnet --tiny'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable], cwd=gone, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("mlperf-jax: the working directory was removed, so change to one")


def test_a_terminal_that_has_no_such_signs(tmp_path):
    done = begun("--help", tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "benchmarks of MLPerf(R) Training" in done.stdout

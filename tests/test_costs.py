"""Each part of the suite has its cost, whichever process ran it."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TESTS = ["tests/test_duplicates.py::test_five_lines_are_none", "tests/core/test_fields.py"]


def test_two_processes_measure_for_one_file(tmp_path):
    file = tmp_path / "costs.json"
    words = ["-n", "2", "--dist", "loadgroup", "--measure", str(file), *TESTS]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    costs = json.loads(file.read_text())
    assert set(costs) == {"start", *(test.partition("::")[0] for test in TESTS)}
    assert costs["start"] > 0.5, "two processes have imported JAX"
    assert 0 <= costs["tests/core/test_fields.py"] < 100


def test_what_shares_fixtures_runs_in_one_process(request):
    """Else a tiny run is made in each of them."""
    if not request.config.getoption("loadgroup", False):
        pytest.skip("tests are not spread by groups here")
    assert request.node.nodeid.endswith("@tests/test_costs.py")

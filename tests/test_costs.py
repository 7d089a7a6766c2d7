"""Each part of the suite has its cost, whichever process ran it."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
TESTS = ["tests/test_duplicates.py::test_five_lines_are_none", "tests/core/test_fields.py"]


def test_two_processes_measure_for_one_file(tmp_path):
    file = tmp_path / "costs.json"
    words = ["-n", "2", "--dist", "loadgroup", "-rA", "--measure", str(file), *TESTS]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    costs = json.loads(file.read_text())
    assert set(costs) == {"start", *(test.partition("::")[0] for test in TESTS)}
    assert costs["start"] > 0.5, "two processes have imported JAX"
    assert 0 <= costs["tests/core/test_fields.py"] < 100
    # what shares fixtures runs in one process, as its id says; else a tiny run is made in each
    passed = [line for line in done.stdout.splitlines() if line.startswith("PASSED ")]
    assert passed and all(line.endswith(f"@{line[7:].partition('::')[0]}") for line in passed)

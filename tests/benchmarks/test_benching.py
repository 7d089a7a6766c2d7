"""Every benchmark's speed: a process each, what becomes of one that fails, twins, variants, and the table."""

import json
import os
import pathlib
import sys
import time

import pytest

from mlperf_jax.benchmarks import benching, registry
from mlperf_jax.core import bench_all, bench_suite
from mlperf_jax.core.bench_suite import OURS, TWIN, Measured, Suite
from mlperf_jax.errors import UserError

CRASHES = """
import os
from mlperf_jax.benchmarks.dlrm_dcnv2 import DlrmDcnV2

class Crash(DlrmDcnV2):
    name = "crash"
    ruleset = ""

    def model(self, rngs):
        os.abort()
"""
TWIN_PROGRAM = """
import json, sys
row = json.load(open(sys.argv[1]))
found = {"step_seconds": row["step_seconds"] / 2, "batch_size": row["batch_size"], "note": "in half the time",
         "examples_per_second": 2 * row["examples_per_second"]}
json.dump(found, open(sys.argv[2], "w"))
"""


@pytest.mark.slow
def test_a_crash_costs_its_row_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("mine.py").write_text(CRASHES)
    pathlib.Path("twin.py").write_text(TWIN_PROGRAM)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    said = []
    suite = benching.bench_all(
        ["dlrm_dcnv2", "mine.py:Crash", "gpt3"],
        tiny=True,
        output="out",
        twins="twin.py",
        steps=3,
        jobs=1,
        say=said.append,
    )
    rows = {(row.benchmark, row.side): row for row in suite.rows}
    for name in ("dlrm_dcnv2", "gpt3"):
        ours, twin = rows[name, OURS], rows[name, TWIN]
        assert ours.error is None, ours.error
        assert ours.rate == pytest.approx(ours.found["batch_size"] / ours.found["step_seconds"])
        assert twin.rate == pytest.approx(2 * ours.rate)
        assert ours.found["operations"], "what took most of the time is told"
        assert ours.found["evaluation_examples_per_second"] is None
    assert "SIGABRT" in rows["mine.py:Crash", OURS].error
    assert rows["mine.py:Crash", TWIN].error == "ours has no figures that it could stand beside"
    assert [row.benchmark for row in suite.failed] == ["mine.py:Crash"]
    assert len(said) == 6
    table = str(suite)
    assert "2.00" in next(line for line in table.splitlines() if TWIN in line)
    assert "SIGABRT" in table
    assert "in half the time" in table
    again = json.loads(json.dumps(suite.to_dict()))
    assert [row["benchmark"] for row in again["rows"]][:3] == [
        "dlrm_dcnv2",
        "mine.py:Crash",
        "gpt3",
    ]


# -- without processes -----------------------------------------------------------------------------


@pytest.fixture
def ran(monkeypatch):
    """Commands in order, with their environments; each writes figures where it is told to."""
    commands = []

    def run(command, log, environment, end):
        commands.append((list(command), dict(environment)))
        if "--compile-only" in command:
            return None
        told = [word.removeprefix("--json=") for word in command if word.startswith("--json=")]
        report = {"step_seconds": 0.5, "examples_per_second": 8.0, "batch_size": 4, "warmup": 1}
        pathlib.Path((told or command[-1:])[0]).write_text(json.dumps(report))
        return None

    monkeypatch.setattr(bench_all, "_run", run)
    return commands


def quiet(line):
    pass


def test_ours_come_first_then_twins_then_variants(ran, tmp_path):
    names = ("bert", "unet3d", "llama31_8b")
    twins = tmp_path / "twins"
    twins.mkdir()
    (twins / "__main__.py").write_text("")
    suite = benching.bench_all(
        names, output=tmp_path / "out", twins=twins, variants=True, jobs=1, memory=3.5, say=quiet
    )
    sides = [(row.benchmark, row.side) for row in suite.rows]
    assert sides[:3] == [(name, OURS) for name in names]
    assert sides[3:6] == [(name, TWIN) for name in names]
    assert ("bert", "no dropout") in sides[6:]
    assert ("unet3d", "convolutions NHWC") in sides[6:]
    assert ("unet3d", "no dropout") not in sides
    for command, _ in ran[:3]:
        assert {"--fit", "--no-evaluation", "--profile", "--memory=3.5"} <= {*command}
    commands = dict(zip(sides, ran, strict=True))
    assert commands["bert", "no dropout"][0][-3:-1] == ["--dropout", "0"]
    flags = commands["unet3d", "convolutions NHWC"][1]["XLA_FLAGS"]
    assert "--xla_gpu_force_conv_nhwc=true" in flags
    assert os.environ.get("XLA_FLAGS", "") in flags
    assert commands["bert", TWIN][0][:2] == [sys.executable, str(twins)]


def test_variants_name_benchmarks_that_there_are():
    named = {name for variant in benching.VARIANTS for name in variant.benchmarks}
    assert named <= set(registry._BENCHMARKS)


def test_programs_are_compiled_beforehand_where_cores_are_many(ran, tmp_path):
    benching.bench_all(("bert", "gpt3"), output=tmp_path, jobs=2, say=quiet)
    first, second = ran[:2], ran[2:]
    assert all("--compile-only" in command for command, _ in first)
    assert all(how["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false" for _, how in first)
    assert not any(w.startswith(("--json", "--profile")) for command, _ in first for w in command)
    assert not any("--compile-only" in command for command, _ in second)


def test_what_finds_no_time_left_is_told(ran, tmp_path):
    (tmp_path / "bert-ours.json").write_text("{}")
    suite = benching.bench_all(("bert",), minutes=0.001, output=tmp_path, jobs=1, say=quiet)
    assert "no time was left" in suite.rows[0].error
    assert ran == []
    assert not (tmp_path / "bert-ours.json").exists(), (
        "figures of another day are not taken for these"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "no figures"), ("{", "no figures"), ("[]", "no figures"), ("{}", "has no")],
)
def test_a_process_that_writes_nothing_is_told(monkeypatch, tmp_path, text, says):
    def run(command, log, environment, end):
        if text is not None:
            (tmp_path / "bert-ours.json").write_text(text)

    monkeypatch.setattr(bench_all, "_run", run)
    suite = benching.bench_all(("bert",), output=tmp_path, jobs=1, say=quiet)
    assert says in suite.rows[0].error


def test_how_a_process_ended_is_told(tmp_path):
    log, end = tmp_path / "log.txt", time.monotonic() + 60

    def run(program, until=end, **environment):
        return bench_all._run((sys.executable, "-c", program), log, environment, until)

    assert run("print('done')") is None
    assert run("import sys; print('one'); sys.exit('why not')") == f"why not (exit code 1; {log})"
    assert run("import os; os.kill(os.getpid(), 9)") == f"it said nothing (SIGKILL; {log})"
    assert run("import os; print(os.environ['MINE'])", MINE="yes") is None
    assert log.read_text() == "yes\n"


def test_a_process_is_ended_with_all_that_it_began(tmp_path):
    began = tmp_path / "child"
    program = (
        "import subprocess, sys, time, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(began)!r}).write_text(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    command = (sys.executable, "-c", program)
    end = time.monotonic() + 5
    assert "it was ended after" in bench_all._run(command, tmp_path / "log", {}, end)
    child = pathlib.Path(f"/proc/{began.read_text()}/stat")
    deadline = time.monotonic() + 30
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "the child lives on"


@pytest.mark.parametrize(
    ("change", "says"),
    [({"names": ["bort"]}, "bort"), ({"twins": "no_such"}, "no_such is no Python file")],
)
def test_what_is_not_there_is_refused_before_anything_runs(ran, tmp_path, change, says):
    with pytest.raises(UserError, match=says):
        benching.bench_all(**{"names": ["bert"], "output": tmp_path / "out", **change})
    assert ran == []
    assert not (tmp_path / "out").exists()


def test_the_table_is_aligned_and_says_what_was_changed():
    found = {
        "step_seconds": 0.25,
        "examples_per_second": 16.0,
        "batch_size": 4,
        "mfu": 0.5,
        "memory_bytes": 3 * 2**30,
        "compile_seconds_train": 12.0,
        "changed": {"layers": 2, "table_rows": list(range(20))},
        "device": "NVIDIA H200",
        "device_count": 1,
        "dtype": "bfloat16",
        "operations": [{"name": "gemm", "share": 0.5, "seconds": 1.0, "count": 3}],
    }
    slower = {"step_seconds": 0.5, "examples_per_second": 8.0, "batch_size": 4}
    rows = [
        Measured("bert", OURS, found, None, 30.0),
        Measured("gpt3", OURS, None, "out of memory", 5.0),
        Measured("bert", TWIN, slower, None, 40.0),
    ]
    suite = Suite(rows, 6.0, 75.0, "2026-12-01")
    head, titles, ours, twin, failed, *more = str(suite).splitlines()
    assert head == "1 x NVIDIA H200, bfloat16, 1.2 of 6 minutes, 2026-12-01"
    assert ours.split() == ["bert", "ours", "4", "250", "16", "50.0", "%", "3.0", "12"]
    assert twin.split() == [TWIN, "4", "500", "8", "0.50", "-", "-", "-"]
    assert failed.split(maxsplit=2) == ["gpt3", "ours", "out of memory"]
    end = titles.index("samples/s") + len("samples/s")
    assert ours[:end].endswith("16")
    assert twin[:end].endswith(" 8")
    assert "bert: layers 2, table_rows up to 19" in more
    assert "  most time: gemm 50 %" in more
    assert suite.failed == [rows[1]]
    assert bench_suite.NOTICE in more

"""`mlperf-jax list`."""

import json
import pathlib
import sys

import mlperf_jax
from mlperf_jax import benchmarks, cli
from mlperf_jax.benchmarks import registry, table
from mlperf_jax.results import rules
from mlperf_jax.results.listing import rounds


def test_list_is_aligned_text_in_a_pipe(capsys):
    assert cli.main(["list"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["benchmark", "model", "data", "target", "rounds", "status"]
    assert len(rows) == len(rules.entries())
    column = header.index("status")
    assert {row[column:] for row in rows} == {"tiny, full", "planned"}
    assert rows[0].split()[0] == "resnet"
    assert "accuracy at least 0.759" in rows[0]
    assert "0.5-4.0" in rows[0]


def test_list_as_json(capsys):
    assert cli.main(["list", "--json"]) == 0
    rows = {row["benchmark"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["resnet"]["status"] == "tiny, full"
    assert rows["resnet"]["targets"] == [{"name": "accuracy", "at_least": 0.759}]
    assert rows["rnnt"]["status"] == "planned"


def test_list_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    assert cli.main(["list"]) == 0
    assert "ResNet-50 v1.5" in capsys.readouterr().out


def test_every_benchmark_of_ours_is_in_the_table():
    assert set(benchmarks.names()) <= set(rules.entries())


def test_rounds_are_spans():
    every = ("0.5", "0.6", "0.7", "1.0", "1.1")
    assert rounds(every, every, "training") == "0.5-1.1"
    assert rounds(("0.5", "0.7", "1.0"), every, "training") == "0.5, 0.7-1.0"
    assert rounds(("1.1",), every, "hpc") == "HPC 1.1"


def test_benchmarks_of_ones_own_are_named_beside_options(capsys, monkeypatch):
    template = pathlib.Path(mlperf_jax.__file__).parent / "template" / "my_benchmark.py"
    monkeypatch.setattr(registry, "_REGISTERED", {})
    assert cli.main(["list", "--json", f"{template}:MyBenchmark"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["benchmark"] == "my_benchmark"


def test_the_same_table_in_python(capsys):
    assert cli.main(["list"]) == 0
    assert str(table()) == capsys.readouterr().out.rstrip("\n")
    shown = table("5.1")._repr_html_()
    assert shown.count("<tr>") == 1 + len(rules.in_round("5.1")) and "retinanet" in shown
    assert repr(table()).startswith(f"<{len(benchmarks.names())} benchmarks, ")

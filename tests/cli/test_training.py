"""run, bench, evaluate: what is refused before anything is written, and what is passed on and printed."""

import json
from types import SimpleNamespace

import pytest

from mlperf_jax import benchmarks, cli
from mlperf_jax.core import bench
from mlperf_jax.core.options import RunOptions

TINY_REFUSED = [
    ("--mesh data=16", "16"),
    ("--mesh rows=2", "names axis 'rows'"),
    ("--mesh data=0", "at least 1"),
    ("--mesh data=3", "not divided by the mesh"),
    ("--gradient-accumulation-steps 3", "gradient_accumulation_steps"),
    ("--max-samples 10", "less than one batch"),
    ("--division closed", "a tiny run is open division"),
    ("--optimizer adafacter:1e-3", "did you mean 'adafactor'?"),
    ("--optimizer adamw", "needs a learning rate"),
    ("--optimizer no_such.py:make", "no_such.py"),
    ("--runs 2 --seed 1", "seeds of their own"),
    ("--seeds 1,2,2", "seeds has 2 twice"),
    ("--seeds 1,x", "--seeds must be one or more whole numbers"),
    ("--train-samples 1000", "1,437 train samples"),
    ("--classes 5", "holds samples of 10 classes: give at least 10"),
    ("--resume", "no unfinished run"),
    ("--processes 2 --process 0", "coordinator"),
]


@pytest.mark.parametrize(("line", "words"), TINY_REFUSED, ids=[line for line, _ in TINY_REFUSED])
def test_refused_before_anything_is_written(refused, line, words, capsys, tiny_data, tmp_path):
    output = tmp_path / "out"
    argv = ["run", "resnet", "--tiny", "--data-dir", tiny_data, "--output", output, *line.split()]
    capsys.readouterr()
    assert words in refused(argv)
    assert not list(output.glob("result_*.txt")) if output.exists() else True


def test_full_size_refusals(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    run = ["run", "resnet", "--output", tmp_path / "out", "--data-dir"]
    closed = refused([*run, empty, "--optimizer", "adamw:1e-3", "--division", "closed"])
    assert "not allowed in the closed division" in closed
    assert "lars_opt_momentum" in refused([*run, empty, "--momentum", "0.5"])
    for folder in (empty, tmp_path / "missing"):
        assert str(folder) in refused([*run, folder])
        assert str(folder) in refused(["data", "check", "resnet", "--data-dir", folder])
    assert not (tmp_path / "out").exists()


@pytest.fixture
def benched(monkeypatch):
    calls = []

    class Report:
        def __str__(self):
            return "a table"

        def to_dict(self):
            return {"examples_per_second": 1.5}

    def record(benchmark, settings, **rest):
        calls.append((benchmark, settings, rest))
        return Report()

    monkeypatch.setattr(bench, "bench", record)
    return calls


def test_bench_passes_its_options_on(benched, capsys, tiny_data):
    line = "bench resnet --tiny --steps 3 --mesh data=2 --batch-size 128"
    assert cli.main(line.split()) == 0
    assert capsys.readouterr().out == "a table\n"
    (benchmark, settings, rest), *_ = benched
    assert benchmark == benchmarks.get("resnet", tiny=True, batch_size=128)
    assert settings == RunOptions(mesh="data=2")
    assert rest == {"steps": 3, "data_dir": None}
    argv = ["bench", "resnet", "--tiny", "--input", "real", "--data-dir", tiny_data]
    assert cli.main(argv) == 0
    assert benched[1][2] == {"input": "real", "data_dir": tiny_data}


def test_bench_writes_json(refused, benched, capsys, tmp_path):
    target = tmp_path / "figures.json"
    assert cli.main(["bench", "resnet", "--tiny", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == {"examples_per_second": 1.5}
    assert cli.main(["bench", "resnet", "--tiny", "--json", str(target)]) == 0
    assert json.loads(target.read_text())["examples_per_second"] == 1.5
    capsys.readouterr()
    measured = len(benched)
    for bad, why in ((tmp_path / "no" / "x", "there is no folder"), (tmp_path, "is a folder")):
        said = refused(["bench", "resnet", "--tiny", "--json", bad])
        assert str(bad) in said and why in said
    assert len(benched) == measured, "the answer comes before the work"


def test_evaluate_says_whether_the_target_was_reached(monkeypatch, capsys):
    for reached in (True, False):
        result = SimpleNamespace(reached=reached, log="a log")
        monkeypatch.setattr(benchmarks, "evaluate", lambda path, r=result: r)
        assert cli.main(["evaluate", "a_run"]) == (0 if reached else 1)
    monkeypatch.setattr(benchmarks, "evaluate", lambda path, bisect: result if bisect else None)
    assert cli.main(["evaluate", "--bisect", "a_run"]) == 1
    assert "log: a log" in capsys.readouterr().out


@pytest.mark.parametrize(("failed", "code"), [([], 0), ("bert", 1)])
def test_bench_all_passes_its_options_on(monkeypatch, capsys, tmp_path, failed, code):
    from mlperf_jax.benchmarks import benching

    asked = []

    def bench_all(**given):
        asked.append(given)
        given["say"]("a line")
        return SimpleNamespace(failed=failed, to_dict=lambda: {"rows": []})

    monkeypatch.setattr(benching, "bench_all", bench_all)
    line = f"bench --all bert gpt3 --tiny --minutes 2 --twins here --variants --no-profile --json {tmp_path}/f"
    assert cli.main(line.split()) == code
    given = asked[0]
    del given["say"]
    assert given == {
        "names": ("bert", "gpt3"),
        "tiny": True,
        "minutes": 2.0,
        "twins": "here",
        "variants": True,
        "profile": False,
    }
    assert "a line" in capsys.readouterr().out
    assert "rows" in json.loads((tmp_path / "f").read_text())
    assert cli.main(["bench", "--all", "--json", "-"]) == code
    told = capsys.readouterr()
    assert json.loads(told.out) == {"rows": []}, "JSON alone"
    assert "a line" in told.err

"""A benchmark of one's own, out of this library's tree: known by its file, its class and its name."""

import dataclasses
import itertools
import json
import pathlib

import pytest

from mlperf_jax import benchmarks, cli
from mlperf_jax.benchmarks import Benchmark, Target, registry
from mlperf_jax.core import preflight
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import UserError
from mlperf_jax.results import log as logs
from mlperf_jax.results.score import score

WINE = pathlib.Path(__file__).parent / "wine.py"
QUIET = {"show": "none", "seed": 1, "mesh": "data=1"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, with wine.py in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wine.py").write_text(WINE.read_text())
    return tmp_path


def edited(here, old, new):
    text = (here / "wine.py").read_text()
    assert old in text
    (here / "wine.py").write_text(text.replace(old, new))


def own(**stated):
    """A benchmark of this module that states what is given."""
    cls = type("Mine", (Benchmark,), {"name": "mine", "__module__": __name__, **stated})
    annotations = {"batch_size": int, "train_samples": int, "eval_samples": int, "targets": tuple}
    for name, value in zip(annotations, (8, 64, 16, (Target("a", above=0),)), strict=True):
        setattr(cls, name, value)
    cls.__annotations__ = annotations | {name: int for name in ("seed", "steps") if name in stated}
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


# -- who it is ---------------------------------------------------------------------------------------


def test_registered_it_is_known_by_its_name():
    cls = benchmarks.register(own())
    assert benchmarks.names()[-1] == "mine"
    assert benchmarks.benchmark_class("mine") is cls
    assert benchmarks.get("mine", batch_size=16) == cls(batch_size=16)
    config = json.loads(json.dumps(cls(batch_size=32).config()))
    assert benchmarks.from_config(config) == cls(batch_size=32)
    again = benchmarks.register(own())
    assert benchmarks.benchmark_class("mine") is again, "a cell of a notebook that ran again"


def test_a_file_a_class_and_an_object_stand_for_it(here):
    cls = benchmarks.benchmark_class("wine.py:Wine")
    assert benchmarks.benchmark_class(cls) is cls
    assert benchmarks.benchmark_class("wine") is cls
    assert benchmarks.get(cls, hidden=8) == benchmarks.get(cls(hidden=8)) == cls(hidden=8)
    assert benchmarks.get(cls(batch_size=8), tiny=True) == cls(batch_size=8).tiny()
    small = cls(hidden=8).tiny().replace(hidden=4)
    assert benchmarks.get(small, tiny=True) == small, "it is tiny already"
    assert benchmarks.benchmark_class(benchmarks.get("resnet")) is benchmarks.benchmark_class(
        "resnet"
    )


class NotOne:
    pass


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "None is no benchmark"),
        (["resnet"], r"\['resnet'\] is no benchmark"),
        (NotOne, "NotOne'> is no benchmark: give a class that inherits"),
        ("mien", "no benchmark 'mien'; known: .*; or give one of your own: my_file.py:Wine"),
        (
            lambda: own(name="resnet"),
            "Mine has the name 'resnet', which is a benchmark of this lib",
        ),
        (
            lambda: own(name="rnnt"),
            "Mine has the name 'rnnt' of an official benchmark: state its rul",
        ),
        (lambda: own(ruleset="4.0.0"), "the ruleset 4.0.0, but no round had 'mine': write ruleset"),
        (lambda: own(name="my wine"), "Mine has the name 'my wine': state one of letters"),
        (lambda: own(name="class"), "Mine has the name 'class': state one of letters"),
        (lambda: own(name=None), "Mine has the name None"),
        (lambda: own(seed=3), "Mine has a field seed, as a run has an option"),
        (lambda: own(steps=3), "Mine has a field steps, as a run has an option"),
        (
            lambda: type("Bare", (own(),), {"__annotations__": {"x": int}}),
            "Bare is no frozen datac",
        ),
        (
            lambda: type("Own", (Benchmark,), {"name": "own"}),
            "Own gives no value to batch_size, tr",
        ),
    ],
)
def test_what_cannot_be_one_is_refused(given, words):
    with pytest.raises(UserError, match=words):
        benchmarks.benchmark_class(given() if callable(given) and given is not NotOne else given)


def test_an_official_benchmark_of_ones_own_keeps_its_rules():
    benchmark = benchmarks.get(
        own(name="rnnt", ruleset="3.1.0", eval_steps=lambda self: itertools.count(1))
    )
    with pytest.raises(UserError, match=r"the closed division of rnnt v3\.1"):
        preflight.resolve_division(benchmark, RunOptions())


# -- its runs ----------------------------------------------------------------------------------------


def test_a_run_is_open_logged_and_found_again(here):
    edited(
        here,
        "    def tiny(self)",
        '    def log(self):\n        return {"my_key": 3}\n\n    def tiny(self)',
    )
    assert cli.main("run wine.py:Wine --tiny --output out --seed 1 --show none".split()) == 0
    lines = {line.key: line.value for line in logs.read(here / "out" / "result_0.txt")}
    assert lines["submission_benchmark"] == "wine"
    assert lines["submission_division"] == "open"
    assert lines["my_key"] == 3
    registry._REGISTERED.clear()
    trained = benchmarks.load("out")
    assert trained.benchmark.name == "wine"
    assert trained.evaluate() == trained.quality


def test_its_class_and_an_object_run_at_full_size_without_a_folder(here):
    cls = benchmarks.benchmark_class("wine.py:Wine")
    result = benchmarks.run(cls, output="a", **QUIET)
    assert (result.reached, result.tiny, result.division) == (True, False, "open")
    assert benchmarks.run(cls(hidden=32), output="b", **QUIET).reached
    assert benchmarks.load("b").benchmark == cls(hidden=32, dtype="float32")
    with pytest.raises(UserError, match="wine, which no round had, is open division by its nature"):
        benchmarks.run(cls, division="closed", **QUIET)


@pytest.fixture
def trained(here):
    """A finished run of wine in `out`."""
    benchmarks.run("wine.py:Wine", tiny=True, output="out", max_samples=64, **QUIET)
    return here


def test_a_run_whose_file_is_gone(trained):
    (trained / "wine.py").rename(trained / "moved.py")
    registry._REGISTERED.clear()
    with pytest.raises(
        UserError, match=r"the run is of 'wine', whose class is not found: .*wine\.py"
    ):
        benchmarks.load("out")
    benchmarks.benchmark_class("moved.py:Wine")
    assert benchmarks.load("out").step == 4


def test_a_run_whose_file_names_another_benchmark_now(trained):
    edited(trained, 'name = "wine"', 'name = "juice"')
    registry._REGISTERED.clear()
    with pytest.raises(UserError, match="has the name 'juice' now; put its file back, or register"):
        benchmarks.load("out")


def test_changed_code_is_not_mixed_with_the_old(trained):
    edited(trained, "return optax.adam", "return optax.adamw")
    with pytest.raises(
        UserError, match=r"runs of another configuration \(code was '\w+' and is now"
    ):
        benchmarks.run("wine.py:Wine", tiny=True, output="out", show="none", mesh="data=1")
    assert benchmarks.load("out").step == 4, "its weights may still be looked at"


def test_offline_it_is_scored_from_its_folder(here):
    edited(here, 'metrics.Mean("accuracy")', 'metrics.Mean("accuracy", mode="offline")')
    assert (
        benchmarks.run("wine.py:Wine", tiny=True, output="out", max_samples=2560, **QUIET) is None
    )
    registry._REGISTERED.clear()
    assert cli.main(["evaluate", "out"]) == 0
    assert benchmarks.load("out").quality["accuracy"] >= 0.9


# -- what is said of it without rules ----------------------------------------------------------------


def test_its_sets_are_summed_up_without_a_verdict(here, capsys):
    benchmarks.run("wine.py:Wine", tiny=True, output="out", runs=2, show="none", mesh="data=1")
    found = score("out")
    times = [run.minutes for run in found.runs]
    assert found.minutes == pytest.approx(sum(times) / 2) and found.valid
    assert found.verdict is None and found.unit == "samples"
    assert all(run.samples % 16 == 0 for run in found.runs)
    assert cli.main(["score", "out"]) == 0
    said = capsys.readouterr().out
    assert said.count("there are no official rules") == 1
    assert "2 converged of 2\n" in said
    assert cli.main(["report", "out"]) == 0
    assert "there are no official rules, and no verdict" in (here / "report.html").read_text()
    assert cli.main(["check", "out"]) == 2
    assert "'wine', which no round had: there are no official rules" in capsys.readouterr().err
    assert cli.main("package out --org a --system b --allow-tiny".split()) == 2
    assert "there is no official benchmark 'wine'" in capsys.readouterr().err


def test_a_log_that_only_claims_to_be_of_it_is_no_score(here):
    """Without the folders of its runs it may as well be a misspelt official name."""
    benchmarks.run("wine.py:Wine", tiny=True, output="out", runs=3, show="none", mesh="data=1")
    for folder in pathlib.Path("out").glob("run_*"):
        folder.rename(here / folder.name)
    assert not score("out").valid


# -- the other commands ------------------------------------------------------------------------------


def test_list_shows_it(here, capsys):
    assert cli.main(["list", "wine.py:Wine"]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert row.split()[0] == "wine" and row.split()[-1] == "yours"
    assert "Which of three growers a wine is from" in row
    assert "accuracy at least 0.9" in row
    assert cli.main(["list", "wine.py:Wine", "--round", "5.1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["targets"] == [
        {"name": "accuracy", "at_least": 0.9}
    ]


def test_every_command_takes_it(here, capsys):
    for line in (
        "run wine.py:Wine --help",
        "data build wine.py:Wine --tiny",
        "data check wine.py:Wine",
        "bench wine.py:Wine --tiny --steps 2 --warmup 1 --mesh data=1",
        "bench wine.py:Wine --input real --steps 2 --warmup 1 --mesh data=1",
    ):
        assert cli.main(line.split()) == 0, line
    said = capsys.readouterr().out
    assert "--hidden N" in said and "wine: 133 train, 45 validation samples" in said
    assert cli.main("show wine.py:Wine --tiny".split()) == 2
    assert "there are no pictures of wine" in capsys.readouterr().err


def test_it_is_planned_in_a_process_of_its_own(here, monkeypatch, tmp_path):
    from mlperf_jax.planning import plan

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = plan("wine.py:Wine", on="h100:8", mesh="data=8", say=lambda text: None)
    assert made.fits and made.benchmark == "wine"
    assert any("no samples to the target" in note for note in made.notes)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run nowhere.py:Wine", "there is no file nowhere.py to take the benchmark from"),
        ("run wine.py --tiny", "say what in wine.py is the benchmark: write wine.py:Wine"),
        ("bench wine.py:Win", "wine.py has no 'Win': did you mean 'Wine'?"),
        ("plan wine.py:every_epochs --on v5e:1x1", "is no benchmark: give a class that inherits"),
        ("list wine.py:load_wine", "is no benchmark"),
        ("run wine.py:Wine --hiden 3", "no option --hiden: did you mean '--hidden'?"),
    ],
)
def test_refused_in_one_sentence(here, capsys, line, words):
    assert cli.main(line.split()) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1

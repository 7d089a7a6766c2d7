"""`compare` and `compared`, in Python and as commands, on a benchmark of one's own."""

import pathlib
import shutil

import pytest

from mlperf_jax import benchmarks, cli
from mlperf_jax.errors import UserError
from mlperf_jax.results.report import collect
from mlperf_jax.results.runs import RunFolder, Scalars

WINE = pathlib.Path(__file__).parent / "wine.py"


@pytest.fixture
def here(tmp_path, monkeypatch):
    shutil.copy(WINE, tmp_path / "wine.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_python_compares_the_commands_and_the_report_show(here, capsys):
    found = benchmarks.compare(
        "wine.py:Wine",
        ["recipe", "mine=adamw:1e-2"],
        tiny=True,
        seeds=2,
        evaluate_every=5,
        max_samples=2560,
        output="out",
    )
    said = capsys.readouterr().out.splitlines()
    assert len([line for line in said if " of 4)" in line]) == 4
    (comparison,) = found.comparisons
    assert [each.label for each in comparison.entrants] == ["recipe", "mine"]
    assert comparison.seeds == (1, 2) and comparison.tiny and comparison.budget == 2560
    assert all(len(each.outcomes) == 2 for each in comparison.entrants)
    assert cli.main(["compared", "out", "--save", "t.csv", "t.tex", "t.svg", "t.html"]) == 0
    told = capsys.readouterr().out
    assert "wine (tiny): samples to" in told and "needs 6 seeds" in told
    assert all(pathlib.Path(f"t{end}").stat().st_size for end in (".csv", ".tex", ".svg", ".html"))
    assert str(benchmarks.compared("out")) == str(found)
    report = collect("out")
    assert [one.benchmark for one in report.comparisons] == ["wine"]
    assert sorted(data.folder for data in report.sets) == ["out/mine", "out/recipe"]


HALVED = """
import grain
class Halved(grain.transforms.Map):
    def map(self, example):
        return {**example, "x": example["x"] / 2}
"""


def test_entries_may_differ_in_levers_that_they_declare(here):
    pathlib.Path("halved.py").write_text(HALVED)
    entries = ["recipe", "recipe+ema_decay=0.5+sam=0.05", "ramp=recipe+batch_ramp=4:100,8:400"]
    entries.append("recipe+transform=halved.py:Halved")
    given = dict(
        tiny=True, seeds=2, max_samples=1280, output="out", mesh="data=1", say=lambda line: None
    )
    found = benchmarks.compare("wine.py:Wine", entries, **given)
    (comparison,) = found.comparisons
    assert [each.label for each in comparison.entrants] == [
        entries[0],
        entries[1],
        "ramp",
        entries[3],
    ]
    configs = [
        RunFolder(pathlib.Path("out") / each.label.replace(":", "_"), 0).config()["config"]
        for each in comparison.entrants
    ]
    assert [config.get("levers") for config in configs] == [
        None,
        "ema_decay=0.5+sam=0.05",
        "batch_ramp=4:100,8:400",
        None,
    ]
    assert ["transform" in config for config in configs] == [False, False, False, True]
    losses = [
        Scalars.read(pathlib.Path("out") / each.label.replace(":", "_") / "run_0" / "scalars.jsonl")
        for each in comparison.entrants
    ]
    firsts = [next(iter(lines))["loss"] for lines in losses]
    assert len({*firsts}) == 4, "each trains in its own way"
    with pytest.raises(UserError, match=r"other optimizers|another comparison|levers"):
        benchmarks.compare("wine.py:Wine", ["recipe", *entries[2:]], **given, resume=True)


def test_a_transform_is_given_once(here):
    pathlib.Path("halved.py").write_text(HALVED)
    with pytest.raises(UserError, match="a transform is given twice"):
        benchmarks.run(
            "wine.py:Wine",
            tiny=True,
            levers="transform=halved.py:Halved",
            transform="halved.py:Halved",
        )
    result = benchmarks.run(
        "wine.py:Wine",
        tiny=True,
        levers="transform=halved.py:Halved+sam=0.1",
        max_samples=64,
        seed=1,
        show="none",
    )
    config = RunFolder(pathlib.Path(result.log).parent, 0).config()["config"]
    assert "Halved" in config["transform"] and config["levers"] == "sam=0.1"


def test_the_command_searches_and_what_it_tried_is_in_no_report(here, capsys):
    words = [
        "compare",
        "wine.py:Wine",
        "--tiny",
        "--optimizers",
        "recipe",
        "sgd:0.1",
        "--tune",
        "2",
    ]
    words += ["--seeds", "1", "--max-samples", "640", "--output", "out"]
    assert cli.main(words) == 0
    assert "(learning_rate 0.1)" in capsys.readouterr().out
    assert cli.main(words) == 2
    assert "add --resume to train what it lacks" in capsys.readouterr().err
    assert cli.main([*words, "--resume"]) == 0
    assert len(list(here.glob("out/tuning/*/trial_*/run_0/result.json"))) == 4
    assert sorted(data.folder for data in collect("out").sets) == ["out/recipe", "out/sgd_0.1"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["compare", "wine.py:Wine", "--tiny"], "compare needs --optimizers"),
        (["compare", "wine.py:Wine", "--optimizers", "sgd:1"], "two optimizers or more"),
        (["compare", "wine.py:Wine", "--optimizers", "sgd:1", "sgdd:1"], "no optimizer 'sgdd'"),
        (
            ["compare", "wine.py:Wine", "--optimizers", "a", "b", "--save", "x.doc"],
            "x.doc must end in",
        ),
        (
            ["compare", "wine.py:Wine", "--optimizers", "a", "b", "--seeds", "1,1"],
            "seeds has 1 twice",
        ),
        (["compare", "wine.py:Wine", "--optimizers", "a", "b", "--seeds", "0"], "seeds must be"),
        (
            ["compare", "wine.py:Wine", "--optimizers", "a", "b", "--output", "gs://x"],
            "a local folder",
        ),
        (["compared", "."], "holds no comparison"),
        (["compared", "nowhere"], "nowhere holds no comparison"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(here, words, sentence, capsys):
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert sentence in told and told.count("\n") == 1
    assert sorted(path.name for path in here.iterdir() if path.name != "__pycache__") == ["wine.py"]


def test_settings_that_are_none_are_refused_by_name():
    with pytest.raises(
        UserError, match="compare has no setting 'evalute_every': did you mean 'evaluate_every'"
    ):
        benchmarks.compare("resnet", ["sgd:1", "recipe"], tiny=True, evalute_every=3)
    for seeds, sentence in (
        ([3, 3], "seeds has 3 twice"),
        ([], "seeds must be one or more"),
        (None, "seeds must be one or more"),
        (True, "seeds must be a whole number, at least 1, not True"),
        (0, "seeds must be a whole number, at least 1, not 0"),
    ):
        with pytest.raises(UserError, match=sentence):
            benchmarks.compare("resnet", ["sgd:1", "recipe"], tiny=True, seeds=seeds)

"""`compare` and `compared`, in Python and as commands, on a benchmark of one's own."""

import pathlib
import shutil

import pytest

from mlperf_jax import benchmarks, cli
from mlperf_jax.errors import UserError
from mlperf_jax.results.report import collect

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

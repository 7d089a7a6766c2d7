"""`mlperf-jax new`: what it writes is what our own tests run, under another name."""

import pathlib

import pytest

import mlperf_jax
from mlperf_jax import cli

TEMPLATE = pathlib.Path(mlperf_jax.__file__).parent / "template"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_two_files_and_the_next_commands(here, capsys):
    assert cli.main(["new", "my_digits"]) == 0
    written = (here / "my_digits.py").read_text()
    assert written == (TEMPLATE / "my_benchmark.py").read_text().replace(
        "my_benchmark", "my_digits"
    ).replace("MyBenchmark", "MyDigits")
    assert 'name = "my_digits"' in written and "class MyDigits(Benchmark)" in written
    assert "from my_digits import MyDigits" in (here / "test_my_digits.py").read_text()
    said = capsys.readouterr().out
    assert "mlperf-jax run my_digits.py:MyDigits --tiny" in said
    assert "python -m pytest test_my_digits.py" in said


def test_the_template_is_short():
    for path in TEMPLATE.glob("*.py"):
        assert len(path.read_text().splitlines()) < 60


@pytest.mark.parametrize("there", ["wine.py", "test_wine.py"])
def test_nothing_is_overwritten(here, there, capsys):
    (here / there).write_text("mine")
    assert cli.main(["new", "wine"]) == 2
    assert f"{there} is there and is not overwritten" in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == [there]
    assert (here / there).read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Wine", "'Wine' names no module"),
        ("my-wine", "'my-wine' names no module"),
        ("../wine", "'../wine' names no module"),
        ("class", "'class' names no module"),
        ("bert", "'bert' is an official benchmark"),
        ("json", "'json' is a module that Python has already"),
        ("", "needs a name for it"),
    ],
)
def test_names_that_lead_nowhere_are_refused(here, name, words, capsys):
    assert cli.main(["new", *name.split()]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not list(here.iterdir())


def test_a_folder_that_may_not_be_written(here, monkeypatch, capsys):
    opened = pathlib.Path.open

    def refuse(path, mode="r", **more):
        if mode == "x":
            raise PermissionError(13, "Permission denied")
        return opened(path, mode, **more)

    monkeypatch.setattr(pathlib.Path, "open", refuse)
    assert cli.main(["new", "wine"]) == 2
    assert "cannot write wine.py: Permission denied" in capsys.readouterr().err

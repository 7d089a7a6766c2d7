"""What the tests of the commands share."""

from types import SimpleNamespace

import pytest

from mlperf_jax import benchmarks, cli


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """The folder of resnet's tiny data, built by the command line."""
    folder = tmp_path_factory.mktemp("data")
    assert cli.main(["data", "build", "resnet", "--tiny", "--data-dir", str(folder)]) == 0
    return str(folder)


@pytest.fixture
def ran(monkeypatch):
    """What `run` was called with, instead of a training run."""
    calls = []

    def record(**settings):
        calls.append(settings)
        return SimpleNamespace(reached=True, log="a log")

    monkeypatch.setattr(benchmarks, "run", record)
    return calls


@pytest.fixture
def refused(capsys):
    """What a command that must fail says: one line, no traceback, no box, no full stop."""

    def said(argv, code=2):
        capsys.readouterr()
        assert cli.main([str(word) for word in argv]) == code
        said = capsys.readouterr().err
        assert said.startswith("mlperf-jax: ")
        assert said.count("\n") == 1, said
        assert not said.endswith(".\n"), said
        assert not set(said) & set("╭│╰"), said
        return said

    return said

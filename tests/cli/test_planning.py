"""plan, doctor: what is passed on, what is printed, and the exit codes."""

import json

import pytest

from mlperf_jax import cli, planning
from mlperf_jax.planning.diagnosis import Diagnosis, Finding


@pytest.fixture
def planned(monkeypatch):
    """What `plan` was called with; one on too many devices does not fit."""
    calls = []

    class Plan:
        def __init__(self, name, on, **settings):
            calls.append((name, on, settings))
            self.fits = on != "v5p:64x64x64"

        def __str__(self):
            return "fits" if self.fits else "too big"

        def to_json(self):
            return json.dumps({"fits": self.fits})

    monkeypatch.setattr(planning, "plan", Plan)
    return calls


def test_plan_passes_its_options_on(planned, capsys):
    line = "plan resnet --on v5p:2x2x2 --batch-size 3264 --price-per-chip-hour 2 --search"
    assert cli.main(line.split()) == 0
    settings = {"batch_size": 3264, "price_per_chip_hour": 2.0, "search": True}
    assert planned == [("resnet", "v5p:2x2x2", settings)]
    assert capsys.readouterr().out == "fits\n"


def test_plan_as_json_and_its_exit_code(planned, capsys):
    assert cli.main("plan resnet --on v5p:64x64x64 --json".split()) == 1
    assert json.loads(capsys.readouterr().out) == {"fits": False}


def test_doctor(monkeypatch, capsys):
    found = Diagnosis((Finding("disk", "bad", "full", "rm -r runs"),))
    monkeypatch.setattr(planning, "doctor", lambda: found)
    assert cli.main(["doctor"]) == 1
    assert "mend: rm -r runs" in capsys.readouterr().out
    assert cli.main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["healthy"] is False

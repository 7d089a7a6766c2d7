"""plan, doctor: what is passed on, what is printed, and the exit codes."""

import json

import pytest
from download_site import part, serving

from mlperf_jax import cli, planning
from mlperf_jax.input_pipelines.downloads import links, manifest
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


def test_doctor_asks_addresses_alone(monkeypatch, capsys):
    def never():
        pytest.fail("the diagnosis asks devices, which takes minutes")

    monkeypatch.setattr(planning, "doctor", never)
    with serving() as site:
        good = part("good", address=site.add("good", b"123"), bytes=3, into="g")
        stated = manifest.Manifest("x", {"good": good})
        monkeypatch.setattr(manifest, "names", lambda: ("x",))
        monkeypatch.setattr(manifest, "load", lambda name: stated)
        real = links.stated
        ours = {address: of for address, of in real([stated]).items() if site.address in address}
        monkeypatch.setattr(links, "stated", lambda manifests: ours)
        assert cli.main(["doctor", "--links"]) == 0
        out = capsys.readouterr().out
        assert out == f"ok  {site.address}/good (x): 3 bytes, as stated\n1 of 1 addresses answer\n"
        site.files.clear()
        assert cli.main(["doctor", "--links", "--json"]) == 1
        (link,) = json.loads(capsys.readouterr().out)["links"]
        assert link["good"] is False and link["names"] == ["x"]
        assert cli.main(["doctor", "--links"]) == 1
        assert "0 of 1 addresses answer" in capsys.readouterr().out

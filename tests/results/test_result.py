"""The result of a run: saved, loaded, and never shown without its labels."""

import json
import re

import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.results import durable
from mlperf_jax.results.result import (
    LEGEND,
    UNVERIFIED,
    Result,
    Results,
    config_hash,
    run_name,
    versions,
)

FIELDS = {
    "benchmark": "resnet",
    "tiny": True,
    "reached": True,
    "quality": {"accuracy": 0.9638888},
    "samples": 20118,
    "seconds": 23.41,
    "examples_per_second": 859.6,
    "mfu": 0.123,
    "seed": 3,
    "device": "cpu",
    "mesh": {"data": 8},
    "status": "success",
    "log": "out/result_0.txt",
    "ruleset": "4.0.0",
    "device_count": 8,
}


def test_saved_and_loaded_it_is_the_same(tmp_path):
    result = Result(**FIELDS, parameters_sha256="ab", versions={"jax": "1"}, resumed=2)
    durable.write_json(tmp_path / "result.json", result.to_dict())
    assert Result.load(tmp_path / "result.json") == result
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["verified"] is False
    assert saved["notice"] == f"{UNVERIFIED} {LEGEND}"
    assert {"benchmark", "tiny", "reached", "quality", "samples", "seconds", "versions"} <= set(
        saved
    )


def test_what_is_not_a_result_is_refused(tmp_path):
    path = tmp_path / "result.json"
    for text in ("{}", "[1]", '{"benchmark": "resnet"}'):
        path.write_text(text)
        with pytest.raises(UserError, match="is not the result of a run"):
            Result.load(path)
    with pytest.raises(UserError, match="cannot be read"):
        Result.load(tmp_path / "no.json")


@pytest.mark.parametrize("show", [str, Result._repr_html_])
def test_a_replaced_optimizer_is_named(show):
    assert "my.py:make" in show(Result(**FIELDS, optimizer="my.py:make"))
    assert "optimizer" not in show(Result(**FIELDS))


@pytest.mark.parametrize("show", [repr, str, Result._repr_html_])
@pytest.mark.parametrize("changes", [{}, {"tiny": False}, {"reached": False, "quality": {}}])
def test_every_form_says_unverified_and_none_claims_an_official_result(show, changes):
    text = show(Result(**(FIELDS | changes)))
    assert "(unverified)" in text
    assert ("(tiny)" in text) is (changes.get("tiny") is not False)
    if show is not repr:
        assert UNVERIFIED in text
        assert LEGEND in text
        assert "4.0.0" in text
        assert "open" in text
        assert "8 x cpu" in text
    assert not re.search("MLPerf.{0,10} (result|score)", text.replace(LEGEND, ""), re.IGNORECASE)


def test_the_short_forms_are_short():
    result = Result(**FIELDS)
    assert repr(result) == "<resnet (tiny): target reached, accuracy 0.96389 (unverified)>"
    lines = str(result).split("\n")
    assert lines[0] == "resnet (tiny): target reached, accuracy 0.96389 (unverified)"
    assert lines[1] == "20,118 samples in 23.4 s, 860 samples/s on 8 x cpu, 12.3% MFU"
    assert len(lines) == 4


def test_a_missed_target_and_an_unknown_peak():
    result = Result(
        **(FIELDS | {"reached": False, "mfu": None, "seconds": 5400, "status": "aborted"})
    )
    assert "target not reached" in str(result)
    assert "MFU" not in str(result)
    assert "90.00 min" in str(result)


def test_html_escapes_what_it_shows():
    result = Result(**(FIELDS | {"log": "<script>alert(1)</script>", "benchmark": "a&b"}))
    text = result._repr_html_()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "a&amp;b" in text


def test_versions_come_without_imports():
    found = versions()
    assert set(found) >= {
        "python",
        "jax",
        "flax",
        "optax",
        "orbax-checkpoint",
        "grain",
        "mlperf-jax",
    }
    assert re.match(r"\d+\.\d+", found["jax"])
    assert found["python"].startswith("3.")


def test_config_hash():
    assert re.fullmatch("[0-9a-f]{8}", config_hash({"a": 1}))
    assert config_hash({"a": 1, "b": 2.0}) == config_hash({"b": 2.0, "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})
    assert config_hash({"a": (1, 2)}) == config_hash({"a": [1, 2]})
    with pytest.raises(UserError, match=r"the configuration\.a"):
        config_hash({"a": len})


def test_run_name():
    config = {"batch_size": 64}
    assert run_name("resnet", config, tiny=False) == f"resnet-{config_hash(config)}"
    assert run_name("resnet", config, tiny=True) == f"resnet-tiny-{config_hash(config)}"


def test_several_results_are_a_table():
    results = Results([Result(**FIELDS), None, Result(**FIELDS | {"seed": 4, "optimizer": "a<b"})])
    shown = results._repr_html_()
    assert shown.count("<tr>") == 3 and "a&lt;b" in shown and "digits" not in shown
    assert "1 are trained and wait for being scored" in shown
    for text in (shown, str(results)):
        assert text.count("(unverified)") == 2 and UNVERIFIED in text and LEGEND in text
    assert len(results) == 3 and results[1] is None, "it is a list"

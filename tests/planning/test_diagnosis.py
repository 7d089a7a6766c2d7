"""The diagnosis: versions that do not fit together, missing extras, and the command that mends each."""

import json

import pytest

from mlperf_jax.planning import diagnosis as doctors

HAVE = {
    "jax": "0.10.2",
    "jaxlib": "0.10.2",
    "flax": "0.12.8",
    "optax": "0.2.8",
    "orbax-checkpoint": "0.12.8",
    "grain": "0.2.18",
    "numpy": "2.0",
}


def diagnose(monkeypatch, have=HAVE, environment=None, device=("cpu", "cpu", 1, None)):
    monkeypatch.setattr(doctors, "_ask_jax", lambda: (list(device) if device else None, "no"))
    monkeypatch.setattr(doctors.shutil, "which", lambda name: None)
    return doctors.doctor(have.get, environment or {})


def find(found, name):
    return next(finding for finding in found.findings if finding.name == name)


def test_a_plain_machine_is_healthy_and_told_what_it_lacks(monkeypatch):
    found = diagnose(monkeypatch)
    assert found.healthy
    assert find(found, "extra plan").mend == 'pip install "mlperf-jax[plan]"'
    assert find(found, "devices").status == "note"
    assert "tiny runs" in str(found)


def test_extras_are_those_of_the_package(monkeypatch, tmp_path):
    found = doctors.extras()
    assert found["plan"] == ("libtpu",) and "mlperf-logging" in found["results"]
    assert not {"cuda", "tpu", "all", "test", "dev"} & set(found)
    monkeypatch.setattr(doctors, "__file__", str(tmp_path / "a" / "b" / "diagnosis.py"))
    lines = ['scipy>=1.11; extra == "results"', 'jax[tpu]>=0.10; extra == "plan"', "numpy>=2"]
    monkeypatch.setattr(doctors.metadata, "requires", lambda name: lines)
    assert doctors.extras() == {"results": ("scipy",), "plan": ("libtpu",)}


@pytest.mark.parametrize(
    ("change", "words", "mend"),
    [
        ({"jaxlib": "0.9.1"}, "jaxlib 0.9.1", "jaxlib==0.10.2"),
        ({"jax-cuda13-plugin": "0.9.0"}, "jax-cuda13-plugin 0.9.0", "jax[cuda13]==0.10.2"),
    ],
)
def test_versions_that_do_not_fit(monkeypatch, change, words, mend):
    found = diagnose(monkeypatch, {**HAVE, **change})
    bad = find(found, "versions")
    assert not found.healthy and words in bad.text and mend in bad.mend


def test_a_libtpu_of_another_jax(monkeypatch):
    monkeypatch.setattr(
        doctors.metadata, "requires", lambda name: ['libtpu==0.0.42.*; extra=="tpu"']
    )
    assert diagnose(monkeypatch, {**HAVE, "libtpu": "0.0.42.1"}).healthy
    found = diagnose(monkeypatch, {**HAVE, "libtpu": "0.0.50"})
    assert "wants 0.0.42." in find(found, "versions").text


def test_a_missing_library(monkeypatch):
    have = {name: version for name, version in HAVE.items() if name != "grain"}
    found = diagnose(monkeypatch, have)
    assert "missing: grain" in find(found, "libraries").text and not found.healthy


def test_an_unused_accelerator_and_the_cell_that_mends_it(monkeypatch):
    found = diagnose(monkeypatch, environment={"TPU_NAME": "local", "COLAB_RELEASE_TAG": "x"})
    devices = find(found, "devices")
    assert devices.status == "bad" and devices.mend == '%pip install "mlperf-jax[tpu]"'
    monkeypatch.setattr(doctors.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(doctors, "_ask_jax", lambda: (["cpu", "cpu", 1, None], ""))
    kaggle = doctors.doctor(HAVE.get, {"KAGGLE_KERNEL_RUN_TYPE": "Interactive"})
    assert find(kaggle, "devices").mend == '%pip install "mlperf-jax[cuda]"'


def test_peaks_known_and_unknown(monkeypatch):
    known = diagnose(monkeypatch, device=("gpu", "NVIDIA H200", 8, 150e9))
    assert "989 TFLOP/s" in find(known, "devices").text
    unknown = diagnose(monkeypatch, device=("gpu", "Tesla T4", 1, 15e9))
    assert "no peak is known" in find(unknown, "devices").text


def test_devices_that_do_not_start(monkeypatch):
    found = diagnose(monkeypatch, device=None)
    assert find(found, "devices").status == "bad" and find(found, "devices").mend


def test_forms(monkeypatch):
    found = diagnose(monkeypatch)
    assert json.loads(found.to_json())["healthy"] is True
    assert found._repr_html_().startswith("<pre>")


def test_this_machine_can_be_asked(monkeypatch):
    found, error = doctors._ask_jax()
    assert found is not None and found[2] >= 1, error

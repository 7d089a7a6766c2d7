"""The process that compiles: asked once, remembered, and survived when it dies."""

import dataclasses
import json
import subprocess

import pytest
from planning_toys import Decoder

from mlperf_jax.errors import UserError
from mlperf_jax.planning import compiling, devices as names, store
from mlperf_jax.planning.programs import Program

H100 = names.parse("h100:2")
V5P = names.parse("v5p:2x2x1")
ASSEMBLED = {"event": "assembled", "mesh": {"data": 4}, "state": {"parameters": 8}}


def answers(monkeypatch, *processes):
    """Each call of the worker gives the next list of events; returns the requests."""
    requests = []

    def events(request, devices):
        requests.append(request)
        yield from (dict(event) for event in processes[len(requests) - 1])

    monkeypatch.setattr(compiling, "_events", events)
    return requests


def program(name):
    return {"event": "program", **dataclasses.asdict(Program(name, "fits", 10, total=5, work={}))}


def test_a_real_process_compiles_and_a_second_look_asks_nobody(monkeypatch):
    said = []
    first = compiling.compiled(Decoder(layers=1), H100, None, say=said.append)
    assert first.mesh == {"data": 2} and first.fits
    assert [p.name for p in first.programs] == ["train", "evaluation"]
    assert any("compiling train" in text for text in said)

    def nobody(*arguments, **settings):
        raise AssertionError("nothing is to be started")

    monkeypatch.setattr(subprocess, "Popen", nobody)
    again = compiling.compiled(Decoder(layers=1), H100, None)
    assert again == first


def test_a_program_that_kills_its_compiler_is_told_apart_and_the_rest_goes_on(monkeypatch):
    died = {"event": "died", "message": "its process was killed (SIGKILL)"}
    compiling_train = {"event": "compiling", "name": "train"}
    requests = answers(
        monkeypatch,
        [ASSEMBLED, compiling_train, died],
        [ASSEMBLED, program("evaluation"), {"event": "done"}],
        [ASSEMBLED, program("train"), program("evaluation"), {"event": "done"}],
    )
    found = compiling.compiled(Decoder(), V5P, None)
    assert [(p.name, p.outcome) for p in found.programs] == [
        ("train", "compiler failed"),
        ("evaluation", "fits"),
    ]
    assert "killed" in found.programs[0].message
    assert requests[1]["without"] == ["train"]
    # it was perhaps this machine's fault: the next look tries again
    assert compiling.compiled(Decoder(), V5P, None).fits


def test_a_busy_compiler_is_waited_for(monkeypatch):
    monkeypatch.setattr(compiling, "_RETRY", 0)
    answers(
        monkeypatch,
        [ASSEMBLED, {"event": "busy", "message": "libtpu_lockfile"}],
        [ASSEMBLED, program("train"), {"event": "done"}],
    )
    said = []
    assert compiling.compiled(Decoder(), V5P, None, say=said.append).fits
    assert any("waiting" in text for text in said)


def test_what_the_worker_refuses_is_the_users_error(monkeypatch):
    answers(monkeypatch, [{"event": "refused", "message": "mesh data=3 has 3 devices"}])
    with pytest.raises(UserError, match="3 devices"):
        compiling.compiled(Decoder(), V5P, {"data": 3})


def test_a_compiler_that_dies_at_once_is_told_with_its_flags(monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--no_such_flag=1")
    answers(
        monkeypatch, [{"event": "died", "message": "trace\nERROR: Unknown flag 'no_such_flag'"}]
    )
    with pytest.raises(
        UserError, match="Unknown flag 'no_such_flag'; check LIBTPU_INIT_ARGS"
    ) as told:
        compiling.compiled(Decoder(), names.parse("h100:8"), None)
    assert "\n" not in str(told.value)


def test_a_benchmark_that_stands_in_no_file():
    class Local(Decoder):
        """Of this function."""

    with pytest.raises(UserError, match=r"Local stands in no file.* to the top level of one"):
        compiling.compiled(Local(), V5P, None)


def test_obituaries():
    assert "want of memory" in compiling._obituary(-9, "")
    assert "SIGABRT" in compiling._obituary(-6, "F0000 check failed\n")
    assert compiling._obituary(1, "a\nb\n") == "a\nb"


def test_a_turn_is_waited_for():
    said = []
    with store.turn(said.append):
        script = (
            "import sys; from mlperf_jax.planning import store\n"
            "with store.turn(lambda text: (print(text, flush=True), sys.exit(0))): pass"
        )
        out = subprocess.run(
            [compiling.sys.executable, "-c", script], capture_output=True, text=True, check=False
        )
    assert "waiting for it" in out.stdout and said == []


def test_the_store_survives_damage():
    store.write("a", {"x": 1})
    store.write_text("a", "text")
    assert store.read("a") == {"x": 1} and store.read_text("a") == "text"
    (store.folder() / "a.json").write_text("{")
    (store.folder() / "a.gz").write_bytes(b"no")
    assert store.read("a") is None and store.read_text("a") is None


def test_a_configuration_survives_the_way_to_the_worker():
    benchmark = Decoder(layers=3, remat=None)
    config = json.loads(json.dumps(benchmark.config()))
    assert Decoder.from_config(config) == benchmark

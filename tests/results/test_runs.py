"""Run folders: which run is next, which is unfinished, who may write it, what it keeps."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.results.log import Log
from mlperf_jax.results.result import Result
from mlperf_jax.results.runs import RunFolder, RunSet, Scalars, config_changes

CONFIG = {"benchmark": "resnet", "batch_size": 64, "stages": (1, 1)}
OPTIONS = {"seed": 3}


def result(**changes):
    fields = {
        "benchmark": "resnet",
        "tiny": True,
        "reached": True,
        "quality": {"accuracy": 0.96},
        "samples": 1437,
        "seconds": 12.5,
        "examples_per_second": 115.0,
        "seed": 3,
        "device": "cpu",
        "status": "success",
        "log": "result_0.txt",
    }
    return Result(**(fields | changes))


def finish(run):
    with Log(run.log_path) as log:
        log.start("run_start")
        log.stop("run_stop", status="success")
    run.save_result(result())


@pytest.fixture
def runs(tmp_path):
    return RunSet(tmp_path / "deep" / "output")


def test_a_new_set_makes_run_0_with_its_configuration(runs):
    assert runs.runs() == []
    assert runs.unfinished() is None
    assert runs.resume(CONFIG, OPTIONS) is None
    with runs.create(CONFIG, OPTIONS) as run:
        assert run.index == 0
        assert run.log_path == runs.path / "result_0.txt"
        saved = json.loads((runs.path / "run_0" / "config.json").read_text())
        assert saved["config"] == {"benchmark": "resnet", "batch_size": 64, "stages": [1, 1]}
        assert saved["options"] == OPTIONS
        assert len(saved["config_hash"]) == 8
        assert not run.started
        assert not run.finished


def test_finished_runs_are_kept_and_the_next_number_is_taken(runs):
    with runs.create(CONFIG, OPTIONS) as first:
        finish(first)
    before = {p: p.read_bytes() for p in runs.path.rglob("*") if p.is_file()}
    assert runs.unfinished() is None
    with runs.create(CONFIG, {"seed": 4}) as second:
        assert second.index == 1
    assert {p: p.read_bytes() for p in before} == before
    with pytest.raises(UserError, match="finished run"):
        first.save_result(result(reached=False))
    assert first.result().reached
    assert [run.index for run in runs.runs()] == [0, 1]


def test_a_gap_is_filled_but_a_lone_log_is_never_overwritten(runs):
    runs.path.mkdir(parents=True)
    (runs.path / "result_0.txt").write_text("someone's log\n")
    (runs.path / "run_2").mkdir()
    with runs.create(CONFIG, OPTIONS) as run:
        assert run.index == 1
    assert (runs.path / "result_0.txt").read_text() == "someone's log\n"


@pytest.mark.parametrize(
    ("log", "saved", "finished", "started"),
    [
        ([], False, False, False),
        (["init_start"], False, False, False),
        (["init_start", "run_start"], False, False, True),
        (["run_start", "run_stop"], False, False, True),
        (["run_start"], True, False, True),
        (["run_start", "run_stop"], True, True, True),
    ],
)
def test_which_run_is_unfinished(runs, log, saved, finished, started):
    with runs.create(CONFIG, OPTIONS) as run:
        with Log(run.log_path) as out:
            for key in log:
                out.event(key)
        if saved:
            run.save_result(result())
    assert run.finished is finished
    assert run.started is started
    assert (runs.unfinished() is None) is finished
    if not finished:
        with runs.resume(CONFIG, OPTIONS) as again:
            assert again.index == run.index


def test_the_first_unfinished_run_is_taken_up(runs):
    for index in range(3):
        with runs.create(CONFIG, {"seed": index}) as run:
            if index == 0:
                finish(run)
    assert runs.unfinished().index == 1


def test_a_run_killed_before_its_configuration_was_written(runs):
    (runs.path / "run_0").mkdir(parents=True)
    with runs.resume(CONFIG, OPTIONS) as run:
        assert run.config()["config"]["batch_size"] == 64


def test_another_configuration_is_refused_by_field(runs):
    runs.create(CONFIG, OPTIONS).release()
    other = CONFIG | {"batch_size": 128}
    for attempt in (runs.create, runs.resume):
        with pytest.raises(UserError, match="batch_size was 64 and is now 128"):
            attempt(other, OPTIONS)
    assert [run.index for run in runs.runs()] == [0]
    with runs.resume(
        CONFIG, {"seed": 9}
    ):  # options are not the configuration; and the lock is free
        pass


def test_a_seed_that_the_set_has_is_refused(runs):
    with runs.create(CONFIG, {"seed": 4}) as run, Log(run.log_path) as log:
        log.event("seed", 4)
    (runs.path / "result_7.txt").write_text(run.log_path.read_text().replace("4", "8"))
    for seed, where in ((4, "run_0"), (8, "run_7")):
        with pytest.raises(
            UserError, match=rf"{where} has seed {seed} already.*: give another seed"
        ):
            runs.create(CONFIG, {"seed": seed})
    assert [run.index for run in runs.runs()] == [0, 7]
    runs.create(CONFIG, {"seed": 5}).release()


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (
            lambda path: path.unlink(),
            r"run_0/config.json is gone, .*: restore it, or move .*run_0 and",
        ),
        (
            lambda path: path.write_text(path.read_text().replace('"seed": 3', '"seed": 4')),
            "edited, as it has seed 4 and result_0.txt 3: restore it",
        ),
        (
            lambda path: path.write_text(path.read_text().replace("64", "65")),
            "edited, as its hash is another",
        ),
    ],
)
def test_a_run_that_lost_its_configuration_is_not_resumed(runs, edit, sentence):
    with runs.create(CONFIG, OPTIONS) as run, Log(run.log_path) as log:
        log.event("seed", 3)
        log.start("run_start")
    edit(run.config_path)
    before = {p: p.read_bytes() for p in runs.path.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=sentence):
        runs.resume(CONFIG, OPTIONS)
    assert {p: p.read_bytes() for p in runs.path.rglob("*") if p.is_file()} == before


def test_a_damaged_configuration_says_so(runs):
    runs.create(CONFIG, OPTIONS).release()
    path = runs.path / "run_0" / "config.json"
    path.write_text("[1]")
    with pytest.raises(UserError, match="is not a run's configuration"):
        runs.resume(CONFIG, OPTIONS)
    path.write_text('{"config')
    with pytest.raises(UserError, match="not a JSON file"):
        runs.create(CONFIG, OPTIONS)


def test_config_changes():
    old = {"a": 1, "b": (1, 2), "c": float("nan")}
    assert config_changes(old, {"a": 1, "b": [1, 2], "c": float("nan")}) == []
    assert config_changes(old, {"a": 2, "b": (1, 2), "d": "x"}) == [
        "a was 1 and is now 2",
        "c was nan and is gone",
        "d is new: 'x'",
    ]
    files = [{"transform": f"import grain\n\nside = {side}\n"} for side in (32, 64)]
    (told,) = config_changes(*files)
    assert re.fullmatch(
        r"transform was text (\w{8}) \(3 lines\) and is now text (?!\1)\w{8} \(3 lines\)", told
    )


def test_reset_is_for_runs_that_never_started(runs):
    with runs.create(CONFIG, OPTIONS) as run:
        with Log(run.log_path) as log:
            log.start("init_start")
        Scalars(run.scalars_path).close()
        run.reset()
        assert not run.log_path.exists()
        assert not run.scalars_path.exists()
        assert run.config_path.exists()
        with Log(run.log_path) as log:
            log.start("run_start")
        with pytest.raises(UserError, match="has started"):
            run.reset()
        assert run.log_path.exists()


def test_one_process_cannot_write_a_run_twice(runs):
    with runs.create(CONFIG, OPTIONS), pytest.raises(UserError, match="this very process"):
        runs.resume(CONFIG, OPTIONS)
    with runs.resume(CONFIG, OPTIONS) as run:
        run.release()
        run.release()


HOLD = """
import sys
from mlperf_jax.results.runs import RunSet
run = RunSet(sys.argv[1]).resume({config!r}, {{}})
print("held", flush=True)
sys.stdin.read()
"""


def test_two_processes_cannot_write_a_run_and_a_dead_ones_lock_is_taken_over(runs):
    runs.create(CONFIG, OPTIONS).release()
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(config=CONFIG), str(runs.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"is being written by process {child.pid} on"):
            runs.resume(CONFIG, OPTIONS)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert f"process {child.pid} " in (runs.path / "run_0" / "lock").read_text()
        with runs.resume(CONFIG, OPTIONS) as run:
            assert f"process {os.getpid()} " in (run.path / "lock").read_text()
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        RunSet(tmp_path / "out").create(CONFIG, OPTIONS)


def test_an_output_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        RunSet(tmp_path / "out").create(CONFIG, OPTIONS)


# ---- scalars


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scalars.jsonl"


def write(path, steps, **resume):
    scalars = Scalars(path, **resume)
    for step in steps:
        scalars.write(step=step, samples=64 * step, loss=np.float32(step))
    offset = scalars.offset
    scalars.close()
    return offset


def steps(path):
    return [line["step"] for line in Scalars.read(path)]


def test_scalars_are_json_lines(path):
    write(path, [1])
    assert path.read_text() == '{"step": 1, "samples": 64, "loss": 1.0}\n'


def test_scalars_cut_back_by_offset(path):
    offset = write(path, [1, 2])
    scalars = Scalars(path)
    scalars.write(step=2, samples=128, accuracy=0.5)  # the evaluation after the checkpoint's step
    scalars.close()
    write(path, [3], resume_at=offset)
    assert [sorted(line) for line in Scalars.read(path)] == [["loss", "samples", "step"]] * 3


def test_scalars_drop_half_a_line(path):
    write(path, [1, 2])
    with open(path, "ab") as f:
        f.write(b'{"step": 3, "sam')
    assert steps(path) == [1, 2]
    write(path, [3])
    assert steps(path) == [1, 2, 3]


def test_scalars_take_nan_and_infinity(path):
    scalars = Scalars(path)
    scalars.write(step=1, samples=1, loss=np.float32("nan"), norm=float("inf"))
    scalars.sync()
    scalars.close()
    scalars.close()
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["loss"] is None
    line = Scalars.read(path)[0]
    assert np.isnan(line["loss"]) and np.isnan(line["norm"]) and line["step"] == 1


def test_scalars_that_are_damaged(path):
    path.write_text('{"step": 1}\n{"step" 2}\n')
    with pytest.raises(UserError, match="line 2 of"):
        Scalars.read(path)
    path.write_text("3\n")
    with pytest.raises(UserError, match="line 1 of"):
        Scalars.read(path)
    with pytest.raises(UserError, match="cannot be read"):
        Scalars.read(path.with_name("no"))


def test_a_folder_shows_itself(tmp_path):
    assert repr(RunFolder(tmp_path, 3)) == f"RunFolder({str(tmp_path / 'run_3')!r})"
    assert (
        RunFolder(str(tmp_path), 3).checkpoints == pathlib.Path(tmp_path) / "run_3" / "checkpoints"
    )


@pytest.mark.parametrize("spoil", ["remove", "empty", "cut"])
@pytest.mark.parametrize("left", ["scalars.jsonl", "checkpoints/step_00000010", "trained.json"])
def test_a_run_without_its_log_is_not_begun_anew(tmp_path, spoil, left):
    runs = RunSet(tmp_path)
    with runs.create({"a": 1}, {"seed": 1}) as run, Log(run.log_path) as written:
        written.event("seed", 1)
        begun = written.offset
        written.start("run_start")
    path = run.path / left
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if "step" in left else path.write_text("{}\n")
    assert runs.resume({"a": 1}, {}).index == 0
    runs.runs()[0].release()
    spoiled = {"remove": None, "empty": b"", "cut": run.log_path.read_bytes()[:begun]}[spoil]
    run.log_path.unlink()
    if spoiled is not None:
        run.log_path.write_bytes(spoiled)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        UserError, match=r"result_0.txt is (gone|cut short or empty), though the run"
    ):
        runs.resume({"a": 1}, {})
    assert sorted(tmp_path.rglob("*")) == before


def test_two_that_begin_at_the_same_time_are_no_two_runs_of_one_seed(tmp_path, monkeypatch):
    save, writes, goes_on, ends = RunFolder.save_config, threading.Event(), threading.Event(), []

    def slow(self, *args):
        writes.set()
        goes_on.wait(60)
        save(self, *args)

    def begin():
        try:
            RunSet(tmp_path).create(CONFIG, OPTIONS).release()
            ends.append("trains")
        except UserError as error:
            ends.append(str(error))

    monkeypatch.setattr(RunFolder, "save_config", slow)
    both = [threading.Thread(target=begin) for _ in range(2)]
    both[0].start()
    writes.wait(60)
    both[1].start()
    both[1].join(0.2)  # long enough to begin, if it could
    goes_on.set()
    for each in both:
        each.join(60)
    assert "has seed 3 already" in min(ends) and max(ends) == "trains"
    assert [run.index for run in RunSet(tmp_path).runs()] == [0]

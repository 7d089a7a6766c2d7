"""The stress script: its judge finds each kind of loss, its rounds are those of their seed, and a few lose nothing."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from mlperf_jax.core.checkpoints.folder import Folder, Place, absolute
from mlperf_jax.results import log as logs, result, runs
from scripts import damages, losses, stress

ROOT = pathlib.Path(__file__).parents[1]
SENTENCE = "mlperf-jax: the disk is full"


def checkpoint(run, step, attempt=0, offset=None):
    """A whole one, without arrays."""
    files, place = Folder(absolute(run.checkpoints)), Place(step, attempt)
    files.path(place).mkdir(parents=True)
    files.commit(place, {"log_offset": run.log_path.stat().st_size if offset is None else offset})


def begun(folder, steps=(3, 6)):
    """A run that was begun and saved after these steps, and how it stands."""
    run = runs.RunSet(folder).create({}, {"seed": 7})
    run.release()
    with (
        logs.Log(run.log_path) as log,
        contextlib.closing(runs.Scalars(run.scalars_path)) as scalars,
    ):
        log.event("seed", 7, time_ms=1000)
        log.start("run_start", time_ms=1001)
        for step in steps:
            log.event("eval_accuracy", step / 10, time_ms=1001 + step)
            scalars.write(step=step, samples=step * 8, loss=1.0 / step)
            scalars.sync()
            checkpoint(run, step)
        log.start("block_start", time_ms=1100)
    return run


def finished(folder, **other):
    """A run that came to its end, but for what is given as its result."""
    run = begun(folder)
    with logs.Log(run.log_path) as log:
        log.stop("run_stop", status="aborted", time_ms=1200)
    known = dict(
        benchmark="resnet", tiny=True, reached=False, quality={"accuracy": 0.6}, samples=48
    )
    known |= dict(seconds=1.0, examples_per_second=1.0, mfu=None, parameters_sha256="ab", seed=7)
    known |= dict(resumed=0, versions={}, device="cpu", mesh={}, status="aborted", log="")
    known |= dict(division="open", ruleset="4.0.0", device_count=1)
    run.save_result(result.Result(**{**known, **other}))
    return run


@pytest.fixture
def whole(tmp_path):
    finished(tmp_path / "whole")
    return tmp_path / "whole"


# -- after a damage --------------------------------------------------------------------------------


def damaged(folder, damage, cut=False):
    """What the judge says of a run that something is done to, just after it has begun or been cut back."""
    run = begun(folder)
    before = losses.look(folder)
    damage(run)
    return [*losses.gone(before if cut else losses.Left(), before, losses.look(folder))]


def cut_log(run, less):
    os.truncate(run.log_path, run.log_path.stat().st_size - less)


def lengthen_log(run):
    with run.log_path.open("a") as log:
        log.write("half a li")


def test_what_goes_on_or_stands_still_has_lost_nothing(tmp_path):
    assert damaged(tmp_path / "a", lambda run: None) == []
    assert damaged(tmp_path / "b", lambda run: checkpoint(run, 9)) == []
    assert damaged(tmp_path / "c", lengthen_log) == []
    assert damaged(tmp_path / "d", lambda run: cut_log(run, 5), cut=True) == [], "to its checkpoint"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: cut_log(run, 5), "bytes of the log"),
        (lambda run: run.log_path.unlink(), "bytes of the log"),
        (
            lambda run: shutil.rmtree(run.checkpoints / "step_00000006"),
            "step 6 is gone: the newest",
        ),
        (lambda run: shutil.rmtree(run.checkpoints), "no other is whole"),
        (
            lambda run: (run.checkpoints / "step_00000006/meta.json").write_text("{}"),
            "bytes|step 6",
        ),
    ],
)
def test_each_loss_is_found(damage, words, tmp_path):
    found = " ".join(damaged(tmp_path, damage))
    assert any(word in found for word in words.split("|")), found


def test_a_log_is_cut_back_no_further_than_to_its_checkpoint(tmp_path):
    assert damaged(tmp_path, lambda run: cut_log(run, 300), cut=True)


def test_a_result_that_is_gone_is_found(whole):
    before = losses.look(whole)
    (whole / "run_0" / "result.json").unlink()
    assert "result.json is gone, or another" in [*losses.gone(before, before, losses.look(whole))]


@pytest.mark.parametrize(
    ("code", "said", "step", "words"),
    [
        (2, SENTENCE, None, ""),
        (1, "step 1 · 64 samples · loss 2.3\nepoch 1 · 64 samples · accuracy 0.5", None, ""),
        (
            143,
            "mlperf-jax: stopped by signal 15 after step 6; --resume takes the run up again",
            6,
            "",
        ),
        (
            143,
            "mlperf-jax: stopped by signal 15 after step 7; --resume …",
            6,
            "says that it stopped",
        ),
        (143, "", 6, "0 sentences"),
        (2, f"{SENTENCE}\n{SENTENCE}", None, "2 sentences"),
        (1, SENTENCE, None, "sentence of failure"),
        (1, "Traceback (most recent call last):", None, "no sentence of ours"),
        (-9, "", None, "exit code -9"),
    ],
)
def test_how_a_process_ends(code, said, step, words):
    expected = frozenset({0, 1, 2, 143})
    found = [*losses.misbehaved(code, said, expected, losses.Left(step=step))]
    assert len(found) == bool(words) and words in " ".join(found)


def test_a_run_goes_on_from_its_newest_checkpoint():
    six, none = losses.Left(step=6), losses.Left()
    assert [*losses.went_back(six, "resumed after step 6")] == []
    assert [*losses.went_back(none, "no checkpoint yet: resumed from the start")] == []
    assert [*losses.went_back(six, "resumed after step 3")]
    assert [*losses.went_back(six, "no checkpoint yet: resumed from the start")]
    assert [*losses.went_back(none, "resumed after step 3")]


# -- at the end ------------------------------------------------------------------------------------


def test_an_equal_run_is_equal(whole, tmp_path):
    finished(tmp_path / "other", resumed=3, seconds=9.0)
    assert [*losses.differs(tmp_path / "other", whole)] == []
    assert [*losses.rubbish(tmp_path / "other")] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: run.result_path.unlink(), "not finished"),
        (lambda run: run.scalars_path.write_text(""), "scalars.jsonl"),
        (lambda run: shutil.rmtree(run.checkpoints / "step_00000006"), "the last checkpoint"),
        (lambda run: edit(run, "0.3", "0.4"), "line 3 of the log"),
        (lambda run: edit(run, '"time_ms": 1004', '"time_ms": 1900'), "go back"),
    ],
)
def test_each_difference_is_found(change, words, whole, tmp_path):
    run = finished(tmp_path / "other")
    change(run)
    assert words in " ".join(losses.differs(tmp_path / "other", whole))


def edit(run, old, new):
    text = run.log_path.read_text()
    assert old in text
    run.log_path.write_text(text.replace(old, new, 1))


def test_other_bits_are_found(whole, tmp_path):
    finished(tmp_path / "other", parameters_sha256="cd")
    assert "parameters_sha256 cd" in " ".join(losses.differs(tmp_path / "other", whole))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("run_0/.result.json.tmp", ".tmp stays"),
        ("run_0/checkpoints/newest.half", "newest.half stays"),
        ("run_0/checkpoints/step_00000003/arrays/d/x.__lock", "__lock stays"),
        ("run_0/checkpoints/step_00000007/arrays/d/x", "half a checkpoint"),
        ("run_1/lock", "run_1 stays"),
    ],
)
def test_rubbish_is_found(name, words, whole):
    path = whole / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    assert words in " ".join(losses.rubbish(whole))


def test_too_many_checkpoints_are_found(whole):
    checkpoint(runs.RunFolder(whole, 0), 9, offset=0)
    assert "3 checkpoints stay" in " ".join(losses.rubbish(whole))


def test_a_lock_that_is_held_and_a_process_that_stays_are_found(whole):
    code = f"""
import fcntl, time
file = open({str(whole / "run_0/lock")!r}, "r+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert other.stdout.readline() == b"held\n"
        assert losses.held(whole) and "lock outlives" in " ".join(losses.rubbish(whole))
        assert len([*losses.strays(other.pid)]) == 1
    finally:
        other.kill()
        other.communicate()
    assert not losses.held(whole) and [*losses.strays(other.pid)] == []


# -- rounds ----------------------------------------------------------------------------------------


def planned(words, tmp_path):
    return stress.Stress(stress.parser().parse_args(words.split()), tmp_path, False)


def test_all_that_is_random_comes_from_the_seed(tmp_path):
    def plans(seed):
        made = planned(f"--seed {seed}", tmp_path)
        found = [made.plan(number) for number in range(200)]
        return [(name, kinds, str(damages.When.any(rng))) for name, kinds, rng in found]

    assert plans(3) == plans(3) != plans(4)
    pairs = {(name, kinds[0]) for name, kinds, _ in plans(3)}
    assert len(pairs) > 120, "benchmarks and damages are dealt out, not drawn"


def test_every_benchmark_has_few_steps(tmp_path):
    made = planned("", tmp_path)
    assert list(stress.FEW) == list(made.tallies)


def test_a_round_loses_nothing(tmp_path, compile_cache):
    """Forks of this process would have its eight devices, so the script has one of its own."""
    (tmp_path / "cache").symlink_to(compile_cache)
    words = "--forked --benchmarks dlrm_dcnv2 --damage kill term --rounds 1 --seed 4"
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    ended = subprocess.run(
        [sys.executable, str(ROOT / "scripts/stress.py"), *words.split(), "--work", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "round 0 dlrm_dcnv2: kill at " in ended.stdout and "lost nothing" in ended.stdout
    assert not [*(tmp_path / "rounds").iterdir()]

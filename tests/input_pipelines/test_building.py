"""What builders share: locks, room, work that is taken up, names given at the end, many jobs."""

import functools
import json
import multiprocessing
import os
import pathlib
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building

# -- one at a time -----------------------------------------------------------------------------------


def test_builds_of_one_target_take_turns(tmp_path):
    target, inside, most = tmp_path / "deep" / "set", [], []

    def build():
        for _ in range(20):
            with building.alone(target):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 80
    assert list(target.parent.iterdir()) == [], "the lock is gone"


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    child = spawn.Process(target=_hold, args=(str(tmp_path / "set"), ready))
    child.start()
    assert ready.wait(60)
    child.kill()
    child.join()
    with building.alone(tmp_path / "set") as path:
        assert path == tmp_path / "set"


def _hold(target, ready):
    with building.alone(target):
        ready.set()
        signal.pause()


def test_other_targets_need_not_wait(tmp_path):
    with building.alone(tmp_path / "a"), building.alone(tmp_path / "b"):
        pass


def test_what_the_disk_refuses_is_told(tmp_path):
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "set"
    with pytest.raises(UserError, match=r"cannot write .*file/set: "), building.alone(target):
        pytest.fail("there is no such folder")
    words = "No space left on device; what is finished is kept, run the build again"
    with pytest.raises(UserError, match=words), building.alone(tmp_path / "set", resumes=True):
        raise OSError(28, "No space left on device")
    with pytest.raises(UserError, match="copy the result to gs://"), building.alone("gs://b/set"):
        pytest.fail("nothing is built in a bucket")


def test_room_is_that_of_the_disk_the_folder_will_be_on(tmp_path):
    building.check_room(tmp_path / "not" / "yet", 1)
    with pytest.raises(
        UserError, match=r"not/yet has [\d,.]+ GB free and the build needs 1,000,000"
    ):
        building.check_room(tmp_path / "not" / "yet", 10**15)


# -- work that is taken up ---------------------------------------------------------------------------


def test_work_is_taken_up_under_the_same_settings_alone(tmp_path):
    work = tmp_path / "work"
    building.begin(work, {"days": (0, 1), "round": True})
    (work / "part").touch()
    building.begin(work, {"days": (0, 1), "round": True})
    assert (work / "part").exists()
    with pytest.raises(UserError, match=r"begun with another round \(True, now False\): remove"):
        building.begin(work, {"days": (0, 1), "round": False})
    assert (work / "part").exists()
    building.begin(work, {"days": (0, 2), "round": True}, restart=True)
    assert os.listdir(work) == [building.SETTINGS]
    assert json.loads((work / building.SETTINGS).read_text()) == {"days": [0, 2], "round": True}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_name_is_given_at_the_end(tmp_path, kind):
    target = tmp_path / "target"

    def write(part, fails=False):
        if kind == "folder":
            part.mkdir()
        (part / "content" if kind == "folder" else part).write_text("whole")
        assert not target.exists()
        if fails:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), building.unfinished(target) as part:
        write(part, fails=True)
    assert list(tmp_path.iterdir()) == []
    leftover = tmp_path / "incomplete.target"  # of a killed build
    leftover.mkdir() if kind == "folder" else leftover.touch()
    with building.unfinished(target) as part:
        write(part)
    assert list(tmp_path.iterdir()) == [target]


# -- many jobs ---------------------------------------------------------------------------------------


def test_threads_begin_no_other_job_after_an_error(monkeypatch):
    done, stopped, shutdown = [], threading.Event(), ThreadPoolExecutor.shutdown

    def told(pool, wait=True, **how):
        shutdown(pool, wait=False, **how)
        stopped.set()
        shutdown(pool, wait=wait)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", told)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)

    def work(job):
        if job == 3:
            raise UserError("job 3 is damaged")
        if job > 3:
            assert stopped.wait(60)  # under way already, it is finished
        done.append(job)

    with pytest.raises(UserError, match="job 3"):
        building.in_threads(work, range(50))
    assert done in ([0, 1, 2], [0, 1, 2, 4])


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_do_all_jobs_and_report(tmp_path, processes):
    said = []
    building.in_processes(functools.partial(_note, tmp_path), [3, 4, 5], processes, said.append)
    assert sorted(os.listdir(tmp_path)) == ["3", "4", "5"] and said == [1, 2, 3]
    apart = {int(path.read_text()) for path in tmp_path.iterdir()}
    assert (os.getpid() in apart) == (processes == 1)
    with pytest.raises(ValueError, match="job 6"):
        building.in_processes(functools.partial(_note, tmp_path), [6, 7], processes)


def _note(folder: pathlib.Path, job: int) -> None:
    if job == 6:
        raise ValueError("job 6")
    (folder / str(job)).write_text(str(os.getpid()))


def test_a_process_that_was_killed_is_told_of():
    with pytest.raises(UserError, match="was killed, perhaps for want of memory"):
        building.in_processes(_die, [1, 2], 2)


def _die(job: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)

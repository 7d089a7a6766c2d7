"""The catalogue of bad inputs: each is answered in one sentence, and nothing is lost by it.

`hostile_*.py` hold the entries. Each runs in a fork of a process that has imported everything and has not yet used JAX.
"""

import contextlib
import io
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import hostile_calls
import hostile_files
import hostile_options
import pytest
from hostile_entry import Entry, Seen, faults, files, lost, written

from mlperf_jax import benchmarks, cli
from mlperf_jax.cli import named, options

ENTRIES = [*hostile_options.ENTRIES, *hostile_files.ENTRIES, *hostile_calls.ENTRIES]
SERVER = pathlib.Path(__file__).with_name("hostile_server.py")


class Server:
    """The process that answers."""

    def __init__(self, folder):
        # without flags, which the command would ask XLA about, and with the devices that they would have made
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8", "NPROC": "8"}
        environment |= {"PYTHONPATH": str(SERVER.parent.parent.parent)}
        environment |= {"XDG_CACHE_HOME": str(folder / "home"), "HOME": str(folder / "home")}
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), str(folder / "cache")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, place, seconds, environment=None, **request):
        request |= {"place": str(place), "seconds": seconds, "environment": {**(environment or {})}}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Seen(**json.loads(self.process.stdout.readline()))

    def answer(self, entry, place):
        how = {"python": entry.line} if entry.python else {"words": shlex.split(entry.line)}
        # a busy machine takes longer, and only what does not end is meant
        return self.ask(place, 5 * entry.seconds, entry.environment, **how)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("hostile"))
    yield server
    server.process.stdin.close()
    server.process.wait(timeout=30)
    server.process.stdout.close()


@pytest.fixture(scope="module")
def folders(server, tmp_path_factory):
    """Folders that entries begin with: a run killed behind its third checkpoint, and one that came to its end."""
    root = tmp_path_factory.mktemp("folders")
    for name in ("killed", "ended"):
        (root / name).mkdir()
    run = "run resnet --tiny --seed 1 --checkpoint-every 5 --mesh data=1 --output runs "
    ended = server.ask(root / "ended", 600, words=shlex.split(run + "--max-samples 128"))
    assert ended.code == 1, ended.err
    stop = "import os, signal, threading, time, glob, shlex, sys\n" + KILL.format(words=repr(run))
    killed = server.ask(root / "killed", 600, python=stop)
    assert killed.code == -signal.SIGKILL, killed
    return root


# a run that kills itself when its third checkpoint is whole
KILL = """
def watch():
    while not any('15' in path for path in glob.glob('runs/run_0/checkpoints/step_*/meta.json')):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
from mlperf_jax import cli
cli.main(shlex.split({words}))
"""


@pytest.fixture(scope="session")
def flags():
    """Every option that there is."""
    found = {option.flag for option in named.run_options()} | {"--tiny", "--help"}
    for name in benchmarks.names():
        cls = benchmarks.benchmark_class(name)
        found |= {option.flag for option in options.options_of(cls)}
    told = io.StringIO()
    for command in cli.COMMANDS:
        with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
            cli.dispatch([*command.split(), "--help"])
    found |= {word.strip("[],;()") for word in told.getvalue().split()}
    return frozenset(flag for flag in found if flag.startswith("--"))


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_hostile(entry, server, flags, tmp_path, request):
    place = tmp_path / "here"
    if entry.begins_with:
        shutil.copytree(request.getfixturevalue("folders") / entry.begins_with, place)
    else:
        place.mkdir()
    if entry.damage:
        entry.damage(place)
    before = files(place)
    seen = server.answer(entry, place)
    found = faults(entry, seen, flags) + lost(entry, before, files(place))
    assert not found, "\n".join([str(entry), *found])


def test_the_catalogue_is_as_large_as_it_should_be():
    assert len(ENTRIES) >= 500
    names = [str(entry) for entry in ENTRIES]
    assert len({*names}) == len(names), {name for name in names if names.count(name) > 1}


# -- the judge -------------------------------------------------------------------------------------

ASKED = Entry("run resnet --seed x", "--seed must be")
GOOD = Seen(2, "", "mlperf-jax: --seed must be a number: give --seed\n", 0.1)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"code": 0}, "exit code 0, not 2"),
        ({"code": None}, "did not end"),
        ({"err": ""}, "not one sentence"),
        ({"err": GOOD.err * 2}, "not one sentence"),
        ({"err": "note: x\n" + GOOD.err}, "not one sentence"),
        ({"err": GOOD.err + "Traceback (most recent call last):\n"}, "a traceback"),
        ({"err": GOOD.err.replace("must be", "is")}, "does not say"),
        ({"err": GOOD.err.rstrip() + ".\n"}, "full stop"),
        ({"err": GOOD.err.rstrip() + "x" * 900 + "\n"}, "characters"),
        ({"err": GOOD.err.rstrip() + "\x1b[31m\n"}, "prints"),
        (
            {"err": GOOD.err.rstrip() + " or --no-such-thing\n"},
            "--no-such-thing, which is no option",
        ),
    ],
)
def test_the_judge_finds(changes, fault):
    seen = Seen(**{**vars(GOOD), **changes})
    found = faults(ASKED, seen, frozenset({"--seed"}))
    assert found == [] if fault is None else any(fault in text for text in found), found


def test_the_judge_sees_what_is_lost(tmp_path):
    for name in ("a", "b", "c"):
        written(f"folder/{name}", name)(tmp_path)
    before = files(tmp_path)
    assert lost(ASKED, before, before) == []
    (tmp_path / "folder" / "a").unlink()
    (tmp_path / "folder" / "b").write_text("else")
    (tmp_path / "folder" / "d").mkdir()
    found = lost(ASKED, before, files(tmp_path))
    assert found == ["folder/a is gone", "folder/b was changed", "folder/d was made"]
    may = Entry("", "", may="folder/d")
    assert lost(may, before, files(tmp_path)) == ["folder/a is gone", "folder/b was changed"]


def test_the_server_ends_what_does_not_end(server, tmp_path):
    begin = time.monotonic()
    seen = server.ask(tmp_path, 0.5, python="import time; time.sleep(60)")
    assert seen.code is None and time.monotonic() - begin < 30
    assert server.ask(tmp_path, 30, words=["--version"]).code == 0

"""What the two halves of the battery share: runs of a tiny benchmark, here and in processes of their own."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlperf_jax import benchmarks
from mlperf_jax.results import log as logs

HERE = pathlib.Path(__file__).parent
SEED = 1234
STEPS = 3  # of a run that compares weights

Weights = dict[str, np.ndarray]


def settings(data_dir: str, output: pathlib.Path | str, **more: Any) -> dict[str, Any]:
    """Keyword arguments of `run` for a quiet tiny run on one device."""
    return {
        "tiny": True,
        "data_dir": data_dir,
        "output": str(output),
        "seed": SEED,
        "mesh": "data=1",
        "show": "none",
        "checkpoint_every": 25,
        **more,
    }


def start_child(cache: str, name: str, tasks: Sequence[Any], **more: Any) -> subprocess.Popen[str]:
    """Begins `child.py`; in float64 it compiles at LLVM's lowest level, as it runs but a few steps."""
    given = {"name": name, "cache": cache, "tasks": tasks, **more}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    if more.get("x64"):
        flags = environment.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0"
        environment["XLA_FLAGS"] = " ".join(flags).strip()
    script = [sys.executable, str(HERE / "child.py"), json.dumps(given)]
    pipe = subprocess.PIPE
    return subprocess.Popen(script, stdout=pipe, stderr=pipe, text=True, env=environment)


def outcome(
    child: subprocess.Popen[str], tasks: Sequence[dict[str, Any]]
) -> list[dict[str, Any] | None]:
    """The results of a child's tasks, each of which must have been killed or not, as it says."""
    said, errors = child.communicate()
    ends = [json.loads(line) for line in said.splitlines() if line.startswith('{"status"')]
    wanted = [-9 if {"kill_in_save", "kill_before_step"} & set(task) else 0 for task in tasks]
    assert [end["status"] for end in ends] == wanted, errors[-4000:]
    return [end["result"] for end in ends]


def one_after_another(
    cache: str, name: str, tasks: Sequence[dict[str, Any]], **more: Any
) -> list[dict[str, Any] | None]:
    """The results of runs in processes of their own, one after another."""
    return outcome(start_child(cache, name, tasks, **more), tasks)


def few_steps(cache: str, name: str, data_dir: str, folder: pathlib.Path) -> None:
    """Three steps in float64: on one device, on eight, and killed and resumed on one.

    Leaves one.npz, eight.npz and resumed.npz in the folder, and the killed run's set in `resumed`.
    """
    samples = benchmarks.get(name, tiny=True).samples(STEPS)

    def task(output: str, mesh: str = "data=1", resume: bool = False, **more: Any) -> Any:
        given = settings(data_dir, folder / output, mesh=mesh, dtype="float64", resume=resume)
        given |= {"max_samples": samples, "checkpoint_every": 1, "log_every": 1}
        return {"settings": given, "weights": str(folder / f"{output}.npz"), **more}

    tasks = [
        task("one"),
        task("eight", mesh="data=2,fsdp=4"),
        task("resumed", kill_in_save=2),
        task("resumed", resume=True),
    ]
    one_after_another(cache, name, tasks, x64=True)


def two_processes(cache: str, name: str, data_dir: str, folder: pathlib.Path) -> pathlib.Path:
    """The weights after three steps in float64 of two processes of four fake devices over loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    samples = benchmarks.get(name, tiny=True).samples(STEPS)
    file, children = folder / "two.npz", []
    for process in range(2):
        where = {"coordinator": f"127.0.0.1:{port}", "processes": 2, "process": process}
        given = settings(data_dir, folder / "two", mesh="data=8", dtype="float64", **where)
        given |= {"max_samples": samples, "checkpoint_every": None}
        tasks = [{"settings": given, "weights": str(file)}]
        children.append((start_child(cache, name, tasks, x64=True, devices=4), tasks))
    for child, tasks in children:
        outcome(child, tasks)
    return file


def weights(file: pathlib.Path) -> Weights:
    with np.load(file) as found:
        return dict(found)


def distance(found: Weights, wanted: Weights) -> float:
    """Global relative L2."""
    assert found.keys() == wanted.keys()
    off = sum(float(np.sum((found[p] - wanted[p]) ** 2)) for p in wanted)
    return (off / sum(float(np.sum(wanted[p] ** 2)) for p in wanted)) ** 0.5


def assert_log_is_whole(path: pathlib.Path) -> None:
    """Nothing that belongs there once is there twice, and no evaluation."""
    lines = logs.read(path)
    keys = [line.key for line in lines]
    once = "init_start init_stop run_start run_stop seed submission_benchmark"
    for key in once.split():
        assert keys.count(key) == 1, key
    evaluated = [line.metadata["samples_count"] for line in lines if line.key == "eval_accuracy"]
    assert evaluated == sorted(set(evaluated)), "an evaluation was logged twice"


def accuracies(path: pathlib.Path) -> list[Any]:
    return [line.value for line in logs.read(path) if line.key == "eval_accuracy"]

"""What the two halves of the battery share, beside the runs and checks of `mlperf_jax.testing`."""

from __future__ import annotations

import json
import pathlib
import socket
from typing import Any

from mlperf_jax import benchmarks
from mlperf_jax.results import log as logs
from mlperf_jax.testing import runs

HERE = pathlib.Path(__file__).parent


def two_processes(cache: str, name: str, data_dir: str, folder: pathlib.Path) -> pathlib.Path:
    """The weights after three steps in float64 of two processes of four fake devices over loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    samples = benchmarks.get(name, tiny=True).samples(runs.STEPS)
    file, children = folder / "two.npz", []
    for process in range(2):
        where = {"coordinator": f"127.0.0.1:{port}", "processes": 2, "process": process}
        given = runs.settings(data_dir, folder / "two", mesh="data=8", dtype="float64", **where)
        given |= {"max_samples": samples, "checkpoint_every": None}
        tasks = [{"settings": given, "weights": str(file)}]
        children.append((runs.start_child(cache, name, tasks, x64=True, devices=4), tasks))
    for child, tasks in children:
        runs.outcome(child, tasks)
    return file


def scored(output: pathlib.Path) -> dict[str, Any]:
    """The result of a run that is scored afterwards."""
    benchmarks.evaluate(output)
    return json.loads((output / "run_0" / "result.json").read_text())


def accuracies(path: pathlib.Path) -> list[Any]:
    return [line.value for line in logs.read(path) if line.key == "eval_accuracy"]

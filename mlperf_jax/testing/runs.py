"""Runs of a tiny benchmark in processes of their own, and the weights that they end with."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlperf_jax import benchmarks

SEED = 1234
STEPS = 3  # of a run that compares weights
PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds=300 --xla_cpu_collective_timeout_seconds=300"

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
    """Begins `child.py`; in float64 it compiles at LLVM's level 1, as it runs but a few steps.

    Args:
        cache: folder of compiled programs.
        name: as `benchmarks.run` takes it.
        tasks: what it runs, one after another, as `child.py` explains.
        **more: its "x64" and "devices".
    """
    given = {"name": name, "cache": cache, "tasks": tasks, **more}
    path = os.pathsep.join(folder for folder in sys.path if folder)
    # collectives block a thread each, which a small machine would not have; and it may be busy
    environment = {"NPROC": "32", "XLA_FLAGS": PATIENCE, **os.environ}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    if more.get("x64"):
        environment["XLA_FLAGS"] += " --xla_backend_optimization_level=1"
    script = [sys.executable, "-m", "mlperf_jax.testing.child", json.dumps(given)]
    pipe = subprocess.PIPE
    return subprocess.Popen(script, stdout=pipe, stderr=pipe, text=True, env=environment)


def outcome(
    child: subprocess.Popen[str], tasks: Sequence[dict[str, Any]]
) -> list[dict[str, Any] | None]:
    """The results of a child's tasks, each of which must have been killed or not, as it says.

    Raises:
        AssertionError: with the first task's error that was not to be.
    """
    said, errors = child.communicate()
    ends = [json.loads(line) for line in said.splitlines() if line.startswith('{"status"')]
    ends += [{"status": child.returncode, "error": errors[-4000:]}] * (len(tasks) - len(ends))
    for task, end in zip(tasks, ends, strict=True):
        wanted = -9 if {"kill_in_save", "kill_before_step"} & set(task) else 0
        if end["status"] != wanted:
            given = task["settings"]
            why = end.get("error") or f"it ended with {end['status']}\n{errors[-4000:]}"
            dtype = f" in {given['dtype']}" if "dtype" in given else ""
            raise AssertionError(f"a tiny run on {given['mesh']}{dtype} failed: {why}")
    return [end.get("result") for end in ends]


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


def weights(file: pathlib.Path) -> Weights:
    with np.load(file) as found:
        return dict(found)


def distance(found: Weights, wanted: Weights) -> float:
    """Global relative L2."""
    assert found.keys() == wanted.keys(), "other weights"
    off = sum(float(np.sum((found[p] - wanted[p]) ** 2)) for p in wanted)
    return (off / sum(float(np.sum(wanted[p] ** 2)) for p in wanted)) ** 0.5

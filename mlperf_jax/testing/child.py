"""Runs of a benchmark in processes of their own, which may be killed: `python -m mlperf_jax.testing.child JSON`.

JSON: {"name", "cache", "devices": fake CPU devices, "x64", "tasks": [task, …]}. A task: {"settings": keyword
arguments of `run`, "kill_before_step": SIGKILL before this step, "kill_in_save": SIGKILL while the n-th
checkpoint of its process is being written, "weights": file for the weights that the run ends with}. Prints one
line of JSON per task, in order: its exit status, and the result or the error if it lived to have one.

Tasks are forks of one process that has imported JAX and not yet used it: importing takes as long as resuming.
"""

import dataclasses
import json
import os
import signal
import sys
import traceback
from typing import Any

from mlperf_jax.errors import UserError

os.environ.setdefault("JAX_PLATFORMS", "cpu")

LIMIT = 1200  # seconds until a task that hangs is ended


def main() -> None:
    given = json.loads(sys.argv[1])
    import jax

    jax.config.update("jax_num_cpu_devices", given.get("devices", 8))
    jax.config.update("jax_enable_x64", bool(given.get("x64")))
    jax.config.update("jax_compilation_cache_dir", given["cache"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    from mlperf_jax import benchmarks
    from mlperf_jax.core import launch  # noqa: F401 - imports what every run needs

    if given["name"] in benchmarks.names():  # one of a user's file might use JAX as it is loaded
        benchmarks.benchmark_class(given["name"])
    for task in given["tasks"]:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            signal.alarm(LIMIT)
            said: dict[str, Any] = {}
            try:
                said["result"] = attempt(given["name"], task)
            except BaseException as error:
                said["error"] = (
                    str(error) if isinstance(error, UserError) else traceback.format_exc()
                )
            os.write(writing, json.dumps(said).encode())
            os._exit(int("error" in said))
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = json.loads(pipe.read() or "{}")
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps({"status": status, **said}), flush=True)


def attempt(name: str, task: dict[str, Any]) -> Any:
    """Runs a task in this process, if it does not say to kill it; the result as a dictionary."""
    import jax

    from mlperf_jax import benchmarks

    if "kill_before_step" in task:
        kill_before_step(task["kill_before_step"])
    if "kill_in_save" in task:
        kill_in_save(task["kill_in_save"])
    if "weights" in task:
        save_weights(task["weights"])
        score_never()
    result = benchmarks.run(name, **task["settings"])
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()  # else the one that leaves first would abort the other
    return None if result is None else dataclasses.asdict(result)


def die() -> None:
    """Ends this process as an out-of-memory killer does."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_before_step(at: int) -> None:
    from mlperf_jax.core import profiling

    def step(self: profiling.Trace, number: int) -> None:
        if number == at:
            die()

    profiling.Trace.step = step


def kill_in_save(number: int) -> None:
    from mlperf_jax.core import checkpoints

    save, count = checkpoints.Checkpoints.save, [0]

    def killed(self: checkpoints.Checkpoints, *args: Any, **kwargs: Any) -> None:
        save(self, *args, **kwargs)  # returns while the write goes on in the background
        count[0] += 1
        if count[0] == number:
            die()

    checkpoints.Checkpoints.save = killed


def score_never() -> None:
    """Lets a run that is scored afterwards end before its second checkpoint: it is one whose weights are compared."""
    from mlperf_jax.core import preflight

    preflight.check_offline = lambda *_: None


def save_weights(file: str) -> None:
    """Has process 0 write the whole arrays of the state that the run ends with, by path."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    from mlperf_jax.core import run
    from mlperf_jax.optimizers import tree as trees

    finish = run.Run.finish

    def finished(self: run.Run, state: dict[str, Any], *more: Any, **how: Any) -> Any:
        parts = {part: state[part] for part in ("params", "tables", "stats")}
        whole = multihost_utils.process_allgather(parts, tiled=True)
        if jax.process_index() == 0:
            np.savez(file, **trees.flatten_paths(whole))
        return finish(self, state, *more, **how)

    run.Run.finish = finished


if __name__ == "__main__":
    main()

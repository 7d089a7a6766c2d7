"""Toys' runs outside of the test's process: `python toy_run.py apart|together JSON`, a list of tasks.

*apart*: each task in a process of its own, which may be killed. *together*: all tasks, one after another, as
one of several processes in float64 with four devices each.

A task: {"toy": class of `toys` or "module:class", "fields": {...}, "options": {...}, "kill": [where, nth, "before" or "after"]}; where is
"module:Class.method", and the process kills itself with SIGKILL at the nth call. Instead of "kill" there may be
"stop": [process, step], which sends SIGTERM to itself when it is asked for the batch of this step. Prints one
line of JSON per task: its exit status, and its error if it raised one.

Tasks apart are forks of one process that has imported JAX and not yet used it: importing takes longer than
a run.
"""

import importlib
import json
import os
import pathlib
import signal
import sys
import traceback

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parent.parent)]

import conftest  # noqa: E402 - eight devices and the compile cache
import jax  # noqa: E402
import toys  # noqa: E402


def apart(tasks: list[dict]) -> None:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    for task in tasks:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            text = attempt(task)
            os.write(writing, text.encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps({"status": status, "said": said}), flush=True)


def together(tasks: list[dict]) -> None:
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_enable_x64", True)
    with conftest.programs_kept():
        for task in tasks:
            print(json.dumps({"status": 0, "said": attempt(task)}), flush=True)


def attempt(task: dict) -> str:
    try:
        if "kill" in task:
            die_at(*task["kill"])
        module, _, name = task["toy"].rpartition(":")
        toy = getattr(importlib.import_module(module or "toys"), name)
        if "stop" in task:
            toy = stopping(toy, *task["stop"])
        toys.run(toy(**task.get("fields", {})), **task["options"])
    except Exception:
        return traceback.format_exc()
    return ""


def die_at(where: str, nth: int, when: str) -> None:
    """Has this process kill itself before or after the nth call of a method."""
    module, _, path = where.partition(":")
    owner, _, name = path.rpartition(".")
    holder = importlib.import_module(module)
    holder = getattr(holder, owner) if owner else holder
    method, calls = getattr(holder, name), [0]

    def killed(*args, **kwargs):
        calls[0] += 1
        if calls[0] == nth and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = method(*args, **kwargs)
        if calls[0] == nth and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(holder, name, killed)


def stopping(toy: type, process: int, step: int) -> type:
    """The toy, one of whose processes is asked to stop."""

    class Stopping(toy):
        def train_data(self, data_dir: str) -> toys.Altered:
            at = step if jax.process_index() == process else -1
            return toys.asks_to_stop(super().train_data(data_dir), at)

    return Stopping


if __name__ == "__main__":
    {"apart": apart, "together": together}[sys.argv[1]](json.loads(sys.argv[2]))

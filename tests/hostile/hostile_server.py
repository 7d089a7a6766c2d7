"""Answers entries of the catalogue: commands and statements in forks of this process, which has imported all of it.

It has never used JAX, so that each fork begins as a new process does, but for the seconds of its imports. Reads a
request a line, {"words": […] or "python": "…", "place", "environment", "seconds"}, and prints what was seen.
"""

import importlib
import json
import os
import pathlib
import selectors
import signal
import sys
import time

from scripts import (
    forks,  # the root of the repository is on the path: test_hostile.py starts this so
)

# what commands import when they need it
LATE = [
    f"mlperf_jax.results.{name}" for name in ("compliance", "events", "report", "score", "story")
]


def statement(text: str) -> int:
    """Runs a statement; a UserError is its sentence and exit code 2, as in the command."""
    from mlperf_jax import benchmarks, results
    from mlperf_jax.cli import fail
    from mlperf_jax.errors import UserError

    try:
        exec(text, {"benchmarks": benchmarks, "results": results})
    except UserError as error:
        return fail(error)
    return 0


def answered(request: dict) -> dict:
    begin, limit = time.monotonic(), request["seconds"]
    run = (lambda: statement(request["python"])) if "python" in request else None
    fork = forks.Fork(
        request.get("words", []), pathlib.Path(request["place"]), request["environment"], run
    )
    told: dict[str, bytes] = {"out": b"", "err": b""}
    with selectors.DefaultSelector() as open_ones:
        for name, stream in (("out", fork.stdout), ("err", fork.stderr)):
            open_ones.register(stream, selectors.EVENT_READ, name)
        while open_ones.get_map() and (left := limit - (time.monotonic() - begin)) > 0:
            for key, _ in open_ones.select(left):
                if part := os.read(key.fd, 1 << 16):
                    told[key.data] += part
                else:
                    open_ones.unregister(key.fileobj)
        ended = not open_ones.get_map()
    if not ended:
        os.killpg(fork.pid, signal.SIGKILL)
    code = fork.wait()
    for stream in (fork.stdout, fork.stderr):
        stream.close()
    texts = {name: text.decode("utf-8", "replace") for name, text in told.items()}
    return {"code": code if ended else None, **texts, "seconds": time.monotonic() - begin}


if __name__ == "__main__":
    from mlperf_jax import benchmarks

    forks.prepare(benchmarks.names(), pathlib.Path(sys.argv[1]))
    for module in LATE:
        importlib.import_module(module)
    for name in benchmarks.names():  # what they keep once they have worked it out
        benchmarks.get(name, tiny=True)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answered(json.loads(line))), flush=True)

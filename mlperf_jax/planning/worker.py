"""The process that compiles: requests in, one JSON line each, events out.

A process of its own, because a compiler may abort or be killed, the TPU's keeps its lock until the
process ends, and fake devices must be asked for before JAX starts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

Send = Callable[..., None]
_BUSY = ("libtpu_lockfile", "TPU is already in use")


def main() -> None:
    """Answers requests until its input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is not for the reader of events

    def send(event: str, **values: Any) -> None:
        print(json.dumps({"event": event, **values}), file=out, flush=True)

    from mlperf_jax.errors import UserError

    for line in sys.stdin:
        try:
            answer(json.loads(line), send)
            send("done")
        except UserError as error:
            send("refused", message=str(error))
        except Exception as error:
            busy = any(word in str(error) for word in _BUSY)
            text = str(error) if busy else traceback.format_exc()
            send("busy" if busy else "broken", message=text)


def answer(request: dict[str, Any], send: Send) -> None:
    """Compiles the programs of one request, or takes them from the store."""
    from mlperf_jax.core import compiling, placement, python_file
    from mlperf_jax.core.optimizer_argument import load_optimizer
    from mlperf_jax.planning import devices as names, programs, store

    devices = names.parse(request["devices"])
    benchmark = python_file.load(request["class"], "benchmark", "Wine").from_config(
        request["config"]
    )
    given = request["optimizer"]
    optimizer = None if given is None else load_optimizer(given)
    sizes = request["mesh"]
    with programs.forms_of(devices):
        if sizes is None:
            sizes = placement.mesh_for(benchmark, devices.place, optimizer)
        benchmark = placement.with_remat(benchmark, devices.place, sizes, optimizer)
        assembly = programs.assemble(benchmark, devices, sizes, optimizer)
        options = compiling.options(assembly.mesh)
        remat = getattr(benchmark, "remat", "")
        send("assembled", mesh=sizes, remat=remat, state=programs.state_bytes(assembly))
        for name, lowered in programs.lowered_programs(assembly, request["only"]):
            if name in request["without"]:
                continue
            digest = programs.content(devices, lowered, options)
            found, text = store.read(digest), store.read_text(digest)
            if found is None or (text is None and found["error"] is None):
                send("compiling", name=name)
                found, text = programs.compile_program(lowered, options)
                if any(word in (found["error"] or "") for word in _BUSY):
                    raise RuntimeError(found["error"])
                store.write_text(digest, text)
                store.write(digest, found)
            program = programs.read_findings(name, devices, found, text or "")
            send("program", **dataclasses.asdict(program))


if __name__ == "__main__":
    main()

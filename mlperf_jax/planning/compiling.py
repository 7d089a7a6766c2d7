"""Has programs compiled in a process of their own, and keeps what was found."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mlperf_jax.core import python_file
from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.errors import UserError
from mlperf_jax.planning import devices as names, store
from mlperf_jax.planning.programs import Program

Say = Callable[[str], None]
_RETRY = 5.0  # seconds before a compiler that somebody else uses is asked again


@dataclass(frozen=True)
class Compiled:
    """What was found out about a configuration over devices.

    Attributes:
        mesh: axis sizes, chosen where none were given.
        state: bytes on one device: "parameters", "optimizer", "other".
        programs: of training, evaluation and generation.
        remat: what is recomputed, decided where it was "auto"; "" where the benchmark has no such field.
    """

    mesh: dict[str, int]
    state: dict[str, int]
    programs: tuple[Program, ...]
    remat: str | None = ""

    @property
    def fits(self) -> bool:
        return all(program.fits for program in self.programs)


def compiled(
    benchmark: Benchmark,
    devices: names.Devices,
    mesh: dict[str, int] | None,
    *,
    optimizer: str | None = None,
    say: Say = lambda text: None,
    only: str | None = None,
) -> Compiled:
    """Compiles a benchmark's programs for these devices, or finds them in the store.

    Args:
        benchmark: with its dtype decided.
        devices: where it would run.
        mesh: axis sizes; None lets them be chosen.
        optimizer: "file.py:make", as a run takes it.
        say: is told what goes on.
        only: "train" leaves the other programs out.

    Raises:
        UserError: the configuration does not go onto these devices, whatever their memory.
    """
    cls = type(benchmark)
    place = python_file.place(cls)
    if place is None and not python_file.is_ours(cls):
        raise UserError(
            f"{cls.__qualname__} stands in no file, from which the compiler's process could take it: "
            "move it to the top level of one"
        )
    request = {
        "class": place or f"{cls.__module__}:{cls.__qualname__}",
        "config": json.loads(json.dumps(benchmark.config())),
        "devices": devices.name,
        "mesh": mesh,
        "optimizer": optimizer,
        "only": only,
    }
    digest = store.request(cls, request)
    known = store.read(digest)
    if known is None:
        with store.turn(say) if devices.tpu else contextlib.nullcontext():
            known, lasting = _ask(request, devices, say)
        if lasting:
            store.write(digest, known)
    programs = tuple(Program.from_dict(program) for program in known["programs"])
    return Compiled(known["mesh"], known["state"], programs, known.get("remat", ""))


def _ask(request: dict[str, Any], devices: names.Devices, say: Say) -> tuple[dict[str, Any], bool]:
    """The worker's findings, and whether they are worth keeping: not if it was killed."""
    found: dict[str, Any] = {"programs": []}
    lasting = True
    while True:
        done = [program["name"] for program in found["programs"]]
        current = None
        for event in _events({**request, "without": done}, devices):
            kind = event.pop("event")
            if kind == "assembled":
                found |= event
            elif kind == "compiling":
                current = event["name"]
                say(f"compiling {current} for {devices.name}")
            elif kind == "program":
                found["programs"].append(event)
                current = None
            elif kind == "done":
                return found, lasting
            elif kind == "refused":
                raise UserError(event["message"])
            elif kind == "busy":
                say("another process uses the TPU compiler; waiting for it")
                time.sleep(_RETRY)
            elif kind == "broken":
                raise RuntimeError(f"planning failed:\n{event['message']}")
            elif kind == "died":
                if current is None:
                    raise UserError(_stillborn(event["message"]))
                failed = Program(
                    current, "compiler failed", devices.memory, message=event["message"]
                )
                found["programs"].append(dataclasses.asdict(failed))
                lasting = False


def _events(request: dict[str, Any], devices: names.Devices) -> Iterator[dict[str, Any]]:
    """The events of one worker process; the last is "died" if it ended without having answered."""
    with tempfile.TemporaryFile() as errors:
        answered = False
        with subprocess.Popen(
            [sys.executable, "-m", "mlperf_jax.planning.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_environment(devices),
            text=True,
        ) as process:
            assert process.stdin and process.stdout
            try:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(json.dumps(request) + "\n")
                    process.stdin.close()
                for line in process.stdout:
                    event = json.loads(line)
                    answered = event["event"] in ("done", "refused", "busy", "broken")
                    yield event
                process.wait()
            finally:
                process.kill()  # nothing to one that has ended
        if not answered:
            errors.seek(0)
            text = errors.read().decode(errors="replace")
            yield {"event": "died", "message": _obituary(process.returncode, text)}


def _environment(devices: names.Devices) -> dict[str, str]:
    """Of the worker: no accelerator is touched, and GPUs are played by as many fake devices."""
    kept = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    found = {
        **kept,
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",  # or it asks the cloud which machine this is
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    if not devices.tpu:
        found["JAX_NUM_CPU_DEVICES"] = str(devices.count)
    return found


def _stillborn(message: str) -> str:
    flags = os.environ.get("LIBTPU_INIT_ARGS")
    advice = f"; check LIBTPU_INIT_ARGS, which is {flags!r}" if flags else ""
    return f"the compiler's process died before it compiled: {message.splitlines()[-1]}{advice}"


def _obituary(code: int, errors: str) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    last = "\n".join(line[:300] for line in lines[-3:])
    if code >= 0:
        return last or f"its process ended with code {code}"
    name = signal.Signals(-code).name
    if -code == signal.SIGKILL:
        return f"its process was killed ({name}), most often for want of memory on this machine"
    return f"its process was ended by {name}: {last}" if last else f"ended by {name}"

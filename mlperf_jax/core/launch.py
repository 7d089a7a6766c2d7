"""From a configuration to its results: processes, compile cache, preflight, then one run after another."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax._src import xla_bridge  # no public way tells whether JAX has looked for devices

from mlperf_jax.core import loop, mesh as meshes, preflight, processes, roll_call
from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.core.options import RunOptions
from mlperf_jax.core.run import Run
from mlperf_jax.errors import UserError
from mlperf_jax.results import durable
from mlperf_jax.results.result import Result, Results, versions

# options that decide what the processes of a run do together
SHARED = (
    "seed",
    "seeds",
    "runs",
    "resume",
    "max_samples",
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
)


def connect(options: RunOptions) -> None:
    """Joins the other processes of a multi-host run, if the options name any, and finds the devices.

    Raises:
        UserError: when the options are incomplete, a process does not come in time (says which), JAX was used
            before, or has no device.
    """
    _join(options)
    meshes.available()


def _join(options: RunOptions) -> None:
    """Joins the other processes, once per process."""
    if options.coordinator is None:
        if options.processes is not None or options.process is not None:
            raise UserError("processes and process need coordinator: give --coordinator host:port")
        return
    if jax.distributed.is_initialized():
        return
    found: dict[str, Any] = {}
    if options.coordinator != "auto":
        if options.processes is None or options.process is None:
            raise UserError(
                "coordinator needs processes and process: give --processes N --process I"
            )
        roll_call.parse_address(options.coordinator)
        found = dict(
            coordinator_address=options.coordinator,
            num_processes=options.processes,
            process_id=options.process,
        )
    if xla_bridge.backends_are_initialized():
        raise UserError(
            "JAX has been used in this process already, and joins a run's other processes only before that: call "
            "run first, or jax.distributed.initialize before anything of JAX"
        )
    if found:
        roll_call.answer(
            options.coordinator, found["num_processes"], found["process_id"], options.join_timeout
        )
    found["initialization_timeout"] = options.join_timeout
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # an error here ends the others as soon as a lost process does
    for wait in ("shutdown", "heartbeat"):
        found[f"{wait}_timeout_seconds"] = options.heartbeat
    try:
        jax.distributed.initialize(**found)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"could not join the run at {options.coordinator}: {str(error).splitlines()[0]}; "
            "check that every process has the same --coordinator and --processes"
        ) from error


def use_compile_cache() -> None:
    """Keeps compiled programs between processes, in `JAX_COMPILATION_CACHE_DIR` or our cache folder.

    Hits need the same program, flags and library versions.
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(cache) / "mlperf_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def given_to_all(plan: preflight.PlannedRun) -> dict[str, Any]:
    """What each process of a run must have been given alike: what is trained, how, and by which versions."""
    shared = {name: getattr(plan.options, name) for name in SHARED}
    where = {"mesh": meshes.describe(plan.assembly.mesh)}
    given = plan.options.optimizer
    if plan.optimizer and isinstance(given, str):  # says more than its program's digits
        shared |= {"optimizer": f"{given} ({plan.optimizer})"}
    return durable.plain({**plan.config(), **shared, **where, **versions()})


def launch(
    benchmark: Benchmark,
    options: RunOptions,
    data_dir: str | Callable[[], str],
    notes: Sequence[str] = (),
) -> Result | Results | None:
    """Trains `options.runs` runs and returns their results: one `Result`, or a list for several.

    With `resume` the unfinished run is brought to its end; of several all are, and what the set then lacks
    of `options.runs` or `options.seeds` is trained. Processes other than 0 return None. `data_dir` is as in
    `preflight.preflight`.
    """
    connect(options)
    use_compile_cache()
    plan = preflight.preflight(benchmark, options, data_dir)
    processes.check_same(given_to_all(plan))
    results, left = Results(), 1
    while left > 0:
        run = Run(plan, notes)
        results.append(loop.train(run))
        left = run.left
        # what follows is what the set now lacks
        plan = dataclasses.replace(plan, options=dataclasses.replace(options, resume=True))
    processes.wait_for_all("end")  # process 0 may still write; leaving it would abort it
    return results[0] if options.runs == 1 else results

"""Will it fit, how long will it take, what will it cost: asked before anything is rented.

plan("llama31_8b", on="v6e:4x8")
plan("gpt3", on="v5p:8x8x16", batch_size=2048, mesh="fsdp=128,tensor=8", price_per_chip_hour=4.2)
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks import registry
from mlperf_jax.core import mesh as meshes, phases, placement
from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.errors import UserError, did_you_mean
from mlperf_jax.planning import compiling, convergence, devices as names, searching, timing
from mlperf_jax.planning.report import Plan

DTYPE = "bfloat16"  # what `dtype="auto"` means on every device that can be planned for


def plan(
    benchmark: registry.Named,
    on: str,
    *,
    mesh: str | None = None,
    batch_size: int | None = None,
    price_per_chip_hour: float | None = None,
    search: bool = False,
    tiny: bool = False,
    optimizer: str | None = None,
    say: Callable[[str], None] | None = None,
    **fields: Any,
) -> Plan:
    """What is to be expected of a benchmark on devices that need not be here.

    Args:
        benchmark: as `benchmarks.run` takes it.
        on: the devices: "v5p:8x8x16", "2xv6e:16x16", "h100:8x4".
        mesh: as a run takes it; by default one that suits.
        batch_size: global; by default the benchmark's.
        price_per_chip_hour: in any currency, of one chip.
        search: compile other meshes, remat policies and micro-batches too, and rank them.
        tiny: the small stand-in.
        optimizer: "file.py:make", as a run takes it.
        say: is told what goes on; by default standard error.
        **fields: others of the benchmark's fields.

    Raises:
        UserError: for an unknown benchmark, device or shape, a mesh that does not multiply up to it, or
            a batch that the mesh does not divide.

    Example:
        print(plan("resnet", on="v5p:2x2x2"))
    """
    say = say or (lambda text: print(text, file=sys.stderr, flush=True))
    if price_per_chip_hour is not None and not price_per_chip_hour >= 0:
        raise UserError(f"price_per_chip_hour must be a price, not {price_per_chip_hour}")
    devices = names.parse(on)
    if batch_size is not None:
        fields["batch_size"] = batch_size
    configured = _configured(benchmark, tiny, fields)
    sizes = meshes.parse_mesh(mesh) if mesh else None
    found = compiling.compiled(configured, devices, sizes, optimizer=optimizer, say=say)
    if getattr(configured, "remat", "") == placement.AUTO:
        configured = configured.replace(remat=found.remat)
    made = describe(configured, devices, found, chosen=sizes is None, price=price_per_chip_hour)
    if not search:
        return made
    rows = searching.search(configured, devices, found, optimizer=optimizer, say=say)
    return dataclasses.replace(made, search=tuple(rows))


def _configured(benchmark: registry.Named, tiny: bool, fields: dict[str, Any]) -> Benchmark:
    known = [field.name for field in dataclasses.fields(benchmarks.benchmark_class(benchmark))]
    for name in fields:
        if name not in known:
            raise UserError(f"plan has no setting {name!r}{did_you_mean(name, known)}")
    configured = benchmarks.get(benchmark, tiny=tiny, **fields)
    phases.check_steady(configured, "plan")
    return configured.replace(dtype=DTYPE) if configured.dtype == "auto" else configured


def describe(
    benchmark: Benchmark,
    devices: names.Devices,
    found: compiling.Compiled,
    *,
    chosen: bool = False,
    price: float | None = None,
) -> Plan:
    """The plan that a compilation's findings make."""
    time = timing.step_time(benchmark, devices, found.programs)
    to_target, notes = None, []
    if found.fits and time is None:
        notes = ["no time: the compiled program or the chip's peaks say too little"]
    elif found.fits and time is not None:
        to_target, reason = convergence.to_target(benchmark, devices, time, price)
        notes = [*convergence.input_notes(benchmark, devices, time), *([reason] if reason else [])]
    if to_target is not None:
        minutes = sum(program.seconds for program in found.programs) / 60
        notes.append(
            f"initialisation, {convergence.INIT_LIMIT:.0f} minutes at most in closed, holds the compiling: "
            f"{minutes:.1f} minutes here"
        )
    note = benchmarks.recipe_note(benchmark)
    return Plan(
        benchmark=benchmark.name,
        tiny=benchmark.is_tiny,
        on=devices.name,
        devices=str(devices),
        chips=devices.chips,
        estimated=not devices.tpu,
        mesh=dict(found.mesh),
        mesh_chosen=chosen,
        batch_size=benchmark.batch_size,
        micro_batches=benchmark.gradient_accumulation_steps,
        remat=getattr(benchmark, "remat", ""),
        dtype=benchmark.dtype,
        room=devices.memory,
        state=dict(found.state),
        programs=found.programs,
        advice=tuple(searching.advice(benchmark, devices, found)),
        time=time,
        to_target=to_target,
        notes=(*notes, *([note] if note else [])),
    )

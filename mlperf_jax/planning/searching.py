"""Ways to lay a benchmark out: what to try when it does not fit, a search over others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.core.placement import MOST_SPLIT, REMATS, row_ways, splits
from mlperf_jax.errors import UserError
from mlperf_jax.ops.shard import ROWS
from mlperf_jax.planning import compiling, devices as names, timing
from mlperf_jax.planning.programs import mesh_text, worst
from mlperf_jax.planning.report import Candidate, gib

# -- what to try -----------------------------------------------------------------------------------


def advice(
    benchmark: Benchmark, devices: names.Devices, found: compiling.Compiled
) -> Iterator[str]:
    """What to try when a program does not fit, the likeliest first; nothing when all do."""
    big = [program for program in found.programs if program.outcome == "too big"]
    if not big:
        return
    if [program.name.split()[0] for program in big] == ["evaluation"]:
        rows = benchmark.eval_rows // 2
        yield f"--eval-batch-size {rows}: only the evaluation does not fit"
    state = sum(found.state.values())
    if state > devices.memory / 2 and found.mesh.get("data", 1) > 1:
        yield f"--mesh {mesh_text(_sharded(found.mesh))}: the state takes {gib(state)} GiB on every device"
    if getattr(benchmark, "remat", "full") != "full":
        yield "--remat full: keep each layer's input only, and compute the rest again"
    more = _accumulations(benchmark, found.mesh)
    if more:
        yield f"--gradient-accumulation-steps {more[0]}: half of the rows at a time"
    sizes = _sharded(found.mesh)
    tensor, ways = 2 * sizes.get("tensor", 1), sizes["fsdp"]
    if splits(benchmark, "tensor") and tensor <= MOST_SPLIT and ways % 2 == 0:
        halved = mesh_text(sizes | {"fsdp": ways // 2, "tensor": tensor})
        yield f"--mesh {halved}: half of each layer's work per device"
    larger = names.nearest_larger(devices, 2 * devices.chips)
    if larger:
        yield f"--on {larger}: twice the chips"


def _sharded(sizes: Mapping[str, int]) -> dict[str, int]:
    """The same mesh with `data` turned into `fsdp`."""
    sizes = dict(sizes)
    return {"fsdp": sizes.pop("data", 1) * sizes.pop("fsdp", 1), **sizes}


def _accumulations(benchmark: Benchmark, sizes: Mapping[str, int]) -> list[int]:
    """Numbers of micro-batches above the present one that leave every device a row."""
    ways = math.prod(sizes.get(axis, 1) for axis in ROWS)
    now, rows = benchmark.gradient_accumulation_steps, [b.rows for b in benchmark.buckets()]
    steps = [2**k * now for k in range(1, 4)]
    return [n for n in steps if not any(count % (n * ways) for count in rows)]


# -- the search ------------------------------------------------------------------------------------


def search(
    benchmark: Benchmark,
    devices: names.Devices,
    found: compiling.Compiled,
    *,
    optimizer: str | None,
    say: compiling.Say,
) -> list[Candidate]:
    """Compiles other meshes, then remat policies, then micro-batches, each on the best of before.

    Only the train step is compiled. Ranked by the estimated time per step; what does not fit comes
    last, the nearest to fitting first.
    """
    rows: dict[tuple[Any, ...], Candidate] = {}
    best, sizes = benchmark, dict(found.mesh)

    def measure(configured: Benchmark, mesh: Mapping[str, int]) -> Candidate:
        settings = _differences(benchmark, configured)
        key = (mesh_text(mesh), *settings.items())
        if key not in rows:
            words = [mesh_text(mesh), *(f"{name}={value}" for name, value in settings.items())]
            say(f"candidate {len(rows) + 1}: {' '.join(words)}")
            rows[key] = _candidate(configured, devices, dict(mesh), settings, optimizer, say)
        return rows[key]

    top = measure(best, sizes)
    for mesh in meshes_to_try(benchmark, devices):
        candidate = measure(best, mesh)
        if _rank(candidate) < _rank(top):
            top, sizes = candidate, dict(mesh)
    for changes in _changes_to_try(benchmark, sizes):
        configured = best.replace(**changes)
        candidate = measure(configured, sizes)
        if _rank(candidate) < _rank(top):
            top, best = candidate, configured
    return sorted(rows.values(), key=_rank)


def meshes_to_try(benchmark: Benchmark, devices: names.Devices) -> Iterator[dict[str, int]]:
    """Rows over `fsdp`, or a quarter of the ways over `data`; what is left, or more, on `tensor`.

    Where there are sequences to split, also a part of it on `context`: with few key and value heads that
    moves less between devices than splitting the products does.
    """
    most = row_ways(benchmark, devices.count)
    tensor = splits(benchmark, "tensor")
    for ways in (most, most // 2, most // 4):
        rest = devices.count // ways if ways else 0
        if rest < 1 or rest * ways != devices.count:
            continue
        if rest > 1 and (not tensor or rest > MOST_SPLIT):
            continue
        others = {"tensor": rest} if rest > 1 else {}
        yield ({"fsdp": ways} if ways > 1 else {}) | others
        if not tensor:
            yield {"data": ways}
            continue
        if rest >= 4 and hasattr(benchmark, "sequence_length"):
            context = 4 if rest >= 16 else 2
            yield {"fsdp": ways, "tensor": rest // context, "context": context}
        if ways % 4 == 0 and devices.count > 64:
            yield {"data": 4, "fsdp": ways // 4, **others}


def _changes_to_try(benchmark: Benchmark, sizes: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    if hasattr(benchmark, "remat"):
        now = getattr(benchmark, "remat", None)
        yield from ({"remat": policy} for policy in reversed(REMATS) if policy != now)
    for steps in _accumulations(benchmark, sizes)[:2]:
        yield {"gradient_accumulation_steps": steps}


def _differences(base: Benchmark, other: Benchmark) -> dict[str, Any]:
    return {
        field.name: getattr(other, field.name)
        for field in dataclasses.fields(base)
        if getattr(base, field.name) != getattr(other, field.name)
    }


def _candidate(
    benchmark: Benchmark,
    devices: names.Devices,
    mesh: dict[str, int],
    settings: dict[str, Any],
    optimizer: str | None,
    say: compiling.Say,
) -> Candidate:
    try:
        found = compiling.compiled(
            benchmark, devices, mesh, optimizer=optimizer, say=say, only="train"
        )
    except UserError as error:
        return Candidate(mesh_text(mesh), settings, "refused", reason=str(error))
    outcome = worst(found.programs)
    sizes = [program.total for program in found.programs if program.total is not None]
    time = timing.step_time(benchmark, devices, found.programs) if outcome == "fits" else None
    message = next((p.message for p in found.programs if p.outcome == "compiler failed"), "")
    return Candidate(
        mesh_text(mesh),
        settings,
        outcome,
        total=max(sizes, default=None),
        step_seconds=None if time is None else time.seconds,
        reason=message.splitlines()[0] if message else "",
    )


def _rank(row: Candidate) -> tuple[int, float]:
    if row.outcome == "fits":
        return 0, math.inf if row.step_seconds is None else row.step_seconds
    order = ("too big", "compiler failed", "refused")
    return 1 + order.index(row.outcome), row.total or math.inf

"""Time, samples, price and input of a plan, as far as each can be known."""

from __future__ import annotations

from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.planning import compiling, convergence, timing
from mlperf_jax.planning import devices as names


def estimate(
    benchmark: Benchmark,
    devices: names.Devices,
    found: compiling.Compiled,
    price_per_chip_hour: float | None,
) -> tuple[timing.StepTime | None, convergence.ToTarget | None, list[str]]:
    """The step's time, the way to the target, and what else to say; without room only the first."""
    time = timing.step_time(benchmark, devices, found.programs)
    if not found.fits:
        return time, None, []
    if time is None:
        return None, None, ["no time: the compiled program or the chip's peaks say too little"]
    target, reason = convergence.to_target(benchmark, devices, time, price_per_chip_hour)
    notes = list(convergence.input_notes(benchmark, devices, time))
    if reason:
        notes.append(reason)
    compile_minutes = sum(program.seconds for program in found.programs) / 60
    if target is not None:
        notes.append(
            f"initialisation, {convergence.INIT_LIMIT:.0f} minutes at most in closed, holds the compiling: "
            f"{compile_minutes:.1f} minutes here"
        )
    return time, target, notes

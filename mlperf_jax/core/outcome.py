"""What `result.json` says of a run that has ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlperf_jax.core import peaks, phases
from mlperf_jax.core.standing import Ended
from mlperf_jax.results import log as logs
from mlperf_jax.results.result import Result, versions

if TYPE_CHECKING:
    from mlperf_jax.core.run import Run


def result_of(
    run: Run, ended: Ended, step: int, digest: str | None, scored: Sequence[int], evaluations: int
) -> Result:
    """The result of a run whose log has `run_stop`.

    Args:
        run: its log, standing and configuration are read.
        ended: how.
        step: of the state that counts.
        digest: of that state's parameters, or None.
        scored: steps that were scored afterwards.
        evaluations: of the loss, where the optimizer counts them.
    """
    mesh, benchmark, standing = run.assembly.mesh, run.benchmark, run.standing
    stamps = {line.key: line.time_ms for line in logs.read(run.folder.log_path)}
    rate = benchmark.samples(standing.step) / max(standing.seconds_training, 1e-9)
    kind = mesh.devices.flat[0].device_kind
    return Result(
        benchmark=benchmark.name,
        tiny=benchmark.is_tiny,
        reached=ended.status == "success",
        quality=standing.quality,
        samples=benchmark.samples(step),
        seconds=(stamps["run_stop"] - stamps["run_start"]) / 1000,
        examples_per_second=rate,
        mfu=peaks.utilisation(
            phases.flops(benchmark, step), rate, kind, mesh.devices.size, benchmark.dtype
        ),
        parameters_sha256=digest,
        seed=run.seed,
        resumed=run.resumed,
        versions=versions(),
        device=kind,
        mesh=dict(mesh.shape),
        status=ended.status,
        log=str(run.folder.log_path),
        division=run.plan.division,
        ruleset=benchmark.ruleset,
        device_count=mesh.devices.size,
        scored=[benchmark.samples(step) for step in scored],
        loss_evaluations=evaluations,
        optimizer=run.optimizer.name if run.optimizer else "",
        steps=step,
    )

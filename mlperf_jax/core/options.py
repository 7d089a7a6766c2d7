"""Where and how a benchmark runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from mlperf_jax.core.fields import Count, Range, Samples, Whole, check_fields
from mlperf_jax.errors import UserError
from mlperf_jax.results.header import Status

Seed = Annotated[int, Range(0, 2**32 - 1)]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where and how a benchmark runs; nothing here changes what is trained except the optimizer.

    Attributes:
        data_dir: folder of the prepared data, local or gs://.
        output: folder of the run set; default `mlperf_runs/<benchmark>-<hash>`.
        seed: run seed; default from the system's entropy.
        runs: how many runs the set gets, each with its own seed.
        mesh: "data=4,fsdp=2"; default all devices on `data`.
        division: "closed" or "open". A replaced optimizer or a transform requires "open".
        optimizer: an optax transformation, a function of the `ParamTree`, or a name "file.py:make".
        transform: a `grain.transforms.Map` or `RandomMap` over one training example (a dict of arrays), behind the
            benchmark's own, a list of them, or a name "file.py:make". Requires "open".
        resume: take up the unfinished run of the set.
        max_samples: stop (aborted) after this many samples.
        checkpoint_every: steps between checkpoints, besides those at each evaluation.
        keep_checkpoints: how many checkpoints are kept.
        log_every: steps between scalars.
        threads: reader threads per process.
        workers: reader processes per process, instead of threads, that read training data: for transforms that
            hold the interpreter. Each takes seconds to start.
        profile: write an xprof trace of some steps into the run's folder.
        org, platform, status: `submission_*` lines of the log.
        coordinator: "host:port" of process 0, or "auto" where the platform tells JAX.
        processes, process: how many processes the run has and which one this is.
        heartbeat: how long until a lost process ends the others.
        show: progress display; "auto" is live on a terminal.
    """

    data_dir: str | None = None
    output: str | None = None
    seed: Seed | None = None
    runs: Count = 1
    mesh: str | None = None
    division: Literal["closed", "open"] | None = None
    optimizer: Any = None
    transform: Any = None
    resume: bool = False
    max_samples: Samples | None = None
    checkpoint_every: Count | None = None
    keep_checkpoints: Count = 2
    log_every: Count = 10
    threads: Count | None = None
    workers: Whole = 0
    profile: bool = False
    org: str = "none"
    platform: str | None = None
    status: Status = "research"
    coordinator: str | None = None
    processes: Count | None = None
    process: Whole | None = None
    heartbeat: Annotated[Count, "seconds"] = 30
    show: Literal["auto", "plain", "none"] = "auto"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.runs > 1 and self.seed is not None:
            raise UserError(
                "runs of one set need seeds of their own: leave --seed out, or --runs at 1"
            )
        if self.process is not None and self.process >= (self.processes or 1):
            raise UserError(
                f"process {self.process} of {self.processes or 1}: they are numbered from 0"
            )

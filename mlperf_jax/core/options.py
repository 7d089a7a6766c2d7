"""Where and how a benchmark runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from mlperf_jax.core.fields import Count, Path, Range, Samples, Several, Whole, check_fields
from mlperf_jax.errors import UserError
from mlperf_jax.results.opening import Status

Seed = Annotated[int, Range(0, 2**32 - 1)]


Division = Literal["closed", "open"]
Input = Literal["synthetic", "real", "input-only"]  # of `bench`
Display = Literal["auto", "plain", "none"]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where and how a benchmark runs; nothing here changes what is trained except the optimizer."""

    data_dir: Annotated[Path | None, "folder of the prepared data, local or gs://"] = None
    output: Annotated[Path | None, "folder of the set; default mlperf_runs/<benchmark>-<hash>"] = (
        None
    )
    seed: Annotated[Seed | None, "run seed; default from the system's entropy"] = None
    runs: Annotated[Count, "how many runs the set gets, each with its own seed"] = 1
    seeds: Annotated[
        Several[Seed] | None, "of the set's runs in order, such as 1,2,3, in place of --runs"
    ] = None
    mesh: Annotated[
        str | None,
        '"data=4,fsdp=2"; default all devices on `data`, for language models on TPUs and GPUs what suits them',
    ] = None
    division: Annotated[Division | None, "a replaced optimizer or a transform requires open"] = None
    optimizer: Annotated[
        Any, 'an optax transformation, a function of the `ParamTree`, or a name "file.py:make"'
    ] = None
    transform: Annotated[
        Any,
        "a `grain.transforms.Map` or `RandomMap` over one training example (a dict of arrays), "
        'behind the benchmark\'s own, a list of them, or a name "file.py:make"; requires open',
    ] = None
    resume: Annotated[bool, "take up the unfinished run of the set"] = False
    new_optimizer: Annotated[
        bool, "resume though the run began with another optimizer, whose state fits: it is logged"
    ] = False
    max_samples: Annotated[Samples | None, "stop (aborted) after this many samples"] = None
    evaluate_every: Annotated[
        Count | None, "steps between evaluations beside the benchmark's own; requires open"
    ] = None
    checkpoint_every: Annotated[Count | None, "steps between them; evaluations take one too"] = None
    keep_checkpoints: Annotated[Count, "how many checkpoints are kept"] = 2
    log_every: Annotated[Count, "steps between scalars"] = 10
    threads: Annotated[Count | None, "reader threads per process"] = None
    workers: Annotated[
        Whole,
        "reader processes per process, instead of threads, that read training data: for "
        "transforms that hold the interpreter; each takes seconds to start",
    ] = 0
    profile: Annotated[bool, "xprof trace of some steps, in the run's folder"] = False
    tensorboard: Annotated[
        bool,
        "write TensorBoard event files beside the scalars, in the run's folder (extra `tensorboard`)",
    ] = False
    org: Annotated[str, "the log's `submission_org`"] = "none"
    platform: Annotated[str | None, "the log's `submission_platform`"] = None
    status: Annotated[Status, "the log's `submission_status`"] = "research"
    coordinator: Annotated[
        str | None, '"host:port" of process 0, or "auto" where the platform tells JAX'
    ] = None
    processes: Annotated[Count | None, "how many processes the run has"] = None
    process: Annotated[Whole | None, "which one of them this is, from 0"] = None
    join_timeout: Annotated[
        Count, "seconds", "how long the processes wait for each other to come"
    ] = 300
    heartbeat: Annotated[Count, "seconds", "how long until a lost process ends the others"] = 30
    show: Annotated[Display, "progress display; auto is live on a terminal"] = "auto"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.seeds is not None:
            self._check_seeds(self.seeds)
            object.__setattr__(self, "runs", len(self.seeds))
        if self.runs > 1 and self.seed is not None:
            raise UserError(
                "runs of one set need seeds of their own: leave --seed out, or --runs at 1"
            )
        if self.new_optimizer and not self.resume:
            raise UserError("--new-optimizer is for a run that is taken up: add --resume")
        if self.process is not None and self.process >= (self.processes or 1):
            raise UserError(
                f"process {self.process} of {self.processes or 1}: they are numbered from 0"
            )

    def _check_seeds(self, seeds: tuple[int, ...]) -> None:
        twice = next((seed for seed in seeds if seeds.count(seed) > 1), None)
        if twice is not None:
            raise UserError(
                f"seeds has {twice} twice: runs of one set need seeds of their own, so leave one out"
            )
        if self.seed is not None:
            raise UserError("seed and seeds are both given: leave --seed out, or --seeds")
        if self.runs not in (1, len(seeds)):
            raise UserError(
                f"seeds are {len(seeds)} and runs is {self.runs}: leave --runs out, as each seed has its run"
            )

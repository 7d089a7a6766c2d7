"""What surrounds the loop of one run: its folder, log, scalars, checkpoints, display and result."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from mlperf_jax.core import (
    feed,
    generation,
    mesh as meshes,
    outcome,
    phases,
    preflight,
    processes,
    profiling,
    progress as displays,
    state as states,
)
from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.core.checkpoints import Checkpoints, checksums
from mlperf_jax.core.members import disclosure, full_log
from mlperf_jax.core.next_run import Choose, next_run, seed_of, take_folder
from mlperf_jax.core.optimizer_name import name_optimizer
from mlperf_jax.core.protocols import Batches, Split
from mlperf_jax.core.standing import Ended, Standing
from mlperf_jax.core.trained import with_untrained
from mlperf_jax.core.transform_argument import Transform
from mlperf_jax.errors import UserError
from mlperf_jax.results import durable, events, keys, log as logs, rules
from mlperf_jax.results.opening import header
from mlperf_jax.results.remote import Mirror
from mlperf_jax.results.result import Result, run_name, trained_hash
from mlperf_jax.results.runs import RunFolder, Scalars
from mlperf_jax.results.story import Story


class Run:
    """One run of a set. A context manager: leaving it closes files and threads, whatever happened.

    Args:
        plan: what passed preflight.
        notes: lines for the display.
        choose: which run of the set this is; by default what the options say (`next_run`). Process 0 asks.

    Attributes:
        left: how many runs its launch trains after it.
        standing: where the run stands; the loop moves it on.
        optimizer: what is known of the one that replaced the benchmark's; None where nothing did.
        notes: lines for the display, before its first step.
        story: what it has logged, for a display that draws.
        events: TensorBoard's file of scalars and qualities; None where there is none, and but on process 0.
        trained: what an offline run noted when its training ended, or None before that.
    """

    def __init__(
        self,
        plan: preflight.PlannedRun,
        notes: Sequence[str] = (),
        *,
        choose: Choose | None = None,
    ) -> None:
        self.plan = plan
        self._choose = choose or functools.partial(next_run, options=plan.options)
        self.benchmark, self.options, self.assembly = plan.benchmark, plan.options, plan.assembly
        self.official = rules.resolve(plan.benchmark.name, plan.benchmark.ruleset)
        self.data_dir = plan.data_dir
        clipped = plan.benchmark.clip_norm is not None
        self.optimizer = name_optimizer(plan.options.optimizer, plan.assembly.tx, clipped=clipped)
        self.primary = jax.process_index() == 0
        self.config = plan.config()
        name = run_name(plan.benchmark.name, self.config, tiny=plan.benchmark.is_tiny)
        self.mirror = Mirror(plan.options.output or f"mlperf_runs/{name}")
        self.root = self.mirror.local
        self.log = logs.Log(None)
        self.scalars: Scalars | None = None
        self.events: events.Events | None = None
        self.standing = Standing()
        self.resumed = 0
        self.notes = list(notes)
        with contextlib.ExitStack() as last_first:  # each is closed though another may fail
            opened = self._open_folder(last_first)
            self.folder, self.started, self.seed, self.trained, self.left = opened
            last_first.callback(lambda: self.scalars and self.scalars.close())
            last_first.callback(lambda: self.events and self.events.close())
            last_first.callback(lambda: self.log.close())
            self.checkpoints = Checkpoints(
                self.mirror.checkpoints(self.folder.index),
                keep=plan.options.keep_checkpoints,
                identity={
                    "benchmark": plan.benchmark.name,
                    "configuration": trained_hash(self.config),
                    "optimizer state": plan.optimizer_state,
                },
            )
            last_first.callback(self.checkpoints.close)
            limit = plan.options.max_samples or plan.benchmark.last_sample
            show = plan.options.show if self.primary else "none"
            name = f"{self.root.name}/{self.folder.path.name}"
            self.story = Story.of(plan.benchmark.targets, name)
            self.progress = displays.make_progress(show, limit, self.story)
            last_first.callback(self.progress.close)
            profile = self.folder.path / "profile" if plan.options.profile else None
            self.trace = profiling.Trace(profile)
            last_first.callback(self.trace.close)
            for note in (*self.notes, *plan.notes):
                self.progress.say(note)
            self._closing = last_first.pop_all()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        with contextlib.suppress(*[UserError] if error else []):  # what came first is told
            self._closing.close()

    # -- the folder ----------------------------------------------------------------------------

    def _open_folder(
        self, closing: contextlib.ExitStack
    ) -> tuple[RunFolder, bool, int, dict[str, Any] | None, int]:
        """The run's folder, which process 0 takes, what it says (has it started, its seed, is it trained), and
        how many runs follow.
        """
        taken: list[RunFolder] = []

        def take() -> tuple[int, bool, int, dict[str, Any] | None, int]:
            self.mirror.pull()
            folder, left, notes = take_folder(self.plan, self.root, self._choose)
            self.notes += notes
            taken.append(folder)
            closing.callback(folder.release)
            if not folder.started:
                folder.reset()
            noted = folder.trained_path
            trained = durable.read_json(noted) if noted.exists() else None
            return folder.index, folder.started, seed_of(folder, self.options), trained, left

        index, started, seed, trained, left = processes.from_primary(take)
        folder = taken[0] if taken else RunFolder(self.root, index)
        return folder, started, seed, trained, left

    # -- the log -------------------------------------------------------------------------------

    def begin_init(self) -> None:
        """Opens the log and writes `init_start` and the configuration; a resumed run writes nothing."""
        if not self.started:
            processes.from_primary(self._begin_log)

    def _begin_log(self) -> None:
        self.log = log = logs.Log(self.folder.log_path)
        self.scalars = Scalars(self.folder.scalars_path)
        division, devices = self.plan.division, self.assembly.mesh.devices
        header(
            log,
            self.official,
            division=division,
            org=self.options.org,
            platform=self.options.platform or f"{devices.size}x{devices.flat[0].device_kind}",
            status=self.options.status,
            seed=self.seed,
        )
        log.start("init_start")
        lines = full_log(self.benchmark, self.optimizer)
        disclosed = disclosure(self.benchmark, self.assembly.mesh, self.folder.config_path.name)
        known = {}
        if self.optimizer:
            known = {"settings": self.optimizer.settings, "program": self.plan.optimizer}
        more: dict[str, dict[str, Any]] = {"opt_name": known}
        for key, value, metadata in keys.translate(
            self.official, lines, division=division, disclosure=disclosed
        ):
            log.event(key, value, **metadata, **more.get(key, {}))
        if levers := self.benchmark.levers:
            log.event("levers", str(levers))
        self._open_events()

    def _open_events(self) -> None:
        """Begins the event file with what scalars and log tell so far, if there is to be one."""
        if self.events:
            self.events.close()
        if self.options.tensorboard:
            self.events = events.Events(self.folder)
        elif there := events.files(self.folder):
            self.progress.say(f"note: nothing is added to {there[0]}: --tensorboard would")

    def position(self, step: int) -> dict[str, Any]:
        """Metadata of evaluation lines and `run_stop`, in the units of the benchmark's round."""
        benchmark, here = self.benchmark, self._here(step)
        return keys.position(
            self.official,
            epochs=here["epoch_num"],
            samples=here["samples_count"],
            steps=step,
            logged=full_log(benchmark, self.optimizer),
        )

    def _here(self, step: int) -> dict[str, Any]:
        here = self.benchmark.position(step)
        if self.benchmark.evaluates_generations:
            here["epoch_num"] = generation.done(self.standing.generation_ends, step)
        return here

    def end_init(self) -> None:
        """The order of the samples is worked out, and `init_stop` written."""
        if self.benchmark.generate is None:
            self.train_batches.ready()
        if not self.started:
            self.log.stop("init_stop")

    def begin_run(self) -> None:
        """`run_start`; only from here on are records read."""
        if not self.started:
            self.log.start("run_start")

    def log_block_start(self, until: int | None) -> None:
        """The start of the steps up to the next evaluation. Epochs are numbered from 1."""
        self.standing.block = begin = self._here(self.standing.step)
        # None: the end of a generation that is still to be made
        epochs = 1 if until is None else self._here(until)["epoch_num"] - begin["epoch_num"]
        self.log.start(
            "block_start",
            first_epoch_num=begin["epoch_num"] + 1,
            epoch_count=epochs,
            samples_count=begin["samples_count"],
        )

    def log_block_stop(self) -> None:
        begin, self.standing.block = self.standing.block, None
        if begin is not None:
            self.log.stop(
                "block_stop",
                first_epoch_num=begin["epoch_num"] + 1,
                samples_count=self._here(self.standing.step)["samples_count"],
            )

    def log_eval_start(self, step: int, time_ms: int | None = None) -> None:
        """`eval_start` of the evaluation after `step`; its time is now by default."""
        self.log.start("eval_start", time_ms=time_ms, **self.position(step))

    def log_quality(
        self, step: int, quality: Mapping[str, float], time_ms: int | None = None
    ) -> None:
        """`eval_accuracy` and `eval_stop` of the evaluation after `step`; their time is now by default."""
        self.standing.evaluated, self.standing.quality = step, dict(quality)
        logged = self.position(step)
        names = keys.quality_keys(self.official, self.plan.division)
        for value, metadata in self.benchmark.quality_lines(quality):
            for key in names:
                self.log.event(key, value, time_ms=time_ms, **logged, **metadata)
            if self.events:
                named = metadata.get("metric", self.benchmark.targets[0].name)
                self.events.evaluated(self._here(step)["samples_count"], named, value, time_ms)
        self.log.stop("eval_stop", time_ms=time_ms, **logged)

    def say_quality(self, step: int, quality: Mapping[str, float]) -> None:
        """The values of the evaluation after `step`, for the display."""
        position = self._here(step)
        # "mAP/class" and the like stay in the result
        values = ", ".join(f"{n} {value:.4f}" for n, value in quality.items() if "/" not in n)
        targets = " and ".join(map(str, self.benchmark.targets))
        self.progress.evaluated(position["samples_count"], quality)
        self.progress.say(
            f"epoch {position['epoch_num']:.4g} · {position['samples_count']:,} samples · {values} (target {targets})"
        )

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars of one step, to the file and the display."""
        samples = self.benchmark.samples(step)
        if self.scalars:
            self.scalars.write(step=step, samples=samples, **values)
        if self.events:
            self.events.record(samples, values)
        self.progress.update(step, samples, values)

    # -- data ----------------------------------------------------------------------------------

    def training(
        self, data: Split, benchmark: Benchmark | None = None, first: Sequence[Transform] = ()
    ) -> Batches:
        """The batches of some training data, behind the transforms that were added."""
        given = (data, benchmark or self.benchmark, self.assembly.mesh, self.seed)
        return feed.training_batches(*given, (*first, *self.plan.transforms))

    @functools.cached_property
    def train_batches(self) -> Batches:
        """Training batches of the data that are read, not made."""
        return phases.batches_of(self.benchmark, self.data_dir, self.training)

    # -- checkpoints ---------------------------------------------------------------------------

    def save(
        self,
        state: states.State,
        step: int | None = None,
        *,
        sealed: bool = False,
        evaluation_due: bool = False,
    ) -> None:
        """A checkpoint of a state, with where the run, its log and its scalars stand.

        Args:
            state: what to save.
            step: after which it was; the last one by default.
            sealed: it is scored after the run; its time stamp is now.
            evaluation_due: a resumed run begins with the evaluation of this very step.

        Raises:
            UserError: it, or the one before, cannot be written, or somebody removed the run's folder.
        """
        self.log.check_there()  # else the checkpoint would make the folder anew
        standing = self.standing
        standing.saved = standing.step if step is None else step
        standing.evaluation_due = evaluation_due
        if self.scalars:
            self.scalars.sync()
        meta = {
            **standing.kept(),
            "step": standing.saved,
            "evaluates": self.assembly.evaluates,
            "log_offset": self.log.offset,
            "scalars_offset": self.scalars.offset if self.scalars else 0,
            "mesh": meshes.describe(self.assembly.mesh),
            "seed": self.seed,
            "optimizer": self.plan.optimizer,
        }
        self.checkpoints.save(standing.saved, self.assembly.saved(state), meta, sealed=sealed)
        if self.primary:
            self.mirror.push()

    def restore(self) -> states.State | None:
        """The newest checkpoint that verifies, with standing, log and scalars put back to it.

        None without one: a run that was killed before its first begins again at `run_start`.

        Raises:
            UserError: the run is trained and waits for being scored.
        """
        if not self.started:
            return None
        if self.trained is not None:
            then = "give another output folder to train longer"
            todo = (
                then if self.folder.finished else f"score it with `mlperf-jax evaluate {self.root}`"
            )
            raise UserError(f"{self.folder.path} is trained: {todo}")
        found = self.read()
        for warning in self.checkpoints.warnings:
            self.progress.say(warning)
        state, meta = found or (None, None)
        meta = meta and self._extended(meta)
        self.resumed = processes.from_primary(lambda: self._cut_back(meta))
        if state is None or meta is None:
            self.progress.say("no checkpoint yet: resumed from the start")
            return None
        self.standing = Standing.of(meta)
        self.progress.say(f"resumed after step {self.standing.step:,}")
        if meta["optimizer"] != self.plan.optimizer:
            self._log_new_optimizer(meta["optimizer"])
        return with_untrained(self.assembly, state, self.seed, self.data_dir)

    def _extended(self, meta: dict[str, Any]) -> dict[str, Any]:
        """The meta data of the newest checkpoint; of a run that may see more samples now, as before it ended.

        Raises:
            UserError: the run is finished, and not because it might see no more.
        """
        standing = Standing.of(meta)
        last = preflight.last_step(self.benchmark, self.options)
        more = standing.before_end and (last is None or last > standing.step)
        if more and standing.ended == Ended.at_limit():
            return Standing.extended(meta)
        if processes.from_primary(lambda: self.folder.finished):  # no other may see its files
            reason = standing.ended.reason if standing.ended else "its last checkpoint is gone"
            raise UserError(
                f"{self.folder.path} cannot see more samples ({reason}): give another output folder to begin anew"
            )
        return meta

    def _log_new_optimizer(self, before: str | None) -> None:
        step, now = self.standing.step, self.plan.optimizer
        self.log.event("optimizer_changed", now, before=before, **self.position(step))
        self.progress.say(f"from here on by another optimizer: {now} instead of {before}")

    def read(self, step: int | None = None) -> tuple[states.State, dict[str, Any]] | None:
        """What a run goes on from, and its meta data: of the newest checkpoint that verifies, or of this step's."""
        assembly = self.assembly
        # what follows from the rest is left where it lies
        derived = assembly.evaluates == "evaluated"
        return self.checkpoints.restore(assembly.kept(assembly.abstract), step, partial=derived)

    def _cut_back(self, meta: Mapping[str, Any] | None) -> int:
        """Goes on with log and scalars as of the checkpoint; returns how often the run was resumed."""
        offset = meta["log_offset"] if meta else logs.end_of_line(self.folder.log_path, "run_start")
        self.folder.go_on(self.options.max_samples)
        scalars = meta["scalars_offset"] if meta else 0
        self.scalars = Scalars(self.folder.scalars_path, resume_at=scalars)
        self.reopen_log(offset)
        self.story.begin_with(self.folder)
        path = self.folder.path / "resumed.json"
        count = (durable.read_json(path) if path.exists() else 0) + 1
        durable.write_json(path, count)
        return count

    def reopen_log(self, offset: int) -> None:
        """Goes on with the log of a started run, cut back to `offset`, and with its event file."""
        if self.primary:
            self.log = logs.Log(self.folder.log_path, resume_at=offset)
            self._open_events()

    # -- the end -------------------------------------------------------------------------------

    def stop_clock(self, state: states.State, step: int) -> None:
        """`run_stop` at the step that counts, at once; an offline run's is written when it has been scored."""
        standing = self.standing
        standing.before_end = {"log_offset": self.log.offset, "block": standing.block}
        self.log_block_stop()
        if "evaluations" in state:
            self.log.event("loss_evaluations", states.evaluations(state), **self.position(step))
        if self.benchmark.metric.mode != "offline":
            self.log_run_stop(step)

    def log_run_stop(self, step: int, time_ms: int | None = None) -> None:
        ended = self.standing.ended
        assert ended is not None
        for key, samples in keys.trained(self.official, self.benchmark.samples(step)).items():
            self.log.event(key, samples, time_ms=time_ms)
        self.log.stop("run_stop", status=ended.status, time_ms=time_ms, **self.position(step))

    def finish(self, state: states.State, step: int, *, worth_keeping: bool) -> Result | None:
        """The final checkpoint and `result.json`; an offline run waits for its scores."""
        if self.benchmark.metric.mode == "offline":
            self.checkpoints.wait()
            processes.from_primary(self._note_trained)
            self.progress.say(f"trained; score it with `mlperf-jax evaluate {self.root}`")
            return None
        if worth_keeping:  # so that the weights can be used
            self.save(state, step)
        return self.conclude(state, step)

    def _note_trained(self) -> None:
        noted = {
            "step": self.standing.step,
            "log_offset": self.log.offset,
            "seconds_training": self.standing.seconds_training,
            "resumed": self.resumed,
        }
        durable.write_json(self.folder.trained_path, noted)
        self.mirror.push(final=True)

    def conclude(
        self, state: states.State | None, step: int, scored: Sequence[int] = ()
    ) -> Result | None:
        """`result.json`: the state that counts, its step, the steps scored afterwards."""
        self.checkpoints.wait()
        self.checkpoints.tidy()
        digest, evaluations = None, states.evaluations(state or {})
        if state is not None:
            view = self.assembly.kept(self.assembly.eval_view(state))
            digest = checksums.parameters_sha256(view)
        if not self.primary:
            return None
        ended = self.standing.ended
        assert ended is not None
        result = outcome.result_of(self, ended, step, digest, scored, evaluations)
        self.folder.save_result(result)
        self.mirror.push(final=True)
        verdict = "target reached" if result.reached else f"target not reached: {ended.reason}"
        self.progress.say(f"{verdict} after {result.samples:,} samples, {result.seconds:.1f} s")
        return result

"""The one loop: from `init_start` to `run_stop`, for every benchmark.

DESIGN.md §3 tells the life of a run; the functions below are its chapters, in order.
"""

from __future__ import annotations

import collections
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax

from mlperf_jax.core import evaluation, feed, preflight, step
from mlperf_jax.core import generation as generations
from mlperf_jax.core import mesh as meshes
from mlperf_jax.core import state as states
from mlperf_jax.core.preemption import Interrupted, Preemption
from mlperf_jax.core.run import Run
from mlperf_jax.errors import UserError

IN_FLIGHT = 16  # steps the host may be ahead of the device


def train(run: Run) -> Any:
    """Trains until the target is met or the last allowed sample is seen; returns the `Result`."""
    with run, Preemption() as preemption:
        programs = initialise(run)
        loop = Loop(run, preemption, **programs)
        try:
            loop.go()
            run.stop_clock(loop)
        finally:
            loop.close()
        return run.finish(loop)


def initialise(run: Run) -> dict[str, Any]:
    """`init_start` … `init_stop`: compile on shapes alone, make or restore the state. No data is read."""
    run.begin_init()
    assembly, benchmark = run.assembly, run.benchmark
    train_step = compile_train(assembly)
    predict = evaluation.compile_predict(assembly) if benchmark.metric.mode != "offline" else {}
    finite = jax.jit(lambda state: states.all_finite(assembly.kept(state)))
    all_finite = assembly.compile(finite, assembly.abstract)
    generate = generations.compile_generate(assembly) if benchmark.generate else None
    state, meta = run.restore()
    if state is None:
        state = assembly.create(run.seed)
        start = benchmark.start(run.data_dir)
        if start is not None:
            state = states.begin_from(state, start)
    jax.block_until_ready(state)
    run.end_init()
    return {
        "train_step": train_step,
        "predict": predict,
        "all_finite": all_finite,
        "generate": generate,
        "state": state,
        "meta": meta,
    }


def compile_train(assembly: states.Assembly) -> dict[Any, Any]:
    """Compiled train steps by batch shape."""
    benchmark = assembly.benchmark
    jitted = step.jit_train_step(assembly)
    sharding = meshes.batch_sharding(assembly.mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    programs = {}
    for bucket in benchmark.buckets():
        batch = step.abstract_batch(bucket, sharding)
        programs[evaluation.shape_key(batch)] = assembly.compile(
            jitted, assembly.abstract, batch, key
        )
    return programs


@dataclass
class Loop:
    """Where a run stands.

    Attributes:
        train_step, predict: compiled programs by batch shape.
        all_finite: compiled `states.all_finite`.
        generate: compiled `generation.compile_generate`, if the model makes its data.
        state: the training state; its buffers are donated to the next step.
        done: steps done, as the host counts them.
        kept: the state that is reported: the last one, or the one a beside evaluation passed.
        quality: of the last evaluation whose value is known.
        status: None while running, then "success" or "aborted".
        finite: false once the state is not worth keeping.
        ended: whether the log has its `run_stop` already.
        seconds_training: wall time of blocks of steps, without evaluation.
    """

    run: Run
    preemption: Preemption
    train_step: dict[Any, Any]
    predict: dict[Any, Any]
    all_finite: Any
    generate: Any
    state: states.State
    meta: dict[str, Any] | None
    done: int = 0
    evaluations: int = 0
    quality: dict[str, float] = field(default_factory=dict)
    status: str | None = None
    finite: bool = True
    ended: bool = False
    reason: str = ""
    pending: evaluation.Pending | None = None
    kept: states.State | None = None
    kept_step: int = 0
    seconds_training: float = 0.0
    seconds_waiting: float = 0.0
    _saved: int | None = None  # step of this process's last checkpoint
    _unread: tuple[int, Any] | None = None
    _batches: feed.Feed | None = None

    def __post_init__(self) -> None:
        run = self.run
        if self.meta:
            self.done = self.meta["step"]
            self.evaluations = self.meta["evaluations"]
            self.quality = self.meta["quality"]
            self.seconds_training = self.meta["seconds_training"]
            self._saved = self.done
            ended = self.meta.get("ended")
            if ended:  # killed between `run_stop` and the result
                self.ended, self.status, self.reason = True, ended["status"], ended["reason"]
        self.generator = generations.Generator(run, self.generate) if self.generate else None
        everywhere = meshes.replicated(run.assembly.mesh)  # keys cannot be put on others' devices
        self.key = jax.jit(lambda: jax.random.key(run.seed), out_shardings=everywhere)()
        due = bool(self.meta and self.meta.get("evaluation_due"))
        # the step of the next evaluation; None: the end of a generation that is still to be made
        self.next_eval: int | None = None
        self.schedule: Iterator[int | None] = itertools.repeat(None)
        if not run.benchmark.evaluates_generations:
            self.schedule = schedule_after(run.benchmark.eval_steps(), self.done - due)
            self.next_eval = next(self.schedule)
        elif self.generator and self.generator.last_step > self.done - due:
            self.next_eval = self.generator.last_step
        self.last_step = preflight.last_step(run.benchmark, run.options)
        judges = evaluation.judges_from(run.assembly, run.data_dir)
        self.evaluator = evaluation.Evaluator(
            run.assembly, self._eval_batches, run.seed, self.predict, run.data_dir, judges
        )

    # -- data ----------------------------------------------------------------------------------

    def _train_batches(self) -> feed.Feed:
        run, benchmark = self.run, self.run.benchmark
        if self.generator:
            data, start = self.generator.data(self.done)
            batches = run.training(data)
        else:
            batches, start = run.train_batches, self.done
        stream = batches.stream(start, threads=run.threads, workers=run.options.workers)
        return feed.Feed(stream, benchmark.buckets(), run.assembly.mesh)

    def _eval_batches(self) -> Iterator[Any]:
        return self.run.eval_batches.stream(threads=self.run.threads)

    # -- the loop ------------------------------------------------------------------------------

    def go(self) -> None:
        """Blocks of steps, each ended by an evaluation, until a status is known."""
        if not self.meta:
            self.run.begin_run()
            self.run.log_block_start(0, self.next_eval)
        while self.status is None:
            # an evaluation that a resumed run has still to make comes first
            if self.generator and self.generator.due(self.done) and self.next_eval != self.done:
                self._generate()
            if self._batches is None:
                self._batches = self._train_batches()
            try:
                self._steps(self._until())
            except StopIteration:
                raise UserError(
                    f"the training data ended after step {self.done}: the batches of data().train() "
                    "must go on without end"
                ) from None
            if self.status is None:
                self._boundary()
        if self.pending:
            self._settle()

    def _until(self) -> int:
        """The step at which something other than a step happens next."""
        stops = [] if self.next_eval is None else [self.next_eval]
        if self.last_step is not None:
            stops.append(max(self.last_step, self.done))
        every = self.run.options.checkpoint_every
        if every:
            stops.append((self.done // every + 1) * every)
        if self.generator:
            stops.append(self.generator.last_step)
        return min(stops)

    def _steps(self, until: int) -> None:
        """The hot path: nothing here waits for a step's result, except far behind."""
        batches, options, trace = self._batches, self.run.options, self.run.trace
        assert batches is not None
        one = len(self.train_step) == 1
        program = next(iter(self.train_step.values()))
        in_flight: collections.deque[Any] = collections.deque()
        begin, waited = time.perf_counter(), batches.waited
        with jax.transfer_guard("disallow"):
            while self.done < until and self.status is None:
                if self.preemption.requested(self.done):
                    self._interrupt()
                    break
                batch = next(batches)
                if not one:
                    program = self.train_step[evaluation.shape_key(batch)]
                trace.step(self.done)
                self.state, metrics = program(self.state, batch, self.key)
                self.done += 1
                in_flight.append(metrics["loss"])
                if len(in_flight) > IN_FLIGHT:
                    in_flight.popleft().block_until_ready()
                if self.done % options.log_every == 0:
                    self._read_scalars()
                    self._unread = (self.done, metrics)
                if self.pending and self.pending.ready():
                    self._settle()
        jax.block_until_ready(self.state["step"])
        self.seconds_training += time.perf_counter() - begin
        self.seconds_waiting += batches.waited - waited

    def _read_scalars(self) -> None:
        """Records the scalars noted `log_every` steps ago, which the device has long finished."""
        if self._unread is None:
            return
        step_number, metrics = self._unread
        self._unread = None
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        finite = values.pop("finite")
        self.run.record(step_number, values)
        if not finite:
            self._stop_nonfinite()

    def _stop_nonfinite(self) -> None:
        self.status, self.finite = "aborted", False
        self.reason = "the loss is not finite; the last good checkpoint is kept"

    def _boundary(self) -> None:
        """An evaluation, a checkpoint, the last step, or a new generation: whichever are due."""
        self._read_scalars()
        self._check_finite()
        if self.status is not None:
            return
        if self.done == self.next_eval:
            self._evaluate()
        if self.status is None and self._last():
            if self.pending:
                self._settle()
            if self.status is None:
                self.status, self.reason = "aborted", "the last allowed sample was seen"
        if self.status is None:
            self._checkpoint()
        if self.generator and self.done == self.generator.last_step:
            self._close_batches()

    def _last(self) -> bool:
        """Whether the last allowed sample has been seen."""
        return self.last_step is not None and self.done >= self.last_step

    def _check_finite(self) -> None:
        if self.status is None and not bool(jax.device_get(self.all_finite(self.state))):
            self._stop_nonfinite()

    # -- evaluation ----------------------------------------------------------------------------

    def _evaluate(self) -> None:
        run, mode = self.run, self.run.benchmark.metric.mode
        if self.pending:
            self._settle()
            if self.status is not None:
                return
        if mode == "beside" and self._saved != self.done:
            # taken before, as afterwards it would have to wait for the value or forget it
            self._save(evaluation_due=True)
        run.log_block_stop(self.done)
        self.evaluations += 1
        if mode != "offline":
            run.log.start("eval_start", **run.position(self.done))
            if mode == "inline":
                self.quality = self.evaluator.quality(self.state, self.evaluations)
                self._judge(self.done, self.state)
            else:
                self.pending = evaluation.Pending.begin(
                    self.evaluator, self.state, self.done, self.evaluations
                )
        begun, self.next_eval = self.done, next(self.schedule)
        if self.status is None and not self._last():
            run.log_block_start(begun, self.next_eval)
        if mode == "offline":
            self._save(sealed=True)

    def _settle(self) -> None:
        """Takes the value of the evaluation that ran beside the steps."""
        pending, self.pending = self.pending, None
        assert pending is not None
        with jax.transfer_guard("allow"):
            self.quality = pending.wait()
        self._judge(pending.step, pending.state)

    def _judge(self, evaluated: int, state: states.State) -> None:
        run = self.run
        run.log_quality(evaluated, self.quality)
        run.say_quality(evaluated, self.quality)
        if all(target.met(self.quality) for target in run.benchmark.targets):
            self.status = "success"
            self.kept, self.kept_step = state, evaluated
        elif run.benchmark.diverged(self.quality):
            self.status, self.reason = "aborted", "the model has diverged"

    # -- checkpoints ---------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        """A checkpoint of this step, unless there is one; an evaluation under way is waited for."""
        if self._saved == self.done:
            return
        if self.pending:
            self._settle()
            if self.status is not None:
                return
        self._save()

    def _save(self, **how: bool) -> None:
        self.run.save(self, **how)
        self._saved = self.done

    def _interrupt(self) -> None:
        """Saves and raises `Interrupted`; returns if the run turns out to have ended."""
        with jax.transfer_guard("allow"):
            self._read_scalars()
            self._check_finite()
            if self.status is None:
                self._checkpoint()
            if self.status is not None:
                return
            self.run.checkpoints.wait()
        number = self.preemption.signal or 15
        raise Interrupted(
            f"stopped by signal {number} after step {self.done}; --resume takes the run up again",
            number,
        )

    # -- data the model makes ------------------------------------------------------------------

    def _generate(self) -> None:
        self._close_batches()
        assert self.generator is not None
        self.generator.run_generation(self.state, self.done, self._before_part)
        if self.run.benchmark.evaluates_generations:
            self.next_eval = self.generator.last_step

    def _before_part(self) -> None:
        """Stops if that is asked for; several processes could not agree on a part, and go on."""
        if jax.process_count() == 1 and self.preemption.requested(self.done):
            self._interrupt()

    # -- the end -------------------------------------------------------------------------------

    def reported(self) -> tuple[states.State | None, int]:
        """The state that counts, if one does, and its step."""
        if self.kept is not None:
            return self.kept, self.kept_step
        return self.state if self.finite else None, self.done

    def _close_batches(self) -> None:
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def close(self) -> None:
        self._close_batches()
        self.run.trace.close()


def schedule_after(steps: Iterator[int], done: int) -> Iterator[int]:
    """The evaluation steps that come after `done`."""
    return (number for number in steps if number > done)

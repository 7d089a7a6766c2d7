"""The one loop: from `init_start` to `run_stop`, for every benchmark.

DESIGN.md §3 tells the life of a run; the functions below are its chapters, in order. Those that may find
that the run has ended return how, and None otherwise.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import jax

from mlperf_jax.core import (
    evaluation,
    feed,
    generation as generations,
    mesh as meshes,
    phases,
    preflight,
    state as states,
    step,
)
from mlperf_jax.core.evaluation import ShapeKey
from mlperf_jax.core.preemption import Preemption
from mlperf_jax.core.run import Run
from mlperf_jax.core.standing import Ended
from mlperf_jax.core.step import Metrics
from mlperf_jax.errors import Interrupted, UserError
from mlperf_jax.results.result import Result

IN_FLIGHT = 16  # steps the host may be ahead of the device


def train(run: Run, preemption: Preemption | None = None) -> Result | None:
    """Trains until the target is met or the last allowed sample is seen.

    Args:
        run: what is trained.
        preemption: that of another thread, which signals come to; by default one of its own.

    Returns:
        The result; None on processes other than 0, and of a run that is scored afterwards.

    Raises:
        Interrupted: a signal stopped it before its end, or came when other runs of its launch were to follow.
    """
    own = Preemption() if preemption is None else contextlib.nullcontext(preemption)
    with run, own as preemption:
        programs, state = initialise(run)
        if run.standing.ended:  # it was killed between `run_stop` and its result
            result = run.conclude(state, run.standing.step)
        else:
            loop = Loop(run, preemption, programs, state)
            try:
                loop.go()
                state, step = loop.kept or (loop.state, run.standing.step)
                run.stop_clock(state, step)
            finally:
                loop.close()
            result = run.finish(state, step, worth_keeping=loop.finite or loop.kept is not None)
        preemption.check_between(run.left)
        return result


@dataclass(frozen=True)
class Programs:
    """What a run executes.

    Attributes:
        train, predict: the steps by batch shape; a run that computes no quality does not predict.
        all_finite: whether a state is worth keeping.
        generate: plays a part of the data that the model makes, if it makes any.
    """

    train: Mapping[ShapeKey, jax.stages.Compiled]
    predict: Mapping[ShapeKey, jax.stages.Compiled]
    all_finite: jax.stages.Compiled
    generate: jax.stages.Compiled | None


def initialise(run: Run) -> tuple[Programs, states.State]:
    """`init_start` … `init_stop`: compile on shapes alone, make or restore the state. No data is read."""
    run.begin_init()
    assembly, benchmark = run.assembly, run.benchmark
    evaluates = preflight.evaluates(benchmark, run.options)
    shared = run.plan.programs  # by the runs of one launch
    if not shared:
        shared.append(compile_all(assembly, evaluates=evaluates))
    programs = shared[0]
    state = run.restore()
    if state is None:
        state = assembly.create(run.seed)
        start = benchmark.start(run.data_dir)
        if start is not None:
            state = assembly.begin_from(state, start)
    jax.block_until_ready(state)
    run.end_init()
    return programs, state


def compile_all(assembly: states.Assembly, *, evaluates: bool) -> Programs:
    """What a run executes, compiled from shapes."""
    benchmark = assembly.benchmark
    finite = jax.jit(lambda state: states.all_finite(benchmark, assembly.saved(state)))
    return Programs(
        train=compile_train(assembly),
        predict=evaluation.compile_predict(assembly) if evaluates else {},
        all_finite=assembly.compile(finite, assembly.abstract),
        generate=generations.compile_generate(assembly) if benchmark.generate else None,
    )


def compile_train(assembly: states.Assembly) -> dict[ShapeKey, jax.stages.Compiled]:
    """Compiled train steps by batch shape."""
    found = {}
    for phase in step.in_phases(assembly):
        jitted = step.jit_train_step(phase)
        for arguments in step.train_arguments(phase):
            if (key := evaluation.shape_key(arguments[1])) not in found:
                found[key] = phase.compile(jitted, *arguments)
    return found


class Loop:
    """The steps of one run, and what happens between them.

    Attributes:
        state: the training state; its buffers are donated to the next step.
        kept: the state that a passed evaluation saw, and its step.
        finite: false once the state is not worth keeping.
        pending: the evaluation beside the steps that is under way.
        next_eval: the step of the next evaluation; None: the end of a generation that is still to be made.
    """

    def __init__(
        self, run: Run, preemption: Preemption, programs: Programs, state: states.State
    ) -> None:
        self.run, self.preemption, self.programs, self.state = run, preemption, programs, state
        self.standing = standing = run.standing
        self.kept: tuple[states.State, int] | None = None
        self.finite = True
        self.pending: evaluation.Pending | None = None
        self._unread: tuple[int, Metrics] | None = None
        self._batches: feed.Feed | None = None
        self.generator = (
            generations.Generator(run, programs.generate) if programs.generate else None
        )
        everywhere = meshes.replicated(run.assembly.mesh)  # keys cannot be put on others' devices
        self.key = jax.jit(lambda: jax.random.key(run.seed), out_shardings=everywhere)()
        done = standing.step - standing.evaluation_due
        self.next_eval: int | None = None
        self.schedule: Iterator[int | None] = itertools.repeat(None)
        if not run.benchmark.evaluates_generations:
            self.schedule = (
                number
                for number in preflight.eval_steps(run.benchmark, run.options)
                if number > done
            )
            self.next_eval = next(self.schedule)
        elif self.generator and self.generator.last_step > done:
            self.next_eval = self.generator.last_step
        self.last_step = preflight.last_step(run.benchmark, run.options)
        self.evaluator = evaluation.Evaluator(
            run.assembly, run.seed, run.data_dir, run.options.threads, compiled=programs.predict
        )

    def go(self) -> None:
        """Blocks of steps, each ended by an evaluation, until it is known how the run ends."""
        if self.standing.saved is None:
            self.run.begin_run()
            self.state = self.run.assembly.with_data(self.state, self.run.data_dir)
        if self.standing.block is None and not self.standing.evaluation_due:
            self.run.log_block_start(self.next_eval)
        ended = None
        while ended is None:
            ended = self._generate() or self._steps(self._until()) or self._boundary()
        self.standing.ended = self._settle() or ended

    def _until(self) -> int:
        """The step at which something other than a step happens next."""
        done, every = self.standing.step, self.run.options.checkpoint_every
        stops = (
            self.next_eval,
            self.last_step and max(self.last_step, done),
            every and (done // every + 1) * every,
            self.generator and self.generator.last_step,
        )
        return min(stop for stop in stops if stop is not None)

    def _steps(self, until: int) -> Ended | None:
        """The hot path: nothing here waits for a step's result, except far behind."""
        run, standing, programs = self.run, self.standing, self.programs.train
        batches = self._batches = self._batches or self._train_batches()
        program = next(iter(programs.values()))
        in_flight: collections.deque[jax.Array] = collections.deque()
        ended, begin = None, time.perf_counter()
        with jax.transfer_guard("disallow"):
            while standing.step < until and ended is None:
                if self.preemption.requested(standing.step):
                    ended = self._interrupt()
                    break
                batch = self._next(batches)
                if len(programs) > 1:
                    program = programs[evaluation.shape_key(batch)]
                run.trace.step(standing.step)
                self.state, metrics = program(self.state, batch, self.key)
                standing.step += 1
                in_flight.append(metrics["loss"])
                if len(in_flight) > IN_FLIGHT:
                    in_flight.popleft().block_until_ready()
                if standing.step % run.options.log_every == 0:
                    ended = self._read_scalars()
                    self._unread = (standing.step, metrics)
                if self.pending and self.pending.ready():
                    ended = self._settle() or ended
        jax.block_until_ready(self.state["step"])
        standing.seconds_training += time.perf_counter() - begin
        return ended

    def _boundary(self) -> Ended | None:
        """An evaluation, the last step, a checkpoint: whichever are due."""
        return (
            self._read_scalars()
            or self._check_finite()
            or self._evaluate()
            or self._check_limit()
            or self._checkpoint()
        )

    # -- data ----------------------------------------------------------------------------------

    def _generate(self) -> Ended | None:
        """The next generation of data that the model makes, when it is due."""
        generator, standing = self.generator, self.standing
        # an evaluation that a resumed run has still to make comes first
        if not generator or standing.step < generator.last_step or self.next_eval == standing.step:
            return None
        self._close_batches()
        ended = generator.run_generation(self.state, self._before_part)
        if self.run.benchmark.evaluates_generations:
            self.next_eval = generator.last_step
        return ended

    def _before_part(self) -> Ended | None:
        """Stops if that is asked for; several processes could not agree on a part, and go on."""
        if jax.process_count() == 1 and self.preemption.requested(self.standing.step):
            return self._interrupt()
        return None

    def _train_batches(self) -> feed.Feed:
        run, start = self.run, self.standing.step
        if self.generator:
            batches, start = run.training(self.generator.data()), start - self.generator.first_step
        else:
            batches = run.train_batches
        stream = batches.stream(start, threads=run.options.threads, workers=run.options.workers)
        return feed.Feed(stream, phases.buckets(run.benchmark), run.assembly.mesh)

    def _next(self, batches: feed.Feed) -> dict[str, jax.Array]:
        try:
            return next(batches)
        except StopIteration:
            raise UserError(
                f"the training data ended after step {self.standing.step}: the batches of data().train() "
                "must go on without end"
            ) from None

    def _close_batches(self) -> None:
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    # -- what is read of the steps -------------------------------------------------------------

    def _read_scalars(self) -> Ended | None:
        """Records the scalars noted `log_every` steps ago, which the device has long finished."""
        if self._unread is None:
            return None
        (number, metrics), self._unread = self._unread, None
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        since = values.pop("bad_since")
        self.run.record(number, values)
        given_up = states.given_up(self.run.benchmark, number, since)
        return self._not_finite(number, since) if given_up else None

    def _check_finite(self) -> Ended | None:
        if jax.device_get(self.programs.all_finite(self.state)):
            return None
        return self._not_finite(self.standing.step, jax.device_get(self.state["bad_since"]).item())

    def _not_finite(self, step: int, since: int) -> Ended:
        """Gives the run up at a step; `since` as the state has it."""
        self.finite = False
        checkpoints, benchmark = self.run.checkpoints, self.run.benchmark
        with jax.transfer_guard("allow"):
            checkpoints.wait()  # what is claimed is on the disk
        steps, times = checkpoints.steps(), benchmark.bad_steps
        if not states.given_up(benchmark, step, since):
            what = f"a weight after step {step} is not finite"
        elif times == 1:
            what = f"the loss of step {since} is not finite"
        else:
            what = f"the losses of {times} steps in a row, from step {since} on, are not finite"
        kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "there is no checkpoint"
        return Ended("aborted", f"{what}: {kept}")

    def _check_limit(self) -> Ended | None:
        if not self._seen_all():
            return None
        return self._settle() or Ended.at_limit()

    def _seen_all(self) -> bool:
        """Whether the last allowed sample has been seen."""
        return self.last_step is not None and self.standing.step >= self.last_step

    # -- evaluation ----------------------------------------------------------------------------

    def _evaluate(self) -> Ended | None:
        """Quality after this step, if it is due: its value, or what computes it beside the next steps."""
        run, standing, mode = self.run, self.standing, self.run.benchmark.metric.mode
        if standing.step != self.next_eval:
            return None
        if ended := self._settle():
            return ended
        if mode == "beside" and standing.saved != standing.step:
            # taken before, as afterwards it would have to wait for the value or forget it
            run.save(self.state, evaluation_due=True)
        run.log_block_stop()
        ended = None
        if mode != "offline":
            run.log_eval_start(standing.step)
        if mode == "inline":
            quality = self.evaluator.quality(self.state, standing.step)
            ended = self._judge(self.state, standing.step, quality)
        elif mode == "beside":
            begin = evaluation.Pending.begin
            self.pending = begin(self.evaluator, self.state, standing.step)
        self.next_eval = next(self.schedule)
        if ended is None and not self._seen_all():
            run.log_block_start(self.next_eval)
        if mode == "offline":
            run.save(self.state, sealed=True)
        return ended

    def _settle(self) -> Ended | None:
        """Takes the value of the evaluation that ran beside the steps, if one did."""
        pending, self.pending = self.pending, None
        if pending is None:
            return None
        with jax.transfer_guard("allow"):
            quality = pending.wait()
        return self._judge(pending.state, pending.step, quality)

    def _judge(self, state: states.State, step: int, quality: evaluation.Quality) -> Ended | None:
        self.run.log_quality(step, quality)
        self.run.say_quality(step, quality)
        if self.run.benchmark.meets_targets(quality):
            self.kept = state, step
            return Ended("success")
        diverged = self.run.benchmark.diverged(quality)
        return Ended("aborted", "the model has diverged") if diverged else None

    # -- checkpoints ---------------------------------------------------------------------------

    def _checkpoint(self) -> Ended | None:
        """A checkpoint of this step, unless there is one; an evaluation under way is waited for."""
        if self.standing.saved == self.standing.step:
            return None
        ended = self._settle()
        if ended is None:
            self.run.save(self.state)
        return ended

    def _interrupt(self) -> Ended:
        """Saves and raises `Interrupted`; returns if the run turns out to have ended."""
        with jax.transfer_guard("allow"):
            if ended := self._read_scalars() or self._check_finite() or self._checkpoint():
                return ended
            self.run.checkpoints.wait()
        number = self.preemption.signal or 15
        raise Interrupted(
            f"stopped by signal {number} after step {self.standing.step}; --resume takes the run up again",
            number,
        )

    def close(self) -> None:
        self._close_batches()
        self.run.trace.close()

"""A comparison: every entry trains with the same seeds and samples; settings are searched before, if asked for.

    output/comparison.json              what is compared; written first, never changed
    output/<entry>/                     a set, with a run of each seed
    output/tuning/<entry>/trial_0/ …    a set of one run for each setting that was tried, with a seed of its own
    output/crashed/<entry>/…            runs that an error ended, each with error.json

What is there is not made again: a comparison that was killed goes on where it stood, its unfinished runs from their
checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax

from mlperf_jax.core import launch, loop, mesh as meshes, offline, preflight
from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.core.comparison import space as spaces
from mlperf_jax.core.comparison.entries import Entry
from mlperf_jax.core.next_run import NextRun
from mlperf_jax.core.options import RunOptions
from mlperf_jax.core.preemption import Preemption
from mlperf_jax.core.run import Run
from mlperf_jax.errors import DataError, Interrupted, UserError
from mlperf_jax.results import durable
from mlperf_jax.results.comparison import reading
from mlperf_jax.results.comparison.folder import Files, Plan, Task
from mlperf_jax.results.comparison.model import Comparison
from mlperf_jax.results.runs import RunSet

Say = Callable[[str], None]


def compare(
    benchmark: Benchmark,
    entries: Sequence[Entry],
    options: RunOptions,
    data_dir: str | Callable[[], str],
    *,
    seeds: Sequence[int],
    tune: int = 0,
    parallel: bool = False,
    say: Say = print,
) -> Comparison:
    """Trains what is missing of a comparison, and returns what was found.

    Args:
        benchmark: what the entries are compared on.
        entries: two or more.
        options: of every run, with `output`; `resume` goes on with a comparison that is there.
        data_dir: as `preflight.preflight` takes it.
        seeds: of the runs of each entry.
        tune: how many settings are tried of each entry before, all with one more seed; 0 for none.
        parallel: a run on each device at a time, instead of one after the other on all.
        say: takes a line about what goes on.

    Raises:
        UserError: something keeps an entry from being trained at all, the folder holds another comparison, or a disk
            is full. What ends a run of one entry alone is a result.
        Interrupted: a signal came; the comparison can be resumed.
    """
    launch.use_compile_cache()
    if not isinstance(data_dir, str):
        data_dir = functools.cache(data_dir)
    plan = planned(benchmark, entries, options, seeds, tune)
    files = Files(pathlib.Path(options.output or f"mlperf_runs/{plan.name}").expanduser())
    files.check(plan, resume=options.resume)
    maker = _Maker(benchmark, {e.label: e for e in entries}, options, data_dir, say)
    devices = meshes.available()
    with _on(devices[0] if parallel else None):
        for note in maker.check(tuned=tune > 0):
            say(note)
    files.begin(plan)
    workers = devices if parallel else [None]
    maker.work(files, files.trials(), workers, after=len(seeds) * len(entries))
    maker.work(files, files.runs(), workers)
    return reading.read(files.root)


def planned(
    benchmark: Benchmark,
    entries: Sequence[Entry],
    options: RunOptions,
    seeds: Sequence[int],
    tune: int,
) -> Plan:
    """What is to be compared, as it is kept.

    Raises:
        UserError: nothing ends a run that misses its target.
    """
    budget = min((n for n in (benchmark.last_sample, options.max_samples) if n), default=None)
    if budget is None:
        raise UserError(
            f"nothing ends a run of {benchmark.name} that misses its target: say how many samples each may see "
            "(--max-samples N)"
        )
    given = {
        entry.label: {
            "optimizer": entry.given if isinstance(entry.given, str) else entry.label,
            **({"levers": str(entry.levers)} if entry.levers else {}),
            "folder": entry.folder,
            "space": spaces.words(entry.space),
            "trials": [
                {"setting": setting, "optimizer": entry.described(setting)}
                for setting in (spaces.trials(entry.space, tune) if tune else [{}])
            ],
        }
        for entry in entries
    }
    own = preflight.resolve_dtype(benchmark).config()
    return Plan(
        benchmark=benchmark.name,
        tiny=benchmark.is_tiny,
        config=durable.plain({**own, "evaluate_every": options.evaluate_every}),
        budget=budget,
        seeds=tuple(seeds),
        tuning_seed=next(n for n in range(len(seeds) + 1) if n not in seeds) if tune else None,
        entries=durable.plain(given),
    )


@dataclass
class _Maker:
    """Makes the runs of a comparison, in one thread or several.

    Attributes:
        plans: what passed preflight, by label and setting and by the device it is for.
    """

    benchmark: Benchmark
    entries: Mapping[str, Entry]
    options: RunOptions
    data_dir: str | Callable[[], str]
    say: Say
    plans: dict[Any, preflight.PlannedRun] = field(default_factory=dict)

    @staticmethod
    def _key(label: str, setting: Mapping[str, float]) -> Any:
        return label, tuple(setting.items()), meshes.available()[0]

    def planned_run(self, label: str, setting: Mapping[str, float]) -> preflight.PlannedRun:
        """What passed preflight, with programs that are compiled once."""
        key = self._key(label, setting)
        if key not in self.plans:
            entry = self.entries[label]
            benchmark, optimizer = entry.of(self.benchmark, setting)
            options = dataclasses.replace(
                self.options,
                optimizer=optimizer,
                transform=entry.levers.transform or self.options.transform,
                division=None if benchmark.is_tiny or not benchmark.ruleset else "open",
                resume=True,
                show="none",
            )
            self.plans[key] = preflight.preflight(benchmark, options, self.data_dir)
        return self.plans[key]

    def check(self, *, tuned: bool) -> list[str]:
        """Notes on what is to be trained, if nothing keeps an entry from it; no folder is made before.

        Raises:
            UserError: an entry cannot be trained; says which.
        """
        notes: dict[str, list[str]] = {}
        for label, entry in self.entries.items():
            first = spaces.trials(entry.space, 1)[0] if tuned else {}
            try:
                plan = self.planned_run(label, first)
            except UserError as error:
                raise UserError(f"{label}: {error}") from error
            for note in plan.notes:
                notes.setdefault(note, []).append(label)
        everyone = [*self.entries]
        return [
            note if labels == everyone else f"{', '.join(labels)}: {note}"
            for note, labels in notes.items()
        ]

    def work(
        self, files: Files, tasks: Sequence[Task], workers: Sequence[Any], after: int = 0
    ) -> None:
        """Does what is not done yet, in the order of the tasks, each worker on its own device.

        Args:
            files: the comparison's.
            tasks: some of its runs.
            workers: a device for each; None is all of them.
            after: how many runs follow these.
        """
        todo = [task for task in tasks if not files.done(task)]
        ready, left = iter(todo), threading.Lock()
        done, total = len(tasks) - len(todo), len(tasks)
        failed = threading.Event()

        def told(task: Task, outcome: str) -> None:
            nonlocal done
            with left:
                done += 1
                self.say(f"{task.name}: {outcome} ({done} of {total})")

        def one_after_another(device: Any, preemption: Preemption) -> None:
            with _on(device):
                while not failed.is_set():
                    with left:
                        task = next(ready, None)
                    if task is None:
                        return
                    try:
                        preemption.check_between(total - done + after)
                        outcome = self.make(files, task, total - done - 1 + after, preemption)
                    except BaseException:
                        failed.set()  # the others end with the runs that they are at
                        raise
                    told(task, outcome)

        if len(workers) == 1:
            with Preemption() as preemption:
                one_after_another(workers[0], preemption)
            return
        with Preemption() as preemption, ThreadPoolExecutor(len(workers)) as pool:
            futures = [pool.submit(one_after_another, each, preemption) for each in workers]
            errors = [error for each in futures if (error := each.exception())]
        if errors:  # a signal that all were told of is the last to be told
            raise min(errors, key=lambda error: isinstance(error, Interrupted))

    def make(self, files: Files, task: Task, left: int, preemption: Preemption) -> str:
        """Trains one run, from its checkpoint if it has one, and says how it ended."""
        root, setting = files.set_of(task), task.setting
        plan = self.planned_run(task.label, setting)
        plan = dataclasses.replace(
            plan, options=dataclasses.replace(plan.options, output=str(root))
        )
        begun = next(
            (run for run in RunSet(root).untrained() if run.seed in (task.seed, None)), None
        )
        trained = files.trained(task)

        def choose(_: RunSet) -> NextRun:
            return NextRun(begun, task.seed, left)

        result = None
        run = None if trained else Run(plan, choose=choose)  # its errors are not the entry's
        try:
            if run is not None:
                result = loop.train(run, preemption)
            if result is None:
                result = offline.score_run(plan, trained or files.trained(task))
        except Exception as error:  # whatever an optimizer of the user's does is a result
            # but for a folder that is gone, and for what comes when the run was asked to stop
            if not (_is_the_entrys(error) and root.exists()) or preemption.signal is not None:
                raise
            return files.crashed(task, error)
        finally:
            if task.trial is not None:  # its programs run no more
                self.plans.pop(self._key(task.label, setting), None)
        assert result is not None, "there is one process"
        return result.line


def _is_the_entrys(error: Exception) -> bool:
    """Whether an error that ended a run says something about its optimizer, and not about disk or data."""
    if isinstance(error, Interrupted | DataError | OSError):
        return False
    return not (isinstance(error, UserError) and isinstance(error.__cause__, OSError))


@contextlib.contextmanager
def _on(device: Any) -> Iterator[None]:
    """Within it one device is all that there is; None changes nothing."""
    if device is None:
        yield
        return
    with meshes.only([device]), jax.default_device(device):
        yield

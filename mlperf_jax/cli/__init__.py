"""The `mlperf-jax` command.

Exit codes: 0 done · 1 the target was not reached, or the checker found something · 2 something the user
can mend, told in one sentence · 128 + n stopped by signal n. Nothing is imported before a command needs
it, so that `--help` and `list` answer at once.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import mlperf_jax
from mlperf_jax.cli import (
    new as new_command,
    options,
    planning as plan_commands,
    results as result_commands,
    show as show_command,
)
from mlperf_jax.cli.options import Option
from mlperf_jax.core.fields import Count, Whole
from mlperf_jax.errors import UserError, did_you_mean

PROG = "mlperf-jax"
METAVARS = {
    "data_dir": "DIR",
    "output": "DIR",
    "mesh": "AXIS=N,...",
    "optimizer": "FILE.py:MAKE",
    "transform": "FILE.py:MAKE",
    "coordinator": "HOST:PORT",
}
OUT_OF_MEMORY = (
    "out of memory: lower --batch-size, compute it in parts with --gradient-accumulation-steps, or "
    "spread the weights over more devices with --mesh fsdp=N"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code.

    Args:
        argv: the words behind `mlperf-jax`; those of the process by default.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return dispatch(words)
    except UserError as error:
        return fail(error)
    except MemoryError:
        return fail(OUT_OF_MEMORY)
    except KeyboardInterrupt:
        fail("interrupted")
        return 130
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except SystemExit as stop:  # after --help
        return stop.code if isinstance(stop.code, int) else 2
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return fail(OUT_OF_MEMORY)
        if "Unable to initialize backend" in str(error):
            return fail(f"JAX found no such device: {str(error).splitlines()[0]}")
        raise


def fail(error: object) -> int:
    """The sentence on stderr, and exit code 2."""
    print(f"{PROG}: {error}", file=sys.stderr, flush=True)
    if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        sys.stdout.flush()
        os._exit(2)  # the runtime's own goodbye would wait for the other processes, then abort
    return 2


def dispatch(words: list[str]) -> int:
    """Runs the command that the first word names."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("--version", "version"):
        print(f"{PROG} {mlperf_jax.__version__}")
        return 0
    command, *rest = words
    if command == "data" and rest and not rest[0].startswith("-"):
        command, rest = f"data {rest[0]}", rest[1:]
    if command == "data":
        if options.wants_help(rest):
            print(overview())
            return 0
        raise UserError(
            "data needs a verb: mlperf-jax data build NAME, or mlperf-jax data check NAME"
        )
    if command not in COMMANDS:
        raise UserError(f"no command {command!r}{did_you_mean(command, list(COMMANDS))}")
    return COMMANDS[command][0](rest)


def overview() -> str:
    """What `mlperf-jax --help` prints."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        [
            "Trains the benchmarks of MLPerf® Training to their quality targets, in JAX.",
            "",
            *lines,
            "",
            f"  {PROG} COMMAND --help shows a command's options; run NAME --help also the benchmark's.",
            f"  First try: {PROG} run resnet --tiny",
        ]
    )


# -- benchmarks by name ------------------------------------------------------------------------


def run_options(only: Sequence[str] = ()) -> list[Option]:
    """The fields of `RunOptions` as options: all of them, or those named."""
    from mlperf_jax.core.options import RunOptions

    return [
        dataclasses.replace(option, metavar=METAVARS.get(option.name, ""))
        for option in options.options_of(RunOptions)
        if not only or option.name in only
    ]


def made(given: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """The benchmark and the `RunOptions` that typed options describe, and what belongs to neither."""
    from mlperf_jax import benchmarks

    given = dict(given)
    name, tiny = given.pop("name"), given.pop("tiny", False)
    mine = {f.name for f in dataclasses.fields(benchmarks.benchmark_class(name))}
    where = {f.name for f in dataclasses.fields(benchmarks.RunOptions)}
    fields = {key: given.pop(key) for key in list(given) if key in mine}
    settings = {key: given.pop(key) for key in list(given) if key in where}
    return benchmarks.get(name, tiny=tiny, **fields), benchmarks.RunOptions(**settings), given


# -- the commands ------------------------------------------------------------------------------


def run_command(words: Sequence[str]) -> int:
    given = options.parse_benchmark("run", COMMANDS["run"][1], words, run_options())
    from mlperf_jax import benchmarks
    from mlperf_jax.core.preemption import Interrupted

    try:
        results = benchmarks.run(**given)
    except Interrupted as stop:
        fail(stop)
        return 128 + stop.signal
    return show(results)


def show(results: Any) -> int:
    """Prints a result, or several; the exit code says whether all of them reached the target."""
    results = results if isinstance(results, list) else [results]
    results = [result for result in results if result is not None]  # process 0 alone has them
    for result in results:
        print(f"{result}\nlog: {result.log}")
    return 0 if all(result.reached for result in results) else 1


def data_build_command(words: Sequence[str]) -> int:
    own = [
        Option("data_dir", help="the folder to build below; tiny has a default", metavar="DIR"),
        Option("source", help="the downloaded original: an archive or a folder", metavar="PATH"),
    ]
    given = options.parse_benchmark(
        "data build", COMMANDS["data build"][1], words, own, fields=False
    )
    benchmark, folder = _benchmark_and_folder(given)
    from mlperf_jax import benchmarks

    benchmarks.build_data(benchmark, folder, given.get("source"))
    counts = ", ".join(f"{n:,} {split}" for split, n in benchmark.data().counts(folder).items())
    print(f"{benchmark.name}: {counts} samples in {folder}")
    return 0


def data_check_command(words: Sequence[str]) -> int:
    own = [Option("data_dir", help="the folder of the data; tiny has a default", metavar="DIR")]
    given = options.parse_benchmark("data check", COMMANDS["data check"][1], words, own)
    benchmark, folder = _benchmark_and_folder(given)
    report = benchmark.data().check(folder)
    for line in report:
        print(line)
    problems = [line for line in report if line.startswith("problem:")]
    if problems:
        more = f" (and {len(problems) - 1} more above)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0].removeprefix('problem: ')}{more}")
    from mlperf_jax.core import preflight

    preflight.check_counts(benchmark, folder)
    benchmark.start(folder)
    print(f"{benchmark.name} can be trained on {folder}")
    return 0


def _benchmark_and_folder(given: dict[str, Any]) -> tuple[Any, str]:
    from mlperf_jax import benchmarks

    benchmark, settings, _ = made(given)
    folder = settings.data_dir
    if folder is None and benchmarks.needs_folder(benchmark):
        raise UserError(f"say where the data of {benchmark.name} belong: --data-dir DIR")
    return benchmark, folder or benchmarks.default_tiny_folder()


def bench_command(words: Sequence[str]) -> int:
    where = ["data_dir", "output", "seed", "mesh", "optimizer", "transform"]
    where += ["threads", "workers", "profile"]
    own = [
        Option("steps", Count, 20, "steps measured"),
        Option("warmup", Whole, 5, "steps before that"),
        Option(
            "input",
            str,
            "synthetic",
            "synthetic: one constant batch; real: the data; input-only: no step",
        ),
        Option(
            "json", help="write the figures as JSON to this file, - for the output", metavar="FILE"
        ),
    ]
    given = options.parse_benchmark(
        "bench", COMMANDS["bench"][1], words, [*own, *run_options(where)]
    )
    from mlperf_jax import benchmarks
    from mlperf_jax.core import bench

    target = result_commands.json_target(given)
    benchmark, settings, rest = made(given)
    reads = rest.get("input", "synthetic") != "synthetic"
    folder = benchmarks.data_folder(benchmark, settings) if reads else None
    report = bench.bench(benchmark, settings, data_dir=folder, **rest)
    if report is None:  # a process other than 0
        return 0
    if target != "-":
        print(report)
    if target:
        result_commands.write_json(target, report.to_dict())
    return 0


def evaluate_command(words: Sequence[str]) -> int:
    path = Option("path", help="the output folder of a trained run", metavar="RUN")
    about = "Scores the sealed checkpoints of a run whose benchmark is evaluated after training."
    bisect = Option(
        "bisect", bool, help="score only what finds one that passes while the one before does not"
    )
    given = options.parse(f"{PROG} evaluate", about, words, [path], {"evaluate": [bisect]})
    from mlperf_jax import benchmarks

    return show(benchmarks.evaluate(**given))


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "list": (result_commands.list_command, "the benchmarks: model, data, target, rounds, status"),
    "new": (new_command.new_command, new_command.ABOUT),
    "run": (run_command, "train a benchmark to its quality target"),
    "data build": (data_build_command, "prepare a benchmark's data"),
    "data check": (data_check_command, "read samples of prepared data and say what is wrong"),
    "check": (result_commands.check_command, "ask the official compliance checker about a log"),
    "bench": (bench_command, "measure a benchmark's speed, without training it"),
    "plan": (plan_commands.plan_command, plan_commands.ABOUT["plan"]),
    "doctor": (plan_commands.doctor_command, plan_commands.ABOUT["doctor"]),
    "show": (show_command.show_command, show_command.ABOUT),
    "evaluate": (
        evaluate_command,
        "score the checkpoints of a run that is evaluated after training",
    ),
    "score": (
        result_commands.score_command,
        "minutes, convergence and RCP verdict of sets of runs",
    ),
    "package": (result_commands.package_command, "build the official submission folder of a set"),
    "report": (
        result_commands.report_command,
        "one self-contained page about runs and submissions",
    ),
}

if __name__ == "__main__":
    sys.exit(main())

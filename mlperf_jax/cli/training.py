"""The commands that train: run, bench, evaluate."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from mlperf_jax.cli import named, options, output
from mlperf_jax.cli.options import Option
from mlperf_jax.core.fields import Count, Path, Positive, Whole


def run(about: str, words: Sequence[str]) -> int:
    """Trains; exit code 1 when a run did not reach its target."""
    given = named.parse("run", about, words, named.run_options())
    from mlperf_jax import benchmarks

    return show(benchmarks.run(**given))


def show(results: Any) -> int:
    """Prints a result, or several; the exit code says whether all of them reached the target."""
    results = results if isinstance(results, list) else [results]
    results = [result for result in results if result is not None]  # process 0 alone has them
    for result in results:
        print(f"{result}\nlog: {result.log}")
    return 0 if all(result.reached for result in results) else 1


def bench(about: str, words: Sequence[str]) -> int:
    """Prints a report of the speed, as a table or as JSON; with `--all` of every benchmark."""
    if "--all" in words:
        return bench_all([word for word in words if word != "--all"])
    from mlperf_jax.core.options import Input

    where = ["data_dir", "output", "seed", "mesh", "optimizer", "transform"]
    where += ["threads", "workers", "profile"]
    reading = "synthetic: one constant batch; real: the data; input-only: no step"
    own = [
        Option("steps", Count, 20, "steps measured"),
        Option("warmup", Whole, 5, "steps before that"),
        Option(
            "seconds", Positive, help="about what a pass of steps may take; slow ones are fewer"
        ),
        Option("input", Input, "synthetic", reading),
        Option("evaluation", bool, True, "measure evaluation too"),
        Option("fit", bool, help="measure the largest scale that a device has room for"),
        Option("memory", Positive, help="GiB of a device that may be used; all by default"),
        Option("compile_only", bool, help="measure nothing: compile, for the compile cache"),
        Option("all", bool, help="every benchmark; bench --all --help says more"),
        output.json_option("the figures"),
    ]
    given = named.parse("bench", about, words, [*own, *named.run_options(where)])
    target = output.json_target(given)
    from mlperf_jax import benchmarks
    from mlperf_jax.core import bench

    benchmark, settings, rest = named.made(given)
    reads = rest.get("input", "synthetic") != "synthetic"
    folder = benchmarks.data_folder(benchmark, settings) if reads else None
    report = bench.bench(benchmark, settings, data_dir=folder, **rest)
    if report is not None:  # process 0 alone has it
        output.say(report, target)
    return 0


def bench_all(words: Sequence[str]) -> int:
    """Prints a table of the speed of every benchmark; exit code 1 when one of ours has no figures."""
    own = [
        named.TINY,
        Option("minutes", Positive, 6.0, "that all may take"),
        Option(
            "twins", Path, help="a Python program that measures the same steps by another library"
        ),
        Option("variants", bool, help="ours in other ways too: flags of XLA, shares of the memory"),
        Option("profile", bool, True, "tell what took most of the time"),
        Option(
            "output", Path, "mlperf_bench", "folder of figures, words and traces", metavar="DIR"
        ),
        Option("steps", Count, 50, "steps measured at most"),
        Option("warmup", Whole, 2, "steps before that"),
        Option("memory", Positive, help="GiB of a device that may be used; all by default"),
        Option("jobs", Count, help="programs compiled at a time beforehand; a third of the cores"),
        output.json_option("the figures"),
    ]
    which = Option(
        "names", tuple[str, ...], (), "of benchmarks, all by default", metavar="NAME ..."
    )
    about = "measure every benchmark's training step at the largest scale that fits, each in its own process"
    given = options.parse("bench --all", about, words, [which], own)
    target = output.json_target(given)
    from mlperf_jax.benchmarks import benching

    telling = sys.stderr if target == "-" else sys.stdout
    suite = benching.bench_all(**given, say=lambda line: print(line, file=telling, flush=True))
    output.say(suite, target)
    return 1 if suite.failed else 0


def evaluate(about: str, words: Sequence[str]) -> int:
    """Scores a trained run; exit code 1 when it did not reach its target."""
    path = Option("path", Path, help="the output folder of a trained run", metavar="RUN")
    bisect = Option(
        "bisect", bool, help="score only what finds one that passes while the one before does not"
    )
    given = options.parse("evaluate", about, words, [path], [bisect])
    from mlperf_jax import benchmarks

    return show(benchmarks.evaluate(**given))

"""The commands that train: run, bench, evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlperf_jax.cli import named, options, output
from mlperf_jax.cli.options import Option
from mlperf_jax.core.fields import Count, Path, Whole


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
    """Prints a report of the speed, as a table or as JSON."""
    from mlperf_jax.core.options import Input

    where = ["data_dir", "output", "seed", "mesh", "optimizer", "transform"]
    where += ["threads", "workers", "profile"]
    reading = "synthetic: one constant batch; real: the data; input-only: no step"
    own = [
        Option("steps", Count, 20, "steps measured"),
        Option("warmup", Whole, 5, "steps before that"),
        Option("input", Input, "synthetic", reading),
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


def evaluate(about: str, words: Sequence[str]) -> int:
    """Scores a trained run; exit code 1 when it did not reach its target."""
    path = Option("path", Path, help="the output folder of a trained run", metavar="RUN")
    bisect = Option(
        "bisect", bool, help="score only what finds one that passes while the one before does not"
    )
    given = options.parse("evaluate", about, words, [path], [bisect])
    from mlperf_jax import benchmarks

    return show(benchmarks.evaluate(**given))

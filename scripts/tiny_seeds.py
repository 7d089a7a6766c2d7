"""The table of docs/tiny_targets.md: does a tiny run reach its target with any seed, and only a trained one?

python scripts/tiny_seeds.py                    # every benchmark: an hour and more on two cores
python scripts/tiny_seeds.py resnet gpt3        # these, added to what is kept of the others
python scripts/tiny_seeds.py --kinds untrained blind -- resnet    # these alone, put into the row that is there
python scripts/tiny_seeds.py --table            # no runs: the table of what is kept

A whole run does not end with its target but with its last allowed sample, so that it shows how far beyond its
target it comes; with `--whole 5` only the first five seeds are whole, which saves a third of the time. What an
untrained model is, and a blind one, is said in the file that is written. Runs are kept in a file, a line each,
and not repeated while the benchmark's tiny configuration is the same.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import json
import multiprocessing
import pathlib
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from mlperf_jax import benchmarks
from mlperf_jax.core import (
    evaluation,
    launch,
    mesh as meshes,
    preflight,
    run as runs,
    state as states,
)
from mlperf_jax.core.benchmark import Benchmark, Target
from mlperf_jax.results.result import config_hash, versions

ROOT = pathlib.Path(__file__).parent.parent
TABLE = ROOT / "docs" / "tiny_targets.md"
KEPT = pathlib.Path(tempfile.gettempdir()) / "tiny_seeds.jsonl"
SEEDS = (*range(18), 20261122, 2**32 - 1)
KINDS = ("whole", "ended", "untrained", "blind")

TEXT = """# Tiny targets

`run(name, tiny=True)` is a test that must pass with any seed, and that nothing but a trained model may pass.
This table, of `python scripts/tiny_seeds.py`, was made on {date} on a CPU
({versions}).
Its seeds are 0 to 17, 20261122 and 4294967295, or the first of them where it counts fewer; the commit is
that of the runs.
{missing}
* *Reached* is how many seeds reached the target, and *samples* how many of the allowed samples the slowest of
  them needed.
* *Whole* is how many of the runs were not ended by their target but went on to the last allowed sample. The
  quality of such a run is that of its best evaluation: their *worst*, *median* and standard deviation *σ*.
  *Margin* is how far the worst lies beyond the target: by so much the target could be harder.
* *Untrained* is the best of the same seeds' weights as a run begins with them; of benchmarks that start from
  given weights, those.
* *Blind* is the best evaluation, over so many seeds, of a model that is trained as ever, but on batches whose arrays
  are shifted against each other by a row: labels are those of other samples. It learns how often each label
  comes, and nothing of what it depends on.

| benchmark | target | reached | samples | whole | worst | median | σ | margin | untrained | blind | commit |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=benchmarks.names(), metavar="BENCHMARK")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--whole", type=int, help="how many of the seeds; default: all")
    parser.add_argument("--blind", type=int, default=2, help="how many; default: %(default)s")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="default: all")
    parser.add_argument("--kept", type=pathlib.Path, default=KEPT, help="default: %(default)s")
    parser.add_argument("--table", action="store_true", help="of what is kept, without runs")
    given = parser.parse_args()
    if not given.table:
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(
            1, mp_context=spawn, max_tasks_per_child=1
        ) as pool:
            for name in given.names:
                pool.submit(measure, name, given).result()
    standing = TABLE.read_text().splitlines() if TABLE.exists() else []
    rows = {
        name: list(table_rows(name, given.kept)) or of_before(name, standing, given.kept)
        for name in benchmarks.names()
    }
    missing = ", ".join(name for name, found in rows.items() if not found)
    text = TEXT.format(
        date=datetime.date.today(),
        versions=", ".join(f"{name} {number}" for name, number in versions().items()),
        missing=f"Not measured yet: {missing}.\n" if missing else "",
    )
    lines = [f"| {' | '.join(row)} |\n" for found in rows.values() for row in found]
    TABLE.write_text(text + "".join(lines))
    print(TABLE.read_text())


# -- runs ------------------------------------------------------------------------------------------


def measure(name: str, given: argparse.Namespace) -> None:
    """Trains a benchmark with each seed, and what must miss its target; adds to the file what is new."""
    benchmark, seeds, kept = benchmarks.get(name, tiny=True), given.seeds, given.kept
    launch.use_compile_cache()
    commit = subprocess.check_output(["git", "describe", "--always"], text=True, cwd=ROOT).strip()
    there = {
        kind: {line["seed"] for line in lines} for kind, lines in mine(benchmark, kept).items()
    }
    whole = len(seeds) if given.whole is None else given.whole
    jobs = [("whole", seed) for seed in seeds[:whole]]
    jobs += [("ended", seed) for seed in seeds[whole:] if seed not in there["whole"]]
    jobs += [("blind", seed) for seed in seeds[: given.blind] if len(benchmark.example()) > 1]
    jobs += [("untrained", seed) for seed in seeds]
    for kind, seed in (j for j in jobs if j[1] not in there[j[0]] and j[0] in given.kinds):
        begin = time.monotonic()
        found = start(benchmark, seed) if kind == "untrained" else trained(benchmark, seed, kind)
        about = {"config": key(benchmark, kind), "kind": kind, "seed": seed, "commit": commit}
        line = {**about, "seconds": round(time.monotonic() - begin, 1), "found": found}
        with kept.open("a") as file:
            file.write(json.dumps(line) + "\n")
        best = [f"{target.name} {best_of(line, target):.4f}" for target in benchmark.targets]
        print(name, kind, seed, *best, needed(line, benchmark), line["seconds"], flush=True)


def key(benchmark: Benchmark, kind: str) -> str:
    """What lines of the same configuration share; of runs that no target ends, whatever the target."""
    config = benchmark.config()
    return config_hash(config if kind == "ended" else {**config, "targets": ()})


def mine(benchmark: Benchmark, kept: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of a benchmark by their kind."""
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    return {
        kind: [
            line for line in lines if (line["kind"], line["config"]) == (kind, key(benchmark, kind))
        ]
        for kind in KINDS
    }


def start(benchmark: Benchmark, seed: int) -> list[Any]:
    """The quality of the weights that a run begins with."""
    benchmark = preflight.resolve_dtype(benchmark)
    folder = benchmarks.data_folder(benchmark, benchmarks.RunOptions())
    assembly = states.assemble(benchmark, meshes.make_mesh("data=1"))
    state = assembly.begun(seed, folder)
    return [(0, evaluation.Evaluator(assembly, seed, folder).quality(state, 1))]


def trained(benchmark: Benchmark, seed: int, kind: str) -> list[Any]:
    """Samples and quality of every evaluation of a run."""
    found: list[Any] = []
    log_quality, cls, never = runs.Run.log_quality, type(benchmark), mock.Mock(return_value=False)

    def overheard(self: runs.Run, step: int, quality: Mapping[str, float], *more: Any) -> None:
        found.append((benchmark.samples(step), dict(quality)))
        log_quality(self, step, quality, *more)

    def blind(self: Benchmark, model: Any, batch: Mapping[str, Any], key: Any, see=cls.loss) -> Any:
        shifted = {
            name: jax.tree.map(lambda rows, by=by: jnp.roll(rows, by, axis=0), batch[name])
            for by, name in enumerate(sorted(batch))
        }
        return see(self, model, shifted, key)

    with (
        tempfile.TemporaryDirectory() as output,
        mock.patch.object(runs.Run, "log_quality", overheard),
        mock.patch.object(cls, "meets_targets", cls.meets_targets if kind == "ended" else never),
        mock.patch.object(cls, "loss", blind if kind == "blind" else cls.loss),
    ):
        options = {"seed": seed, "output": output, "mesh": "data=1", "show": "none"}
        result = benchmarks.run(benchmark, **options)
        if result is None:
            benchmarks.evaluate(output)
    return found


# -- the table -------------------------------------------------------------------------------------


def bound(target: Target) -> tuple[float, int]:
    """The number to reach, and whether more (1) or less (-1) is better."""
    lower = target.at_least if target.above is None else target.above
    return (target.at_most, -1) if lower is None else (lower, 1)


def best_of(line: Mapping[str, Any], target: Target) -> float:
    sign = bound(target)[1]
    return sign * max(sign * quality[target.name] for _, quality in line["found"])


def needed(line: Mapping[str, Any], benchmark: Benchmark) -> int | None:
    """Samples at the first evaluation that meets all targets; None if none does."""
    met = (samples for samples, quality in line["found"] if benchmark.meets_targets(quality))
    return next(met, None)


def table_rows(name: str, kept: pathlib.Path) -> Iterator[list[str]]:
    """A row for each target of a benchmark, of the runs of its present configuration."""
    benchmark = benchmarks.get(name, tiny=True)
    lines = mine(benchmark, kept)
    if not lines["whole"]:
        return
    samples = [needed(line, benchmark) for line in lines["whole"] + lines["ended"]]
    reached = [number for number in samples if number is not None]
    last = lines["whole"][0]["found"][-1][0]
    commits = {line["commit"] for found in lines.values() for line in found}
    for target in benchmark.targets:
        number, sign = bound(target)
        best = {kind: [best_of(line, target) for line in lines[kind]] for kind in lines}
        worst = sign * min(sign * value for value in best["whole"])
        yield [
            name,
            str(target),
            f"{len(reached)} of {len(samples)}",
            f"{max(reached, default=0):,} of {last:,}",
            f"{len(lines['whole'])}",
            f"{worst:.4f}",
            f"{statistics.median(best['whole']):.4f}",
            f"{statistics.pstdev(best['whole']):.4f}",
            f"{sign * (worst - number):.4f}",
            shown(best["untrained"], sign),
            shown(best["blind"], sign),
            ", ".join(sorted(commits)),
        ]


def of_before(name: str, lines: list[str], kept: pathlib.Path) -> list[list[str]]:
    """The rows that the table has of a benchmark already, unless its targets are others by now.

    What was run since of what must miss the target takes its place in them.
    """
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith(f"| {name} |")]
    benchmark = benchmarks.get(name, tiny=True)
    targets = {str(target): target for target in benchmark.targets}
    if {row[1] for row in rows} != set(targets):
        return []
    new = mine(benchmark, kept)
    for row in rows:
        for column, kind in ((9, "untrained"), (10, "blind")):
            if new[kind]:
                target = targets[row[1]]
                row[column] = shown([best_of(line, target) for line in new[kind]], bound(target)[1])
                row[11] = ", ".join(
                    sorted({*row[11].split(", "), *(line["commit"] for line in new[kind])})
                )
    return rows


def shown(values: list[float], sign: int) -> str:
    """The best of some values, and of how many."""
    return f"{sign * max(sign * value for value in values):.4f} ({len(values)})" if values else "-"


if __name__ == "__main__":
    main()

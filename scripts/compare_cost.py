"""Measures what `compare` costs over the same runs made by `run`, by processor time.

All in one process, whose programs are compiled before anything counts. A turn trains every optimizer with every seed:

    a call each     `run` once for each optimizer, with `seeds=` of all its runs.
    a call a run    `run` once for each run.
    compare         `compare` once.

The runs are the same to the last bit, which is checked after each turn.

    python scripts/compare_cost.py --cores 1 [--benchmark resnet] [--seeds 3] [--profile]
"""

from __future__ import annotations

import cProfile
import json
import os
import pathlib
import pstats
import tempfile
from collections.abc import Callable
from typing import Any

import measuring

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from mlperf_jax import benchmarks

OPTIMIZERS = ("recipe", "adamw:3e-3")
EACH, SINGLE, COMPARE = "a call each", "a call a run", "compare"


def sides(name: str, seeds: int, common: dict[str, Any]) -> dict[str, Callable[[str], Any]]:
    """What makes the runs in a folder, by the name of the side."""
    numbers = tuple(range(1, seeds + 1))

    def run(folder: str, number: int, which: tuple[int, ...]) -> None:
        text = OPTIMIZERS[number]
        given: dict[str, Any] = {} if text == "recipe" else {"optimizer": text}
        output = f"{folder}/{number}_{which[0]}"
        benchmarks.run(
            name, **common, **given, seeds=which, runs=len(which), output=output, show="none"
        )

    def each(folder: str) -> None:
        for number in range(len(OPTIMIZERS)):
            run(folder, number, numbers)

    def single(folder: str) -> None:
        for number in range(len(OPTIMIZERS)):
            for seed in numbers:
                run(folder, number, (seed,))

    def compare(folder: str) -> None:
        output = f"{folder}/compared"
        benchmarks.compare(
            name, OPTIMIZERS, **common, seeds=seeds, output=output, say=lambda _: None
        )

    return {EACH: each, SINGLE: single, COMPARE: compare}


def digests(folder: str) -> list[str]:
    """Of the weights of all runs in a folder, sorted."""
    found = pathlib.Path(folder).glob("**/run_*/result.json")
    return sorted(json.loads(path.read_text())["parameters_sha256"] for path in found)


def main() -> None:
    parser = measuring.parser(__doc__, rounds=7, seconds=None)
    parser.add_argument("--benchmark", default="dlrm_dcnv2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluate-every", type=int, default=7)
    parser.add_argument(
        "--max-samples", type=int, help="of a run; default: as the benchmark has it"
    )
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    common = {"tiny": True, "evaluate_every": given.evaluate_every}
    common |= {"max_samples": given.max_samples} if given.max_samples else {}
    makers = sides(given.benchmark, given.seeds, common)
    seen: list[list[str]] = []

    def turn(make: Callable[[str], Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            make(folder)
            seen.append(digests(folder))
        assert len(seen[-1]) == len(OPTIMIZERS) * given.seeds and seen[-1] == seen[0], (
            "not the same runs"
        )

    turns = {name: (lambda make=make: turn(make)) for name, make in makers.items()}
    spent = measuring.in_turns(turns, given.rounds, 0, settle=False)
    print(measuring.header())
    print(
        f"{given.benchmark} (tiny), {len(OPTIMIZERS)} optimizers with {given.seeds} seeds each a turn"
    )
    measuring.report(spent, EACH, "a run", len(seen[0]), long=True)
    times = measuring.spread(measuring.ratios(spent, SINGLE, COMPARE))
    print(f"  {COMPARE}: {times} times as long as {SINGLE}")
    if given.profile:
        with cProfile.Profile() as profiler:
            turns[COMPARE]()
        pstats.Stats(profiler).sort_stats("cumulative").print_stats(60)


if __name__ == "__main__":
    main()

"""Counts how often `compare` tells a better optimizer from another, and how often one that is equal.

    python scripts/compare_planted.py [--sets 20]

The optimizers are those of tests/planted.py, whose better and equal one are so by construction; each set compares them
with seven seeds that no other set has. Told apart means that the interval leaves out a ratio of 1; after Holm, that the
p-value of both together is at most 0.05 too. Six of the seven seeds are counted by themselves: with six no p-value of two
is that small, so there it is the interval alone.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

import conftest  # sets flags before JAX begins
import planted

from mlperf_jax.results.comparison.paired import paired

SEEDS, FEWER = 7, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sets", type=int, default=20)
    sets = parser.parse_args().sets
    told: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder, conftest.programs_kept():
        for number in range(sets):
            seeds = range(SEEDS * number + 1, SEEDS * (number + 1) + 1)
            found = planted.compared(pathlib.Path(folder) / str(number), seeds)
            fewer = dataclasses.replace(found, seeds=found.seeds[:FEWER])
            whole = paired(found)
            for one, six in zip(whole, paired(fewer), strict=True):
                apart, of_six = (each.verdict != "not told apart" for each in (one, six))
                told[f"{one.label}, {FEWER} seeds"] += of_six
                told[f"{one.label}, {SEEDS} seeds"] += apart
                told[f"{one.label}, {SEEDS} seeds, after Holm"] += apart and one.holm <= 0.05
            pairs = found.pairs(*found.entrants[:2])
            told["ties"] += sum(one.samples == other.samples for one, other in pairs)
            words = "; ".join(f"{one.label} {one.words}, p {one.holm:.2g}" for one in whole)
            print(f"seeds {seeds[0]} to {seeds[-1]}: {words}", flush=True)
    print(f"told apart in so many of {sets} sets:")
    for what, count in told.items():
        print(f"  {what}: {count}")


if __name__ == "__main__":
    main()

"""The tables of docs/levers.md: what each lever does to a tiny run, by `compare`.

python scripts/lever_table.py --output lever_runs     # a quarter of an hour on two cores; killed, it goes on where it stood
python scripts/lever_table.py --output lever_runs --table    # no runs: the tables of what is there
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import re
import statistics
from typing import Any

import grain
import numpy as np

from mlperf_jax import benchmarks
from mlperf_jax.core import bench, phases
from mlperf_jax.core.levers import Levers
from mlperf_jax.results.comparison.tables import rows

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "levers.md"


class Shifted(grain.transforms.RandomMap):
    """An image moved by up to two pixels, what leaves one side coming in at the other."""

    def random_map(self, element: Any, rng: np.random.Generator) -> Any:
        by = rng.integers(-2, 3, 2)
        return {**element, "image": np.roll(element["image"], by, (0, 1))}


# benchmark -> fields of all entries, and the entries by label
TRIED: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "resnet": (
        {"bn_span": 32, "evaluate_every": 11},
        {
            "recipe": "",
            "average": "ema_decay=0.9",
            "sharp labels": "label_smoothing=0",
            "sharpness-aware": "sam=0.05",
            "small batches first": "batch_ramp=32:2816",
            "small images first": "size_ramp=16:1408,24:4224",
            "shifted images": f"transform={pathlib.Path(__file__)}:Shifted",
        },
    ),
    "llama31_8b": (
        {"evaluate_every": 10},
        {"recipe": "", "short sequences first": "size_ramp=32:1600"},
    ),
}  # fmt: skip


def compared(name: str, output: pathlib.Path, seeds: int) -> Any:
    """The comparison, made as far as it is missing."""
    settings, levers = TRIED[name]
    entries = {label: ("recipe", Levers.of(text)) for label, text in levers.items()}
    folder = output / name
    return benchmarks.compare(
        name, entries, tiny=True, seeds=seeds, output=folder, resume=folder.exists(), **settings
    )


def passes(benchmark: Any, samples: float) -> float:
    """FLOPs of the gradients that so many samples take, by those of the benchmark's own sample."""
    step = benchmark.step_of(round(samples))
    each = phases.flops(benchmark, step) / benchmark.flops_per_sample
    return samples * each * (2 if benchmark.levers.sam else 1)


def table(name: str, found: Any) -> str:
    """A line for each lever."""
    (comparison,) = found.comparisons
    settings, levers = TRIED[name]
    fields = {k: v for k, v in settings.items() if k != "evaluate_every"}
    plain = benchmarks.get(name, tiny=True, **fields)
    lines, first = [], 0.0
    for row in rows(comparison):
        given = Levers.of(levers[row.entrant.label]).without("transform")
        needed = [one.samples for one in row.entrant.outcomes if one.samples]
        cost = (
            statistics.median(passes(plain.replace(levers=given), n) for n in needed)
            if needed
            else 0.0
        )
        first = first or cost
        text = re.sub(r"=/.*/", "=", levers[row.entrant.label])
        ours = row.paired.get("samples")
        cells = [
            row.entrant.label,
            f"`{text}`" if text else "",
            f"{row.reached} of {row.runs}",
            f"{statistics.median(needed):,.0f}" if needed else "-",
            ours.words if ours else "1",
            f"{ours.holm:.2g}" if ours and ours.pairs else "",
            f"{cost / first:.2f}" if needed else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    head = "| entry | lever | reached | median samples | ratio of samples | p (Holm) | ratio of FLOPs |"
    return "\n".join([head, "|" + " --- |" * 7, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--table", action="store_true", help="no runs: of what is there")
    parser.add_argument("names", nargs="*", default=list(TRIED))
    asked = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    for name in asked.names:
        if asked.table:
            found = benchmarks.compared(asked.output / name)
        else:
            found = compared(name, asked.output, asked.seeds)
        before, begin, rest = page.partition(f"<!-- {name} -->\n")
        kept, end, after = rest.partition(f"<!-- end of {name} -->")
        stamp = f"{asked.seeds} seeds, {datetime.date.today()}, commit {bench.git_commit()}."
        if asked.table:  # the runs are no newer
            stamp = kept.strip().rpartition("\n")[2]
        told = f"{table(name, found)}\n\n{stamp}"
        page = f"{before}{begin}{told}\n{end}{after}"
        PAGE.write_text(page, encoding="utf-8")
        print(told)


if __name__ == "__main__":
    main()

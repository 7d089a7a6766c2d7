"""The comparison of docs/compared.md: six optimizers with six seeds on three tiny benchmarks.

    python scripts/compare_example.py OUT_FOLDER                 # an hour on two busy cores; what is there is not made again
    python scripts/compare_example.py OUT_FOLDER dlrm_dcnv2      # of this benchmark alone, without writing the page
    python scripts/compare_example.py OUT_FOLDER --table         # no runs: tables and pictures of what is there

The tables go between the marks of the page, and pictures into docs/static/compared/.
"""

from __future__ import annotations

import argparse
import datetime
import os
import pathlib
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from mlperf_jax import benchmarks
from mlperf_jax.pictures import plots
from mlperf_jax.results.comparison import figures, reading, tables
from mlperf_jax.results.comparison.model import Comparison
from mlperf_jax.results.comparison.shown import Compared

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "compared.md"
PICTURES = ROOT / "docs" / "static" / "compared"
BEGIN, END = "<!-- written by scripts/compare_example.py -->", "<!-- until here -->"

# by label: the rate, the same on all three; and what `--tune` searches, two decades, of the recipe around its own rate
OPTIMIZERS = {
    "recipe": ("recipe", "recipe"),
    "sgd": ("sgd:0.1", "sgd:1e-2..1"),
    "adamw": ("adamw:3e-3", "adamw:3e-4..3e-2"),
    "muon": ("muon:0.02", "muon:2e-3..2e-1"),
    "lion": ("lion:1e-3", "lion:1e-4..1e-2"),
    "schedule-free": ("schedule_free_adamw:3e-3", "schedule_free_adamw:3e-4..3e-2"),
}
# steps between evaluations, and what a run may see: a fifth more than the recipe's slowest of twenty seeds
BENCHMARKS: dict[str, dict[str, Any]] = {
    "dlrm_dcnv2": {"evaluate_every": 7, "max_samples": 43_008},
    "rgat": {"evaluate_every": 3, "max_samples": 22_272},
    "resnet": {"evaluate_every": 4, "max_samples": 13_568},
}


def train(name: str, folder: pathlib.Path, tune: int) -> None:
    """Trains what the comparison on one benchmark lacks."""
    output = folder / name
    benchmarks.compare(
        name,
        {label: texts[tune > 0] for label, texts in OPTIMIZERS.items()},
        **BENCHMARKS[name],
        tiny=True,
        tune=tune,
        output=str(output),
        resume=(output / "comparison.json").exists(),
        say=lambda line: print(f"{name}: {line}", flush=True),
    )


def table(comparison: Comparison) -> str:
    """What the page shows of one benchmark: no seconds, as cores were shared."""
    left_out = ("median steps", "median seconds", "olympic samples", "olympic minutes")
    heads = tables.heads(comparison)
    kept = [number for number, head in enumerate(heads) if head not in left_out]
    rows = [heads, ["---"] * len(heads), *tables.cells(comparison)]
    lines = [f"| {' | '.join(row[number] for number in kept)} |" for row in rows]
    said = [f"* {line}" for line in tables.notes(comparison) if line != tables.TINY]
    picture = f"![Curves of {comparison.benchmark}](static/compared/{comparison.benchmark}.svg)"
    return "\n".join(
        [
            f"### {comparison.benchmark}",
            "",
            f"{tables.title(comparison)}.",
            "",
            *lines,
            "",
            *said,
            "",
            picture,
        ]
    )


def complete(folder: pathlib.Path) -> list[str]:
    """The benchmarks of which every run is made."""
    there = [name for name in BENCHMARKS if (folder / name / "comparison.json").exists()]
    found = {name: reading.read(folder / name) for name in there}
    return [
        name
        for name, one in found.items()
        if all(len(entrant.outcomes) == len(one.seeds) for entrant in one.entrants)
    ]


def write(folder: pathlib.Path) -> None:
    """The tables of the page, and its pictures, of the benchmarks that are complete."""
    names = complete(folder)
    found = benchmarks.compared(*(folder / name for name in names))
    PICTURES.mkdir(parents=True, exist_ok=True)
    parts = [f"Written on {datetime.date.today()}."]
    if missing := [name for name in BENCHMARKS if name not in names]:
        parts = [f"{parts[0]} Not complete yet, so not shown: {', '.join(missing)}."]
    for one in found.comparisons:
        Compared(one).save(PICTURES / f"{one.benchmark}.svg")
        parts.append(table(one))
    if found.profiles:
        plots.save([figures.profile_panel(found.profiles)], PICTURES / "profiles.svg")
        head, *body = tables.areas(found.profiles)
        lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]
        title = tables.areas_title(found.profiles)
        picture = "![Performance profiles](static/compared/profiles.svg)"
        whole = ["### All together", "", f"{title[0].upper()}{title[1:]}.", "", *lines, "", picture]
        parts.append("\n".join(whole))
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("names", nargs="*", metavar="BENCHMARK", help="default: all, and the page")
    parser.add_argument(
        "--tune", type=int, default=0, help="settings tried of each before; default: none"
    )
    parser.add_argument("--table", action="store_true", help="of what is there, without runs")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in BENCHMARKS]:
        parser.error(f"{unknown[0]} is none of {', '.join(BENCHMARKS)}")
    if not given.table:
        for name in given.names or BENCHMARKS:
            train(name, given.folder, given.tune)
    if not given.names:
        write(given.folder)


if __name__ == "__main__":
    main()

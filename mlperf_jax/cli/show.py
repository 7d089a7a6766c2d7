"""The command that draws pictures: show."""

from __future__ import annotations

from collections.abc import Sequence

from mlperf_jax.cli import options
from mlperf_jax.cli.options import Option

SHOW_OPTIONS = [
    Option(
        "data_dir", help="the data; those of the run, or the tiny ones, by default", metavar="DIR"
    ),
    Option("run", help="a run's folder: its predictions beside the truth", metavar="RUN"),
    Option("step", int, help="of which of its checkpoints; by default the weights it ended with"),
    Option("samples", int, help="how many; each benchmark has its own default"),
    Option("split", str, "eval", "eval; or train: as training sees them, augmented"),
    Option("seed", int, 0, "which samples, and what augmentation does to them"),
    Option("output", help="the picture; NAME-SPLIT.png by default", metavar="FILE.png"),
]

ABOUT = "draw samples with their labels and, of a run, its predictions beside them"


def show_command(words: Sequence[str]) -> int:
    """Writes the picture and prints its path."""
    given = options.parse_benchmark("show", ABOUT, words, SHOW_OPTIONS)
    from mlperf_jax import benchmarks

    name = benchmarks.benchmark_class(given["name"]).name
    given.setdefault("output", f"{name}-{given.get('split', 'eval')}.png")
    benchmarks.show(**given)
    print(given["output"])
    return 0

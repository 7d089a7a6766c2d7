"""The command that draws pictures: show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mlperf_jax.cli import named
from mlperf_jax.cli.options import Option
from mlperf_jax.core.fields import Count, Path, Whole

SHOW_OPTIONS = [
    Option(
        "data_dir", Path, help="the data; by default the run's, or the tiny ones", metavar="DIR"
    ),
    Option("run", Path, help="a run's folder: its predictions beside the truth", metavar="RUN"),
    Option("step", Whole, help="of which of its checkpoints; by default the weights it ended with"),
    Option("samples", Count, help="how many; each benchmark has its own default"),
    Option("split", Literal["train", "eval"], "eval", "train: as training sees them, augmented"),
    Option("seed", Whole, 0, "which samples, and what augmentation does to them"),
    Option("output", Path, help="the picture; NAME-SPLIT.png by default", metavar="FILE.png"),
]


def draw(about: str, words: Sequence[str]) -> int:
    """Writes the picture and prints its path."""
    given = named.parse("show", about, words, SHOW_OPTIONS)
    from mlperf_jax import benchmarks

    name = benchmarks.benchmark_class(given["name"]).name
    given.setdefault("output", f"{name}-{given.get('split', 'eval')}.png")
    benchmarks.show(**given)
    print(given["output"])
    return 0

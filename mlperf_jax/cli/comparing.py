"""The commands that compare optimizers: compare, compared."""

from __future__ import annotations

from collections.abc import Sequence

from mlperf_jax.cli import named, options
from mlperf_jax.cli.options import Option
from mlperf_jax.core.fields import Path, Several, Whole
from mlperf_jax.core.options import Seed

SAVE = Option(
    "save",
    Several[Path],
    help="write it too: files that end in .csv .tex .svg .png .pdf .html",
    metavar="FILE ...",
)


def compare(about: str, words: Sequence[str]) -> int:
    """Trains what is missing of a comparison, and prints what it found."""
    from mlperf_jax.benchmarks import comparing

    own = [
        Option(
            "optimizers",
            Several[str],
            help="recipe, adamw:3e-3, my_file.py:make, or LABEL=one; ranges LOW..HIGH are searched",
            metavar="A B ...",
            required=True,
        ),
        Option(
            "seeds", Several[Seed], (comparing.SEEDS,), "how many, or which: 3,5,8", metavar="N"
        ),
        Option("tune", Whole, 0, "settings of each that are tried before its best is compared"),
        Option("parallel", bool, help="a run on each device at a time"),
        SAVE,
    ]
    given = named.parse("compare", about, words, [*own, *named.run_options(comparing.OPTIONS)])
    from mlperf_jax import benchmarks

    files = given.pop("save", ())
    _check(files)
    if len(seeds := given.get("seeds", ())) == 1:
        given["seeds"] = seeds[0]
    return _show(benchmarks.compare(**given), files)


def compared(about: str, words: Sequence[str]) -> int:
    """Prints comparisons that were made."""
    folders = Option(
        "folders", Several[Path], help="folders that compare wrote into", metavar="DIR"
    )
    given = options.parse("compared", about, words, [folders], [SAVE])
    from mlperf_jax import benchmarks

    files = given.pop("save", ())
    _check(files)
    return _show(benchmarks.compared(*given["folders"]), files)


def _check(files: Sequence[str]) -> None:
    """Nothing, if the files can be written once the work is done."""
    from mlperf_jax.results.comparison import shown

    for file in files:
        shown.check_output(file)


def _show(found, files: Sequence[str]) -> int:
    print(found)
    for file in files:
        found.save(file)
        print(f"written: {file}")
    return 0

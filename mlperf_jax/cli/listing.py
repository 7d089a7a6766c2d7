"""The command that lists the benchmarks: list."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from mlperf_jax.cli import options
from mlperf_jax.cli.options import Option


def table(about: str, words: Sequence[str]) -> int:
    """Prints a table of the benchmarks, or JSON."""
    own = [
        Option("round", help="only the benchmarks of a round, with its targets", metavar="5.1"),
        Option("json", bool, help="as JSON, with every round's numbers"),
    ]
    mine = Option(
        "mine", tuple[str, ...], (), "benchmarks of your own: my_file.py:Wine", "[FILE.py:CLASS...]"
    )
    about = f"{about}; and those of your own that are named"
    given = options.parse("list", about, words, [mine], own)
    from mlperf_jax import benchmarks
    from mlperf_jax.results.listing import HEADER, PLANNED, Listing

    mine = [own_row(benchmarks.get(name)) for name in given["mine"]]
    listing = Listing(benchmarks.names(), given.get("round"), mine)
    if given.get("json"):
        print(json.dumps(listing.rows, indent=2))
    elif sys.stdout.isatty():
        import rich.box
        import rich.console
        import rich.table

        drawn = rich.table.Table(*HEADER, box=rich.box.SIMPLE_HEAD, pad_edge=False)
        for row in listing.cells:
            drawn.add_row(*row, style="dim" if row[-1] == PLANNED else None)
        rich.console.Console(highlight=False).print(drawn)
    else:
        print(listing)
    return 0


def own_row(benchmark: Any) -> dict[str, Any]:
    """The row of a benchmark that no round had: the first line of its file says what it is."""
    from mlperf_jax.results import listing

    text = sys.modules[type(benchmark).__module__].__doc__ or ""
    return listing.own_row(benchmark.name, text.strip().partition("\n")[0], list(benchmark.targets))

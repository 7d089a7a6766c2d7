"""The commands about a benchmark's data: data fetch, data build, data check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlperf_jax.cli import named
from mlperf_jax.cli.options import PROG, Option
from mlperf_jax.core.fields import Count, Path
from mlperf_jax.errors import UserError

FETCH_OPTIONS = [
    Option(
        "data_dir", Path, help="the folder to fetch into; without it all is told of", metavar="DIR"
    ),
    Option("list", bool, help="tell what there is, how large, from where, under which licence"),
    Option("only", tuple[str, ...], help="these parts alone, optional ones too", metavar="PART"),
    Option(
        "accept_licence", bool, help="you have read the licences that are to be accepted, and do"
    ),
    Option("connections", Count, default=4, help="files at a time"),
]


def fetch(about: str, words: Sequence[str]) -> int:
    """Fetches what can be, or tells what there is; an error when something is left that could be fetched."""
    given = named.parse("data fetch", about, words, FETCH_OPTIONS, fields=False)
    name, folder = given["name"], given.get("data_dir")
    if given.get("tiny"):
        raise UserError(f"tiny data are built, not fetched: write {PROG} data build {name} --tiny")
    from mlperf_jax.input_pipelines.downloads import choosing, fetching, manifest, progress

    stated = manifest.load(name)
    only = [key for word in given.get("only", ()) for key in word.split(",") if key]
    accepted = bool(given.get("accept_licence"))
    choice = choosing.choose(stated, folder or "DIR", only, accepted=accepted)
    if folder is None or given.get("list"):
        print(choosing.describe(stated, folder or "DIR"))
        return 0
    connections = given.get("connections", fetching.CONNECTIONS)
    with progress.make() as shown:
        for part in choice.fetched:
            shown.say(
                f"{part.key}: {part.what}; licence: {part.licence.name}, {part.licence.address}"
            )
        for line in choice.told(folder):
            shown.say(line)
        if choice.fetched and choice.unaccepted:
            shown.say(choice.withheld())
        done = fetching.fetch_parts(choice.fetched, folder, shown, connections=connections)
    if choice.fetched or not choice.unaccepted:
        print(
            f"{name}: {done:,} files were fetched to {folder}, and no other is to be fetched; then:"
        )
        for step in choosing.next_steps(stated, choice.fetched, folder):
            print(f"  {step}")
    if choice.unaccepted:
        raise UserError(choice.withheld())
    return 0


def build(about: str, words: Sequence[str]) -> int:
    """Builds the data and prints how many samples there are."""
    own = [
        Option(
            "data_dir", Path, help="the folder to build below; tiny has a default", metavar="DIR"
        ),
        Option(
            "source", Path, help="the downloaded original: an archive or a folder", metavar="PATH"
        ),
    ]
    given = named.parse("data build", about, words, own, fields=False)
    benchmark, _, folder = _asked(given)
    from mlperf_jax import benchmarks

    for made in benchmarks.build_data(benchmark, folder, given.get("source"))[:1]:
        print(f"made what was missing or damaged, {made} first")
    counts = ", ".join(f"{n:,} {split}" for split, n in benchmark.data().counts(folder).items())
    print(f"{benchmark.name}: {counts} samples in {folder}")
    return 0


def check(about: str, words: Sequence[str]) -> int:
    """Prints what is found in the data and what start weights or judges score; an error when something is wrong."""
    own = [
        Option("data_dir", Path, help="the folder of the data; tiny has a default", metavar="DIR"),
        Option(
            "score",
            bool,
            help="evaluate the start weights, or known data by the judges, too: as long as one evaluation",
        ),
        *named.run_options(["mesh"]),
    ]
    given = named.parse("data check", about, words, own)
    benchmark, options, folder = _asked(given)
    report = benchmark.data().check(folder)
    for line in report:
        print(line)
    problems = [line for line in report if line.startswith("problem:")]
    if problems:
        more = f" (and {len(problems) - 1} more above)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0].removeprefix('problem: ')}{more}")
    from mlperf_jax.core import brief, preflight, starts

    preflight.check_counts(benchmark, folder)
    start = benchmark.start(folder)
    starts.table_readers(benchmark, folder)
    judged = given.get("score") and benchmark.check_judges(folder, options.mesh)
    if judged:
        print(judged)
    elif given.get("score"):
        quality = brief.score_start(benchmark, options, folder)
        told = ", ".join(f"{name} {value:.5f}" for name, value in quality.items())
        print(f"the start weights score {told}")
    elif start is not None:
        print("the start weights were not scored: --score does")
    print(f"{benchmark.name} can be trained on {folder}")
    return 0


def _asked(given: dict[str, Any]) -> tuple[Any, Any, str]:
    """The benchmark, the `RunOptions` and the folder of its data."""
    from mlperf_jax import benchmarks

    benchmark, settings, _ = named.made(given)
    folder = settings.data_dir
    benchmarks.check_folder(folder)
    if folder is None and benchmarks.needs_folder(benchmark):
        raise UserError(f"say where the data of {benchmark.name} belong: --data-dir DIR")
    return benchmark, settings, folder or benchmarks.default_tiny_folder()

"""Which folders hold sets of runs: outputs of ours, and `results/` trees of official submissions."""

import dataclasses
import os
import pathlib
import re

from mlperf_jax.results import logset
from mlperf_jax.results.comparison import folder as comparisons
from mlperf_jax.results.compliance import Finding

_LOG = re.compile(r"result_(.+)\.txt")  # a number; some submitters write 01
_RUN = re.compile(r"run_(\d+)")
_SKIPPED = {"checkpoints", "benchmarks", "power", "pruned_results", "__pycache__"}
_OF_COMPARISONS = {comparisons.TUNING, comparisons.CRASHED}  # runs that no set is made of


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder with runs.

    Attributes:
        path: the folder.
        label: what the user calls it: relative to the folder that was given, and its name.
        runs: what its logs and run folders are called after: "0" of result_0.txt and run_0.
    """

    path: pathlib.Path
    label: str
    runs: tuple[str, ...]


def places(directories: list[pathlib.Path]) -> tuple[list[Place], list[Finding]]:
    """All folders with runs below the given ones, in the order of their names, none twice."""
    found, findings, seen = [], [], set()
    for directory in directories:
        if not directory.is_dir():
            problem = "is not a folder" if directory.exists() else "does not exist"
            findings.append(Finding(str(directory), "", f"{problem}; give a folder of runs."))
            continue
        here = [place for place in _below(directory) if place.path.resolve() not in seen]
        if not here and not any(p.resolve() == directory.resolve() for p in seen):
            text = "has no runs below it: no result_0.txt and no run_0 were found."
            findings.append(Finding(str(directory), "", text))
        seen |= {place.path.resolve() for place in here}
        found += here
    return found, findings


def _below(root: pathlib.Path) -> list[Place]:
    found = []
    for folder, folders, files in os.walk(root):
        # what is no file under such a name is a log that is spoilt
        names = {match[1] for name in (*files, *folders) if (match := _LOG.fullmatch(name))}
        names |= {match[1] for name in folders if (match := _RUN.fullmatch(name))}
        skipped = _SKIPPED | (_OF_COMPARISONS if comparisons.NAME in files else frozenset())
        folders[:] = sorted(
            name
            for name in folders
            if name not in skipped
            and not name.startswith(".")
            and not _RUN.fullmatch(name)
            and not _LOG.fullmatch(name)
        )
        if names:
            path = pathlib.Path(folder)
            label = (pathlib.PurePath(root.resolve().name) / path.relative_to(root)).as_posix()
            found.append(Place(path, label, tuple(sorted(names, key=logset.in_order))))
    return found

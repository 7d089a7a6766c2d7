"""One page about runs: a table to filter, curves, scaling, spread, and what is wrong with them.

The page is one file that needs no network and runs under a strict content security policy. What the
logs say reaches it as data only: it is embedded as escaped JSON and shown as text, never as markup.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable

from mlperf_jax.errors import UserError
from mlperf_jax.paths import check_path, check_writable
from mlperf_jax.results.comparison import reading
from mlperf_jax.results.comparison.model import Comparison
from mlperf_jax.results.compliance import Finding
from mlperf_jax.results.durable import cannot_write
from mlperf_jax.results.report import notebook, page
from mlperf_jax.results.report.folders import places
from mlperf_jax.results.report.model import SetData
from mlperf_jax.results.report.sets import read_set
from mlperf_jax.results.score import Scaling

__all__ = ["Finding", "Report", "SetData", "collect", "report"]


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """What a report is about; shows itself in a notebook, and is written by `save`.

    Attributes:
        sets: the sets of runs that were found, in the order of their folders.
        findings: what is wrong with them and with the folders.
        path: the page, or None before `save`.
        comparisons: of optimizers, with tables, curves and intervals of their own.
    """

    sets: tuple[SetData, ...]
    findings: tuple[Finding, ...]
    path: pathlib.Path | None = None
    comparisons: tuple[Comparison, ...] = ()

    def html(self) -> str:
        """The page."""
        return page.render(self.sets, self.findings, self.comparisons)

    def save(self, output: os.PathLike | str = "report.html") -> "Report":
        """Writes the page and returns the report with its path.

        Raises:
            UserError: the file cannot be written, or another would be lost.
        """
        path = pathlib.Path(output)
        check_writable(path)
        try:
            path.write_text(self.html(), encoding="utf-8", newline="\n")
        except OSError as error:
            raise cannot_write(path, error) from error
        return dataclasses.replace(self, path=path)

    def __repr__(self) -> str:
        return notebook.text(self.sets, self.findings, self.path, self.comparisons)

    def _repr_html_(self) -> str:
        return notebook.html_table(self.sets, self.findings, self.comparisons)


def collect(
    dirs: os.PathLike | str | Iterable[os.PathLike | str],
    *,
    ruleset: str | None = None,
    scaling: Scaling = "auto",
    comparisons: Iterable[Comparison] | None = None,
) -> Report:
    """Reads what `report` shows, without writing a page.

    Args:
        dirs: one folder or several; each an output folder of runs, an official submission, or a
            folder with any of these below it.
        ruleset: the round of logs that do not say it; by default the one that the folder's name says
            (`training_results_v5.1`), else the last that ran the benchmark.
        scaling: what the minutes are multiplied by, as in `score.score`.
        comparisons: of optimizers, shown beside the sets; by default those found at the folders or right below.

    Raises:
        UserError: no folder is given, or none of them has runs.
    """
    if isinstance(dirs, str | os.PathLike):
        dirs = [dirs]
    paths = [check_path(directory, "the folder") for directory in dirs]
    if not paths:
        raise UserError("no folder is given to report on; give the output folder of a run")
    found, findings = places(paths)
    if not found:
        raise UserError(f"there is nothing to report on: {str(findings[0]).rstrip('.')}")
    sets = tuple(read_set(place, ruleset, scaling) for place in found)
    every = (*findings, *(finding for data in sets for finding in data.findings))
    compared = reading.find(paths) if comparisons is None else comparisons
    return Report(sets, every, comparisons=tuple(one for one in compared if one.entrants))


def report(
    dirs: os.PathLike | str | Iterable[os.PathLike | str],
    output: os.PathLike | str = "report.html",
    *,
    ruleset: str | None = None,
    scaling: Scaling = "auto",
    comparisons: Iterable[Comparison] | None = None,
) -> Report:
    """Writes one self-contained page about the runs below some folders.

    Args:
        dirs: as in `collect`.
        output: the page to write.
        ruleset, scaling, comparisons: as in `collect`.

    Returns:
        The report: its sets, its findings, and the page's path.

    Raises:
        UserError: no folder has runs, or the page cannot be written.
    """
    check_writable(output)  # before the work
    return collect(dirs, ruleset=ruleset, scaling=scaling, comparisons=comparisons).save(output)

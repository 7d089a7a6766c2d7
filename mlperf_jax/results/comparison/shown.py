"""Comparisons as a terminal and a notebook show them, and as files."""

from __future__ import annotations

import dataclasses
import html
import os
import pathlib

from mlperf_jax.errors import UserError, printable
from mlperf_jax.paths import MARK, check_path, check_writable, write
from mlperf_jax.pictures import curves, plots
from mlperf_jax.results.comparison import figures, tables
from mlperf_jax.results.comparison.model import Comparison
from mlperf_jax.results.comparison.paired import CONFIDENCE, Measure, Paired, paired, seeds_needed
from mlperf_jax.results.comparison.profiles import Profiles, profiles
from mlperf_jax.results.result import LEGEND, SMALL_PRINT, UNVERIFIED, rows_table
from mlperf_jax.results.score_view import columns

TEXTS = (".csv", ".tex", ".html")


def check_output(path: str | os.PathLike) -> str:
    """The ending of a file that comparisons can be saved as.

    Raises:
        UserError: another ending, the file cannot be written or another would be lost, or what it needs is not
            installed.
    """
    file = check_path(path, "the file")
    suffix = file.suffix.lower()
    if suffix in plots.SUFFIXES:
        return plots.check_output(file)
    if suffix not in TEXTS:
        raise UserError(f"{path} must end in {', '.join((*TEXTS, *plots.SUFFIXES))}")
    check_writable(file)
    if suffix == ".csv":
        check_writable(_runs_beside(file))
    return suffix


def _runs_beside(path: pathlib.Path) -> pathlib.Path:
    """Where the runs of a table of entries stand."""
    return path.with_name(f"{path.stem}_runs{path.suffix}")


class Compared:
    """Optimizers compared on one benchmark or on several; of several there are profiles too.

    Args:
        *comparisons: each of another benchmark.
        confidence: of the intervals of the ratios.
        whole: curves with the range of all runs around them; by default the one between the quartiles.

    Raises:
        UserError: there is no comparison, one has no entry or two of one label, two are of one benchmark, or a
            confidence that is none.
    """

    def __init__(
        self, *comparisons: Comparison, confidence: float = CONFIDENCE, whole: bool = False
    ) -> None:
        seeds_needed(confidence)  # refuses what is none
        for one in comparisons:
            if not one.entrants:
                raise UserError(f"the comparison on {one.title} has no optimizer")
            labels = [entrant.label for entrant in one.entrants]
            if again := next((label for label in labels if labels.count(label) > 1), None):
                raise UserError(
                    f"{again} stands {labels.count(again)} times on {one.title}: give each optimizer its own label"
                )
        titles = [one.title for one in comparisons]
        twice = next((title for title in titles if titles.count(title) > 1), None)
        if twice or not titles:
            given = f"{twice} is compared twice" if twice else "no comparison is given"
            raise UserError(f"{given}: give one of each benchmark")
        self.comparisons = comparisons
        self.confidence = confidence
        self.whole = whole
        self.profiles: Profiles | None = None
        self.profiles_fault = ""  # why there are none
        if len(comparisons) > 1:
            try:
                self.profiles = profiles(comparisons)
            except UserError as error:
                self.profiles_fault = f"no performance profiles: {error}"

    def paired(self, measure: Measure = "samples") -> dict[str, tuple[Paired, ...]]:
        """What each further entry needs of what the first needs, by benchmark."""
        return {one.title: paired(one, measure, self.confidence) for one in self.comparisons}

    def __repr__(self) -> str:
        counts = [f"{len(one.entrants)} optimizers on {one.title}" for one in self.comparisons]
        return printable(f"<Compared {', '.join(counts)} (unverified)>")

    def __str__(self) -> str:
        parts = [tables.text(one, self.confidence) for one in self.comparisons]
        if self.profiles:
            lines = columns(tables.areas(self.profiles))
            parts.append("\n".join([tables.areas_title(self.profiles), *lines]))
        if self.profiles_fault:
            parts.append(printable(self.profiles_fault))
        return "\n\n".join([*parts, f"{UNVERIFIED}\n{LEGEND}"])

    def _repr_html_(self) -> str:
        parts = []
        for one in self.comparisons:
            parts.append(tables.page(one, self.confidence))
            if figures.names(one):
                caption = figures.caption([one], whole=self.whole)
                parts.append(curves.svg(figures.panels(one, whole=self.whole), note=caption))
        if self.profiles:
            head, *body = tables.areas(self.profiles)
            parts.append(rows_table(tables.areas_title(self.profiles), head, body))
            parts.append(curves.svg([figures.profile_panel(self.profiles)], width=420))
        if self.profiles_fault:
            parts.append(f"<p>{html.escape(self.profiles_fault)}</p>")
        return "".join(parts) + SMALL_PRINT

    def panels(self) -> list[curves.Panel]:
        """The curves of all benchmarks, and the profiles."""
        several = len(self.comparisons) > 1
        found = []
        for one in self.comparisons:
            for panel in figures.panels(one, whole=self.whole):
                where = f"{one.title}: {panel.title}" if several else panel.title
                found.append(dataclasses.replace(panel, title=where))
        return found + ([figures.profile_panel(self.profiles)] if self.profiles else [])

    def to_csv(self, *, runs: bool = False) -> str:
        """Raw numbers, a line per entry, or per run; the last column says what they are not."""
        if runs:
            return tables.csv_runs(self.comparisons)
        return tables.csv_entries(self.comparisons, self.confidence)

    def to_latex(self) -> str:
        """A table per benchmark, for booktabs."""
        return "\n".join(tables.latex(one, self.confidence) for one in self.comparisons)

    def to_html(self) -> str:
        """A page of its own with the tables and curves, without script."""
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="generator" content="{MARK}">'
            '<meta name="color-scheme" content="light dark"><title>Comparison of optimizers (unverified)</title>'
            "<style>body{font:14px system-ui,sans-serif;margin:24px;max-width:1100px}td,th{padding:4px 12px 4px 0}"
            "table{margin-top:28px}caption{text-align:left}</style></head>"
            f"<body>{self._repr_html_()}</body></html>\n"
        )

    def save(self, path: str | os.PathLike) -> None:
        """Writes a file, as its ending says.

        A table as .csv (and beside it `…_runs.csv`, a line per run) or .tex, the curves as .png, .pdf or .svg,
        both as .html.

        Raises:
            UserError: another ending, the file cannot be written or another would be lost, or what it needs is not
                installed.
        """
        suffix = check_output(path)
        path = check_path(path, "the file")
        if suffix in plots.SUFFIXES:
            if not (panels := self.panels()):
                raise UserError(f"{path} would be empty: no run logged a loss or a quality yet")
            plots.save(panels, path, columns=self._columns(), note=self._note())
            return
        texts = {".csv": self.to_csv, ".tex": self.to_latex, ".html": self.to_html}
        write(path, texts[suffix]().encode("utf-8", "replace"))
        if suffix == ".csv":
            write(_runs_beside(path), self.to_csv(runs=True).encode("utf-8", "replace"))

    def _columns(self) -> int:
        """So many panels that each benchmark has a row."""
        return max(1, *(len(figures.names(one)) for one in self.comparisons))

    def _note(self) -> str:
        tiny = f". {tables.TINY}" if any(one.tiny for one in self.comparisons) else ""
        return f"{figures.caption(self.comparisons, whole=self.whole)}{tiny}. {UNVERIFIED}"

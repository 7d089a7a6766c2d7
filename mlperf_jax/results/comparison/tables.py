"""A comparison as a table: for terminals, for HTML, as CSV and as LaTeX.

Each entry has a line: how many runs reached the target, the medians of what that took, the rules' olympic mean, the
ratio to the first entry with its interval and p-value, what tuning cost, and all samples that were seen for it. In
a median a failed run counts as later than all others; tuning has a column as soon as any entry was tuned.

CSV has no comments: what files of ours are told by, `paths.MARK`, is the name of the last column, whose cells hold
what has to be known of the numbers. So any reader of CSV takes the file as it is.
"""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mlperf_jax.errors import printable
from mlperf_jax.paths import MARK
from mlperf_jax.results.comparison.model import Comparison, Entrant
from mlperf_jax.results.comparison.paired import (
    CONFIDENCE,
    Measure,
    Paired,
    left_out,
    olympic,
    paired,
)
from mlperf_jax.results.comparison.profiles import Profiles, median
from mlperf_jax.results.result import LEGEND, UNVERIFIED, rows_table
from mlperf_jax.results.score_view import columns

TINY = "A tiny stand-in with other data: no MLPerf result, and not to be compared with one"
MEASURES: tuple[Measure, ...] = ("samples", "steps", "seconds")


@dataclass(frozen=True)
class Row:
    """What is told of an entry.

    Attributes:
        entrant: the entry.
        reached, runs: how many of its runs reached the target, of how many that were made.
        medians: of samples, steps and seconds to the target; infinite where more than half failed.
        olympic_samples, olympic_minutes: the rules' mean; None where too many failed.
        paired: against the first entry, by measure; {} of the first.
        total: samples seen by all its runs and by tuning.
    """

    entrant: Entrant
    reached: int
    runs: int
    medians: dict[Measure, float]
    olympic_samples: float | None
    olympic_minutes: float | None
    paired: dict[Measure, Paired]
    total: int

    @property
    def tuning(self) -> int:
        """Samples that tuning saw."""
        return self.entrant.tuning.samples if self.entrant.tuning else 0


def rows(comparison: Comparison, confidence: float = CONFIDENCE) -> list[Row]:
    """A row of each entry, in their order."""
    against: dict[Measure, tuple[Paired, ...]] = {
        measure: paired(comparison, measure, confidence) for measure in MEASURES
    }
    found = []
    for number, entrant in enumerate(comparison.entrants):
        seconds = olympic(comparison, entrant, "seconds")
        tuned = entrant.tuning.samples if entrant.tuning else 0
        ours: dict[Measure, Paired] = {}
        ours |= {measure: ones[number - 1] for measure, ones in against.items()} if number else {}
        found.append(
            Row(
                entrant,
                sum(one.ending == "reached" for one in entrant.outcomes),
                len(entrant.outcomes),
                {measure: median(entrant.outcomes, measure) for measure in MEASURES},
                olympic(comparison, entrant),
                None if seconds is None else seconds / 60,
                ours,
                tuned + sum(one.seen for one in entrant.outcomes),
            )
        )
    return found


def is_tuned(comparison: Comparison) -> bool:
    """Whether the settings of any entry were searched for."""
    return any(one.tuning for one in comparison.entrants)


# -- as texts --------------------------------------------------------------------------------------


def heads(comparison: Comparison) -> list[str]:
    """The names of the columns."""
    means = ["mean samples", "mean minutes"]
    if left_out(comparison.benchmark):
        means = ["olympic samples", "olympic minutes"]
    several = len(comparison.entrants) > 2
    return [
        "optimizer",
        "reached",
        *(f"median {measure}" for measure in MEASURES),
        *means,
        f"ratio to {comparison.entrants[0].label}",
        "p (Holm)" if several else "p",
        *(["tuning samples"] if is_tuned(comparison) else []),
        "total samples",
    ]


def cells(comparison: Comparison, confidence: float = CONFIDENCE) -> list[list[str]]:
    """The texts of a table, a list of each entry."""
    tuned, found = is_tuned(comparison), []
    for row in rows(comparison, confidence):
        ours, open_ = row.paired.get("samples"), len(comparison.seeds) - row.runs
        found.append(
            [
                row.entrant.label,
                f"{row.reached} of {row.runs}" + (f", {open_} to come" if open_ else ""),
                *(amount(row.medians[measure]) if row.runs else "-" for measure in MEASURES),
                amount(row.olympic_samples),
                amount(row.olympic_minutes),
                ours.words if ours else "1",
                f"{ours.holm:.2g}" if ours and ours.pairs else "-",
                *([amount(row.tuning) if row.entrant.tuning else "not tuned"] if tuned else []),
                amount(row.total),
            ]
        )
    return found


def amount(value: float | None) -> str:
    """A number for people: "-" for none, "not reached" for an infinite one.

    >>> amount(12345.6), amount(0.123456), amount(None), amount(math.inf)
    ('12,346', '0.12346', '-', 'not reached')
    """
    if value is None:
        return "-"
    if value == math.inf:
        return "not reached"
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.5g}"


def title(comparison: Comparison) -> str:
    """What was compared, in a line."""
    targets = " and ".join(target.words for target in comparison.targets)
    count = len(comparison.seeds)
    device = f", {comparison.device}" if comparison.device else ""
    return printable(
        f"{comparison.title}: samples to {targets}, {count} seed{'s' * (count != 1)}, at most "
        f"{comparison.budget:,} samples a run{device}"
    )


def notes(comparison: Comparison, confidence: float = CONFIDENCE) -> list[str]:
    """What must be known to read the table, a sentence each."""
    found = [one.sentence for one in paired(comparison, "samples", confidence)]
    if len(found) > 1:
        found.append(f"each interval is for itself; p (Holm) is for all {len(found)} together")
    failed = [
        f"{one.label}, seed {run.seed}: {run.ending}{f', {run.reason}' if run.reason else ''}"
        for one in comparison.entrants
        for run in one.outcomes
        if run.ending in ("stopped", "crashed")
    ]
    for one in comparison.entrants:
        if one.tuning:
            chosen = ", ".join(f"{key} {value:.5g}" for key, value in one.tuning.chosen.items())
            found.append(
                f"{one.label} was tuned in {one.tuning.trials} trials over {one.tuning.space}: {chosen}"
            )
    untuned = [one.label for one in comparison.entrants if not one.tuning]
    if is_tuned(comparison) and untuned:
        found.append(f"not tuned, so compared as it was given: {', '.join(untuned)}")
    found += failed
    if comparison.tiny:
        found.append(TINY)
    return [printable(line) for line in found]


def limits(comparison: Comparison) -> str:
    """What a number of the comparison is not, in few words."""
    return f"{TINY}. {UNVERIFIED}" if comparison.tiny else UNVERIFIED


def text(comparison: Comparison, confidence: float = CONFIDENCE) -> str:
    """The table for a terminal, without the legend that goes below all of them."""
    body = columns([heads(comparison), *cells(comparison, confidence)])
    return "\n".join([title(comparison), *body, *notes(comparison, confidence)])


def page(comparison: Comparison, confidence: float = CONFIDENCE) -> str:
    """The table as HTML, escaped, without the small print."""
    table = rows_table(title(comparison), heads(comparison), cells(comparison, confidence))
    items = "".join(f"<li>{html.escape(line)}</li>" for line in notes(comparison, confidence))
    return f"{table}<ul>{items}</ul>"


def areas(found: Profiles) -> list[list[str]]:
    """Texts of a table of profiles, the names of the columns first."""
    log, linear, reached = found.areas(), found.areas("linear"), found.shares([math.inf])[:, 0]
    best = found.shares([1])[:, 0]
    head = ["optimizer", "best on", "reached", "area, log scale", "AlgoPerf score"]
    body = [
        [label, f"{best[i]:.0%}", f"{reached[i]:.0%}", f"{log[label]:.4f}", f"{linear[label]:.4f}"]
        for i, label in enumerate(found.labels)
    ]
    return [head, *body]


def areas_title(found: Profiles) -> str:
    """What the profiles are of, in a line."""
    return (
        f"performance profiles over {len(found.problems)} problems, area up to {found.tau_max:g} times "
        "the best; it ranks these entries alone"
    )


# -- CSV -------------------------------------------------------------------------------------------


def csv_entries(comparisons: Sequence[Comparison], confidence: float = CONFIDENCE) -> str:
    """A line per entry, numbers as they are; empty where there is none, inf where a median is not reached."""
    head = ["benchmark", "tiny", "optimizer", "definition", "reached", "runs", "seeds", "budget"]
    head += [f"median_{measure}" for measure in MEASURES]
    head += ["olympic_samples", "olympic_minutes"]
    told = ("ratio", "low", "high", "confidence", "p", "holm")
    head += [f"{measure}_{name}" for measure in MEASURES for name in told]
    head += ["verdict", "tuning_trials", "tuning_samples", "total_samples", "device", MARK]
    body = []
    for comparison in comparisons:
        for row in rows(comparison, confidence):
            one, against = row.entrant, row.paired
            body.append(
                [comparison.benchmark, comparison.tiny, one.label, one.optimizer, row.reached, row.runs]
                + [len(comparison.seeds), comparison.budget]
                + [row.medians[measure] for measure in MEASURES]
                + [row.olympic_samples, row.olympic_minutes]
                + [
                    getattr(against[measure], name) if against else None
                    for measure in MEASURES
                    for name in told
                ]
                + [against["samples"].verdict if against else None]
                + [one.tuning.trials if one.tuning else 0, row.tuning, row.total]
                + [comparison.device, limits(comparison)]
            )  # fmt: skip
    return _csv(head, body)


def csv_runs(comparisons: Sequence[Comparison]) -> str:
    """A line per run, numbers as they are; what a run did not reach is empty."""
    told = ("seed", "ending", "reason", "samples", "steps", "seconds", "seen")
    body = [
        [comparison.benchmark, comparison.tiny, one.label]
        + [getattr(run, name) for name in told]
        + [comparison.budget, limits(comparison)]
        for comparison in comparisons
        for one in comparison.entrants
        for run in one.outcomes
    ]
    return _csv(["benchmark", "tiny", "optimizer", *told, "budget", MARK], body)


def _csv(head: Sequence[str], body: Sequence[Sequence[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([head, *body])
    return file.getvalue()


# -- LaTeX -----------------------------------------------------------------------------------------

_TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"{\char34}",
    # what a row may not begin with: both are options of the line break before it
    "[": "{[}", "]": "{]}", "*": "{*}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}  # fmt: skip


def escaped(text: str) -> str:
    r"""A text as LaTeX prints it, whatever it holds.

    >>> print(escaped("adam_w & 50% [b]"))
    adam\_w \& 50\% {[}b{]}
    """
    return "".join(_TEX.get(letter, letter) for letter in printable(text))


def latex(comparison: Comparison, confidence: float = CONFIDENCE) -> str:
    r"""A table for `\usepackage{booktabs}`, all texts escaped; what has to be known stands below it."""
    head = heads(comparison)
    lines = [
        f"% {MARK}; needs \\usepackage{{booktabs}}",
        r"\begin{table}",
        r"\centering",
        f"\\caption{{{escaped(title(comparison))}.}}",
        f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        *(_tex_row(head), r"\midrule"),
        *map(_tex_row, cells(comparison, confidence)),
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip\footnotesize",
        *(f"{escaped(line)}. " for line in notes(comparison, confidence)),
        escaped(f"{UNVERIFIED} {LEGEND}"),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _tex_row(texts: Sequence[str]) -> str:
    return " & ".join(map(escaped, texts)) + r" \\"

"""Sets as a small table: for a notebook, for readers without script, and as text."""

import html
import os
from collections.abc import Sequence

from mlperf_jax.errors import printable
from mlperf_jax.results.comparison import tables
from mlperf_jax.results.comparison.model import Comparison
from mlperf_jax.results.compliance import Finding
from mlperf_jax.results.optimizer_labels import labels
from mlperf_jax.results.report.model import SetData
from mlperf_jax.results.result import LEGEND, SMALL_PRINT, UNVERIFIED

_COLUMNS = ("benchmark", "system", "chips", "batch", "runs", "minutes (unverified)", "status")
_FINDINGS = 20  # that a notebook lists; the page has them all


def table(sets: Sequence[SetData]) -> str:
    """The sets as an HTML table without style or script."""
    return _plain(_COLUMNS, _rows(sets))


def plain_comparisons(comparisons: Sequence[Comparison]) -> str:
    """The tables of comparisons likewise."""
    return "".join(
        f"<p>{html.escape(tables.title(one))}</p>{_plain(tables.heads(one), tables.cells(one))}"
        for one in comparisons
    )


def _plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def html_table(
    sets: Sequence[SetData], findings: Sequence[Finding], comparisons: Sequence[Comparison] = ()
) -> str:
    """The comparisons, the sets and what is wrong with them, with the notices that go with any score."""
    items = "".join(f"<li>{html.escape(str(finding))}</li>" for finding in findings[:_FINDINGS])
    more = len(findings) - _FINDINGS
    items += f"<li>and {more} more</li>" if more > 0 else ""
    listed = f"<details><summary>{len(findings)} findings</summary><ul>{items}</ul></details>"
    above = "".join(map(tables.page, comparisons))
    return f"{above}{table(sets)}{listed if findings else ''}{SMALL_PRINT}"


def text(
    sets: Sequence[SetData],
    findings: Sequence[Finding],
    path: os.PathLike | None,
    comparisons: Sequence[Comparison] = (),
) -> str:
    """A few lines for a terminal."""
    runs = sum(len(data.runs) for data in sets)
    scored = sum(data.verdict.minutes is not None for data in sets)
    where = printable(f", written to {path}") if path else ""
    lines = [f"<Report: {len(sets)} sets with {runs} runs, {scored} scored (unverified){where}>"]
    lines += [f"  comparison of {tables.title(one)}" for one in comparisons]
    lines += [printable("  " + "  ".join(row)) for row in _rows(sets)[:_FINDINGS]]
    lines += [f"  {len(findings)} findings"] if findings else []
    return "\n".join([*lines, UNVERIFIED, LEGEND])


def _rows(sets: Sequence[SetData]) -> list[list[str]]:
    named = labels([data.optimizer for data in sets])
    return [_cells(data, label) for data, label in zip(sets, named, strict=True)]


def _cells(data: SetData, optimizer: str) -> list[str]:
    verdict = data.verdict
    division = data.division or "division unknown"
    release = f" v{data.round}" if data.round else ""
    used = sum(run.status == "success" for run in data.runs)
    minutes = "–" if verdict.minutes is None else f"{verdict.minutes:.4g} (unverified)"
    return [
        f"{data.label}{release} {division}" + (f", {optimizer}" if optimizer else ""),
        f"{data.system}, {data.org}" if data.org not in ("", "none") else data.system,
        "–" if data.chips is None else str(data.chips),
        "–" if data.batch is None else f"{data.batch:,}",
        f"{used} of {verdict.needed}" if verdict.needed else str(used),
        minutes,
        verdict.status,
    ]

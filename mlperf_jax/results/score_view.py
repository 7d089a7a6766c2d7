"""Scores as text for a terminal and as HTML for a notebook.

Every score carries the word "unverified", and every page the sentence and the legend that bind
whoever uses the name (see `result.py`). Names come from logs and may hold anything: text is freed of
what a terminal would obey, HTML is escaped.
"""

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mlperf_jax.errors import printable
from mlperf_jax.results import rcp
from mlperf_jax.results.optimizer_labels import labels
from mlperf_jax.results.result import LEGEND, SMALL_PRINT, UNVERIFIED, html_table

if TYPE_CHECKING:
    from mlperf_jax.results.scored import Run, Score

_MANY = 12  # findings of a set that are written out below a table of several


def title(score: "Score") -> str:
    """Benchmark, division, round, organisation and system: what must stand beside any score."""
    tiny = " (tiny, not comparable)" if score.tiny else ""
    rules = f", rules of {score.suite} {score.ruleset}" if score.ruleset else ""
    where = ", ".join(word for word in (score.system.org, score.system.name) if word)
    division = f"{score.division} division" if score.division else "division not logged"
    return printable(f"{score.benchmark}{tiny}, {division}{rules}; {where or '?'}")


def outcome(score: "Score") -> str:
    """The score in one line."""
    if score.minutes is None:
        if score.mean_minutes is None:
            return "no score (unverified)"
        counted = sum(run.counted for run in score.runs)
        mean = (
            f"{counted} run{'s' * (counted != 1)} took {score.mean_minutes:.3f} minutes on average"
        )
        return f"no score; {mean} (unverified)"
    text = f"{score.minutes:.3f} minutes (unverified)"
    if score.models is not None:
        return f"{score.models} models in {text}"
    return text if score.valid else f"{text}, not valid as it is"


def text(score: "Score") -> str:
    """One score, with its runs and findings."""
    lines = [title(score), outcome(score), *_details(score), "", *_runs(score)]
    if score.findings:
        lines += ["", *_findings(score)]
    return "\n".join([*lines, "", UNVERIFIED, LEGEND])


def table(scores: Sequence["Score"]) -> str:
    """Several scores, a line each, and below them what is wrong."""
    head = ("benchmark", "division", "system", "chips", "batch", "runs", "minutes", "factor", "rcp")
    rows = [head, *(_row(score) for score in scores)]
    named = labels([score.optimizer for score in scores])
    if any(named):  # else the benchmark says which it is
        rows = [
            (row[0], name or "-", *row[1:])
            for row, name in zip(rows, ["optimizer", *named], strict=True)
        ]
    lines = [*columns(rows)]
    for score in scores:
        wrong = [line for line in _findings(score) if line]
        if score.verdict is not None and not score.verdict.passed:
            wrong.insert(0, f"  reference: {score.verdict.sentence}")
        if wrong:
            more = [f"  and {len(wrong) - _MANY} more"] if len(wrong) > _MANY else []
            lines += ["", printable(str(score.folder)), *wrong[:_MANY], *more]
    valid = sum(score.valid for score in scores)
    lines += ["", f"{valid} of {len(scores)} sets are valid as they are. All scores: unverified."]
    return "\n".join([*lines, UNVERIFIED, LEGEND])


def page(scores: Sequence["Score"]) -> str:
    """Scores as HTML, escaped."""
    parts = []
    named = labels([score.optimizer for score in scores])
    for score, label in zip(scores, named, strict=True):
        rows = {name: printable(value) for name, value in _facts(score, label)}
        found = "".join(f"<li>{html.escape(line.strip())}</li>" for line in _findings(score))
        parts += [html_table(title(score), rows), f"<ul>{found}</ul>" if found else ""]
    return "".join(parts) + SMALL_PRINT


def factor_words(score: "Score") -> str:
    """What the minutes were multiplied by, and where that is from."""
    source = {"scaling.json": "from scaling.json", "reference": "by the reference"}
    return f"{score.factor:.4f} {source.get(score.factor_source, '')}".strip()


def otherwise(score: "Score") -> str:
    """The minutes by the reference where others stand first, or ""."""
    if score.reference_minutes is None or score.verdict is None:
        return ""
    own = score.verdict.scaling_factor
    how = f"scaled by {own:.4f}" if own != 1 else "not scaled"
    return f"{score.reference_minutes:.3f} minutes, {how}, by the comparison with the reference"


def _facts(score: "Score", label: str = "") -> list[tuple[str, str]]:
    """What is told of a score; `label` is its optimizer's among others, else the name of one that was replaced."""
    facts = [("score", outcome(score))]
    if score.minutes is not None and score.factor != 1:
        facts.append(("scaling", f"{score.raw_minutes:.3f} minutes x {factor_words(score)}"))
    if other := otherwise(score):
        facts.append(("otherwise", other))
    if score.verdict is not None:
        facts.append(("reference", score.verdict.sentence))
    if score.length is not None:
        kind = "olympic mean" if score.drop else "mean"
        facts.append(("to the target", f"{rcp.amount(score.length, score.unit)} ({kind})"))
    if score.samples_per_second is not None:
        facts.append(
            ("throughput", f"{score.samples_per_second:,.1f} samples/s, evaluations included")
        )
    if score.batch_size is not None:
        facts.append(("batch size", f"{score.batch_size:,}"))
    counted = sum(run.counted for run in score.runs)
    needed = f"; {score.required} make a score" if score.required else ""
    facts.append(("runs", f"{counted} converged of {len(score.runs)}{needed}"))
    if label or score.optimizer.name:
        facts.append(("optimizer", label or score.optimizer.name))
    if score.system.chips:
        facts.append(("chips", f"{score.system.chips} x {score.system.chip or 'unknown'}"))
    return facts


def _details(score: "Score") -> list[str]:
    facts = _facts(score)[1:]
    if score.verdict is None and score.rcp_note:
        facts.append(("reference", score.rcp_note))
    return [f"  {name:14}{printable(value)}" for name, value in facts]


def _runs(score: "Score") -> list[str]:
    head = ("log", "minutes", score.unit, "quality", "")
    return list(columns([head, *(_run(run) for run in score.runs)]))


def _run(run: "Run") -> tuple[str, ...]:
    quality = ", ".join(f"{name} {value:.5g}" for name, value in run.quality.items())
    return (
        run.log.path.name,
        "-" if run.minutes is None else f"{run.minutes:.3f}",
        "-" if run.length is None else _number(run.length),
        quality or "-",
        run.flaw,
    )


def _row(score: "Score") -> tuple[str, ...]:
    counted = sum(run.counted for run in score.runs)
    verdict = score.verdict
    return (
        score.benchmark + (" (tiny)" if score.tiny else ""),
        score.division,
        " ".join(word for word in (score.system.org, score.system.name) if word) or "?",
        str(score.system.chips or "?"),
        str(score.batch_size or "?"),
        f"{counted}/{score.required or len(score.runs)}",
        "none" if score.minutes is None else f"{score.minutes:.3f} unverified",
        f"{score.factor:.4f}",
        "-" if verdict is None else verdict.kind if verdict.passed else f"{verdict.kind}: fails",
    )


def _findings(score: "Score") -> list[str]:
    """Findings without the folder's path, which stands above them."""
    here = f"{score.folder}/"
    lines = []
    for finding in score.findings:
        where = str(finding).removeprefix(here).removeprefix(f"{score.folder}: ")
        lines.append(printable(f"  {'note' if finding.warning else 'wrong'}: {where}"))
    return lines


def columns(rows: Iterable[Sequence[str]]) -> Iterable[str]:
    """Rows as lines with columns as wide as they need to be."""
    rows = [tuple(printable(cell) for cell in row) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.5g}"

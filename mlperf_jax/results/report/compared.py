"""Comparisons as the page's script wants them: the texts of tables, and numbers that JSON knows.

An open end of an interval is null; so is what is not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.results.comparison import figures, tables
from mlperf_jax.results.comparison.model import Comparison
from mlperf_jax.results.comparison.paired import Paired, paired
from mlperf_jax.results.comparison.profiles import Profiles, profiles

_DIGITS = 5  # of what is drawn


def documents(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """What is shown of comparisons, and of several the profiles, or why there are none."""
    found, fault = None, ""
    if len(comparisons) > 1:
        try:
            found = _profiles(profiles(comparisons))
        except UserError as error:
            fault = f"There are no performance profiles: {error}."
    return {
        "comparisons": [_comparison(one) for one in comparisons],
        "profiles": found,
        "profiles_fault": _text(fault),
    }


def _comparison(one: Comparison) -> dict[str, Any]:
    against = {measure: paired(one, measure) for measure in tables.MEASURES}
    return {
        "title": _text(tables.title(one)),
        "name": _text(one.title),
        "folder": _text(one.folder),
        "entries": [_text(entrant.label) for entrant in one.entrants],
        "head": [_text(cell) for cell in tables.heads(one)],
        "rows": [[_text(cell) for cell in row] for row in tables.cells(one)],
        "notes": [_text(line) for line in tables.notes(one)],
        "ratios": {measure: [_ratio(each) for each in ones] for measure, ones in against.items()},
        "curves": [_curves(one, name) for name in figures.names(one)],
    }


def _ratio(one: Paired) -> dict[str, Any]:
    return {
        "ratio": _number(one.ratio),
        "known": one.low is not None,
        "low": _number(one.low) or None,
        "high": _number(one.high),
        "words": one.words,
        "verdict": one.verdict,
        "text": _text(one.sentence),
    }


def _curves(one: Comparison, name: str) -> dict[str, Any]:
    target = next((target for target in one.targets if target.name == name), None)
    lines = []
    for number, entrant in enumerate(one.entrants):
        if spread := figures.spread(entrant, name):
            axes = {"x": spread.samples, "low": spread.low, "y": spread.median, "high": spread.high}
            lines.append(
                {"entry": number, "runs": spread.runs}
                | {key: [_number(value) for value in values] for key, values in axes.items()}
            )
    return {
        "name": _text(name),
        "target": target.bound if target else None,
        "words": _text(target.words) if target else "",
        "lines": lines,
    }


def _profiles(found: Profiles) -> dict[str, Any]:
    head, *body = tables.areas(found)
    return {
        "title": tables.areas_title(found),
        "head": head,
        "rows": [[_text(cell) for cell in row] for row in body],
        "entries": [_text(label) for label in found.labels],
        "problems": [_text(problem) for problem in found.problems],
        "most": found.tau_max,
        "steps": [
            [[_number(tau), _number(share)] for tau, share in found.steps(label)]
            for label in found.labels
        ],
    }


def _number(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{_DIGITS}g}")


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")  # half a character would not be writable

"""The page: one HTML file with its style, script and data inside, and nothing else.

What came from logs is in one block of JSON whose <, > and & are written as escapes, so no text in it
can end the block; the script shows it as text nodes only. The content security policy names the hashes
of our style and script, so nothing else would run or load even if it got in.
"""

import base64
import datetime
import hashlib
import html
import importlib.resources
import json
from collections.abc import Sequence
from typing import Any

from mlperf_jax.results.comparison.model import Comparison
from mlperf_jax.results.compliance import Finding
from mlperf_jax.results.report import notebook
from mlperf_jax.results.report.model import SetData
from mlperf_jax.results.report.payload import payload
from mlperf_jax.results.result import LEGEND, UNVERIFIED, installed

_STYLES = ("page.css", "charts.css")
_SCRIPTS = (
    "dom.js", "data.js", "filters.js", "table.js", "details.js", "plot.js", "curves.js", "rows.js",
    "compare.js", "comparisons.js", "main.js",
)  # fmt: skip
_ESCAPES = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def render(
    sets: Sequence[SetData],
    findings: Sequence[Finding],
    comparisons: Sequence[Comparison] = (),
    *,
    now: datetime.datetime | None = None,
) -> str:
    """The page as text.

    Args:
        sets: what it shows.
        findings: what it lists as wrong.
        comparisons: of optimizers, shown before the sets.
        now: the date it bears; the present by default.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    style = "\n".join(_asset(name) for name in _STYLES)
    script = (
        "'use strict';\n(() => {\n" + "\n".join(_asset(name) for name in _SCRIPTS) + "\n})();\n"
    )
    document = payload(sets, findings, comparisons) | {
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
        "made_by": f"mlperf-jax {installed('mlperf-jax') or 'from its sources'}",
        "unverified": UNVERIFIED,
        "legend": LEGEND,
    }
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "style": style,
        "script": script,
        "data": embedded(document),
        "static": notebook.table(sets) + notebook.plain_comparisons(comparisons),
        "unverified": html.escape(UNVERIFIED),
        "legend": html.escape(LEGEND),
    }
    pieces = _asset("page.html").split("{{")
    text = [pieces[0]]
    for piece in pieces[1:]:  # one pass: what is put in is never searched for further marks
        name, _, rest = piece.partition("}}")
        text += [parts[name], rest]
    return "".join(text)


def embedded(document: Any) -> str:
    """JSON that may stand inside a script element: it cannot end it, nor open a comment."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text.encode("utf-8", "replace").decode("utf-8")


def _asset(name: str) -> str:
    file = importlib.resources.files("mlperf_jax.results.report") / "assets" / name
    return file.read_text(encoding="utf-8").replace("\r\n", "\n").strip()


def _hash(text: str) -> str:
    """The policy's name for an inline block: browsers hash the text between the tags."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()

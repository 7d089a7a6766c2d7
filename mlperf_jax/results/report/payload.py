"""Sets as the page's script wants them: rounded, thinned of repetition, and made of JSON alone.

200 runs of 500 evaluations are 300,000 numbers; they are sent as small integers (differences of a
quantised axis) and five significant digits, which is finer than a screen shows.
"""

import collections
import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

from mlperf_jax.results import rules
from mlperf_jax.results.comparison.model import Comparison
from mlperf_jax.results.compliance import Finding
from mlperf_jax.results.durable import same
from mlperf_jax.results.optimizer_labels import labels
from mlperf_jax.results.report import compared
from mlperf_jax.results.report.logs import first, number, shorten
from mlperf_jax.results.report.model import Curve, RunData, SetData

_STEPS = 20_000  # of a quantised axis: 10 per pixel of a wide screen

# The rounds at which results stop being comparable with earlier ones (policies: compatibility table).
_BREAKS = {
    "resnet": ("0.6",), "ssd": ("0.6",), "maskrcnn": ("0.6",), "minigo": ("0.6", "0.7"),
    "bert": ("1.0",), "rnnt": ("1.1",), "cosmoflow": ("1.0",),
}  # fmt: skip
_RUN_FACTS = ("parameters_sha256", "resumed", "device", "mesh", "examples_per_second", "mfu")


def payload(
    sets: Sequence[SetData], findings: Sequence[Finding], comparisons: Sequence[Comparison] = ()
) -> dict[str, Any]:
    """Everything the page shows."""
    groups: dict[tuple, int] = {}
    named = labels([data.optimizer for data in sets])
    documents = [
        _set(data, groups.setdefault(_group(data), len(groups))) | {"by": shorten(label)}
        for data, label in zip(sets, named, strict=True)
    ]
    members = collections.defaultdict(list)
    for data, document in zip(sets, documents):
        members[document["group"]].append(data)
    return {
        "sets": documents,
        "groups": [_group_document(members[i]) for i in range(len(groups))],
        "findings": [_finding(finding) for finding in findings],
        **compared.documents(comparisons),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    line = "" if finding.line is None else f", line {finding.line}"
    text = f"{finding.key} {finding.expected} {finding.advice}".strip()
    return {"where": f"{finding.file}{line}", "text": text, "severe": not finding.warning}


def span_of(data: SetData) -> str:
    """The first round whose results may be compared with this set's; "" when the round is unknown."""
    if data.benchmark not in rules.entries() or not data.round:
        return ""
    rounds = rules.entry(data.benchmark).rounds
    starts = [rounds[0], *_BREAKS.get(data.benchmark, ())]
    known = [r for r in starts if r in rounds and rounds.index(r) <= rounds.index(data.round)]
    return known[-1] if known else rounds[0]


def _group(data: SetData) -> tuple:
    """Sets are drawn together only where the rules let them be compared."""
    return (data.benchmark, data.size, span_of(data))


def _group_document(sets: list[SetData]) -> dict[str, Any]:
    data = sets[0]
    row = rules.entries().get(data.benchmark)
    return {
        "name": data.label,
        "benchmark": data.benchmark,
        "size": data.size,
        "suite": "HPC" if data.suite == "hpc" else "Training",
        "about": f"{row.model} on {row.dataset}" if row and data.size == "official" else "",
        "metric": row.metric if row else "quality",
        "unit": collections.Counter(s.unit for s in sets).most_common(1)[0][0],
        "targets": [_target(t) for t in data.targets],
    }


def _set(data: SetData, group: int) -> dict[str, Any]:
    common, varying = _settings(data.runs)
    verdict = data.verdict
    results, config = [run.result for run in data.runs], first(run.config for run in data.runs)
    optimizer = next(
        (str(result["optimizer"]) for result in results if result.get("optimizer")), ""
    )
    if optimizer:
        config = {key: value for key, value in config.items() if key != "opt_name"}  # the recipe's
    lengths = [run.length for run in data.runs if run.status == "success" and run.length]
    mfu = [value for result in results if (value := number(result.get("mfu"))) is not None]
    return {
        "group": group,
        "folder": data.folder,
        "label": data.label,
        "benchmark": data.benchmark,
        "size": data.size,
        "round": data.round,
        "assumed": data.assumed,
        "division": data.division or "unknown",
        "org": data.org,
        "system": data.system,
        "accelerator": data.accelerator,
        "chips": data.chips,
        "batch": data.batch,
        "optimizer": shorten(optimizer),
        "needed": verdict.needed,
        "status": verdict.status,
        "reason": verdict.reason,
        "minutes": _round(verdict.minutes, 7),
        "length": _round(statistics.fmean(lengths) if lengths else None, 7),
        "unit": data.unit,
        "rate": _round(verdict.rate, 5),
        "mfu": _round(statistics.fmean(mfu) if mfu else None, 4),
        "position": _position(data),
        "targets": [_target(t) for t in data.targets],
        "settings": common,
        "config": {k: shorten(v) for k, v in config.items()},
        "versions": _versions(data),
        "hardware": {k: v for k, v in data.hardware.items() if v not in ("", None)},
        "findings": sum(1 for _ in data.findings),
        "runs": [_run(run, varying) for run in data.runs],
    }


def _settings(runs: Sequence[RunData]) -> tuple[dict[str, Any], set[str]]:
    """What all runs logged alike, and the keys in which they differ."""
    logged = [run.settings for run in runs if run.settings]
    common, varying = {}, set()
    for key in dict.fromkeys(key for settings in logged for key in settings):
        values = [settings.get(key) for settings in logged]
        if all(type(v) is type(values[0]) and same(v, values[0]) for v in values):
            common[key] = _json(values[0])
        else:
            varying.add(key)
    return common, varying


def _versions(data: SetData) -> dict[str, str]:
    versions = first(run.result.get("versions", {}) for run in data.runs)
    return (
        {str(k): str(shorten(v)) for k, v in versions.items()} if isinstance(versions, dict) else {}
    )


def _run(run: RunData, varying: set[str]) -> dict[str, Any]:
    final = {c.name: _round(c.values[-1], 7) for c in run.curves if c.values and c.seconds}
    facts = {k: _json(run.result[k]) for k in _RUN_FACTS if run.result.get(k) is not None}
    return {
        "name": run.name,
        "log": run.log,
        "status": run.status,
        "used": run.used,
        "seconds": _round(run.seconds, 9),
        "init": _round(run.init_seconds, 6),
        "length": _round(run.length, 9),
        "unit": run.unit,
        "seed": _json(run.seed),
        "quality": final,
        "facts": facts,
        "own": {k: _json(v) for k, v in run.settings.items() if k in varying and k != "seed"},
        "curves": [_curve(curve) for curve in run.curves],
    }


def _position(data: SetData) -> dict[str, Any] | None:
    position = data.verdict.position
    if position is None:
        return None
    document = {
        "sentence": position.sentence,
        "accepted": position.accepted,
        "mean": _round(position.mean, 7),
        "reference": _round(position.reference, 7),
        "bound": _round(position.bound, 7),
        "unit": position.unit,
    }
    if position.reference:
        document["lengths"] = [_round(x, 6) for x in position.lengths]
        document["own"] = [_round(x, 6) for x in position.own]
    return document


def _target(target: rules.Target) -> dict[str, Any]:
    better = "lower" if target.at_most is not None else "higher"
    return {"name": target.name, "at": target.bound, "better": better, "text": str(target)}


def _curve(curve: Curve) -> dict[str, Any]:
    return {
        "n": curve.name,
        "t": _axis(curve.seconds),
        "x": _axis(curve.lengths),
        "y": [_round(value, 5) for value in curve.values],
    }


def _axis(values: Sequence[float]) -> dict[str, Any] | None:
    """A growing axis in few characters: an arithmetic series, or quantised differences."""
    if not values:
        return None
    steps = {b - a for a, b in itertools.pairwise(values)}
    if len(steps) <= 1:
        return {
            "a": _round(values[0], 9),
            "s": _round(steps.pop() if steps else 0, 9),
            "n": len(values),
        }
    span = max(values) - min(values)
    quantum = float(f"{span / _STEPS:.2g}") if span > 0 else 1.0
    marks = [round(value / quantum) for value in values]
    return {"q": quantum, "d": [marks[0], *(b - a for a, b in itertools.pairwise(marks))]}


def _round(value: float | None, digits: int) -> float | int | None:
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded == int(rounded) else rounded


def _json(value: Any) -> Any:
    """A value that JavaScript's JSON knows too: no NaN, no endless numbers, integers exact."""
    value = shorten(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
        return str(value)
    return value

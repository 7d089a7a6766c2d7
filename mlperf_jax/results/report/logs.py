"""A scored run as the page shows it: what can be drawn is used, the rest is a finding."""

import json
import math
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from mlperf_jax.results import durable, rules
from mlperf_jax.results.compliance import Finding
from mlperf_jax.results.logset import RunLog
from mlperf_jax.results.report.model import Curve, RunData
from mlperf_jax.results.scored import Run

_COUNTERS = {"samples": "samples_count", "epochs": "epoch_num"}
_MAX_VALUE = 200  # characters of a setting that are shown; a log may hold a whole file in one value


def run_data(
    run: Run, official: rules.Round | None, name: str, where: str
) -> tuple[RunData, list[Finding]]:
    """What the page shows of a scored run.

    Args:
        run: with its settings.
        official: the rules that it was scored by.
        name: how the run is called, "run 3".
        where: how its log is called in a finding.

    Returns:
        The run, and what of its log cannot be drawn; what else is wrong with it are the score's findings. A
        log without a single readable line is "unreadable".
    """
    log = run.log
    if not (log.benchmark or log.evaluations or log.settings or log.start_ms is not None):
        return RunData(name, where, "unreadable"), []
    status = "success" if log.status == "success" else "aborted"
    if log.start_ms is None or log.stop_ms is None:
        status = "unfinished"
    # a line whose metadata have both is counted in samples, as the newer rules do
    unit = "samples" if any("samples_count" in e.counts for e in log.evaluations) else "epochs"
    counter = _COUNTERS[unit]
    curves, skipped = _curves(log, counter)
    before = log.evaluations[: None if log.stop_ms is None else log.ended_after]
    ending = next((e.counts for e in reversed(before) if counter in e.counts), {})
    length = ending.get(counter)
    if run.length is not None and official is not None and official.length_field == counter:
        length = run.length  # it need not be that of the last evaluation
    data = RunData(
        name=name,
        log=where,
        status=status,
        seconds=log.seconds if log.seconds and log.seconds > 0 else None,
        init_seconds=None if log.init_ms is None else log.init_ms / 1000,
        length=length,
        unit=unit,
        ending={name: ending[name] for name in _COUNTERS.values() if name in ending},
        seed=log.settings.get("seed"),
        curves=curves,
        settings={key: shorten(value) for key, value in log.settings.items()},
    )
    text = f"evaluations without a number, or without {counter}, are left out: {skipped}."
    return data, [Finding(where, "", text, warning=True)] if skipped else []


def _curves(log: RunLog, counter: str) -> tuple[tuple[Curve, ...], int]:
    """The qualities over the run, and how many evaluations have no place in them."""
    points: dict[str, list[tuple[float, float, float]]] = {}
    skipped = 0
    for evaluation in log.evaluations:
        x, value = evaluation.counts.get(counter), evaluation.value
        named = value if isinstance(value, dict) else {evaluation.metric: value}
        finite = {metric: v for metric, v in named.items() if math.isfinite(v)}
        if x is None or not finite or not math.isfinite(evaluation.time_ms):
            skipped += 1
            continue
        origin = log.evaluations[0].time_ms if log.start_ms is None else log.start_ms
        seconds = (evaluation.time_ms - origin) / 1000
        for metric, v in finite.items():
            points.setdefault(metric, []).append((seconds, x, v))
    return tuple(Curve(name, *map(tuple, zip(*rows))) for name, rows in points.items()), skipped


def number(value: Any) -> float | None:
    """A finite number, or None for anything else, text that looks like one included."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def shorten(value: Any) -> Any:
    """A value small enough to be shown: numbers and flags as they are, the rest as short text that differs where it does."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value)
    text = text.encode("utf-8", "replace").decode("utf-8")  # half a character would not be writable
    return durable.brief(text, _MAX_VALUE)


def first(documents: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The first that is not empty, or {}."""
    return next(filter(None, documents), {})


def read_object(path: pathlib.Path, where: str) -> tuple[dict[str, Any], list[Finding]]:
    """A JSON object of a file: {} and a finding when it is missing or damaged."""
    try:
        if unusual := durable.not_a_file(path):
            raise ValueError(f"it is {unusual}")
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        text = f"cannot be read ({error.strerror or os.strerror(2)})."
    except (ValueError, RecursionError) as error:
        text = f"is not JSON ({error}); it is left out."
    else:
        if isinstance(document, dict):
            return document, []
        text = "is not a JSON object; it is left out."
    return {}, [Finding(where, "", text, warning=True)]

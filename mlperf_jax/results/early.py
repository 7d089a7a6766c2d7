"""Log lines of the first two rounds, read as those of today.

    :::MLPv0.5.0 ssd 1541756723.734439850 (train.py:371) eval_accuracy: {"epoch": 59, "value": 0.2145}
    :::MLL 1560722749.841 eval_accuracy: {"value": 0.75978, "metadata": {"epoch_num": 90}}

Times are seconds since 1970 there. A log is of one form: the newest of which it has a line.
"""

import json
import re
from typing import Any

V05, V06, TODAY = ":::MLPv0.5.0", ":::MLL", ":::MLLOG"
ROUNDS = {V05: "0.5", V06: "0.6"}  # of which a log in that form is

_V06 = re.compile(r"([\d.]+) (\w+) ?:\s+(.+)")
_V05 = re.compile(r"(\w+) ([\d.]+) \((.*?)(?::(\d+))?\) (\w+)(?:\s*:\s*(.*))?")
_RENAMED = {"run_set_random_seed": "seed", "eval_target": "target_accuracy"}


def form(content: Any) -> str:
    """The token of a log's lines, or "" for a log without any.

    Args:
        content: the log as text, as bytes, or what is searched like bytes.
    """
    for token in (TODAY, V06, V05):
        sought: Any = f"{token} "
        if content.find(sought if isinstance(content, str) else sought.encode()) >= 0:
            return token
    return ""


def members(token: str, text: str) -> dict[str, Any]:
    """A line as today's lines are: its `key`, `value`, `metadata` and `time_ms` at least.

    Example:
        >>> members(V06, '1560722749.841 eval_accuracy: {"value": 0.76, "metadata": {"epoch_num": 90}}')
        {'key': 'eval_accuracy', 'value': 0.76, 'metadata': {'epoch_num': 90}, 'time_ms': 1560722749841.0}

    Args:
        token: the form of the log, as `form` says.
        text: the line, from after its token on.

    Raises:
        ValueError, TypeError, KeyError: it is not in that form.
    """
    text = text.strip()
    if token == TODAY:
        return json.loads(text)
    return _v06(text) if token == V06 else _v05(text)


def _v06(text: str) -> dict[str, Any]:
    match = _V06.fullmatch(text)
    if match is None:
        raise ValueError("it is not a time, a key, a colon and JSON")
    time, key, rest = match.groups()
    found = json.loads(rest)
    value, metadata = found["value"], found["metadata"]
    if isinstance(value, dict) and isinstance(value.get("accuracy"), dict):
        value = value["accuracy"]  # several qualities, by name
    return {"key": key, "value": value, "metadata": metadata, "time_ms": _ms(time)}


def _v05(text: str) -> dict[str, Any]:
    match = _V05.fullmatch(text)
    if match is None:
        raise ValueError("it is not a benchmark, a time, a file, a key and perhaps a value")
    benchmark, time, file, lineno, key, rest = match.groups()
    try:
        value = json.loads(rest) if rest else None
    except ValueError:
        value = rest  # written by hand, or as Python prints it
    metadata = {"file": file, "lineno": int(lineno or 0), "benchmark": benchmark}
    if isinstance(value, dict):
        if "epoch" in value:
            metadata["epoch_num"] = value["epoch"]
        if key == "run_stop" and "success" in value:
            metadata["status"] = "success" if value["success"] is True else "aborted"
        value = value.get("value", value)
    return {
        "key": _RENAMED.get(key, key),
        "value": value,
        "metadata": metadata,
        "time_ms": _ms(time),
    }


def _ms(seconds: str) -> float:
    """Milliseconds; as exact as text in seconds can be, so that differences are."""
    return round(float(seconds) * 1000, 6)

"""Where a command's findings go: the output, a file of JSON, or both."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from mlperf_jax.cli.options import Option
from mlperf_jax.errors import UserError
from mlperf_jax.paths import MARK, check_writable


def json_option(what: str) -> Option:
    return Option(
        "json", help=f"write {what} as JSON to this file, - for the output", metavar="FILE"
    )


def json_target(given: dict[str, Any]) -> str | None:
    """Takes `json` out of the typed options: where JSON goes, if anywhere; "-" is the output.

    Raises:
        UserError: no file can be written there, or another would be lost, which is said before the work and not
            after it.
    """
    target = given.pop("json", None)
    if target not in (None, "-"):
        check_writable(target)
    return target


def say(report: Any, target: str | None) -> None:
    """Prints a report and, where a target is given, writes it as JSON; "-" prints the JSON alone."""
    found = report.to_dict() if target else {}
    print(json.dumps(found, indent=2) if target == "-" else report)
    if target in (None, "-"):
        return
    text = json.dumps({"generator": MARK, **found}, indent=2)
    try:
        pathlib.Path(target).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from error

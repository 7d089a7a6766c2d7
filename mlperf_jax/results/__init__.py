"""What a run leaves behind: the log, the run folder, rounds and rules as data, compliance.

A name is imported with its file when it is asked for: options and help need little of this room.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlperf_jax.results.closed import closed_violations as closed_violations
    from mlperf_jax.results.compliance import (
        Finding as Finding,
        Report as Report,
        check as check,
    )
    from mlperf_jax.results.log import Line as Line, Log as Log, read as read
    from mlperf_jax.results.opening import header as header
    from mlperf_jax.results.rcp import ReferencePoint as ReferencePoint
    from mlperf_jax.results.remote import Mirror as Mirror
    from mlperf_jax.results.result import (
        LEGEND as LEGEND,
        UNVERIFIED as UNVERIFIED,
        Result as Result,
        Results as Results,
        config_hash as config_hash,
        run_name as run_name,
        versions as versions,
    )
    from mlperf_jax.results.rules import (
        Entry as Entry,
        Round as Round,
        Target as Target,
        entries as entries,
        entry as entry,
        resolve as resolve,
    )
    from mlperf_jax.results.runs import (
        RunFolder as RunFolder,
        RunSet as RunSet,
        Scalars as Scalars,
        config_changes as config_changes,
    )

_NAMES = {
    "closed": "closed_violations",
    "compliance": "Finding Report check",
    "log": "Line Log read",
    "opening": "header",
    "rcp": "ReferencePoint",
    "remote": "Mirror",
    "result": "LEGEND UNVERIFIED Result Results config_hash run_name versions",
    "rules": "Entry Round Target entries entry resolve",
    "runs": "RunFolder RunSet Scalars config_changes",
}  # by file
_FILES = {name: file for file, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_FILES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)

"""What a run leaves behind: the log, the run folder, rounds and rules as data, compliance."""

from mlperf_jax.results.closed import closed_violations
from mlperf_jax.results.compliance import Finding, Report, check
from mlperf_jax.results.header import header
from mlperf_jax.results.log import Line, Log, read
from mlperf_jax.results.rcp import ReferencePoint
from mlperf_jax.results.remote import Mirror
from mlperf_jax.results.result import (
    LEGEND,
    UNVERIFIED,
    Result,
    Results,
    config_hash,
    run_name,
    versions,
)
from mlperf_jax.results.rules import (
    Entry,
    Round,
    Target,
    entries,
    entry,
    resolve,
)
from mlperf_jax.results.runs import RunFolder, RunSet, Scalars, config_changes

__all__ = [
    "LEGEND",
    "UNVERIFIED",
    "Entry",
    "Finding",
    "Line",
    "Log",
    "Mirror",
    "ReferencePoint",
    "Report",
    "Result",
    "Results",
    "Round",
    "RunFolder",
    "RunSet",
    "Scalars",
    "Target",
    "check",
    "closed_violations",
    "config_changes",
    "config_hash",
    "entries",
    "entry",
    "header",
    "read",
    "resolve",
    "run_name",
    "versions",
]

"""The first lines of a log: who ran what, where, under which rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from mlperf_jax.errors import UserError

if TYPE_CHECKING:
    from mlperf_jax.results.log import Log
    from mlperf_jax.results.rules import Round

DIVISIONS = ("closed", "open")
Status = Literal["onprem", "cloud", "preview", "research"]
STATUSES: tuple[str, ...] = get_args(Status)


def header(
    log: Log,
    official: Round,
    *,
    division: str,
    org: str,
    platform: str,
    status: str,
    seed: int | None = None,
) -> None:
    """Logs the submission's keys, `cache_clear` and the seed, in the order the readers need.

    The status is logged in the rounds that want it, up to 4.0. To be called once per run, before
    `init_start`: the division decides how long initialisation may take, so it must be known when
    `init_stop` is read.

    Args:
        log: the run's log.
        official: the benchmark's rules.
        division: "closed" or "open".
        org: who runs it.
        platform: the system, such as "1 x TPU v5e".
        status: "onprem", "cloud", "preview" or "research".
        seed: the run's seed.

    Raises:
        UserError: an unknown division or status, or an empty name.
    """
    values: dict[str, Any] = {
        "submission_benchmark": official.log_name,
        "submission_division": _one_of("division", division, DIVISIONS),
        "submission_org": _named("org", org),
        "submission_platform": _named("platform", platform),
        "submission_status": _one_of("status", status, STATUSES),
        "cache_clear": True,
    }
    if not official.common.get("submission_status"):
        del values["submission_status"]
    if seed is not None:
        values["seed"] = seed
    for key, value in values.items():
        log.event(key, value)


def _one_of(name: str, value: str, options: tuple[str, ...]) -> str:
    if value not in options:
        raise UserError(f"{name} is {value!r}; give one of {', '.join(options)}")
    return value


def _named(name: str, value: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{name} is empty; the official rules require a name")
    return value

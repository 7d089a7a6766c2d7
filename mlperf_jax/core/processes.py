"""What the processes of one run tell each other; with one process nothing is sent.

Process 0 alone sees the output folder's small files and computes quality. Whatever it decides must
reach the others, errors included: a process that raised while the others wait in a collective would
leave them waiting.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from mlperf_jax.errors import UserError

CHUNK = 256  # messages are padded to a multiple, as each new length costs a compilation
WAIT_SECONDS = 3600  # for the slowest to come; a process that died aborts the others sooner

T = TypeVar("T")
_barriers = itertools.count()  # their names must be new each time, alike in all processes


def from_primary(make: Callable[[], T]) -> T:
    """What `make()` returns on process 0, on every process; called there alone.

    Args:
        make: returns something JSON can hold.

    Raises:
        UserError: `make` failed; process 0 raises its own error.
    """
    if jax.process_count() == 1:
        return make()
    value, error = None, None
    if jax.process_index() == 0:
        try:
            value = make()
        except Exception as problem:  # told to the others before it is raised
            error = problem
    told = _tell({"value": value, "error": None if error is None else str(error)})
    if error is not None:
        raise error
    if told["error"] is not None:
        raise UserError(f"process 0 gave up: {told['error']}")
    return told["value"]


def wait_for_all(name: str) -> None:
    """Waits, without taking a device, until every process has come here."""
    barrier(f"{name}/{next(_barriers)}")


def barrier(name: str) -> None:
    """As `wait_for_all`, for any thread: the name must be new, and alike in all processes."""
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        wait = multihost.get_barrier_sync_fn()
        wait(key=f"mlperf_jax/{name}", timeout_ms=WAIT_SECONDS * 1000)


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray([flag], np.int32))))


def _tell(document: Any) -> Any:
    data = np.zeros(0, np.uint8)
    if jax.process_index() == 0:
        data = np.frombuffer(json.dumps(document).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
    padded = np.zeros(-(-size // CHUNK) * CHUNK, np.uint8)
    padded[: data.size] = data
    told = np.asarray(multihost_utils.broadcast_one_to_all(padded))
    return json.loads(told[:size].tobytes())

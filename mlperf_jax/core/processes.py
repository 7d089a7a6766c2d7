"""What the processes of one run tell each other; with one process nothing is sent.

Process 0 alone sees the output folder's small files and computes quality. Whatever it decides must
reach the others, errors included: a process that raised while the others wait in a collective would
leave them waiting.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # no public way leads to the coordination service's store
from jax.experimental import multihost_utils

from mlperf_jax.errors import UserError

CHUNK = 256  # messages are padded to a multiple, as each new length costs a compilation
SHOWN = 60  # characters of a value that differs
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


def check_same(given: Mapping[str, Any]) -> None:
    """Nothing, if every process was given these values, as JSON holds them; takes no device.

    Raises:
        UserError: on every process alike, naming those that differ from process 0, and in what.
    """
    if jax.process_count() == 1:
        return
    client, place = distributed.global_state.client, f"mlperf_jax/same/{next(_barriers)}"
    assert client is not None, "there are several processes"
    index, mine = jax.process_index(), json.dumps(given)
    if index == 0:
        client.key_value_set(f"{place}/wanted", mine)
    wanted = client.blocking_key_value_get(f"{place}/wanted", WAIT_SECONDS * 1000)
    if text := differences(json.loads(wanted), json.loads(mine)):
        client.key_value_set(f"{place}/others/{index}", text)
    barrier(f"{place}/told")
    found = client.key_value_dir_get(f"{place}/others/")
    if found:
        raise _differ({int(key.rpartition("/")[2]): text for key, text in found})


def differences(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """What was given otherwise than wanted: "seed 2 against 1, rate 0.1 against 0.2"; "" if nothing.

    >>> differences({"seed": 1, "size": "tiny"}, {"seed": 2, "size": "tiny"})
    'seed 2 against 1'
    """
    names = [name for name in {**wanted, **given} if wanted.get(name) != given.get(name)]
    pairs = (_shortened(repr(given.get(name)), repr(wanted.get(name))) for name in names)
    return ", ".join(
        f"{name} {ours} against {theirs}" for name, (ours, theirs) in zip(names, pairs)
    )


def _shortened(*texts: str) -> list[str]:
    """Of long texts the part in which they begin to differ."""
    if max(map(len, texts)) <= SHOWN:
        return list(texts)
    columns = enumerate(itertools.zip_longest(*texts))
    begin = max(0, next(at for at, column in columns if len({*column}) > 1) - SHOWN // 3)
    cut = [("…" if begin else "") + text[begin : begin + SHOWN] for text in texts]
    return [text + "…" * (begin + SHOWN < len(whole)) for text, whole in zip(cut, texts)]


def _differ(others: Mapping[int, str]) -> UserError:
    alike: dict[str, list[int]] = {}
    for index, text in sorted(others.items()):
        alike.setdefault(text, []).append(index)
    found = "; ".join(f"process {', '.join(map(str, who))}: {text}" for text, who in alike.items())
    return UserError(
        f"processes of the run differ from process 0 ({found}): start all of them with the same command, "
        "files and versions"
    )


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

"""Whether all processes of a run have come, asked before JAX joins them.

`jax.distributed` ends a process whose partner never comes with an abort in C++, which no Python code can catch,
and does not say who is missing. So process 0 first calls the roll at the coordinator's own address: the
others tell it who they are, and hear that all are there, or what is wrong. Only then is JAX started, at
the same address.
"""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeGuard

from mlperf_jax.errors import UserError

RETRY_SECONDS = 0.2  # between two tries to reach process 0
LINE = 1024  # bytes of what one process tells another, at most
GRACE_SECONDS = 30  # by which process 0 may have begun to wait later than we did


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[::1]:port".

    Raises:
        UserError: it is not of this form, or the port is none.

    >>> parse_address("10.0.0.1:8476"), parse_address("[::1]:8476")
    (('10.0.0.1', 8476), ('::1', 8476))
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\s:\[\]/]+)):(\d{1,5})", text)
    if not match or not 0 < int(match[3]) < 2**16:
        raise UserError(
            f"coordinator {text!r} is no address: give the host and a free port of process 0, such as "
            "10.0.0.1:8476 (--coordinator HOST:PORT)"
        )
    return match[1] or match[2], int(match[3])


def answer(coordinator: str, processes: int, process: int, patience: float) -> None:
    """Waits until every process of the run has come; called by each of them with its own number.

    Args:
        coordinator: "host:port" of process 0.
        processes: how many there are.
        process: which of them this is, from 0.
        patience: seconds to wait.

    Raises:
        UserError: who has not come in that time, two processes have one number, or they were told different counts;
            on all of them that have come.
    """
    host, port = parse_address(coordinator)
    if processes == 1:
        return
    deadline = time.monotonic() + patience
    if process == 0:
        _call(coordinator, port, processes, deadline, patience)
    else:
        _tell(coordinator, (host, port), {"processes": processes, "process": process}, patience)


# -- process 0 -------------------------------------------------------------------------------------

_MEND = "start all of them with the same --coordinator and --processes, each with its own --process"
_LATER = "start it too, or allow more time with --join-timeout"


@dataclass
class _Roll:
    """Who has come."""

    processes: int
    present: dict[int, socket.socket] = field(default_factory=dict)

    def enter(self, count: int, number: int, connection: socket.socket) -> str | None:
        """What is wrong with a process that says who it is, if anything; it waits for the answer."""
        if count != self.processes:
            return f"process {number} was given --processes {count}, and process 0 {self.processes}: {_MEND}"
        if number in self.present and not _gone(self.present[number]):
            return f"two processes were given --process {number}: {_MEND}"
        self.present[number] = connection
        return None

    def missing(self) -> list[int]:
        """Those that have not come, or went away while they waited, to begin again."""
        gone = [number for number, connection in self.present.items() if _gone(connection)]
        for number in gone:
            del self.present[number]
        return [number for number in range(1, self.processes) if number not in self.present]


def _call(coordinator: str, port: int, processes: int, deadline: float, patience: float) -> None:
    roll, wrong = _Roll(processes), None
    with contextlib.ExitStack() as open_ones:
        server = open_ones.enter_context(_listen(coordinator, port))
        for told, connection in _callers(server, deadline, open_ones):
            if not _is_process(told):  # something else connected
                continue
            wrong = roll.enter(told["processes"], told["process"], connection)
            if wrong:
                _say(connection, wrong)
            if wrong or not roll.missing():
                break
        if not wrong and (missing := roll.missing()):
            absent = f"{_named(missing)} of {processes} did not come within {patience:g} s"
            wrong = f"{absent}: {_LATER}"
        for connection in roll.present.values():
            _say(connection, wrong or "")
    if wrong:
        raise UserError(wrong)


def _is_process(told: object) -> TypeGuard[dict[str, int]]:
    return isinstance(told, dict) and all(
        type(told.get(name)) is int for name in ("processes", "process")
    )


def _gone(connection: socket.socket) -> bool:
    """Whether the other end, which has said all that it says, was closed."""
    try:
        return not connection.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _named(numbers: list[int]) -> str:
    """
    >>> _named([1]), _named([1, 3]), _named(list(range(1, 40)))
    ('process 1', 'processes 1, 3', 'processes 1, 2, 3, 4, 5, 6, 7, 8 and 31 more')
    """
    shown = ", ".join(map(str, numbers[:8]))
    more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
    return f"process{'es' if len(numbers) > 1 else ''} {shown}{more}"


def _listen(coordinator: str, port: int) -> socket.socket:
    """A server on all of this machine's addresses, as JAX's own is."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=1024)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at {coordinator} ({error.strerror or error}): give another port to all "
            "processes"
        ) from error


def _callers(
    server: socket.socket, deadline: float, open_ones: contextlib.ExitStack
) -> Iterator[tuple[object, socket.socket]]:
    """What each that connects says, until the deadline; one that says nothing holds up nobody."""
    waiting = open_ones.enter_context(selectors.DefaultSelector())
    waiting.register(server, selectors.EVENT_READ)
    heard: dict[socket.socket, bytes] = {}
    while (left := deadline - time.monotonic()) > 0:
        for key, _ in waiting.select(left):
            one = key.fileobj
            assert isinstance(one, socket.socket)
            if one is server:
                connection = open_ones.enter_context(server.accept()[0])
                connection.setblocking(False)
                waiting.register(connection, selectors.EVENT_READ)
                continue
            try:
                part = one.recv(LINE)
            except OSError:
                part = b""
            heard[one] = heard.get(one, b"") + part
            if not part or b"\n" in part or len(heard[one]) > LINE:
                waiting.unregister(one)
                yield _read(heard.pop(one)), one


def _read(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _say(connection: socket.socket, wrong: str) -> None:
    """Tells one that it may begin, or what is wrong; if it went away, JAX will find out."""
    with contextlib.suppress(OSError):
        connection.setblocking(True)
        connection.settimeout(1)
        connection.sendall(json.dumps({"wrong": wrong}).encode() + b"\n")


# -- the others ------------------------------------------------------------------------------------


def _tell(
    coordinator: str, address: tuple[str, int], mine: dict[str, int], patience: float
) -> None:
    deadline = time.monotonic() + patience
    absent = f"process 0 did not answer at {coordinator} within {patience:g} s"
    while True:
        left = deadline - time.monotonic()
        try:
            with socket.create_connection(address, timeout=max(RETRY_SECONDS, left)) as connection:
                connection.sendall(json.dumps(mine).encode() + b"\n")
                connection.settimeout(patience + GRACE_SECONDS)
                with connection.makefile("rb") as answers:
                    told = _read(answers.readline(LINE))
        except socket.gaierror as error:
            raise UserError(
                f"coordinator {coordinator}: the host is not known ({error.strerror}): give that of process 0"
            ) from error
        except OSError:
            told = None
        if isinstance(told, dict) and "wrong" in told:
            break
        if time.monotonic() > deadline:
            raise UserError(f"{absent}: {_LATER}")
        time.sleep(RETRY_SECONDS)
    if told["wrong"]:
        raise UserError(told["wrong"])

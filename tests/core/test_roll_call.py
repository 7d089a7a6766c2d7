"""Processes that wait for each other: all come, one does not, two are one, counts differ, others connect."""

import concurrent.futures
import doctest
import socket
import threading
import time

import jax
import pytest

from mlperf_jax.core import launch, roll_call
from mlperf_jax.core.options import RunOptions
from mlperf_jax.core.roll_call import answer
from mlperf_jax.errors import UserError


def test_examples():
    assert doctest.testmod(roll_call).failed == 0


@pytest.fixture
def address():
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    return f"localhost:{port}"


def together(*calls):
    """What each of the calls, made at once, gives or raises."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        begun = [pool.submit(answer, *call) for call in calls]
        return [each.exception() or each.result() for each in begun]


def test_all_come(address):
    assert together(*((address, 3, process, 30) for process in (2, 0, 1))) == [None] * 3
    with socket.create_server(("localhost", roll_call.parse_address(address)[1])):
        pass  # the address is free again, for JAX


def test_those_that_came_are_told_who_did_not(address):
    begin = time.monotonic()
    told = together((address, 5, 0, 1), (address, 5, 2, 30))
    assert time.monotonic() - begin < 20, "as long as process 0 waits"
    for error in told:
        assert isinstance(error, UserError)
        assert "processes 1, 3, 4 of 5 did not come within 1 s" in str(error)
        assert "--join-timeout" in str(error)


def test_process_0_does_not_come(address):
    with pytest.raises(UserError, match=f"process 0 did not answer at {address} within 0.5 s"):
        answer(address, 2, 1, 0.5)


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([(3, 1), (3, 1)], "two processes were given --process 1"),
        ([(2, 1)], "process 1 was given --processes 2, and process 0 3"),
    ],
)
def test_what_does_not_fit_ends_all_at_once(address, others, words):
    begin = time.monotonic()
    told = together((address, 3, 0, 60), *((address, *other, 60) for other in others))
    assert time.monotonic() - begin < 20
    assert all(words in str(error) for error in told), told


def test_what_is_no_process_is_passed_over(address):
    failed = []

    def connect():
        return socket.create_connection(roll_call.parse_address(address), timeout=10)

    def disturb():
        for sent in (
            b"GET / HTTP/1.1\r\n\r\n",
            b'{"processes": "two"}\n',
            b"[1]\n",
            b"",
            b"x" * 5000,
        ):
            for _ in range(50):
                try:
                    with connect() as connection:
                        connection.sendall(sent)
                    break
                except OSError:
                    time.sleep(0.05)
            else:
                failed.append(sent)
        silent = connect()
        answer(address, 2, 1, 30)
        silent.close()

    other = threading.Thread(target=disturb)
    other.start()
    answer(address, 2, 0, 30)
    other.join()
    assert not failed


def test_one_that_went_away_may_come_again(address):
    def again():
        for _ in range(100):
            try:
                first = socket.create_connection(roll_call.parse_address(address), timeout=10)
                break
            except OSError:
                time.sleep(0.05)
        first.sendall(b'{"processes": 3, "process": 1}\n')
        time.sleep(0.2)
        first.close()
        return together((address, 3, 1, 30), (address, 3, 2, 30))

    with concurrent.futures.ThreadPoolExecutor() as pool:
        others = pool.submit(again)
        answer(address, 3, 0, 30)
        assert others.result() == [None, None]


def test_a_port_that_is_taken_is_named(address):
    with (
        socket.create_server(("", roll_call.parse_address(address)[1])),
        pytest.raises(UserError, match=f"process 0 cannot listen at {address}"),
    ):
        answer(address, 2, 0, 5)


@pytest.mark.parametrize(
    "text", ["localhost", "localhost:0", "localhost:70000", "::", "a b:1", ":80", "x:y"]
)
def test_addresses(text):
    with pytest.raises(UserError, match="is no address: give the host and a free port"):
        answer(text, 2, 0, 1)


def test_an_unknown_host_is_named_at_once():
    with pytest.raises(UserError, match=r"no\.such\.host\.invalid:80: the host is not known"):
        answer("no.such.host.invalid:80", 2, 1, 60)


def test_jax_that_was_used_is_said(address):
    jax.devices()
    options = RunOptions(coordinator=address, processes=2, process=1)
    with pytest.raises(UserError, match="JAX has been used in this process already"):
        launch.connect(options)

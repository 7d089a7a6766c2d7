"""Files that survive a kill."""

import errno
import json
import os

import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.results import durable


def test_json_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    durable.write_json(path, {"a": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"result\.json cannot be written \(No space left"):
        durable.write_json(path, {"a": 2})
    assert durable.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_what_a_killed_process_left_beside_is_replaced_by_the_next(tmp_path, monkeypatch):
    path = tmp_path / "result.json"

    def killed(*_):
        raise SystemExit

    for process in (11, 12):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            with pytest.raises(SystemExit):
                durable.write_json(path, {"a": process})
        assert len([*tmp_path.iterdir()]) == 1
    durable.write_json(path, {"a": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_json_keeps_infinity_and_tuples(tmp_path):
    path = tmp_path / "x.json"
    durable.write_json(path, {"clip": float("inf"), "stages": (3, 4)})
    assert durable.read_json(path) == {"clip": float("inf"), "stages": [3, 4]}


def test_json_of_what_has_no_form_names_the_field(tmp_path):
    with pytest.raises(UserError, match=r"config\.json\.a\.b\[1\] is a function"):
        durable.write_json(tmp_path / "config.json", {"a": {"b": [1, lambda: 0]}})
    assert list(tmp_path.iterdir()) == []


def test_json_that_is_damaged_or_missing(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(UserError, match="cannot be read"):
        durable.read_json(path)
    path.write_text('{"a": ')
    with pytest.raises(UserError, match="not a JSON file"):
        durable.read_json(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not a JSON file"):
        durable.read_json(path)


def test_sets_and_paths_become_plain(tmp_path):
    assert durable.plain({"b", "a"}) == ["a", "b"]
    assert durable.plain(tmp_path) == str(tmp_path)
    assert json.dumps(durable.plain({1: (True, None)})) == '{"1": [true, null]}'


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (float("nan"), float("nan"), True),
        ([float("nan"), 1], [float("nan"), 1], True),
        ({"a": float("nan")}, {"a": 1.0}, False),
        ({"a": 1}, {"b": 1}, False),
        ([1], [1, 2], False),
        (1, 1.0, True),
    ],
)
def test_same(a, b, equal):
    assert durable.same(a, b) is equal


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 131_072])
def test_whole_lines_finds_the_last_newline_across_chunks(tmp_path, size):
    path = tmp_path / "f"
    path.write_bytes(b"head\n" + b"x" * size)
    assert durable.whole_lines(path) == 5
    path.write_bytes(b"x" * size)
    assert durable.whole_lines(path) == 0
    path.write_bytes(b"x" * size + b"\n")
    assert durable.whole_lines(path) == size + 1
    assert durable.whole_lines(tmp_path / "missing") == 0

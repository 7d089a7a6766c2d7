"""The log line: its form, its durability, and what it refuses."""

import errno
import json
import math
import os
import pathlib

import ml_dtypes
import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.results import durable, log as log_module
from mlperf_jax.results.log import RESERVED, Log, read

official = pytest.importorskip("mlperf_logging.compliance_checker.mlp_parser")


@pytest.fixture
def log(tmp_path):
    with Log(tmp_path / "result_0.txt") as log:
        yield log


def test_a_line_has_the_six_members_in_order(log, monkeypatch):
    monkeypatch.setattr(log_module.time, "time_ns", lambda: 1_700_000_001_234_567_890)
    log.event("seed", 4711, extra=1)
    text = log.path.read_text()
    assert text.startswith(":::MLLOG {")
    assert text.endswith("}\n")
    line = json.loads(text[len(":::MLLOG ") :])
    assert list(line) == ["namespace", "time_ms", "event_type", "key", "value", "metadata"]
    assert line["namespace"] == ""
    assert line["event_type"] == "POINT_IN_TIME"
    assert line["time_ms"] == 1_700_000_001_234
    assert isinstance(line["time_ms"], int)
    assert line["key"] == "seed"
    assert line["value"] == 4711
    assert line["metadata"]["extra"] == 1


def test_event_types(log):
    log.start("run_start")
    log.stop("run_stop", status="success")
    log.event("cache_clear", True)
    types = [line.event_type for line in read(log.path)]
    assert types == ["INTERVAL_START", "INTERVAL_END", "POINT_IN_TIME"]


def test_metadata_names_the_caller(log):
    log.event("cache_clear", True)
    line = read(log.path)[0]
    assert os.path.basename(line.metadata["file"]) == "test_log.py"
    source = pathlib.Path(__file__).read_text().split("\n")
    assert 'log.event("cache_clear", True)' in source[line.metadata["lineno"] - 1]


def test_metadata_names_our_own_files_from_the_package_on(log, tmp_path):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(log_module.__file__))))
    code = compile("log.event('cache_clear', True)", f"{root}/mlperf_jax/core/loop.py", "exec")
    exec(code, {"log": log})
    assert read(log.path)[0].metadata["file"] == "mlperf_jax/core/loop.py"


@pytest.mark.parametrize(
    ("file", "shown"),
    [
        ("/home/u/global_batch_size/train.py", "train.py"),
        ("/home/u/my_eval_accuracy.py", "<file>"),
    ],
)
def test_a_callers_path_cannot_confuse_the_convergence_checker(log, file, shown):
    exec(compile("log.event('cache_clear', True)", file, "exec"), {"log": log})
    assert read(log.path)[0].metadata["file"] == shown


def test_the_caller_may_not_set_file(log):
    with pytest.raises(UserError, match="file"):
        log.event("cache_clear", True, file="x.py")


def test_time_can_be_given(log):
    log.stop("run_stop", time_ms=np.int64(1_600_000_000_000), status="success")
    assert read(log.path)[0].time_ms == 1_600_000_000_000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int32(3), 3),
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.bool_(True), True),
        (np.array([1, 2]), [1, 2]),
        (np.array([[0.5]], np.float16), [[0.5]]),
        (np.array(2.5), 2.5),
        (ml_dtypes.bfloat16(1.5), 1.5),
        ((1, (2, 3)), [1, [2, 3]]),
        ({"BBOX": np.float32(0.25)}, {"BBOX": 0.25}),
        (math.inf, math.inf),
        (np.array([-np.inf]), [-math.inf]),
        (None, None),
        ("ß \n \u2028 text", "ß \n \u2028 text"),
    ],
)
def test_values_become_plain_json(log, value, expected):
    log.event("some_key", value)
    assert len(log.path.read_bytes().splitlines()) == 1
    assert read(log.path)[0].value == expected
    lines, errors = official.parse_file(str(log.path), ruleset="4.0.0")
    assert not errors
    assert lines[0].value["value"] == expected


def test_nan_is_written_as_the_readers_take_it(log):
    log.event("loss", np.float32("nan"))
    assert math.isnan(read(log.path)[0].value)
    lines, errors = official.parse_file(str(log.path), ruleset="4.0.0")
    assert not errors
    assert math.isnan(lines[0].value["value"])


@pytest.mark.parametrize("value", [1j, object(), np.array(["a", 1], object), {"f": print}])
def test_values_without_a_json_form_are_refused(log, value):
    with pytest.raises(UserError, match="some_key"):
        log.event("some_key", value)
    assert log.path.read_bytes() == b""
    assert log.offset == 0


@pytest.mark.parametrize("word", RESERVED)
def test_reserved_words_are_refused_in_other_lines(log, word):
    with pytest.raises(UserError, match=word):
        log.event(f"target_{word}", 0.7)
    with pytest.raises(UserError, match=word):
        log.event("note", f"the {word} is fine")
    with pytest.raises(UserError, match=word):
        log.event("note", {"a": [word]})
    with pytest.raises(UserError, match=word):
        log.event("note", 1, **{word: 2})
    with pytest.raises(UserError, match=word):
        log.event("eval_accuracy", {"x": 1.0}, note=word)
    assert read(log.path) == []
    log.event(word, 1)
    assert read(log.path)[0].key == word


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1.5),
        ("seed", "7"),
        ("seed", None),
        ("seed", True),
        ("global_batch_size", "16"),
        ("train_samples", 10.0),
        ("eval_accuracy", None),
        ("eval_accuracy", "0.76"),
        ("eval_error", True),
        ("two words", 1),
        ("", 1),
        (3, 1),
    ],
)
def test_what_ends_the_official_tools_is_refused(log, key, value):
    with pytest.raises(UserError, match="log key"):
        log.event(key, value)
    assert log.path.read_bytes() == b""


def test_seed_may_be_a_numpy_integer(log):
    log.event("seed", np.uint64(2**63 + 1))
    assert read(log.path)[0].value == 2**63 + 1


def test_a_token_inside_a_value_does_not_cut_the_line(log):
    log.event("note", "before :::MLLOG after")
    assert read(log.path)[0].value == "before :::MLLOG after"
    lines, errors = official.parse_file(str(log.path), ruleset="4.0.0")
    assert not errors
    assert lines[0].value["value"] == "before :::MLLOG after"


def test_each_line_is_synced_before_the_call_returns(log, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), fsync(fd)))
    log.event("seed", 1)
    log.event("seed", 2)
    assert synced[-1] == log.offset == log.path.stat().st_size
    assert len(synced) == 2


def test_offset_and_resume(tmp_path):
    path = tmp_path / "result_0.txt"
    with Log(path) as log:
        assert log.offset == 0
        log.event("seed", 1)
        offset = log.offset
        assert offset == path.stat().st_size
        log.event("note", 2)
    with open(path, "ab") as f:
        f.write(b':::MLLOG {"names')
    with Log(path, resume_at=offset) as log:
        assert log.offset == offset
        log.event("note", 3)
    assert [line.value for line in read(path)] == [1, 3]


def test_opening_drops_half_a_line_and_goes_on(tmp_path):
    path = tmp_path / "result_0.txt"
    with Log(path) as log:
        log.event("note", 1)
        whole = log.offset
    with open(path, "ab") as f:
        f.write(b":::MLLOG {" + b"x" * 200_000)  # longer than one chunk of the search
    with Log(path) as log:
        assert log.offset == whole
        log.event("note", 2)
    assert [line.value for line in read(path)] == [1, 2]


def test_a_file_of_only_half_a_line_starts_empty(tmp_path):
    path = tmp_path / "result_0.txt"
    path.write_bytes(b":::MLL")
    with Log(path) as log:
        assert log.offset == 0
    assert path.read_bytes() == b""


def test_cut(tmp_path):
    path = tmp_path / "result_0.txt"
    path.write_bytes(b"one\ntwo\nthr")
    durable.cut(path, 8)
    assert path.read_bytes() == b"one\ntwo\n"
    durable.cut(path, 4)
    assert path.read_bytes() == b"one\n"
    with pytest.raises(UserError, match="byte 9"):
        durable.cut(path, 9)
    with pytest.raises(UserError, match="byte 2"):
        durable.cut(path, 2)
    assert path.read_bytes() == b"one\n"
    durable.cut(path, 0)
    assert path.read_bytes() == b""


def test_resume_of_a_missing_log_says_so(tmp_path):
    with pytest.raises(UserError, match="byte 10"):
        Log(tmp_path / "result_0.txt", resume_at=10)


def test_a_log_without_a_path_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Log(None) as log:
        log.event("seed", 1)
        log.start("run_start")
        assert log.offset == 0
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_whole_lines(log, monkeypatch):
    log.event("note", 1)
    before = log.path.read_bytes()
    write = os.write

    def full(fd, data):
        if len(data) <= 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[:20])  # the disk takes a part, then no more

    monkeypatch.setattr(os, "write", lambda fd, data: full(fd, data[:30]))
    with pytest.raises(UserError, match="No space left"):
        log.event("note", 2)
    assert log.path.read_bytes() == before
    assert log.offset == len(before)
    monkeypatch.setattr(os, "write", write)
    log.event("note", 3)
    assert [line.value for line in read(log.path)] == [1, 3]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_really_full_device():
    log = Log("/dev/full")
    with pytest.raises(UserError, match="/dev/full cannot be written"):
        log.event("note", 1)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        Log(tmp_path / "missing" / "result_0.txt")


def test_read_is_as_tolerant_as_the_official_reader(tmp_path):
    path = tmp_path / "log.txt"
    line = '{"namespace": "", "time_ms": 1.5, "event_type": "", "key": "k", "value": NaN, "metadata": null}'
    path.write_bytes(
        b"\xff\xfe no token\n"
        + f"0: [gpu] :::MLLOG {line}\r\n".encode()
        + f":::MLLOG {line}".encode()  # no newline, yet whole
    )
    lines = read(path)
    assert [(x.key, x.lineno, x.metadata) for x in lines] == [("k", 2, {}), ("k", 3, {})]
    assert lines[0].text == f":::MLLOG {line}"


def test_read_skips_half_a_line_at_the_end_only(tmp_path):
    path = tmp_path / "log.txt"
    with Log(path) as log:
        log.event("seed", 1)
    whole = path.read_text()
    path.write_text(whole + whole[: len(whole) // 2])
    assert len(read(path)) == 1
    path.write_text(whole[: len(whole) // 2] + "\n" + whole)
    with pytest.raises(UserError, match="line 1 of the log"):
        read(path)
    path.write_text(":::MLLOG {}\n")
    with pytest.raises(UserError, match="lacks 'metadata'"):
        read(path)
    path.write_text(":::MLLOG [1]\n")
    with pytest.raises(UserError, match="line 1"):
        read(path)


def test_read_of_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "no.txt")
    with pytest.raises(UserError, match="is a folder: give a file"):
        read(tmp_path)


def test_the_room_needs_no_jax():
    """`results` reads logs on machines without an accelerator stack, and fast."""
    import subprocess
    import sys

    code = "import sys, mlperf_jax.results; print([m for m in ('jax', 'flax', 'mlperf_logging', 'gcsfs') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"

"""Whatever the bytes of a log: it is read, or refused in one sentence, soon, and nothing that is shown obeys it."""

import json
import time

import hypothesis
import pytest
from hypothesis import strategies as st
from score_sets import lines, resnet_set, write

from mlperf_jax.errors import UserError
from mlperf_jax.results import compliance, log, logset, report
from mlperf_jax.results.score import score

SECONDS = 20  # of processor time for one small log, far more than any takes
PLAIN = [json.loads(text.split(" ", 1)[1]) for text in lines(9, seed=8)]
KEYS = [*sorted({members["key"] for members in PLAIN}), "target_accuracy", "tracked_stats", "x"]

texts = st.text(max_size=20) | st.sampled_from(
    ["\x1b[31m", "\x07", "\u202eabc", ":::MLLOG {", "closed", "7"]
)
numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1.5, 75.9, 1e30, 10**400, 2**63, float("nan"), float("inf"), -0.0]),
)
anything = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(["key", "value", "metadata", "time_ms", "event_type", "namespace"])


@st.composite
def changed(draw):
    """The lines of a log of which some members are anything, are not there, or are there twice."""
    log_lines = [dict(members) for members in PLAIN]
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(log_lines) - 1))
        kind = draw(st.sampled_from(["member", "key", "without", "twice", "metadata"]))
        if kind == "member":
            log_lines[at][draw(names)] = draw(anything)
        elif kind == "key":
            log_lines[at]["key"] = draw(st.sampled_from(KEYS))
        elif kind == "without":
            log_lines[at].pop(draw(names), None)
        elif kind == "twice":
            log_lines.insert(draw(st.integers(0, len(log_lines))), dict(log_lines[at]))
        else:
            name = draw(st.sampled_from(["epoch_num", "samples_count", "metric", "status", "file"]))
            log_lines[at]["metadata"] = {name: draw(anything)}
    ascii_only = draw(st.booleans())
    return "".join(f":::MLLOG {json.dumps(each, ensure_ascii=ascii_only)}\n" for each in log_lines)


pieces = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from([f"{text}\n".encode() for text in lines(9, seed=8)]),
        st.sampled_from(
            [b":::MLLOG ", b":::MLLOG {", b"}\n", b"\r", b"\n", b"\0", b"[" * 2000, b"1" * 5000, b'"', b":::MLL ",
             b":::MLPv0.5.0 ", b"\x1f\x8b\x08", b"\xff\xfe", b'{"key": "run_stop", "metadata": {"status": "\x1b"}']
        ),
    ),
    max_size=12,
).map(b"".join)  # fmt: skip


def obeyed(text):
    return [c for c in text if not c.isprintable() and c != "\n"]


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """A set of four good logs, for a fifth to be written to."""
    return write(tmp_path_factory.mktemp("properties"), *resnet_set(10, 11, 12, 13))


def read_by_all(where, content):
    """Every reader takes the set with this log, and the four others are scored."""
    path = where / "result_4.txt"
    path.write_bytes(content)
    began = time.process_time()
    found = logset.read(path, settings=True)
    shown = "\n".join(map(str, found.findings))
    try:
        for each in log.read(path):
            assert isinstance(each.time_ms, float)
            assert isinstance(each.key, str)
    except UserError as error:
        shown += str(error)
    scored = score(where, "4.0.0")
    assert scored.minutes is not None
    assert [run.counted for run in scored.runs[:4]] == [True] * 4
    page = report.collect(where, ruleset="4.0.0")
    page.html()
    json.dumps(scored.to_dict())
    assert obeyed(shown + str(scored) + repr(scored) + repr(page)) == []
    assert time.process_time() - began < SECONDS
    return scored


@hypothesis.given(pieces)
def test_any_bytes(where, content):
    read_by_all(where, content)


@hypothesis.given(changed())
def test_any_values(where, text):
    scored = read_by_all(where, text.encode("utf-8", "surrogatepass"))
    if scored.valid:  # then nothing in what counts is what cannot be
        fifth = scored.runs[4].log
        for note in fifth.notes:
            if not fifth.broken:
                assert type(note.time_ms) in (int, float)
                assert 0 <= note.time_ms < 1e14
            if note.key == "seed":
                assert type(note.value) is int
                assert note.value >= 0
        assert all(
            0 <= evaluation.value <= 1
            for evaluation in fifth.evaluations
            if fifth.status == "success"
        )


@hypothesis.settings(max_examples=15)  # the official checker takes a while
@hypothesis.given(
    st.one_of(changed().map(lambda text: text.encode("utf-8", "surrogatepass")), pieces)
)
def test_the_checker_says_what_it_finds_or_refuses_in_a_sentence(where, content):
    path = where / "result_4.txt"
    path.write_bytes(content)
    assert obeyed(str(compliance.check(where, "4.0.0"))) == []
    try:
        said = str(compliance.check(path, "4.0.0"))
    except UserError as error:
        said = str(error)
        assert said.count("\n") == 0
    assert obeyed(said) == []


@hypothesis.given(anything, anything)
def test_what_the_writer_takes_it_reads_again(tmp_path_factory, value, extra):
    """And what it would read otherwise it does not take."""
    path = tmp_path_factory.getbasetemp() / "written.txt"
    path.unlink(missing_ok=True)
    with log.Log(path) as writer:
        try:
            writer.event("tracked_stats", value, extra=extra)
        except UserError:
            assert path.read_bytes() == b""
            return
    (read,) = log.read(path)
    assert log.durable.same(read.value, json.loads(json.dumps(value)))
    assert log.durable.same(read.metadata["extra"], json.loads(json.dumps(extra)))
    assert len(logset.read(path, settings=True).settings) <= 1

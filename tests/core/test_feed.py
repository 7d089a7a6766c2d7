"""The feed: order, errors, ends, and what it refuses."""

import itertools
import queue
import threading
import types

import jax
import numpy as np
import pytest

from mlperf_jax.core import feed, mesh as meshes
from mlperf_jax.core.benchmark import Bucket, f32, i32
from mlperf_jax.errors import UserError

ROWS = 8
EXAMPLE = {"x": f32(3), "label": i32()}
PATIENCE = 30  # seconds after which a test that hangs fails instead


def numbered(number, width=3):
    """A batch that says which one it is."""
    return {
        "x": np.full((ROWS, width), number, np.float32),
        "label": np.arange(ROWS, dtype=np.int32),
    }


def make(batches, examples=(EXAMPLE,), *, padded=False):
    buckets = [Bucket(ROWS, example) for example in examples]
    return feed.Feed(iter(batches), buckets, meshes.make_mesh("data=8"), padded=padded)


def first(batch):
    return int(batch["x"][0, 0])


def test_batches_come_in_order_sharded_by_rows():
    with make(numbered(n) for n in range(10)) as batches:
        got = list(batches)
    assert [first(batch) for batch in got] == list(range(10))
    assert got[3]["label"].sharding == meshes.batch_sharding(meshes.make_mesh("data=8"))
    np.testing.assert_array_equal(got[3]["label"], np.arange(ROWS))


def test_the_end_of_the_data_stays_the_end():
    with make([numbered(0)]) as batches:
        assert first(next(batches)) == 0
        for _ in range(3):
            with pytest.raises(StopIteration):
                next(batches)


def test_an_error_of_the_producer_comes_after_its_batches_and_is_repeated():
    def broken():
        yield numbered(0)
        yield numbered(1)
        raise UserError("record 7 is truncated")

    with make(broken()) as batches:
        assert [first(next(batches)), first(next(batches))] == [0, 1]
        for _ in range(2):
            with pytest.raises(UserError, match="record 7 is truncated"):
                next(batches)


def test_other_errors_of_the_producer_keep_their_type():
    def broken():
        raise MemoryError("no room")
        yield

    with make(broken()) as batches, pytest.raises(MemoryError, match="no room"):
        next(batches)


def test_close_ends_the_thread_and_the_producer_when_the_queue_is_full():
    closed = threading.Event()
    full = threading.Event()

    def endless():
        try:
            for number in itertools.count():
                if number == feed.DEPTH:  # that many are queued, so this one will wait for room
                    full.set()
                yield numbered(number)
        finally:
            closed.set()

    batches = make(endless())
    assert full.wait(PATIENCE)
    assert batches._queue.full()
    batches.close()
    assert closed.is_set()
    assert not batches._thread.is_alive()


def test_reading_ahead_is_bounded():
    made = []
    asked = threading.Event()

    def counting():
        for number in itertools.count():
            made.append(number)
            if number == feed.DEPTH:
                asked.set()
            yield numbered(number)

    with make(counting()) as batches:
        assert asked.wait(PATIENCE)
        next(batches)
    # taken 1, queued DEPTH, waiting for room 1, and at most one begun while closing
    assert len(made) <= feed.DEPTH + 3


def test_closing_twice_is_harmless():
    batches = make([numbered(0)])
    batches.close()
    batches.close()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": np.zeros((ROWS, 4), np.float32)}, r"float32\[4\] for 'x'.*float32\[3\]"),
        ({"x": np.zeros((ROWS, 3), np.float64)}, r"float64\[3\] for 'x'.*float32\[3\]"),
        ({"label": np.zeros((ROWS, 1), np.int32)}, r"int32\[1\] for 'label'.*int32\[\]"),
        ({"weight": np.zeros(ROWS, np.float32)}, "float32.* for 'weight'.* nothing"),
    ],
)
def test_a_batch_that_differs_from_the_example_names_the_array(change, says):
    with make([numbered(0), numbered(1) | change]) as batches:
        assert first(next(batches)) == 0
        with pytest.raises(UserError, match=says):
            next(batches)


def test_a_missing_array_is_named():
    batch = numbered(0)
    del batch["label"]
    with make([batch]) as batches, pytest.raises(UserError, match="nothing for 'label'"):
        next(batches)


def test_only_evaluation_batches_have_a_mask_that_the_example_does_not_state():
    mask = np.arange(ROWS) < 5
    padded = numbered(0) | {"mask": mask}
    with make([padded], padded=True) as batches:
        np.testing.assert_array_equal(next(batches)["mask"], mask)
    with make([padded]) as batches, pytest.raises(UserError, match="'mask'"):
        next(batches)


@pytest.mark.parametrize("padded", [True, False])
def test_a_mask_that_the_example_states_is_passed_on(padded):
    stated = ({"x": f32(3), "label": i32(), "mask": jax.ShapeDtypeStruct((), bool)},)
    mask = np.arange(ROWS) < 5
    with make([numbered(0) | {"mask": mask}], stated, padded=padded) as batches:
        np.testing.assert_array_equal(next(batches)["mask"], mask)


def test_every_bucket_shape_is_taken_and_no_other():
    buckets = ({"x": f32(3), "label": i32()}, {"x": f32(5), "label": i32()})
    with make([numbered(0, 3), numbered(1, 5), numbered(2, 4)], buckets) as batches:
        assert next(batches)["x"].shape == (ROWS, 3)
        assert next(batches)["x"].shape == (ROWS, 5)
        with pytest.raises(UserError, match="'x'"):
            next(batches)


def test_a_batch_that_fits_none_is_told_how_it_differs_from_the_nearest():
    buckets = ({"a": f32(9), "x": f32(3), "label": i32()}, {"x": f32(5), "label": i32()})
    extra = numbered(0, 5) | {"weight": np.zeros(ROWS, np.float32)}
    with make([extra], buckets) as batches, pytest.raises(UserError) as error:
        next(batches)
    assert (
        str(error.value) == "the data gives float32[] for 'weight' where the benchmark says nothing"
    )
    several = {"x": np.zeros((ROWS, 5), np.float16), "label": np.zeros((ROWS, 2), np.int32)}
    with make([several], buckets) as batches, pytest.raises(UserError) as error:
        next(batches)
    assert str(error.value) == (
        "the data gives int32[2] for 'label' where the benchmark says int32[]; "
        "float16[5] for 'x' where the benchmark says float32[5]"
    )


def test_buckets_may_differ_in_their_rows():
    buckets = (Bucket(8, EXAMPLE), Bucket(16, EXAMPLE), Bucket(8, {"x": f32(5), "label": i32()}))

    def batch(rows):
        return {"x": np.zeros((rows, 3), np.float32), "label": np.zeros(rows, np.int32)}

    given = iter([batch(16), batch(8), numbered(1, 5), batch(24)])
    with feed.Feed(given, buckets, meshes.make_mesh("data=8")) as batches:
        assert [len(next(batches)["x"]) for _ in range(3)] == [16, 8, 8]
        with pytest.raises(UserError, match="gives batches of 24 rows where 8 or 16 are read"):
            next(batches)


def test_arrays_of_a_batch_have_as_many_rows_as_each_other():
    uneven = {"x": np.zeros((ROWS, 3), np.float32), "label": np.zeros(4, np.int32)}
    with make([uneven]) as batches, pytest.raises(UserError, match="batches of 4, 8 rows where 8"):
        next(batches)


def test_evaluation_batches_must_have_a_mask():
    with (
        make([numbered(0)], padded=True) as batches,
        pytest.raises(UserError, match="nothing for 'mask' where the benchmark says bool"),
    ):
        next(batches)


def test_waiting_is_counted_when_there_is_no_batch_and_only_then(monkeypatch):
    seconds = itertools.count(100)  # one passes between two looks at the clock
    clock = types.SimpleNamespace(perf_counter=lambda: float(next(seconds)))
    stored, waiting, go = threading.Event(), threading.Event(), threading.Event()

    class Watched(queue.Queue):
        def put(self, *args, **kwargs):
            super().put(*args, **kwargs)
            stored.set()

        def get(self, *args, **kwargs):
            if not args and not kwargs:  # the call that waits
                waiting.set()
            return super().get(*args, **kwargs)

    def slow():
        yield numbered(0)
        go.wait(PATIENCE)
        yield numbered(1)

    monkeypatch.setattr(feed, "time", clock)
    monkeypatch.setattr(feed.queue, "Queue", Watched)
    with make(slow()) as batches:
        assert stored.wait(PATIENCE)
        next(batches)
        assert batches.waited == 0.0
        threading.Thread(target=lambda: waiting.wait(PATIENCE) and go.set()).start()
        next(batches)
        assert batches.waited == 1.0

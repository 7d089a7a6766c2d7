"""A user's transforms behind a split's own, and the processes that run what holds the interpreter."""

import multiprocessing
import os

import grain
import numpy as np
import pytest
from pipeline_toys import SPLITS, Doubled, Jittered, Many, assert_equal, source, take

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import pipeline

both = pytest.mark.parametrize("kind", SPLITS)


# -- a user's transforms -----------------------------------------------------------------------


@both
@pytest.mark.parametrize("transform", [Doubled(), Many()])
def test_added_transforms_come_behind_the_splits_own(kind, transform):
    plain, changed = take(SPLITS[kind], 7), take(SPLITS[kind].transformed([transform]), 7)
    assert_equal(changed, [batch | {"x": batch["x"] * 2} for batch in plain])


@both
def test_added_random_transforms_are_seeded_by_position(kind):
    split = SPLITS[kind].transformed([Jittered(), Many()])
    whole = take(split, 7)
    assert_equal(take(split, 2, start=5, threads=0), whole[5:7])
    assert not np.array_equal(whole[0]["x"], take(split, 1, seed=4)[0]["x"])
    tail = take(split, 7, share=lambda rows: (rows - 1, rows))
    assert_equal([{k: v[-1:] for k, v in batch.items()} for batch in whole], tail)


@pytest.mark.parametrize("kind", ["mix", "runs"])
@pytest.mark.parametrize("error", [ValueError, TypeError])
def test_a_transform_that_fails_is_not_blamed_on_the_data(kind, error):
    class Failing(grain.transforms.Map):
        def map(self, element):
            raise error("no")

    with pytest.raises(error, match="no") as caught:
        take(SPLITS[kind].transformed([Failing()]), 1)
    assert any("in a transform that was added, on " in note for note in caught.value.__notes__)


def test_a_transform_may_not_change_the_form_of_some_rows():
    class Uneven(grain.transforms.Map):
        def map(self, element):
            return element | ({"y": np.zeros(2)} if element["x"] == 7 else {})

    split = pipeline.training(source(), shuffle=False).transformed([Uneven()])
    with pytest.raises(UserError, match=r"row 7: 'y' is float64\[2\], other rows .* have missing"):
        take(split, 2)


def test_a_transform_of_many_rows_keeps_their_number():
    class Shorter(grain.transforms.Map):
        batched = True

        def map(self, element):
            return {name: rows[:-1] for name, rows in element.items()}

    split = pipeline.training(source(), shuffle=False).transformed([Shorter()])
    with pytest.raises(UserError, match=r"Shorter gives 3 rows of 'x' for 4: it must give as many"):
        split.batched(4)[0]


# -- worker processes --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plan", "runs, planned"])
def test_batches_do_not_depend_on_worker_processes(kind):
    split = SPLITS[kind].transformed([Many()])
    given = take(split, 9, start=2, workers=2)
    assert_equal(given, take(split, 9, start=2))
    assert not multiprocessing.active_children()


class InAProcess(grain.transforms.Map):
    """Says who reads; record 11 is bad."""

    def map(self, element):
        if element["x"] == 11:
            raise ValueError("bad")
        if element["x"] == 12:
            raise AttributeError("a bug")
        return {"x": element["x"], "process": np.int64(os.getpid())}


def test_worker_processes_read_and_name_what_is_damaged():
    split = pipeline.training(source(1000), InAProcess(), shuffle=False, last_batch="mix")
    batches = split.batched(4).stream(1, workers=1)
    assert os.getpid() not in next(batches)["process"]
    with pytest.raises(UserError, match=r"arrays, row 11: bad"):
        next(batches)
    assert not multiprocessing.active_children()
    batches = split.batched(4).stream(3, workers=1)
    with pytest.raises(AttributeError) as caught:
        next(batches)
    assert "row 12" in "".join(caught.value.__notes__)

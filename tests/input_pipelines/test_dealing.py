"""Rows of a partial batch over groups: evenly, and each once."""

import itertools

import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import pipeline
from mlperf_jax.input_pipelines.dealing import PADDING, Groups
from mlperf_jax.input_pipelines.sources import Arrays


@pytest.mark.parametrize(("span", "micro"), [(4, 1), (2, 2), (8, 1), (1, 1), (4, 2), (2, 4)])
@pytest.mark.parametrize("real", range(17))
def test_every_group_gets_as_many_as_any_other_give_or_take_one(span, micro, real):
    found = Groups(span, micro).dealt(real, 16)
    assert sorted(found[found != PADDING]) == list(range(real))
    # as the step cuts a batch into micro-batches, and batch norm those into groups
    parts = [found.reshape(-1, micro)[:, m].reshape(-1, span) for m in range(micro)]
    held = (np.concatenate(parts) != PADDING).sum(1)
    assert held.max() - held.min() <= 1
    # a group's real rows are its first
    assert all((np.diff((group != PADDING).astype(int)) <= 0).all() for group in parts[0])


def test_five_rows_of_eight():
    assert Groups(4).dealt(5, 8).tolist() == [0, 2, 4, -1, 1, 3, -1, -1]
    assert Groups(2, 2).dealt(5, 8).tolist() == [0, 2, 4, -1, 1, 3, -1, -1]
    assert Groups(8).dealt(5, 8).tolist() == [0, 1, 2, 3, 4, -1, -1, -1]


def test_a_whole_batch_keeps_its_order():
    assert Groups(2, 2).dealt(8, 8).tolist() == list(range(8))


@pytest.mark.parametrize(
    ("groups", "real", "sentence"),
    [
        (lambda: Groups(3), 5, "8 rows has no whole groups of 3"),
        (lambda: Groups(4, 4), 5, "no whole groups of 4 in 4 micro-batches"),
        (lambda: Groups(4), 9, "9 rows do not fit a batch of 8"),
        (lambda: Groups(0), 5, "groups of 0 rows"),
    ],
)
def test_refused(groups, real, sentence):
    with pytest.raises(UserError, match=sentence):
        groups().dealt(real, 8)


@pytest.mark.parametrize("rows", [(0, 8), (0, 3), (3, 8), (7, 8)])
def test_the_last_batch_of_an_epoch_is_dealt_whoever_reads_which_rows(rows):
    arrays = {"x": np.arange(100, 121)}
    lo, hi = rows
    data = pipeline.training(Arrays(arrays), shuffle=False, last_batch="keep", groups=Groups(4))
    batches = list(itertools.islice(data.batched(8, share=lambda _: rows).stream(threads=1), 4))
    whole = [[108, 109, 110, 111, 112, 113, 114, 115], [116, 118, 120, 0, 117, 119, 0, 0]]
    assert [b["x"].tolist() for b in batches[1:3]] == [part[lo:hi] for part in whole]
    np.testing.assert_array_equal(batches[2]["mask"], np.array(whole[1][lo:hi]) > 0)
    assert batches[1]["mask"].all() and batches[3]["x"].tolist() == list(range(100, 108))[lo:hi]


def test_each_record_is_taken_once_in_an_epoch():
    arrays = Arrays({"x": np.arange(21)})
    data = pipeline.training(arrays, last_batch="keep", groups=Groups(2, 2))
    for first in (0, 3):
        taken = itertools.islice(data.batched(8, seed=1).stream(first, threads=2), 3)
        seen = np.concatenate([b["x"][b["mask"]] for b in taken])
        assert sorted(seen) == list(range(21))

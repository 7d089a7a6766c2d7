"""Arrays in memory as a data set."""

import itertools

import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.in_memory import InMemory


def rows(count, offset=0):
    return {"x": np.arange(offset, offset + count, dtype=np.float32), "label": np.arange(count)}


def test_an_epoch_holds_every_training_sample_and_its_own_label():
    data = InMemory(train=rows(12, 100), validation=rows(5))
    batches = list(itertools.islice(data.train().batched(4, seed=1).stream(), 6))
    for epoch in (batches[:3], batches[3:]):
        seen = np.concatenate([batch["x"] for batch in epoch])
        assert sorted(seen) == list(range(100, 112))
        np.testing.assert_array_equal(seen - 100, np.concatenate([b["label"] for b in epoch]))
    assert (batches[0]["x"] != batches[3]["x"]).any(), "epochs are shuffled anew"


def test_validation_is_in_order():
    data = InMemory(train=rows(12), validation=rows(5))
    batches = list(data.validation().batched(4).stream())
    kept = np.concatenate([batch["x"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(kept, rows(5)["x"])


def test_one_table_is_split():
    data = InMemory.split(rows(11), every=5)
    assert data.counts() == {"train": 8, "validation": 3}
    assert [batch["x"].tolist() for batch in data.validation().batched(3).stream()] == [[0, 5, 10]]


def test_the_folder_does_not_matter(tmp_path):
    data = InMemory(train=rows(4), validation=rows(2))
    data.build(str(tmp_path / "none"))
    assert not list(tmp_path.iterdir())
    assert data.counts("anywhere") == {"train": 4, "validation": 2}


def test_rows_that_do_not_match_are_refused():
    with pytest.raises(UserError, match="the training data: every array needs the same number"):
        InMemory(train={"x": np.zeros(3), "y": np.zeros(4)}, validation=rows(2))


def test_a_check_names_the_arrays_and_what_is_not_finite():
    found = InMemory(train={"x": np.array([[1.0], [np.nan]])}, validation=rows(2)).check()
    assert "the training data: x float64[2, 1]" in found
    assert [line for line in found if line.startswith("problem")] == [
        "problem: 'x' in the training data holds NaN or infinity"
    ]

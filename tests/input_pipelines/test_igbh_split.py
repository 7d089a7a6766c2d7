"""The split of IGBH's papers: against torch's permutations, the check values of the benchmark, bad input."""

import hashlib
import pathlib

import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.igbh import split

STORED = np.load(pathlib.Path(__file__).parent / "data" / "igbh_permutations.npz")
ENDS = 64
LARGE = 70_000  # from here on ends and a sum are stored


@pytest.mark.parametrize("name", STORED.files)
def test_permutations_are_torchs(name):
    count, seed = map(int, name.split("_"))
    order = split.permutation(count, seed)
    assert order.dtype == np.int32
    if count < LARGE:
        assert order.tolist() == STORED[name].tolist()
        return
    weighted = order.astype(np.int64) @ np.arange(count)
    ends = np.concatenate([order[:ENDS], order[-ENDS:], [weighted]])
    assert ends.tolist() == STORED[name].tolist()


def test_the_first_places_need_no_others(monkeypatch):
    whole = split.permutation(1009)
    monkeypatch.setattr(split, "_WORDS", 7)
    for first in (0, 1, 7, 700, 1008, 1009, 5000):
        np.testing.assert_array_equal(split.permutation(1009, first=first), whole[:first])


def test_the_split_takes_the_permutation_in_order():
    train, validation = split.papers(1009)
    assert (len(train), len(validation)) == (605, 5)  # 605.4 and 5.045
    both = np.concatenate([train, validation])
    assert both.tolist() == STORED["1009_42"][:610].tolist()
    assert train.tolist() != split.papers(1009, seed=43)[0].tolist()


def test_counts_round_down_as_the_reference_truncates():
    counts = [*range(200, 3000), 100_000, 1_000_000, 10_000_000, 100_000_000, split.LABELLED]
    for count in counts:
        assert split.sizes(count) == (int(count * 0.6), int(count * 0.005))
    assert split.sizes(split.LABELLED) == (94_605_581, 788_379)


def test_none_or_one_are_permuted():
    assert split.permutation(0).tolist() == []
    assert split.permutation(1).tolist() == [0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: split.papers(199), "199 labelled papers are too few"),
        (lambda: split.papers(227_130_858), "227,130,858 papers cannot be permuted"),
        (lambda: split.permutation((2**32 - 1) // 20), "214,748,364 papers cannot"),
        (lambda: split.permutation(-1), "-1 papers cannot be permuted"),
        (lambda: split.papers(seed=2**32), "seed 4294967296 is no number of 32 bits"),
        (lambda: split.papers(seed=-1), "seed -1 is no number"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(UserError, match=words):
        call()


@pytest.mark.slow
def test_the_full_split_has_the_benchmarks_check_values():
    """5 s of processor time and 1.1 GB."""
    found = split.papers()
    known = (
        ("3bb3b088c91fc4fc4c5724f10340401c", [31877852, 109930740, 141387703], 7448490249517826),
        ("256e4fdd1a689c0686cea0acbe290e88", [19216740, 99583790, 84215073], 62300700574736),
    )
    for ids, (md5, begin, total) in zip(found, known, strict=True):
        digest = hashlib.md5(usedforsecurity=False)
        for first in range(0, len(ids), 1 << 22):
            digest.update(ids[first : first + (1 << 22)].astype("<i8").tobytes())
        assert ids[:3].tolist() == begin
        assert ids.sum(dtype=np.int64) == total
        assert digest.hexdigest() == md5

"""The training order, against the worked examples, a slow twin's orders and a twin at random."""

import json
import pathlib

import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.tokens import megatron_index

DATA = pathlib.Path(__file__).parent / "data"
CASES = json.loads((DATA / "megatron_orders.json").read_text())  # scripts/make_megatron_fixture.py
LENGTHS = np.array([7, 3, 11, 2, 6], np.int32)


def made(lengths, length, samples, seed, extra=1, shuffle=True):
    random = np.random.RandomState(seed)
    reach = megatron_index.extent(int(lengths.sum()), length, samples, extra)
    index = megatron_index.document_index(len(lengths), reach, random, shuffle)
    return reach, megatron_index.Stream(index, lengths), megatron_index.shuffle_index(reach, random)


@pytest.mark.parametrize(
    ("samples", "reach", "documents", "order"),
    [
        (3, (1, 3, 3), [4, 0, 1, 2, 3], [1, 2, 0]),
        (
            10,
            (3, 10, 10),
            [3, 1, 0, 2, 4, 2, 0, 2, 1, 4, 3, 4, 0, 1, 3],
            [3, 9, 2, 1, 7, 5, 4, 0, 8, 6],
        ),
        (
            8,
            (3, 10, 7),
            [2, 2, 4, 1, 0, 3, 4, 0, 1, 3, 0, 4, 3, 2, 1],
            [1, 0, 3, 2, 5, 4, 6, 8, 9, 7],
        ),
    ],
)
def test_the_worked_examples(samples, reach, documents, order):
    found, stream, windows = made(LENGTHS, 8, samples, 1234)
    assert (found.epochs, found.windows, found.first) == reach
    assert stream.index.tolist() == documents and stream.index.dtype == np.int32
    assert windows.tolist() == order and windows.dtype == np.uint32


def test_the_worked_examples_windows():
    _, stream, _ = made(LENGTHS, 8, 3, 1234)
    starts = [tuple(piece.item() for piece in stream.pieces(8 * w, 1)) for w in range(4)]
    assert starts == [(4, 0, 1), (0, 2, 1), (2, 0, 1), (2, 8, 1)]
    documents, offsets, counts = stream.pieces(8, 9)
    assert list(zip(documents, offsets, counts)) == [(0, 2, 5), (1, 0, 3), (2, 0, 1)]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_orders_of_the_slow_twin(case):
    lengths = np.array(case["lengths"], np.int32)
    _, stream, windows = made(
        lengths,
        case["length"],
        case["samples"],
        case["seed"],
        case["extra"],
        case["shuffle_documents"],
    )
    assert stream.index.tolist() == case["documents"]
    assert windows.tolist() == case["order"]
    for number, (at, offset) in enumerate(case["starts"][: len(windows)]):
        pieces = stream.pieces(case["length"] * number, 1)
        assert [piece.item() for piece in pieces] == [case["documents"][at], offset, 1]
    for window, item in zip(windows, case["items"]):
        pieces = stream.pieces(int(window) * case["length"], case["length"] + case["extra"])
        found = [100 * d + offset + k for d, offset, count in zip(*pieces) for k in range(count)]
        assert found == item


def test_the_cases_hold_every_kind():
    reaches = [
        megatron_index.extent(sum(c["lengths"]), c["length"], c["samples"], c["extra"])
        for c in CASES
    ]
    assert any(r.epochs == 1 for r in reaches)
    assert any(r.separate for r in reaches)
    assert any(r.epochs > 1 and not r.separate for r in reaches)


def test_windows_over_many_blocks_of_documents():
    random = np.random.RandomState(3)
    lengths = random.randint(0, 6, 2000).astype(np.int32)
    index = random.permutation(2000).astype(np.int32)
    stream = megatron_index.Stream(index, lengths)
    everything = [(d, k) for d in index for k in range(lengths[d])]
    assert len(stream) == len(everything)
    for start, count in ((0, 1), (5, 700), (1234, 3000), (len(stream) - 9, 9), (0, len(stream))):
        pieces = stream.pieces(start, count)
        found = [(d, offset + k) for d, offset, n in zip(*pieces) for k in range(n)]
        assert found == everything[start : start + count]


def test_an_order_too_large_for_memory_is_refused():
    reach = megatron_index.extent(1_000_000, 100, 40_000_000)
    with pytest.raises(UserError, match="fewer training samples"):
        megatron_index.document_index(1_000_000, reach, np.random.RandomState(0))

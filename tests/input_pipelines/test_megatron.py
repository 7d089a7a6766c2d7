"""Samples of token files: order of a run, blend, validation, batches as a function of their number."""

import itertools
import json
import pathlib

import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import pipeline
from mlperf_jax.input_pipelines.tokens import megatron
from mlperf_jax.input_pipelines.tokens.megatron_file import TokenFile, Writer

CASES = json.loads((pathlib.Path(__file__).parent / "data" / "megatron_orders.json").read_text())
LENGTHS = [7, 3, 11, 2, 6]


def write(prefix, lengths, first=0) -> str:
    """Documents whose tokens say where they stand: 100 * document + offset."""
    with Writer(prefix, np.int32) as writer:
        for document, length in enumerate(lengths):
            writer.add(first + 100 * document + np.arange(length))
    return str(prefix)


@pytest.fixture
def prefix(tmp_path) -> str:
    return write(tmp_path / "tokens", LENGTHS)


def shown(tokens):
    return [tokens["inputs"].tolist(), tokens["labels"].tolist()]


def in_order(paths, length, samples, seed, **how):
    """The training split of one run's windows."""
    windows = megatron.GptTraining(tuple(paths), length, samples, **how)
    return pipeline.training(windows.for_seed(seed), shuffle=False)


def held_out(prefix, length, samples=None, vocabulary=None, extra=1):
    """The validation split of a file's windows."""
    windows = megatron.FileOrder(TokenFile(prefix, vocabulary), length, samples, extra)
    return pipeline.evaluation(megatron.TokenWindows(windows, length))


def evaluated(examples, batch_size=4):
    batches = list(examples.batched(batch_size).stream(threads=0))
    mask = np.concatenate([batch["mask"] for batch in batches])
    return {k: np.concatenate([b[k] for b in batches])[mask] for k in ("inputs", "labels")}


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_samples_of_the_slow_twin(tmp_path, case):
    examples = in_order(
        [write(tmp_path / "a", case["lengths"])],
        case["length"],
        case["samples"],
        case["seed"],
        extra_token=bool(case["extra"]),
        shuffle_documents=case["shuffle_documents"],
    )
    batches = examples.batched(1).stream(threads=0)
    missing = [] if case["extra"] else [megatron.IGNORED]
    for item, batch in zip(case["items"][: case["samples"]], batches):
        assert batch["inputs"][0].tolist() == item[: case["length"]]
        assert batch["labels"][0].tolist() == item[1:] + missing
        assert batch["inputs"].dtype == batch["labels"].dtype == np.int32


def test_the_worked_example(prefix):
    batch = in_order([prefix], 8, 3, 1234).batched(3)[0]
    inputs = [2, 3, 4, 5, 6, 100, 101, 102]  # document 0 from 2, document 1, document 2's first
    assert shown({k: v[0] for k, v in batch.items()}) == [inputs, [*inputs[1:], 200]]


def test_a_batch_is_a_function_of_its_number(prefix):
    windows = megatron.GptTraining((prefix,), 8, 12, vocabulary=1000)
    data = pipeline.training(windows, shuffle=False)
    assert len(data) == 12 and data.steps_per_epoch(4) == 3
    whole = list(itertools.islice(data.batched(4, seed=7).stream(threads=2), 3))
    for start, (lo, hi) in itertools.product(range(3), [(0, 2), (2, 4), (1, 2)]):
        part = data.batched(4, seed=7, share=lambda rows, at=(lo, hi): at)[start]
        np.testing.assert_array_equal(part["inputs"], whole[start]["inputs"][lo:hi])
    other = data.batched(4, seed=8)[0]
    assert (other["inputs"] != whole[0]["inputs"]).any()


def test_two_files_take_turns(tmp_path):
    paths = [write(tmp_path / "a", LENGTHS), write(tmp_path / "b", LENGTHS, first=5000)]
    batch = in_order(paths, 8, 9, 5).batched(9)[0]
    # each file is asked for ceil(ceil(9 / 2) * 1.005) = 6 windows
    for number, path in enumerate(paths):
        own = in_order([path], 8, 6, 5).batched(6)[0]
        count = 5 - number
        np.testing.assert_array_equal(batch["inputs"][number::2], own["inputs"][:count])


def test_validation_is_not_shuffled(prefix):
    stream = [100 * d + k for d, n in enumerate(LENGTHS) for k in range(n)]
    found = evaluated(held_out(prefix, 8, 3))
    assert found["inputs"].ravel().tolist() == stream[:24]
    assert found["labels"].ravel().tolist() == stream[1:25]


def test_validation_begins_again_after_the_last_document(prefix):
    stream = [100 * d + k for d, n in enumerate(LENGTHS) for k in range(n)] * 4
    found = evaluated(held_out(prefix, 8, 10))
    assert found["inputs"].ravel().tolist() == stream[:80]
    assert found["labels"].ravel().tolist() == stream[1:81]
    long = evaluated(held_out(prefix, 100, 1))
    assert long["inputs"].ravel().tolist() == stream[:100]


def test_the_whole_file_once_as_gpt3_does(prefix):
    stream = [100 * d + k for d, n in enumerate(LENGTHS) for k in range(n)]
    found = evaluated(held_out(prefix, 8, extra=0))
    none = megatron.IGNORED
    assert found["inputs"].shape == (4, 8)
    assert found["inputs"].ravel().tolist() == [*stream, 0, 0, 0]
    assert found["labels"][0].tolist() == [*stream[1:8], none]
    assert found["labels"][3].tolist() == [*stream[25:29], none, none, none, none]
    assert (found["labels"] != none).sum() == 3 * 7 + 4


def test_the_whole_file_once_scores_every_token_but_the_first(prefix):
    found = evaluated(held_out(prefix, 8))
    assert found["inputs"].shape == (4, 8)
    assert (found["labels"] != megatron.IGNORED).sum() == 28


def test_opening_reads_no_token(prefix, monkeypatch):
    monkeypatch.setattr(TokenFile, "read", lambda *_: pytest.fail("read a token"))
    assert len(megatron.GptTraining((prefix,), 8, 100)) == 100
    windows = megatron.GptTraining((prefix, prefix), 8, 100)
    pipeline.training(windows, shuffle=False).batched(4, seed=3).ready()
    assert len(held_out(prefix, 8, 3)) == 3


def test_a_token_beyond_the_vocabulary_is_named(prefix):
    data = held_out(prefix, 8, 3, vocabulary=300)
    words = r"tokens\.bin: token id 300 at byte 84 \(token 21\) is outside the vocabulary of 300"
    with pytest.raises(UserError, match=words):
        list(data.batched(1).stream())


def test_bad_numbers(prefix):
    for arguments in ((0, 3, 1), (8, 0, 1), (8, 3, -1), (8, 3, 1 << 32)):
        with pytest.raises(UserError):
            in_order([prefix], *arguments)
    with pytest.raises(UserError, match="larger than the 3 training examples"):
        in_order([prefix], 8, 3, 1).batched(4)

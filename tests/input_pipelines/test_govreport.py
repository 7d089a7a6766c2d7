"""Packing of GovReport, against a slow twin and by hand, and its reader."""

import json
import pathlib

import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import text
from mlperf_jax.input_pipelines.govreport import GovReport, builder, files
from mlperf_jax.input_pipelines.tokens.megatron import IGNORED as NONE

TINY = GovReport(256, 512, tiny=True)


def words(texts: list[str]) -> list[list[int]]:
    """A tokenizer of words: their lengths + 2; 0 is BOS and 1 EOS."""
    return [[len(word) + 2 for word in t.split()] for t in texts]


WORDS = text.Tokenizer("words", 100, words, str, 0, 1)


def slow_twin(documents, length, shards):
    """The reference's map over contiguous shards, in batches of 1,000, token by token."""
    kept = [d for d in documents if len(d[0]) <= length]
    shards = min(shards, len(kept))
    rows = []
    for shard in range(shards):
        start = len(kept) // shards * shard + min(shard, len(kept) % shards)
        stop = start + len(kept) // shards + (1 if shard < len(kept) % shards else 0)
        for first in range(start, stop, 1000):
            stream = [
                pair
                for tokens, labels in kept[first : min(stop, first + 1000)]
                for pair in zip(tokens.tolist(), labels.tolist())
            ]
            for at in range(0, len(stream) // length * length, length):
                rows.append(stream[at : at + length])
    return np.array(rows).reshape(-1, length, 2)


def test_prompt_and_labels_of_a_document():
    report, summary = "one three", "to be"
    prompt = [
        5,
        11,
        5,
        11,
        7,
        5,
        7,
        5,
        10,
    ]  # ### Summarize the following text: one three ### Summary:
    (tokens, labels), *rest = builder.encode([(report, summary)], WORDS, mask_prompt=True)
    assert not rest
    assert tokens.tolist() == [0, *prompt, 4, 4, 1]
    assert labels.tolist() == [NONE] * 10 + [4, 4, NONE]
    ((tokens, labels),) = builder.encode([(report, summary)], WORDS, mask_prompt=False)
    assert labels.tolist() == tokens.tolist()


def test_the_prompt_is_the_reference_s():
    seen = []

    def spy(texts):
        seen.extend(texts)
        return words(texts)

    tokenizer = text.Tokenizer("spy", 100, spy, str, 0, 1)
    list(builder.encode([("IN", "OUT")], tokenizer, mask_prompt=True))
    prompt = "### Summarize the following text:\n IN\n ### Summary:\n"
    assert seen == [f"{prompt} OUT", prompt]


@pytest.mark.parametrize(
    ("count", "length", "shards"),
    [(2500, 12, 2), (9000, 30, 8), (37, 25, 8), (3, 9, 8), (2001, 7, 2)],
)
def test_packing_equals_the_slow_twin(count, length, shards):
    random = np.random.RandomState(count)
    documents = []
    for number in range(count):
        tokens = random.randint(0, 90, random.randint(1, 15)).astype(np.int32)
        documents.append(
            (tokens, np.where(tokens < 30, NONE, tokens + number % 2).astype(np.int32))
        )
    inputs, labels = builder.pack(documents, length, shards)
    expected = slow_twin(documents, length, shards)
    np.testing.assert_array_equal(inputs, expected[..., 0])
    np.testing.assert_array_equal(labels, expected[..., 1])
    assert inputs.dtype == labels.dtype == np.int32


def test_long_documents_are_dropped_and_the_remainder_too():
    documents = [(np.full(n, n, np.int32),) * 2 for n in (5, 9, 8, 4)]
    inputs, _ = builder.pack(documents, 8, 1)  # 9 is too long, 5 + 8 + 4 = 17 leave 1
    assert inputs.tolist() == [[5] * 5 + [8] * 3, [8] * 5 + [4] * 3]


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    tokens = np.arange(60, dtype=np.int32).reshape(6, 10)
    for split in ("train", "validation"):
        labels = np.where(tokens % 3 == 0, NONE, tokens) if split == "validation" else tokens
        builder._save(files.stem(tmp_path), split, tokens, labels.astype(np.int32))
    return tmp_path


def test_labels_are_the_next_tokens(folder):
    data = GovReport(10, 60).validation(folder)
    batch = data.batched(2)[0]
    assert batch["inputs"][1].tolist() == list(range(10, 20))
    assert batch["labels"][1].tolist() == [11, NONE, 13, 14, NONE, 16, 17, NONE, 19, NONE]
    assert GovReport(10).train(folder).source.rows[2][0].tolist() == list(range(20, 30))


def test_an_epoch_is_a_permutation_of_the_rows(folder):
    data = GovReport(10, 60).train(folder)
    batches = data.batched(4, seed=1).stream(threads=0)
    first = np.concatenate([next(batches)["inputs"][:, 0] // 10 for _ in range(3)])
    assert sorted(first[:6]) == sorted(first[6:]) == list(range(6))
    assert first[:6].tolist() != first[6:].tolist()


def test_build_reads_json_lines(tmp_path):
    pytest.importorskip("tokenizers")
    tokenizer = tmp_path / "tokenizer.json"
    text.train_tokenizer(["some words to summarize"], 300, tokenizer)
    for split, count in (("train", 40), ("validation", 9)):
        lines = [json.dumps({"input": f"report {n}", "output": f"sum {n}"}) for n in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    data = GovReport(128)
    data.build(tmp_path / "out", tmp_path)
    stem = files.stem(tmp_path / "out")
    train, held_out = (files.PackedRows(stem, split) for split in files.SPLITS)
    reader = text.open_tokenizer(tokenizer)
    assert reader.decode(train[0][0]).startswith("### Summarize the following text:\n report 0\n")
    labels = held_out[0][1]
    assert reader.decode(labels[labels != NONE]).startswith(" sum 0")
    np.testing.assert_array_equal(train.arrays[0], train.arrays[1])
    before = (tmp_path / "out" / "govreport_train_inputs.npy").stat().st_mtime_ns
    data.build(tmp_path / "out", tmp_path)
    assert (tmp_path / "out" / "govreport_train_inputs.npy").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"train.jsonl fills 0 rows of 8192 tokens, not 1"):
        GovReport(8192).build(tmp_path / "new", tmp_path)


def test_tiny_reports_stay_in_their_split_when_python_drops_one(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    texts = text.docstrings()

    def held_out(folder):
        TINY.build(folder)
        return set((folder / "tiny_reports_512_256" / "validation.jsonl").read_text().splitlines())

    before = held_out(tmp_path / "all")
    monkeypatch.setattr(text, "docstrings", lambda: texts[1:])
    after = held_out(tmp_path / "fewer")
    assert after <= before and len(before) - len(after) <= 1


def test_tiny_summarises_docstrings(tmp_path):
    pytest.importorskip("tokenizers")
    TINY.build(tmp_path)
    TINY.build(tmp_path)  # is there: nothing to do
    assert TINY.counts(tmp_path) == builder.TINY_ROWS
    train, held_out = TINY.train(tmp_path), TINY.validation(tmp_path)
    assert len(train) > 300 and len(held_out) > 16
    for batch in held_out.batched(8).stream():
        scored = (batch["labels"] != NONE).sum(1)[batch["mask"]]
        assert (scored > 0).all() and (scored < 128).all()


# -- bad input -----------------------------------------------------------------------------------


def test_a_token_beyond_the_vocabulary_is_named(folder):
    with pytest.raises(
        UserError, match=r"train_inputs\.npy, row \d: token id 5\d at byte (\d+)"
    ) as error:
        for _, _batch in zip(range(6), GovReport(10, 50).train(folder).batched(1).stream()):
            pass
    at = int(str(error.value).split("at byte ")[1].split()[0])
    raw = (folder / "govreport_train_inputs.npy").read_bytes()
    assert np.frombuffer(raw[at : at + 4], np.int32)[0] >= 50


@pytest.mark.parametrize(
    ("split", "label", "refused"),
    [
        ("train", 1, True),
        ("train", NONE, True),
        ("validation", 1, True),
        ("validation", NONE, False),
    ],
)
def test_a_label_is_its_input_or_in_validation_none(folder, split, label, refused):
    for name in ("train", "validation"):
        inputs = np.load(folder / f"govreport_{name}_inputs.npy")
        np.save(folder / f"govreport_{name}_labels.npy", inputs)
    labels = np.load(folder / f"govreport_{split}_labels.npy")
    labels[2, 3] = label if label < 0 else labels[2, 3] + 1
    np.save(folder / f"govreport_{split}_labels.npy", labels)
    data = GovReport(10)
    source = (data.train if split == "train" else data.validation)(folder).source
    ids = np.arange(len(source))
    if not refused:
        return source.read(ids, source.begin(ids))
    words = (
        rf"{split}_labels.npy, row 2: token id {labels[2, 3]} .*\(position 3\) is not its input's"
    )
    with pytest.raises(UserError, match=words):
        source.read(ids, source.begin(ids))


@pytest.mark.parametrize(
    ("old", "new"), [(b"<i4", b"<q9"), (b"False", b"True "), (b"NUMPY", b"NUMPX")]
)
def test_a_damaged_header_is_one_sentence(folder, old, new):
    path = folder / "govreport_train_labels.npy"
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(UserError, match=r"govreport_train_labels.npy .*build it again"):
        GovReport(10).train(folder)


def test_missing_damaged_and_mismatched_arrays(folder):
    path = folder / "govreport_train_labels.npy"
    np.save(path, np.zeros((5, 10), np.int32))
    with pytest.raises(UserError, match="has shape"):
        GovReport(10).train(folder)
    np.save(path, np.zeros((6, 10), np.int64))
    with pytest.raises(UserError, match="holds int64"):
        GovReport(10).train(folder)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="damaged or cut short"):
        GovReport(10).train(folder)
    path.unlink()
    with pytest.raises(UserError, match="is missing; build it with"):
        GovReport(10).train(folder)


def test_a_tokenizer_without_bos():
    bare = text.Tokenizer("bare.model", 100, words, str, None, 1)
    with pytest.raises(UserError, match=r"bare\.model has no BOS"):
        list(builder.encode([("a", "b")], bare, mask_prompt=False))

"""Text to token files: tokenizers, parallel and resumed builds, tiny data, and damaged text."""

import gzip
import json
import pathlib

import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import text
from mlperf_jax.input_pipelines.tokens import builder
from mlperf_jax.input_pipelines.tokens.megatron_file import TokenFile

pytest.importorskip("tokenizers")

TEXTS = ["the first text\n", "", "zwei Wörter  ", "a third, longer text " * 9, "4"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    text.train_tokenizer(TEXTS * 3, 270, path)
    return str(path)


@pytest.fixture
def shards(tmp_path) -> list[str]:
    """Three files of text, the middle one of empty texts."""
    paths = []
    for number, texts in enumerate((TEXTS, ["", ""], TEXTS[::-1])):
        path = tmp_path / f"c4-train.{number:05d}-of-01024.json.gz"
        path.write_bytes(gzip.compress("".join(map(line, texts)).encode()))
        paths.append(str(path))
    return paths


def line(content: str) -> str:
    return json.dumps({"text": content, "timestamp": "2019", "url": "https://example.org"}) + "\n"


def documents(prefix: str) -> list[list[int]]:
    file = TokenFile(prefix)
    cuts = np.cumsum(file.lengths)[:-1]
    return [part.tolist() for part in np.split(file.read([0], [file.tokens]), cuts)]


def names(folder) -> set[str]:
    return {path.name for path in pathlib.Path(folder).iterdir()}


def test_documents_are_the_texts_in_order_without_bos_and_eos(shards, tokenizer, tmp_path):
    out = str(tmp_path / "out_text_document")
    file = builder.build(shards, out, tokenizer, processes=1)
    reader = text.open_tokenizer(tokenizer)
    given = [t for t in [*TEXTS, *TEXTS[::-1]] if t]
    assert [reader.decode(ids) for ids in documents(out)] == given
    assert documents(out) == reader.encode(given)
    assert file.dtype == np.uint16 and not set(np.concatenate(documents(out))) & {0, 1}
    assert not [name for name in names(tmp_path) if "parts" in name or "incomplete" in name]


def test_processes_write_the_same_bytes(shards, tokenizer, tmp_path):
    for processes in (1, 2):
        builder.build(shards, tmp_path / f"out{processes}", tokenizer, processes=processes)
    for end in (".bin", ".idx"):
        assert (tmp_path / f"out1{end}").read_bytes() == (tmp_path / f"out2{end}").read_bytes()


def test_a_build_that_was_stopped_keeps_what_it_finished(shards, tokenizer, tmp_path, monkeypatch):
    out, tokenize, calls = str(tmp_path / "out"), builder._tokenize, []

    def counted(path, documents, job):
        calls.append(job[0])
        if len(calls) == 3:
            raise KeyboardInterrupt
        tokenize(path, documents, job)

    monkeypatch.setattr(builder, "_tokenize", counted)
    with pytest.raises(KeyboardInterrupt):
        builder.build(shards, out, tokenizer, processes=1)
    assert "out.idx" not in names(tmp_path) and len(calls) == 3
    builder.build(shards, out, tokenizer, processes=1)
    assert calls[3:] == [[shards[2]]]
    whole = str(tmp_path / "whole")
    builder.build(shards, whole, tokenizer, processes=1)
    assert documents(out) == documents(whole)
    builder.build(shards, out, tokenizer, processes=1)  # is there: nothing to do
    assert len(calls) == 7


def test_another_tokenizer_does_not_take_up_a_stopped_build(shards, tokenizer, tmp_path):
    pathlib.Path(shards[2]).rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"00002-of-01024.json.gz is missing"):
        builder.build(shards, tmp_path / "out", tokenizer, processes=1)
    (tmp_path / "away").rename(shards[2])
    other = tmp_path / "other.json"
    text.train_tokenizer(["quite another text"], 260, other)
    builder.build(shards, tmp_path / "out", other, processes=1)
    reader = text.open_tokenizer(other)
    assert documents(str(tmp_path / "out"))[0] == reader.encode([TEXTS[0]])[0]


def test_the_first_documents_of_several_files(shards, tokenizer, tmp_path):
    out = str(tmp_path / "out")
    builder.build(shards, out, tokenizer, documents=8, processes=1)
    assert len(documents(out)) == 5  # 8 lines, of which 3 are empty


def test_c4_files(tmp_path):
    for number in range(768, 896):
        (tmp_path / f"c4-train.{number:05d}-of-01024.json.gz").touch()
    files = builder.c4_train_files(tmp_path, 6)
    assert len(files) == 128 and files[-1].endswith("c4-train.00895-of-01024.json.gz")
    with pytest.raises(UserError, match=r"lacks 128 of 128 .* c4-train\.00896-of-01024"):
        builder.c4_train_files(tmp_path, 7)
    with pytest.raises(UserError, match=r"lacks 8 of 8"):
        builder.c4_validation_files(tmp_path)


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2])
def test_a_truncated_file(shards, tokenizer, tmp_path, processes):
    content = pathlib.Path(shards[2]).read_bytes()
    pathlib.Path(shards[2]).write_bytes(content[:-20])
    with pytest.raises(UserError, match=r"00002-of-01024\.json\.gz is damaged or cut short"):
        builder.build(shards, tmp_path / "out", tokenizer, processes=processes)
    assert not [name for name in names(tmp_path) if name.startswith("out.bin")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "a"}\n{"text": "b\n', "line 2 is not JSON"),
        ('{"text": "a"}\n\n{"txt": "b"}\n', "line 3 has no text in the field 'text'"),
        ('{"text": 3}\n', "line 1 has no text"),
        ("[1]\n", "line 1 has no text"),
    ],
)
def test_a_damaged_line(tokenizer, tmp_path, content, words):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"a\.json, {words}"):
        builder.build([path], tmp_path / "out", tokenizer, processes=1)


def test_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match="no tokenizer at"):
        text.open_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="holds no tokenizer"):
        text.open_tokenizer(tmp_path)
    for name in ("tokenizer.json", "spiece.model"):
        (tmp_path / name).write_text("not a tokenizer")
        if name.endswith(".json") or pytest.importorskip("sentencepiece"):
            with pytest.raises(UserError, match="is no tokenizer, or damaged"):
                text.open_tokenizer(tmp_path / name)


def test_a_sentencepiece_model(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    lines = iter(TEXTS * 20)
    with open(tmp_path / "spiece.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=file, vocab_size=29, minloglevel=2
        )
    reader = text.open_tokenizer(tmp_path)
    assert reader.size == 29 and (reader.bos, reader.eos) == (1, 2)
    ids = reader.encode(["a text"])
    assert reader.decode(ids[0]) == "a text" and not {1, 2} & set(ids[0])


# -- tiny ----------------------------------------------------------------------------------------


def test_tiny_is_the_same_each_time(tmp_path):
    first, second = (builder.build_tiny(tmp_path / name) for name in "ab")
    for key, ends in (
        ("train", (".bin", ".idx")),
        ("validation", (".bin", ".idx")),
        ("tokenizer", ("",)),
    ):
        for end in ends:
            one, two = (pathlib.Path(paths[key] + end).read_bytes() for paths in (first, second))
            assert one == two
    assert builder.build_tiny(tmp_path / "a") == first
    reader = text.open_tokenizer(first["tokenizer"])
    train = TokenFile(first["train"], reader.size)
    held_out = TokenFile(first["validation"], reader.size)
    train.check()
    assert reader.size == 512 and (reader.bos, reader.eos) == (0, 1)
    assert train.tokens > 250_000 and held_out.tokens > 15_000
    assert reader.decode(train.read([0], train.lengths[:1])) == text.docstrings()[0]

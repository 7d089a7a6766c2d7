"""Wikipedia as a data set: builds from text and from TFRecords, resumed and refused, tiny, and what is read of it."""

import dataclasses
import os
import pathlib

import numpy as np
import pytest
from wikipedia_toys import DATA, assert_same, frame, padded, serialised, write_source

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building, text
from mlperf_jax.input_pipelines.tokenizers import WordPiece
from mlperf_jax.input_pipelines.wikipedia import Wikipedia, builder, files, instances, tiny

PIECES = len((DATA / "bert_vocabulary.txt").read_text(encoding="utf-8").split())
SMALL = Wikipedia(
    8, (6, 8), 4, sequence_length=40, predictions=6, vocabulary=PIECES, eval_samples=20
)
SIZES = builder.Sizes(40, 6, PIECES, 20)
TINY = Wikipedia(64, (40, 48, 56, 64), 8, 64, 10, 1024, 256, tiny=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    """Three parts of text and eval.txt."""
    folder = tmp_path_factory.mktemp("text")
    write_source(folder)
    return str(folder)


@pytest.fixture(scope="module")
def built(source, tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("built"))
    builder.build(f"{folder}/wikipedia", source, SIZES)
    return folder


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("tiny"))
    TINY.build(folder)
    return folder


def content(folder, below="wikipedia"):
    """Bytes by file of a folder."""
    return {path.name: path.read_bytes() for path in pathlib.Path(folder, below).iterdir()}


def examples(folder, split):
    return files.Examples(f"{folder}/wikipedia", split, 40, PIECES)


# -- builds ----------------------------------------------------------------------------------------


def test_each_file_of_text_is_a_part_with_draws_of_its_own(source, built):
    tokenizer = WordPiece(f"{source}/vocab.txt")
    parts = examples(built, "train").parts
    assert len(parts) == 3
    for number, part in enumerate(parts):
        articles = instances.read_articles(f"{source}/part-{number:05d}-of-00003", tokenizer)
        made = instances.examples(articles, tokenizer, 40, 6)
        assert len(part) == len(made)
        for index, one in enumerate(made):
            assert_same(part[index], one)


def test_evaluation_is_picked_evenly(source, built):
    tokenizer = WordPiece(f"{source}/vocab.txt")
    made = instances.examples(
        instances.read_articles(f"{source}/eval.txt", tokenizer), tokenizer, 40, 6
    )
    held = examples(built, "validation")
    assert len(held) == 20 < len(made)
    for number in range(20):
        assert_same(held[number], made[number * len(made) // 20])
    assert SMALL.counts(built) == {"validation": 20}


def test_tfrecords_of_the_same_examples_are_the_same_files(built, tmp_path):
    """Written as the organisers have them, each example padded, and built again."""
    given = tmp_path / "records"
    given.mkdir()
    parts = [*examples(built, "train").parts, *examples(built, "validation").parts]
    for number, part in enumerate(parts):
        name = f"part-{number:05d}-of-00003" if number < 3 else builder.RECORDS
        messages = (serialised(padded(part[i], 40, 6)) for i in range(len(part)))
        (given / name).write_bytes(b"".join(map(frame, messages)))
    SMALL.build(tmp_path, given)
    again = content(tmp_path)
    assert again == content(built)
    assert not [path for path in os.listdir(tmp_path) if "incomplete" in path]


def test_a_build_that_was_stopped_goes_on(source, built, tmp_path, monkeypatch):
    write, wrote = builder._write, []

    def stops(kind, sizes, job):
        if len(wrote) == 2:
            raise KeyboardInterrupt
        wrote.append(job.prefix)
        write(kind, sizes, job)

    monkeypatch.setattr(builder, "_write", stops)
    with pytest.raises(KeyboardInterrupt):
        builder.build(tmp_path / "wikipedia", source, SIZES)
    assert not (tmp_path / "wikipedia").exists()
    left = []
    monkeypatch.setattr(builder, "_write", lambda *a: left.append(a[2].prefix) or write(*a))
    builder.build(tmp_path / "wikipedia", source, SIZES)
    assert len(left) == 2 and not {*left} & {*wrote}
    assert content(tmp_path) == content(built)


def test_work_of_other_settings_is_not_taken_up(source, tmp_path):
    work = tmp_path / "incomplete.wikipedia"
    building.begin(work, {"longest": 99})
    (work / "train-00000-of-00003.idx").write_bytes(b"of another build")
    builder.build(tmp_path / "wikipedia", source, SIZES)
    assert len(examples(tmp_path, "train")) > 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "part-00001-of-00003").unlink(), r"lacks 1 of 3 files.*part-00001-of-00003: fetch"),
        (lambda f: (f / "part-00000-of-00002").touch(), r"holds parts of 2 and of 3: fetch"),
        (lambda f: [p.unlink() for p in f.glob("part*")], r"holds no part-00000-of-00500"),
        (lambda f: (f / "eval.txt").unlink(), r"holds neither eval.txt \(text\) nor eval_10k"),
        (lambda f: (f / "eval_10k").touch(), r"holds both eval.txt \(text\) and eval_10k"),
        (lambda f: (f / "vocab.txt").unlink(), r"vocab.txt is missing"),
        (lambda f: (f / "eval.txt").write_text("a b\nof c\n"), r"makes \d+ examples, and 20 are picked"),
        (lambda f: (f / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n"), r"holds 6 pieces"),
    ],
)  # fmt: skip
def test_a_source_that_is_not_whole(tmp_path, change, message):
    write_source(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        builder.build(tmp_path / "out" / "wikipedia", str(tmp_path), SIZES)


def test_evaluation_s_records_are_as_many_as_are_evaluated(built, tmp_path):
    part = examples(built, "validation").parts[0]
    records = [frame(serialised(padded(part[i], 40, 6))) for i in range(20)]
    (tmp_path / "part-00000-of-00001").write_bytes(b"".join(records))
    (tmp_path / "eval_10k").write_bytes(b"".join(records[:19]))
    with pytest.raises(UserError, match=r"eval_10k holds 19 examples, and 20 are evaluated"):
        builder.build(tmp_path / "out", str(tmp_path), SIZES)


def test_text_that_is_not_the_organisers(source, tmp_path):
    with pytest.raises(
        UserError, match=r"vocab.txt \(\d+ bytes\) is not .* 231,508 bytes and MD5 64"
    ):
        SMALL.build(tmp_path, source)


def test_without_a_source(tmp_path):
    with pytest.raises(UserError, match=r"give --source, a folder with part-00000-of-00500"):
        SMALL.build(tmp_path)


# -- reading ---------------------------------------------------------------------------------------


def test_evaluation_holds_each_sequence_once_in_a_row_of_its_own(built):
    batches = list(SMALL.validation(built).batched(8).stream(threads=2))
    assert [batch["mask"].sum() for batch in batches] == [8, 8, 4]
    held = examples(built, "validation")
    for index in range(20):
        batch, row, one = batches[index // 8], index % 8, held[index]
        length = len(one.tokens)
        np.testing.assert_array_equal(batch["tokens"][row, :length], one.tokens)
        assert batch["masked_weights"].shape == (8, 6) and batch["next_sentence"].shape == (8, 1)
        assert batch["sequences"][row].tolist() == [1] * length + [0] * (40 - length)
        assert batch["next_sentence"][row, 0] == one.random


def test_training_batches_are_packed_or_not(built):
    packed = SMALL.train(built).batched(8)[0]
    assert packed["masked_ids"].shape[1] == SMALL.places == 8
    assert packed["next_sentence_weights"].sum() == 8
    plain = dataclasses.replace(SMALL, row_counts=())
    batch = plain.train(built).batched(8)[0]
    assert batch["masked_ids"].shape == (8, 6) and batch["next_sentence"].shape == (8, 1)


def test_check_tells_what_is_damaged(built, tmp_path):
    assert not [line for line in SMALL.check(built) if "problem" in line]
    (tmp_path / "wikipedia").mkdir()
    for name, data in content(built).items():
        (tmp_path / "wikipedia" / name).write_bytes(data)
    path = tmp_path / "wikipedia" / "train-00001-of-00003.bin"
    path.write_bytes(b"\xff\xff" + path.read_bytes()[2:])
    (found,) = [line for line in SMALL.check(tmp_path) if "problem" in line]
    assert "00001-of-00003.bin, example 0" in found


def test_settings_that_cannot_be(built):
    with pytest.raises(UserError, match=r"row_counts is \(8, 6\): give at most 4"):
        dataclasses.replace(SMALL, row_counts=(8, 6))
    with pytest.raises(UserError, match=r"row_counts is .*: give at most 4"):
        dataclasses.replace(SMALL, row_counts=(1, 2, 3, 4, 5))
    with pytest.raises(UserError, match=r"vocabulary is 70000: ids are stored in 16 bits"):
        dataclasses.replace(SMALL, vocabulary=70_000)
    with pytest.raises(UserError, match=r"up to 40 and ids below \d+, not 48"):
        dataclasses.replace(SMALL, sequence_length=48).train(built)


# -- tiny ------------------------------------------------------------------------------------------


def test_tiny_is_built_and_read_as_the_real_one(tiny_folder):
    assert TINY.counts(tiny_folder) == {"validation": 256}
    report = TINY.check(tiny_folder)
    assert len(report) == 2 and "in 2 parts" in report[0]
    split = TINY.train(tiny_folder)
    batch = split.batched(64)[0]
    assert batch["tokens"].shape[1] == 64 and len(batch["tokens"]) < 64
    assert batch["next_sentence_weights"].sum() == 64
    assert 0.2 < batch["next_sentence"].sum() / 64 < 0.9
    (folder,) = os.listdir(tiny_folder)
    size = sum(map(len, content(tiny_folder, folder).values()))
    assert 5e5 < size < 3e6


def test_tiny_evaluates_other_docstrings(tmp_path):
    tiny.write_text(tmp_path, 1024)
    texts = {p.name: p.read_text(encoding="utf-8") for p in tmp_path.iterdir()}
    held = text.docstrings()[0].split()[:6]
    assert " ".join(held) in " ".join(texts["eval.txt"].split())
    assert not any(" ".join(held) in " ".join(t.split()) for n, t in texts.items() if n[0] == "p")


def test_a_missing_tiny_says_how_to_make_it(tmp_path):
    with pytest.raises(UserError, match=r"no docstrings as Wikipedia in .*data build bert --tiny"):
        TINY.train(tmp_path)

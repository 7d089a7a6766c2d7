"""Examples of the reference's draws, records on disk, and the organisers' TFRecords, whole and damaged."""

import itertools
import pathlib
import pickle
import random

import numpy as np
import pytest
from wikipedia_toys import (
    DATA,
    assert_same,
    frame,
    padded,
    random_example,
    serialised,
    slow_crc32c,
)

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.tokenizers import WordPiece
from mlperf_jax.input_pipelines.wikipedia import files, instances, tfrecords
from scripts import make_wikipedia_reference as slow

LONGEST, MOST, VOCABULARY = 40, 6, 600
STORED = str(DATA / "bert.tfrecord")  # of the library tfrecord, by the slow twin


@pytest.fixture
def some() -> list[instances.Example]:
    rng = np.random.default_rng(0)
    return [random_example(rng, LONGEST, MOST, VOCABULARY) for _ in range(9)]


def assert_all_same(left, right):
    left, right = list(left), list(right)
    assert len(left) == len(right)
    for one, other in zip(left, right):
        assert_same(one, other)


# -- examples --------------------------------------------------------------------------------------


def test_examples_are_the_slow_twin_s_stored_as_tfrecords():
    tokenizer = WordPiece(DATA / "bert_vocabulary.txt")
    articles = instances.read_articles(str(DATA / "bert.txt"), tokenizer)
    made = instances.examples(articles, tokenizer, slow.LENGTH, slow.MOST)
    stored = tfrecords.read(STORED, slow.LENGTH, slow.MOST, tokenizer.size)
    assert len(made) > 100
    assert_all_same(made, stored)


@pytest.mark.parametrize(("length", "most", "articles"), [(9, 3, 5), (120, 20, 5), (40, 6, 1)])
def test_examples_of_other_sizes_are_the_slow_twin_s(tmp_path, length, most, articles):
    text = "\n\n".join((DATA / "bert.txt").read_text(encoding="utf-8").split("\n\n")[:articles])
    (tmp_path / "part").write_text(text, encoding="utf-8")
    tokenizer = WordPiece(DATA / "bert_vocabulary.txt")
    read = instances.read_articles(str(tmp_path / "part"), tokenizer)
    made = instances.examples(read, tokenizer, length, most)
    pieces = (DATA / "bert_vocabulary.txt").read_text(encoding="utf-8").split()
    expected = list(slow.examples(text, pieces, length, most))
    assert len(made) == len(expected)
    for one, (tokens, positions, ids, segments, random_next) in zip(made, expected):
        assert (one.tokens.tolist(), one.positions.tolist()) == (tokens, positions)
        assert (one.ids.tolist(), one.split, one.random) == (ids, segments.index(1), random_next)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 64, 65, 1000])
def test_the_shuffle_is_python_s(n):
    ours, theirs = list(range(n)), list(range(n))
    draw, other = random.Random(n), random.Random(n)
    instances.shuffle(ours, draw)
    other.shuffle(theirs)
    assert ours == theirs and draw.random() == other.random()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b" \n\n", r"part holds no article: it needs lines of text"),
        (b"Good.\nBad \xff.\n", r"part is damaged after line \d+ \(.*utf-8.*\): fetch it again"),
    ],
)
def test_text_that_makes_no_examples(tmp_path, content, message):
    (tmp_path / "part").write_bytes(content)
    with pytest.raises(UserError, match=message):
        instances.read_articles(str(tmp_path / "part"), WordPiece(DATA / "bert_vocabulary.txt"))


# -- on disk ---------------------------------------------------------------------------------------


def write_parts(folder, some, cuts=(0, 4, 5, 9)):
    for number, (first, last) in enumerate(itertools.pairwise(cuts)):
        prefix = files.part(folder, "train", number, len(cuts) - 1)
        assert files.write(prefix, some[first:last], LONGEST, VOCABULARY) == last - first


def opened(folder, longest=LONGEST, vocabulary=VOCABULARY):
    return files.Examples(str(folder), "train", longest, vocabulary)


def test_what_is_written_is_read(tmp_path, some):
    write_parts(tmp_path, some)
    read = opened(tmp_path)
    assert_all_same((read[i] for i in range(len(read))), some)
    assert read.lengths.tolist() == [len(one.tokens) for one in some]
    assert read.describe(4).endswith("train-00001-of-00003.bin, example 0")
    copy = pickle.dumps(read)
    assert len(copy) < 1000
    assert_same(pickle.loads(copy)[8], some[8])


def test_lengths_are_known_without_a_record(tmp_path, some):
    write_parts(tmp_path, some)
    for path in tmp_path.glob("*.bin"):
        path.write_bytes(bytes(len(path.read_bytes())))
    assert opened(tmp_path).lengths.tolist() == [len(one.tokens) for one in some]


def test_a_part_that_was_not_finished_has_no_index(tmp_path, some):
    def stopped():
        yield some[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write(str(tmp_path / "train-00000-of-00001"), stopped(), LONGEST, VOCABULARY)
    assert not list(tmp_path.iterdir())


def cut(ending, by):
    def change(folder):
        path = folder / f"train-00001-of-00003.{ending}"
        path.write_bytes(path.read_bytes()[:-by])

    return change


def overwrite(word):
    def change(folder):
        path = folder / "train-00000-of-00003.bin"
        data = bytearray(path.read_bytes())
        data[:2] = word.to_bytes(2, "little")
        path.write_bytes(data)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut("bin", 2), r"00001-of-00003.bin is cut short .*\d+ of \d+ words"),
        (cut("idx", 1), r"00001-of-00003.idx is cut short .*\d+ of \d+ bytes"),
        (cut("idx", 50), r"00001-of-00003.idx is no index of examples"),
        (lambda f: (f / "train-00001-of-00003.bin").unlink(), r"00001-of-00003.bin is missing"),
        (lambda f: (f / "train-00002-of-00003.idx").unlink(), r"00002-of-00003.idx is missing"),
        (lambda f: [p.unlink() for p in f.glob("*.idx")], r"no examples of train: build them"),
        (
            overwrite(VOCABULARY),
            r"00000-of-00003.bin, example 0 \(word 0\) is damaged: .* below 600",
        ),
    ],
)
def test_damaged_parts(tmp_path, some, change, message):
    write_parts(tmp_path, some)
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        opened(tmp_path)[0]


COLUMNS = {"start": "<i8", "length": "<u2", "split": "<u2", "masked": "<u2", "random": "u1"}


def test_no_number_of_an_index_can_be_another(tmp_path):
    """Every number of every example, one more or less: all of a real index follow from each other, or from the text."""
    tokenizer = WordPiece(DATA / "bert_vocabulary.txt")
    articles = instances.read_articles(str(DATA / "bert.txt"), tokenizer)
    made = instances.examples(articles, tokenizer, 60, 9)[:12]
    prefix = files.part(tmp_path, "train", 0, 1)
    files.write(prefix, made, 60, tokenizer.size)
    path, at = pathlib.Path(f"{prefix}.idx"), 32
    whole = path.read_bytes()
    for name, kind in COLUMNS.items():
        column = np.frombuffer(whole, kind, len(made), at)
        for index in range(len(made)):
            for other in (int(column[index]) + 1, int(column[index]) - 1):
                if other < 0 or (name == "random" and other <= 1):
                    continue  # a bit that nothing else tells
                place, size = at + index * column.itemsize, column.itemsize
                changed = np.array(other).astype(kind).tobytes()
                path.write_bytes(whole[:place] + changed + whole[place + size :])
                read = files.Examples(str(tmp_path), "train", 60, tokenizer.size)
                with pytest.raises(UserError, match=r"train-00000-of-00001.bin, example \d+"):
                    list(map(read.__getitem__, range(len(read))))
        at += column.nbytes
    path.write_bytes(whole)
    read = files.Examples(str(tmp_path), "train", 60, tokenizer.size)
    assert_all_same((read[i] for i in range(len(read))), made)


def test_zeros_in_place_of_examples_are_refused(tmp_path, some):
    write_parts(tmp_path, some)
    for path in tmp_path.glob("*.bin"):
        path.write_bytes(bytes(path.stat().st_size))
    read = opened(tmp_path)
    for index in (i for i, one in enumerate(some) if len(one.ids) > 1):
        with pytest.raises(UserError, match="is damaged"):
            read[index]


def test_parts_of_two_builds(tmp_path, some):
    write_parts(tmp_path, some)
    files.write(files.part(tmp_path, "train", 0, 1), some, LONGEST, VOCABULARY)
    with pytest.raises(UserError, match=r"holds train twice, in \[1, 3\] parts: remove"):
        opened(tmp_path)


def test_parts_of_other_sizes(tmp_path, some):
    write_parts(tmp_path, some)
    with pytest.raises(UserError, match=r"up to 40 and ids below 600, not 40 and 500: build"):
        opened(tmp_path, vocabulary=500)


# -- TFRecords -------------------------------------------------------------------------------------


def write_records(path, messages):
    path.write_bytes(b"".join(map(frame, messages)))
    return str(path)


def test_records_of_protobuf_are_read(tmp_path, some):
    messages = [serialised(padded(one, LONGEST, MOST)) for one in some]
    path = write_records(tmp_path / "part", messages)
    assert_all_same(tfrecords.read(path, LONGEST, MOST, VOCABULARY), some)


def test_checksums_are_the_slow_twin_s():
    rng = np.random.default_rng(1)
    for size in (4, 5, 8, 255, 3000):
        data = rng.integers(0, 256, size, np.uint8)
        assert tfrecords.crc32c(data) == slow_crc32c(data.tobytes())


def changed(name, change):
    """The features of an example after one was changed."""
    return lambda features: features | {name: change(list(features[name]))}


def put(at, value):
    def change(values):
        values[at] = value
        return values

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("input_ids", lambda v: v[:-1]), "input_ids has 39 values, not 40"),
        (changed("masked_lm_ids", lambda v: [*v, 0]), "masked_lm_ids has 7 values, not 6"),
        (lambda f: f | {"boxes": [1]}, "it has an unknown feature 'boxes'"),
        (lambda f: {k: v for k, v in f.items() if k != "input_mask"}, "it has no feature 'input_mask'"),
        (changed("input_ids", put(2, 600)), "input_ids has 600, which is outside the vocabulary of 600"),
        (changed("input_ids", put(2, -1)), "input_ids has -1, which is outside the vocabulary of 600"),
        (changed("masked_lm_ids", put(0, 9999)), "masked_lm_ids has 9999, which is outside"),
        (changed("input_ids", put(39, 5)), r"input_ids has values behind its 20, where it is padded"),
        (changed("input_mask", put(39, 1)), "input_mask is not a run of 1 and then 0"),
        (changed("masked_lm_positions", put(2, 20)), "not ascending below the example's 20 tokens"),
        (changed("masked_lm_positions", put(2, 0)), "masked_lm_positions is not ascending"),
        (changed("masked_lm_weights", put(0, 0.5)), "masked_lm_weights is not a run of 1"),
        (changed("masked_lm_weights", lambda v: [1.0] * 6), r"6 of 20 tokens are masked, .*\(3\)"),
        (changed("segment_ids", put(0, 1)), "segment_ids is not a run of 0 and a run of 1"),
        (changed("next_sentence_labels", put(0, 2)), "next_sentence_labels is 2, not 0 or 1"),
    ],
)  # fmt: skip
def test_wrong_features_name_file_and_record(tmp_path, some, change, message):
    one = some[0]._replace(
        tokens=np.arange(1, 21, dtype=np.uint16),
        split=7,
        positions=np.array([3, 5, 8], np.uint16),
        ids=np.array([1, 2, 3], np.uint16),
    )
    if "6 of 20" in message:
        one = one._replace(positions=np.array([3, 5, 8, 9, 10, 11], np.uint16), ids=one.tokens[:6])
    messages = [serialised(padded(some[1], LONGEST, MOST)), serialised(change(padded(one, 40, 6)))]
    path = write_records(tmp_path / "part-00003", messages)
    with pytest.raises(UserError, match=f"part-00003, record 1: .*{message}.*: fetch it again"):
        list(tfrecords.read(path, LONGEST, MOST, VOCABULARY))


def flip(at):
    def change(data):
        data[at] ^= 1
        return data

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip(3), r"record 0 \(byte 0\) is damaged, the checksum of its length does not match"),
        (flip(100), r"record 0 \(byte 0\) is damaged, its checksum does not match"),
        (lambda d: d[:-2], r"record 1 \(byte \d+\) is damaged, the file ends within it"),
        (lambda d: d + d[:9], r"record 2 \(byte \d+\) is damaged, the file ends within it"),
        (lambda d: d + frame(b"x"), r"record 2 .* it has 1 bytes, no example has"),
        (lambda d: d + frame(b"no example"), r"record 2: the record is not a tf.Example message"),
        (lambda d: d[:0], r"part holds no records"),
    ],
)
def test_damaged_files(tmp_path, some, change, message):
    path = tmp_path / "part"
    write_records(path, [serialised(padded(one, LONGEST, MOST)) for one in some[:2]])
    path.write_bytes(change(bytearray(path.read_bytes())))
    with pytest.raises(UserError, match=message):
        list(tfrecords.read(str(path), LONGEST, MOST, VOCABULARY))


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"part is missing: fetch it"):
        next(tfrecords.read(str(tmp_path / "part"), LONGEST, MOST, VOCABULARY))

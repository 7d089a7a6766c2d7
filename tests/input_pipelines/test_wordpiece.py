"""BERT's WordPiece against a slow twin of the reference's rule and, on plain text, against the library's own.

With BERT_VOCABULARY=vocab.txt against the real vocabulary too; scripts/make_wikipedia_reference.py says where it comes from.
"""

import os
import random

import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building, text
from mlperf_jax.input_pipelines.tokenizers import WordPiece, wordpiece
from mlperf_jax.input_pipelines.wikipedia import builder
from scripts import make_wikipedia_reference as slow

tokenizers = pytest.importorskip("tokenizers")

ODD = [
    "ΟΔΟΣ, Σ ΣΑΣ.",  # a final sigma is another letter
    "İstanbul ǅ ẞ ﬁ Å x\u0301y",
    "🤣🥰 \ue000x \u0378y",  # newer than some tables, private, unassigned
    "a\u2028b\u0085c\u200bd\u00ad\ufffde\x00f\tg\u3000h",
    "中文a字 ひらがな 가 ㍿",
    "it's [MASK] ##ing $5^2 `~ ¿qué? „so“ ‐–",
    "[CLS] [unused1]",
    "a" * 200 + " " + "b" * 201,
    "",
    " \u2003 ",
]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    wordpiece.train(text.docstrings()[:200], 700, path)
    return str(path)


@pytest.fixture(params=["learnt", "real"])
def vocabulary(request, learnt) -> str:
    """The path of one that was trained here, or of BERT's own."""
    path = learnt if request.param == "learnt" else os.environ.get("BERT_VOCABULARY")
    if path is None:
        pytest.skip("BERT_VOCABULARY names no vocab.txt")
    return path


def plain_lines() -> list[str]:
    return [line for document in text.docstrings()[200:500] for line in document.splitlines()]


def random_lines(pieces: list[str]) -> list[str]:
    """Pieces of the vocabulary with characters of all kinds between them."""
    draw = random.Random(5)
    kinds = [(0x20, 0x7F), (0, 0x250), (0x300, 0x600), (0x1E00, 0x2100), (0x3000, 0xA000)]

    def some():
        if draw.random() < 0.5:
            return draw.choice(pieces).removeprefix("##")
        return chr(draw.randrange(*draw.choice([*kinds, (0xE000, 0x110000)])))

    return ["".join(some() for _ in range(draw.randrange(1, 16))) for _ in range(1500)]


def test_ids_are_the_slow_twin_s(vocabulary):
    reader, pieces = WordPiece(vocabulary), wordpiece.read_vocabulary(vocabulary)
    known = {piece: number for number, piece in enumerate(pieces)}
    lines = [*ODD, *plain_lines(), *random_lines(pieces)]
    assert len(lines) > 3000
    for line in lines:
        assert reader.encode(line) == [known[p] for p in slow.tokenize(line, known)], repr(line)


def test_ids_of_plain_text_are_the_library_s(vocabulary):
    library = tokenizers.BertWordPieceTokenizer(vocabulary)
    reader = WordPiece(vocabulary)
    for line in plain_lines():
        assert reader.encode(line) == library.encode(line, add_special_tokens=False).ids, line


def test_the_library_s_own_words_would_not_do(learnt):
    library = tokenizers.BertWordPieceTokenizer(learnt)
    reader = WordPiece(learnt)
    odd = [reader.encode(t) != library.encode(t, add_special_tokens=False).ids for t in ODD]
    assert any(odd)  # else it may take our place


def test_words_are_forgotten_when_they_are_many(learnt, monkeypatch):
    before = WordPiece(learnt).encode("one two three one two")
    monkeypatch.setattr(wordpiece, "_KEPT_WORDS", 2)
    assert WordPiece(learnt).encode("one two three one two") == before


def test_the_real_vocabulary_is_the_published_one(vocabulary):
    if vocabulary == os.environ.get("BERT_VOCABULARY"):
        size, md5 = builder.OFFICIAL[builder.VOCABULARY]
        assert (os.path.getsize(vocabulary), building.md5(vocabulary)) == (size, md5)
        assert WordPiece(vocabulary).size == 30_522


def test_the_same_texts_give_the_same_vocabulary(tmp_path):
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in paths:
        wordpiece.train(text.docstrings()[:60], 400, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert len(wordpiece.read_vocabulary(paths[0])) == 400


def test_a_vocabulary_has_room_for_its_letters(tmp_path):
    with pytest.raises(UserError, match=r"at least 11 pieces, not 10"):
        wordpiece.train(["abc abc"], 10, tmp_path / "small.txt")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n", r"vocab.txt has no \[MASK\]: take"),
        ("[PAD]\nthe\nof\nthe \n", r"line 4 has 'the' as line 2 has: fetch"),
        ("[PAD]\n\nthe\n", r"line 2 has no piece: fetch"),
        (b"[PAD]\n\xff\n", r"is no vocabulary \(.*utf-8.*\): fetch"),
    ],
)
def test_what_is_no_vocabulary(tmp_path, lines, message):
    path = tmp_path / "vocab.txt"
    path.write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    with pytest.raises(UserError, match=message):
        WordPiece(path)


def test_a_missing_vocabulary(tmp_path):
    with pytest.raises(UserError, match=r"vocab.txt is missing: fetch BERT's vocab.txt"):
        WordPiece(tmp_path / "vocab.txt")

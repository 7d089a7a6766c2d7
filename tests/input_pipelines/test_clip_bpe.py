"""CLIP's byte pairs against open_clip's tokenizer (scripts/make_clip_reference.py).

With CLIP_VOCABULARY=bpe_simple_vocab_16e6.txt.gz, out of the package open_clip_torch, by the published merges too.
"""

import gzip
import itertools
import json
import os
import pickle

import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import text
from mlperf_jax.input_pipelines.tokenizers import ClipBpe, clip_bpe
from scripts import make_clip_reference as reference

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def stored():
    return json.loads(reference.CAPTIONS.read_text())


@pytest.fixture(scope="module")
def needed(stored, tmp_path_factory) -> str:
    """The published list with the merges that the captions need in their places, and others that no word has."""
    letters = list(clip_bpe._BYTES.values())
    # nothing follows the end of a word
    others = (f"{a}</w> {b}</w>" for a, b in itertools.product(letters, letters))
    merges = [stored["merges"].get(str(rank)) or next(others) for rank in range(48_894)]
    path = tmp_path_factory.mktemp("merges") / clip_bpe.VOCABULARY
    path.write_bytes(
        gzip.compress("\n".join(["#version: 0.2", *merges, "beyond the", ""]).encode())
    )
    return str(path)


@pytest.fixture(params=["needed", "published"])
def vocabulary(request, needed) -> str:
    path = needed if request.param == "needed" else os.environ.get("CLIP_VOCABULARY")
    if path is None:
        pytest.skip("CLIP_VOCABULARY names no list of merges")
    return path


@pytest.fixture(scope="module")
def learnt(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("learnt") / "merges.txt.gz"
    clip_bpe.train(text.docstrings()[:200], 700, path)
    return str(path)


def test_ids_are_open_clip_s(vocabulary, stored):
    tokenizer = ClipBpe(vocabulary)
    assert (tokenizer.size, tokenizer.start, tokenizer.end) == (49_408, 49_406, 49_407)
    for caption, ids in stored["captions"]:
        row = tokenizer(caption)
        assert row.dtype == np.int32 and row.shape == (77,)
        assert row.tolist() == ids + [0] * (77 - len(ids)), repr(caption)


def test_long_captions_are_cut_before_their_end_and_counted(vocabulary, stored):
    tokenizer = ClipBpe(vocabulary)
    captions = [caption for caption, _ in stored["captions"]]
    rows, cut = tokenizer.rows(captions)
    assert rows.shape == (len(captions), 77) and rows.dtype == np.int32
    assert cut == stored["cut"] == 2
    assert (rows.argmax(1) == np.minimum([len(tokenizer.encode(c)) + 1 for c in captions], 76))[
        :-6
    ].all()
    assert len(tokenizer.encode("word " * 75)) == 75
    assert tokenizer.rows(["word " * 75])[1] == 0 and tokenizer.rows(["word " * 76])[1] == 1
    assert tokenizer("word " * 75)[76] == tokenizer("word " * 76)[76] == tokenizer.end
    assert tokenizer.rows([])[0].shape == (0, 77)


def test_garbled_text_is_left_unless_it_is_repaired(vocabulary, stored):
    plain = ClipBpe(vocabulary)
    exact = ClipBpe(
        vocabulary, repair={text: fixed for text, fixed, _ in stored["garbled"]}.__getitem__
    )
    for caption, _, ids in stored["garbled"]:
        assert exact(caption).tolist() == ids + [0] * (77 - len(ids))
        assert plain(caption).tolist() != exact(caption).tolist()


def test_words_are_forgotten_when_they_are_many(needed, monkeypatch):
    before = ClipBpe(needed).encode("one two three one two")
    monkeypatch.setattr(clip_bpe, "_KEPT_WORDS", 2)
    assert ClipBpe(needed).encode("one two three one two") == before


def test_it_travels_to_worker_processes(learnt):
    tokenizer = pickle.loads(pickle.dumps(ClipBpe(learnt, context=9)))
    assert (
        tokenizer("The list of words").tolist()
        == ClipBpe(learnt, context=9)("the  LIST of words").tolist()
    )


def test_a_trained_vocabulary_spells_every_text(learnt):
    tokenizer = ClipBpe(learnt, context=16)
    assert (tokenizer.size, tokenizer.start, tokenizer.end) == (700, 698, 699)
    pieces = [*clip_bpe._BYTES.values()]
    pieces += [piece + "</w>" for piece in pieces]
    pieces += ["".join(pair) for pair in clip_bpe.read_merges(learnt)]
    sentence = "returns the list’s 3 ∞ items"
    spelt = "".join(pieces[i] for i in tokenizer.encode(sentence))
    letters = {letter: byte for byte, letter in clip_bpe._BYTES.items()}
    words = [bytes(letters[c] for c in word).decode() for word in spelt.split("</w>")[:-1]]
    assert words == ["returns", "the", "list", "'s", "3", "∞", "items"]
    assert len(tokenizer.encode("the")) == 1 and len(tokenizer.encode("∞")) == 3


def test_the_same_texts_give_the_same_vocabulary(tmp_path):
    paths = [tmp_path / "a.gz", tmp_path / "b.gz"]
    for path, texts in zip(paths, (text.docstrings()[:60], reversed(text.docstrings()[:60]))):
        clip_bpe.train(texts, 600, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert len(clip_bpe.read_merges(paths[0])) == 600 - 514


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        (["a circle"], 513, "at least 514 pieces, not 513"),
        (["a circle"], 600, "give a vocabulary of 519 pieces, not 600"),
    ],
)
def test_a_vocabulary_of_that_size_cannot_be_trained(tmp_path, texts, size, message):
    with pytest.raises(UserError, match=message):
        clip_bpe.train(texts, size, tmp_path / "merges.gz")
    assert not list(tmp_path.iterdir())


def test_a_vocabulary_without_merges_is_the_bytes(tmp_path):
    clip_bpe.train(["a circle"], 514, tmp_path / "merges.gz")
    assert ClipBpe(tmp_path / "merges.gz").encode("ab") == [ord("a") - 33, 256 + ord("b") - 33]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#version\ni n\nt h e\n", "line 3 merges no two known pieces"),
        (b"#version\nin g\n", "line 2 merges no two known pieces"),
        (b"#version\ni n\ni n\n", "line 3 merges no two known pieces"),
        (b"#version\n\ni n\n", "line 2 merges no two known pieces"),
        (b"#version\n\xff\n", "is no list of merges .*utf-8"),
        (gzip.compress(b"#version\ni n\n" * 90, mtime=0)[:-9], "is no list of merges"),
    ],
)
def test_what_is_no_list_of_merges(tmp_path, content, message):
    path = tmp_path / "merges.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{message}.*take bpe_simple_vocab_16e6.txt.gz out of"):
        ClipBpe(path)


def test_a_missing_list_and_no_room(tmp_path, learnt):
    with pytest.raises(UserError, match=r"merges.gz is missing: take bpe_simple"):
        ClipBpe(tmp_path / "merges.gz")
    with pytest.raises(UserError, match="captions of 1 tokens have no room"):
        ClipBpe(learnt, context=1)

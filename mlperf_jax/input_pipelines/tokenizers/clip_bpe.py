"""CLIP's byte pairs: captions -> ids, as open_clip's SimpleTokenizer has them.

Text is repaired and split here, and words are looked up by the tokenizers library. Its own splitting is not used: it
knows the letters of another Unicode.

Repairs are those of ftfy that captions need: entities, ligatures, wide letters, curly quotes, control characters,
composed accents. Differs: text that was decoded as another encoding than its own ("cafÃ©") is left so. ftfy guesses
what it was; where it is installed, `ClipBpe(path, repair=ftfy.fix_text)` is the reference to the last id.
"""

from __future__ import annotations

import collections
import gzip
import html.entities
import itertools
import json
import os
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building, records

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
CONTEXT = 77  # tokens of a caption, the start and the end among them
_START, _END, _LAST = "<start_of_text>", "<end_of_text>", "</w>"
_MERGES = 49_152 - 256 - 2  # of the published list no more are used
_KEPT_WORDS = 1 << 18  # ids of so many words are remembered, some 60 MB
_HEADER = '"bpe_simple_vocab_16e6.txt#version: 0.2\n'  # as in the published file, its quote too


class ClipBpe:
    """A list of merges, and what it makes of captions.

    Attributes:
        path: its file.
        size: V: the bytes twice, the merges, the start and the end.
        start, end: ids of these two, the largest.
        pieces: the text of each id, "</w>" at a word's end, bytes as letters that can be seen.
        context: tokens of a caption.

    Raises:
        UserError: the file is missing or no list of merges.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        context: int = CONTEXT,
        repair: Callable[[str], str] | None = None,
    ):
        """Reads the merges.

        Args:
            path: `bpe_simple_vocab_16e6.txt.gz` out of the package open_clip_torch, or what `train` wrote.
            context: the length of all rows.
            repair: what is done to a caption first; None: `repaired`.
        """
        from tokenizers import models

        merges = read_merges(path)
        bytes_ = list(_BYTES.values())
        pieces = [*bytes_, *(piece + _LAST for piece in bytes_), *map("".join, merges)]
        self.pieces = (*pieces, _START, _END)
        ids = {piece: number for number, piece in enumerate(self.pieces)}
        if context < 2:
            raise UserError(
                f"clip: captions of {context} tokens have no room for start and end; give 2 or more"
            )
        self.path, self.size, self.context = records.local(path), len(ids), context
        self.start, self.end = ids[_START], ids[_END]
        self.repair = repaired if repair is None else repair
        self._model = models.BPE(ids, merges, end_of_word_suffix=_LAST)
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """The ids of a caption, without start and end and however many there are."""
        found: list[int] = []
        for word in split_words(cleaned(text, self.repair)):
            found += self._known.get(word) or self._looked_up(word)
        return found

    def __call__(self, text: str) -> np.ndarray:
        """[context] int32: start, the ids, end, zeros; of a longer caption the first ids, and the end."""
        return self._row(self.encode(text))

    def rows(self, texts: Iterable[str]) -> tuple[np.ndarray, int]:
        """The rows [N, context] of captions, and of how many the end was cut off."""
        ids = [self.encode(text) for text in texts]
        cut = sum(len(one) > self.context - 2 for one in ids)
        return np.array([self._row(one) for one in ids], np.int32).reshape(-1, self.context), cut

    def _row(self, ids: list[int]) -> np.ndarray:
        row = np.zeros(self.context, np.int32)
        ids = [self.start, *ids[: self.context - 2], self.end]
        row[: len(ids)] = ids
        return row

    def _looked_up(self, word: str) -> list[int]:
        if word in (_START, _END):
            return [self.start if word == _START else self.end]
        if len(self._known) >= _KEPT_WORDS:
            self._known.clear()
        ids = [token.id for token in self._model.tokenize(_as_bytes(word))]
        self._known[word] = ids
        return ids


def read_merges(path: str | os.PathLike) -> list[tuple[str, str]]:
    """The merges of a file, plain or gzipped, in their order; the published list's first 48,894.

    Raises:
        UserError: it is missing, damaged, or has a line that merges no two known pieces.
    """
    path = records.local(path)
    fetch = f"take {VOCABULARY} out of the package open_clip_torch"
    try:
        data = records.read_bytes(path)
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        lines = data.decode().split("\n")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {fetch} and put it there") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no list of merges ({error}): {fetch}") from error
    merges: list[tuple[str, str]] = []
    known = {*_BYTES.values(), *(piece + _LAST for piece in _BYTES.values())}
    for number, line in enumerate(lines[1 : _MERGES + 1], start=2):
        if not line and number == len(lines):
            break
        pair = tuple(line.split())
        if len(pair) != 2 or not known.issuperset(pair) or "".join(pair) in known:
            raise UserError(
                f"{path}, line {number} merges no two known pieces into a new one: {fetch}"
            )
        merges.append((pair[0], pair[1]))
        known.add("".join(pair))
    return merges


# -- text to words -------------------------------------------------------------------------------


def cleaned(text: str, repair: Callable[[str], str] | None = None) -> str:
    """A caption repaired, without entities, in lower case, with single spaces."""
    text = (repaired if repair is None else repair)(text)
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


def split_words(text: str) -> list[str]:
    """Words of a cleaned caption: runs of letters, single digits, runs of marks, English endings ('s, 'll).

    >>> split_words("a dog's 2nd ball!!")
    ['a', 'dog', "'s", '2', 'nd', 'ball', '!!']
    """
    return [text[slice(*found.span())] for found in _WORD.finditer(text.translate(_KINDS))]


class _Kinds(dict[int, str]):
    """For `str.translate`: a character that stands for all of its kind, worked out when one is first met."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        self[code] = {"L": "z", "N": "0"}.get(unicodedata.category(char)[0], "!")
        if char.isspace():
            self[code] = " "
        return self[code]


# What the pattern names stands for itself. The reference ignores case: to it a long s is an s, and it passes over the
# iota below a letter, which is a mark whose capital is a letter.
_KINDS = _Kinds({ord(char): char for char in "abcdefghijklmnopqrstuvwxyz'<>_"})
_KINDS |= {0x17F: "s", 0x345: " "}
_WORD = re.compile(rf"{_START}|{_END}|'(?:s|t|re|ve|m|ll|d)|[a-z]+|0|[^ a-z0]+")


def spelled(pieces: Iterable[str]) -> str:
    """The text of a caption's pieces, but for its start, its end and what comes after.

    >>> spelled(["<start_of_text>", "a</w>", "caf", "Ã©</w>", "<end_of_text>", "!"])
    'a café'
    """
    kept = itertools.takewhile(lambda piece: piece != _END, pieces)
    text = "".join(piece for piece in kept if piece != _START).replace(_LAST, " ").strip()
    return bytes(_LETTERS.get(letter, 32) for letter in text).decode(errors="replace")


def _byte_letters() -> dict[int, str]:
    """A letter that can be seen for each byte, in the order of their ids."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {b: chr(256 + n) for n, b in enumerate(others)}


_BYTES = _byte_letters()
_LETTERS = {letter: byte for byte, letter in _BYTES.items()}


def _as_bytes(word: str) -> str:
    return "".join(map(_BYTES.__getitem__, word.encode()))


# -- repairs -------------------------------------------------------------------------------------


def repaired(text: str) -> str:
    """What ftfy's fix_text makes of text that was decoded as what it is, but for white space.

    >>> repaired("“ﬁne” &amp; Ｗｉｄｅ")
    '"fine" & Wide'
    """
    lines, entities = text.split("\n"), True
    for number, line in enumerate(lines):
        entities = entities and "<" not in line  # what has tags may well mean its entities
        lines[number] = _repaired_line(line, entities)
    return "\n".join(lines)


def _repaired_line(line: str, entities: bool) -> str:
    if line.isascii() and line.isprintable() and "&" not in line:
        return line
    while True:
        before = line
        if entities:
            line = _ENTITY.sub(_character, line)
        line = line.translate(_REPAIRS)
        if not line.isascii():
            line = line.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        line = _TERMINAL.sub("", line).translate(_REMOVED)
        line = unicodedata.normalize("NFC", line)
        if line == before:
            return line


_ENTITY = re.compile("&#?[0-9A-Za-z]{1,24};")
_TERMINAL = re.compile(r"\x1b\[[\d;]*[a-zA-Z]")
_REMOVED = dict.fromkeys(
    (*range(9), 11, *range(14, 32), 127, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD))
)


def _character(found: re.Match[str]) -> str:
    """What an entity with its semicolon stands for, also if its name is all capitals."""
    text, name = found[0], found[0][1:]
    plain = html.unescape(text)
    if name.startswith("#"):
        return text if ";" in plain else plain
    if name in html.entities.html5:
        return html.entities.html5[name]
    small = html.entities.html5.get(name.lower(), text)
    return small.upper() if name == name.upper() and small != text and plain == text else text


def _repairs() -> dict[int, str]:
    """Windows' characters for C1 controls, letters for ligatures, usual widths, straight quotes."""
    table = {code: bytes([code]).decode("cp1252", "ignore") for code in range(0x80, 0xA0)}
    table = {code: char for code, char in table.items() if char}
    ligatures = [0x132, 0x133, *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4), *range(0xFB00, 0xFB07)]
    for code in (0x3000, *range(0xFF01, 0xFFEF), *ligatures):
        plain = unicodedata.normalize("NFKC", chr(code))
        table |= {code: plain} if plain != chr(code) else {}
    table |= {0x149: "'n", 0xFB05: "ſt"}
    return (
        table
        | dict.fromkeys((0x2BC, *range(0x2018, 0x201C)), "'")
        | dict.fromkeys(range(0x201C, 0x2020), '"')
    )


_REPAIRS = _repairs()


# -- training ------------------------------------------------------------------------------------


def train(texts: Iterable[str], size: int, path: str | os.PathLike) -> None:
    """Trains a vocabulary of `size` pieces and writes its merges; the same texts give the same file.

    Raises:
        UserError: the texts do not give so many pieces, or `size` leaves no room for the bytes.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    bytes_ = list(_BYTES.values())
    given = [*bytes_, *(piece + _LAST for piece in bytes_)]
    if size < len(given) + 2:
        raise UserError(f"clip: a vocabulary has at least {len(given) + 2} pieces, not {size}")
    counts = collections.Counter(word for text in texts for word in split_words(cleaned(text)))
    lines = (" ".join([_as_bytes(word)] * count) for word, count in sorted(counts.items()))
    model = Tokenizer(models.BPE(end_of_word_suffix=_LAST))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    # stated beforehand, since the trainer numbers letters in the order of a hash, by which ties are broken
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2,
        special_tokens=given,
        end_of_word_suffix=_LAST,
        show_progress=False,
    )
    model.train_from_iterator(lines, trainer)
    merges = json.loads(model.to_str())["model"]["merges"]
    if len(given) + len(merges) + 2 < size:
        raise UserError(
            f"clip: these texts give a vocabulary of {len(given) + len(merges) + 2} pieces, not {size}: give more "
            "text, or a smaller size"
        )
    content = _HEADER + "".join(f"{one} {other}\n" for one, other in merges)
    with building.unfinished(path) as part:
        part.write_bytes(gzip.compress(content.encode(), mtime=0))

"""BERT's uncased WordPiece: text -> ids, as google-research/bert's tokenization.py has it.

Words are split here and looked up by the tokenizers library. Its own BertNormalizer is not used: it lower-cases a
final sigma as any other and knows the characters of an older Unicode, of which it drops the newer ones, where the
reference has [UNK]. One token more or less shifts every random draw of the examples behind it.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building, records

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LONGEST = 200  # characters: a longer word is unknown
_KEPT_WORDS = 1 << 19  # pieces of so many words are remembered, some 100 MB
# ideographs, each of which is a word
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class WordPiece:
    """A vocabulary, one piece a line, and what it makes of text.

    Attributes:
        size: V, pieces of the vocabulary.
        cls, sep, mask: ids of these special pieces.

    Raises:
        UserError: the file is missing or no vocabulary.
    """

    def __init__(self, path: str | os.PathLike):
        from tokenizers import models

        pieces = read_vocabulary(path)
        ids = {piece: number for number, piece in enumerate(pieces)}
        self.path, self.size = records.local(path), len(pieces)
        self.cls, self.sep, self.mask = (ids[name] for name in ("[CLS]", "[SEP]", "[MASK]"))
        self._model = models.WordPiece(
            ids,
            unk_token="[UNK]",
            max_input_chars_per_word=_LONGEST,
            continuing_subword_prefix="##",
        )
        self._known: dict[str, list[int]] = {}

    def encode(self, line: str) -> list[int]:
        """The ids of a line of text; no special pieces are added, and none are read out of the text."""
        found: list[int] = []
        known = self._known
        for word in split_words(line):
            ids = known.get(word)
            if ids is None:
                if len(known) >= _KEPT_WORDS:
                    known.clear()
                ids = known[word] = [token.id for token in self._model.tokenize(word)]
            found += ids
        return found


def read_vocabulary(path: str | os.PathLike) -> list[str]:
    """The pieces of a vocabulary file by their ids, without the white space around them.

    Raises:
        UserError: it is missing, not UTF-8, or a piece stands twice, is empty, or is a special one that is absent.
    """
    path = records.local(path)
    try:
        lines = records.read_text(path).split("\n")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: fetch BERT's vocab.txt") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no vocabulary ({error}): fetch BERT's vocab.txt") from error
    pieces = [line.strip() for line in (lines[:-1] if lines[-1] == "" else lines)]
    first: dict[str, int] = {}
    for number, piece in enumerate(pieces, start=1):
        if not piece or first.setdefault(piece, number) != number:
            what = f"{piece!r} as line {first[piece]} has" if piece else "no piece"
            raise UserError(f"{path}, line {number} has {what}: fetch BERT's vocab.txt again")
    missing = [name for name in SPECIAL if name not in first]
    if missing:
        raise UserError(f"{path} has no {missing[0]}: take the vocabulary of a BERT model")
    return pieces


# -- words ---------------------------------------------------------------------------------------


def split_words(line: str) -> list[str]:
    """Words of a line: lower case, without accents; each punctuation mark and ideograph is one."""
    line = unicodedata.normalize("NFD", line.translate(_CLEANED).lower())
    return line.translate(_SPLIT).split()


class _Table(dict[int, int | str | None]):
    """For `str.translate`: what becomes of a character, worked out when it is first met."""

    def __init__(self, rule: Callable[[str], str | None]):
        super().__init__()
        self._rule = rule

    def __missing__(self, code: int) -> int | str | None:
        made = self._rule(chr(code))
        self[code] = code if made == chr(code) else made
        return self[code]


def _cleaned(char: str) -> str | None:
    if char in "\t\n\r" or unicodedata.category(char) == "Zs":
        return " "
    if char == "\ufffd" or unicodedata.category(char) in ("Cc", "Cf"):
        return None
    if any(low <= ord(char) <= high for low, high in _IDEOGRAPHS):
        return f" {char} "
    return char


def _split(char: str) -> str | None:
    category = unicodedata.category(char)
    if category == "Mn":
        return None
    mark = char.isascii() and char.isprintable() and not char.isalnum() and char != " "
    return f" {char} " if mark or category.startswith("P") else char


_CLEANED, _SPLIT = _Table(_cleaned), _Table(_split)


# -- training ------------------------------------------------------------------------------------


def train(texts: Iterable[str], size: int, path: str | os.PathLike) -> None:
    """Trains a vocabulary of `size` pieces and writes it; the same texts give the same file."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    lines = [" ".join(split_words(text)) for text in texts]
    letters = sorted({char for line in lines for char in line if char != " "})
    # Stated beforehand: the trainer numbers letters in the order of a hash, by which ties are broken.
    given = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    if size < len(given):
        raise UserError(f"a vocabulary of these texts has at least {len(given)} pieces, not {size}")
    model = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=given, show_progress=False)
    model.train_from_iterator(lines, trainer)
    pieces = sorted(model.get_vocab().items(), key=lambda item: item[1])
    with building.unfinished(path) as part:
        part.write_text("".join(f"{piece}\n" for piece, _ in pieces), encoding="utf-8")

"""Sentences -> examples of masked words and next sentences, as the organisers make them, draw by draw.

Every draw comes from one generator of a file of text, in the reference's order, so that the examples are its own to
the last id; a draw more or less would change all that follow.
Reference: mlcommons/training, retired_benchmarks/bert/cleanup_scripts/create_pretraining_data.py.

An article is a list of sentences, a sentence a list of ids.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.tokenizers import WordPiece

SEED = 12345
PASSES = 10  # over the articles, each with masks of its own
_SHORT = 0.1  # of the articles have their examples shorter than can be
_MASKED = 0.15  # of the tokens
_RETRIES = 10  # draws of another article, which may be the same one in the end

Article = list[list[int]]


class Example(NamedTuple):
    """[CLS] first [SEP] second [SEP], with masks in it, and what stood there.

    Attributes:
        tokens: uint16 [length].
        split: tokens up to and with the first [SEP].
        positions: of the masked tokens, ascending, uint16 [masked].
        ids: what stood there, uint16 [masked].
        random: the second part comes from elsewhere, 1, or follows the first, 0.
    """

    tokens: np.ndarray
    split: int
    positions: np.ndarray
    ids: np.ndarray
    random: int


def masked(length: int, most: int) -> int:
    """How many tokens of an example of this length are masked; at most 0.15 of them and a half.

    >>> masked(5, 76), masked(256, 76), masked(512, 76)
    (1, 38, 76)
    """
    return min(most, max(1, round(length * _MASKED)))


def read_articles(path: str, tokenizer: WordPiece) -> list[Article]:
    """The articles of a file: a sentence a line, a blank line between two articles.

    Raises:
        UserError: the file is missing, is not UTF-8, or holds no article.
    """
    articles: list[Article] = [[]]
    read = 0
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            for line in file:
                read += 1
                if not line.strip():
                    articles.append([])
                elif ids := tokenizer.encode(line):
                    articles[-1].append(ids)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: fetch it, or name another folder") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is damaged after line {read:,} ({error}): fetch it again"
        ) from error
    articles = [article for article in articles if article]
    if not articles:
        raise UserError(f"{path} holds no article: it needs lines of text, fetch it again")
    return articles


def examples(
    articles: Sequence[Article], tokenizer: WordPiece, sequence_length: int, most: int
) -> list[Example]:
    """The examples of a file's articles, in the order in which they are written.

    Args:
        articles: as they stand in the file.
        tokenizer: whose ids they are.
        sequence_length: of the longest example.
        most: tokens of an example that are masked.
    """
    draw = random.Random(SEED)
    articles = list(articles)
    shuffle(articles, draw)
    made = [
        _masked(pair, tokenizer, most, draw)
        for _ in range(PASSES)
        for number in range(len(articles))
        for pair in _pairs(articles, number, sequence_length - 3, draw)
    ]
    shuffle(made, draw)
    return made


def shuffle(items: list, draw: random.Random) -> None:
    """`draw.shuffle(items)` with the same draws, in a third of the time: half of all is spent here."""
    bits = draw.getrandbits
    for last in range(len(items) - 1, 0, -1):
        width = (last + 1).bit_length()
        other = bits(width)
        while other > last:
            other = bits(width)
        items[last], items[other] = items[other], items[last]


# -- pairs ---------------------------------------------------------------------------------------


def _pairs(
    articles: Sequence[Article], number: int, most: int, draw: random.Random
) -> Iterator[tuple[list[int], list[int], bool]]:
    """First part, second part, and whether that is from elsewhere: of one article in one pass.

    Yielded one by one, since the masks of a pair are drawn before the next pair.

    Args:
        articles: all of the file.
        number: of the article.
        most: tokens that both parts have together.
        draw: the file's generator.
    """
    article = articles[number]
    target = draw.randint(2, most) if draw.random() < _SHORT else most
    start = 0
    while start < len(article):
        end, length = start, 0
        while end < len(article) and length < target:
            length += len(article[end])
            end += 1
        split = start + (draw.randint(1, end - start - 1) if end - start > 1 else 1)
        first = _joined(article[start:split])
        elsewhere = end - start == 1 or draw.random() < 0.5
        if elsewhere:
            second = _from_elsewhere(articles, number, target - len(first), draw)
            start = split  # what would have followed is used again
        else:
            second, start = _joined(article[split:end]), end
        _truncate(first, second, most, draw)
        yield first, second, elsewhere


def _from_elsewhere(
    articles: Sequence[Article], number: int, wanted: int, draw: random.Random
) -> list[int]:
    """Sentences of another article from a random one on, one at least, until they are so long."""
    other = number
    for _ in range(_RETRIES):
        other = draw.randint(0, len(articles) - 1)
        if other != number:
            break
    found: list[int] = []
    for sentence in articles[other][draw.randint(0, len(articles[other]) - 1) :]:
        found += sentence
        if len(found) >= wanted:
            break
    return found


def _truncate(first: list[int], second: list[int], most: int, draw: random.Random) -> None:
    """Takes tokens from the longer part, in front or behind, until both fit."""
    while len(first) + len(second) > most:
        longer = first if len(first) > len(second) else second
        if draw.random() < 0.5:
            del longer[0]
        else:
            longer.pop()


def _joined(sentences: Iterable[list[int]]) -> list[int]:
    return [token for sentence in sentences for token in sentence]


# -- masks ---------------------------------------------------------------------------------------


def _masked(
    pair: tuple[list[int], list[int], bool], tokenizer: WordPiece, most: int, draw: random.Random
) -> Example:
    """The example of a pair: [MASK] in four of five masked places, else a random token or the same."""
    first, second, elsewhere = pair
    tokens = [tokenizer.cls, *first, tokenizer.sep, *second, tokenizer.sep]
    split, last = len(first) + 2, len(tokens) - 1
    places = [*range(1, split - 1), *range(split, last)]
    shuffle(places, draw)
    places = places[: masked(len(tokens), most)]
    before = {place: tokens[place] for place in places}
    for place in places:
        if draw.random() < 0.8:
            tokens[place] = tokenizer.mask
        elif draw.random() >= 0.5:
            tokens[place] = draw.randint(0, tokenizer.size - 1)
    places.sort()
    ids = [before[place] for place in places]
    return Example(_words(tokens), split, _words(places), _words(ids), int(elsewhere))


def _words(values: list[int]) -> np.ndarray:
    return np.array(values, np.uint16)

"""Docstrings of the standard library as articles, in the files that the organisers' text comes in."""

from __future__ import annotations

import os
import pathlib
import re

from mlperf_jax.input_pipelines import text
from mlperf_jax.input_pipelines.tokenizers import wordpiece
from mlperf_jax.input_pipelines.wikipedia import builder

PARTS = 2
_HELD_OUT = 8  # each eighth docstring is evaluated
_ARTICLES = 400  # docstrings, some 100 kB
_SENTENCE = re.compile(r"(?<=[.!?:])\s+|\n\s*\n")


def write_text(folder: str | os.PathLike, vocabulary: int) -> None:
    """Writes the parts, evaluation's text and a vocabulary of so many pieces trained on them."""
    articles = [_sentences(document) for document in text.docstrings()[:_ARTICLES]]
    splits = {builder.TEXT: articles[::_HELD_OUT]}
    learnt = [a for number, a in enumerate(articles) if number % _HELD_OUT]
    for number in range(PARTS):
        splits[f"part-{number:05d}-of-{PARTS:05d}"] = learnt[number::PARTS]
    for name, some in splits.items():
        lines = "".join("".join(f"{line}\n" for line in article) + "\n" for article in some)
        pathlib.Path(folder, name).write_text(lines, encoding="utf-8")
    lines = [line for article in articles for line in article]
    wordpiece.train(lines, vocabulary, pathlib.Path(folder, builder.VOCABULARY))


def _sentences(document: str) -> list[str]:
    found = (" ".join(sentence.split()) for sentence in _SENTENCE.split(document))
    return [sentence for sentence in found if sentence]

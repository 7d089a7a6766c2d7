"""Docstrings of the standard library as articles, in the files that the organisers' text comes in."""

from __future__ import annotations

import itertools
import os
import pathlib
import re
from collections.abc import Iterator

from mlperf_jax.input_pipelines import text
from mlperf_jax.input_pipelines.tokenizers import wordpiece
from mlperf_jax.input_pipelines.wikipedia import builder

PARTS = 2
_HELD_OUT = 8  # each eighth docstring is evaluated
_DOCSTRINGS = 300  # some 100 kB
_CLAUSES = (1, 2, 2, 5)  # of an article, in turn: most of Wikipedia's are shorter than a row
_END = re.compile(r"(?<=[.!?:;,])\s+|\n\s*\n")


def write_text(folder: str | os.PathLike, vocabulary: int) -> None:
    """Writes the parts, evaluation's text and a vocabulary of so many pieces trained on them."""
    documents = list(text.docstrings()[:_DOCSTRINGS])
    splits = {builder.TEXT: documents[::_HELD_OUT]}
    learnt = [document for number, document in enumerate(documents) if number % _HELD_OUT]
    for number in range(PARTS):
        splits[f"part-{number:05d}-of-{PARTS:05d}"] = learnt[number::PARTS]
    lines: list[str] = []
    for name, some in splits.items():
        written = [line for document in some for line in _articles(document)]
        pathlib.Path(folder, name).write_text("\n".join(written), encoding="utf-8")
        lines += written
    wordpiece.train(lines, vocabulary, pathlib.Path(folder, builder.VOCABULARY))


def _articles(document: str) -> Iterator[str]:
    """The clauses of a docstring, a line each, with a blank line behind each article."""
    clauses = iter(_END.split(document))
    for length in itertools.cycle(_CLAUSES):
        article = [" ".join(clause.split()) for clause in itertools.islice(clauses, length)]
        if not article:
            return
        yield from (clause for clause in article if clause)
        yield ""

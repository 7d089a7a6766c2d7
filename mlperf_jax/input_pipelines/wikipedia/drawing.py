"""Random sequences as long as Wikipedia's, packed as those of a file are.

Shape legend: R rows, L tokens of a row, P masked places of it, S sequences of it at most.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from mlperf_jax.input_pipelines import drawing
from mlperf_jax.input_pipelines.sources import Batch
from mlperf_jax.input_pipelines.wikipedia import rows
from mlperf_jax.input_pipelines.wikipedia.instances import Example, masked
from mlperf_jax.input_pipelines.wikipedia.packing import best_fit

# Shares of lengths up to these, in hundredths: half of the tokens of 512-token rows are padding, more than a fifth of the
# sequences fill a row, the short ones are the most frequent of the others (Krell et al., 2021, figure 1).
SHARES = {
    32: 9.0,
    64: 10.2,
    96: 8.8,
    128: 7.4,
    160: 6.2,
    192: 5.3,
    224: 4.6,
    256: 4.1,
    288: 3.7,
    320: 3.3,
    352: 3.0,
    384: 2.8,
    416: 2.6,
    448: 2.5,
    480: 2.4,
    511: 3.2,
    512: 20.9,
}
_SHORTEST = 5  # three tokens around two of text
_TRIES = 64  # half of all batches need no more rows than the least of a recipe's counts


def lengths(count: int, rng: np.random.Generator, row: int = 512) -> np.ndarray:
    """Lengths of so many sequences, uint16; of rows of other than 512 tokens in proportion."""
    last = np.array(list(SHARES))
    first = np.append(_SHORTEST, last[:-1] + 1)
    bins = rng.choice(len(last), count, p=np.array(list(SHARES.values())) / 100)
    drawn = rng.integers(first[bins], last[bins] + 1)
    return np.maximum(_SHORTEST, drawn * row // 512).astype(np.uint16)


def fitting(
    count: int, rows: int, sequences: int, rng: np.random.Generator, row: int
) -> np.ndarray:
    """`lengths` of a batch that needs no more than so many packed rows; of the last one drawn if none does."""
    for _ in range(_TRIES):
        drawn = lengths(count, rng, row)
        if best_fit(drawn, row, sequences).max() < rows:
            break
    return drawn


def example(rng: np.random.Generator, length: int, predictions: int, vocabulary: int) -> Example:
    """A sequence of that length, with as many tokens masked as the builder masks."""
    count = masked(length, predictions)
    tokens, ids = (drawing.log_uniform(rng, vocabulary, (n,)) for n in (length, count))
    positions = np.sort(rng.permutation(length)[:count])
    words = (array.astype(np.uint16) for array in (tokens, positions, ids))
    tokens, positions, ids = words
    return Example(tokens, length // 2, positions, ids, int(rng.integers(2)))


def batch(count: int, places: int, sequences: int, examples: Sequence[Example], row: int) -> Batch:
    """Rows as `wikipedia.rows.blank` describes them; examples that find no room are left out.

    Args:
        count: R.
        places: P.
        sequences: S; 1 puts one example into each row.
        examples: in any order.
        row: L.
    """
    sizes = np.array([len(one.tokens) for one in examples])
    where = best_fit(sizes, row, sequences) if sequences > 1 else np.arange(len(examples))
    order = np.argsort(where, kind="stable")
    out = rows.blank(count, row, places, sequences)
    for number, held in itertools.groupby(order.tolist(), key=where.__getitem__):
        if number < count:
            rows.place(out, int(number), [examples[index] for index in held])
    return out

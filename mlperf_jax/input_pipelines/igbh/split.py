"""Which labelled papers train and which validate: the organisers' permutation, without torch.

The labelled papers are the first ids. They are permuted as `torch.randperm` does on a CPU: place i is swapped with
place i + (u mod (n - i)), where u is the next 32-bit word of the MT19937 generator, which NumPy's legacy generator
draws as well. The first 60 % train, the next 0.5 % validate, both rounded down, and the rest is not used.

Reference: mlcommons/training, graph_neural_network/split_seeds.py with `validation_frac` 0.005; its README rounds the
788,379 papers that validate up to 788,380.
Shape legend: n labelled papers.
"""

from __future__ import annotations

import numpy as np

from mlperf_jax.errors import UserError

LABELLED = 157_675_969  # papers of the full graph that have one of 2,983 classes
SEED = 42
_MOST = (2**32 - 1) // 20  # from here on torch draws 64-bit words
_WORDS = 1 << 20  # drawn at once


def sizes(count: int) -> tuple[int, int]:
    """How many of so many labelled papers train and validate: floor(3 n / 5) and floor(n / 200).

    The reference multiplies by 0.6 and 0.005 and truncates, which is the same for every n up to 2,000,000 and for
    the full graph's.

    >>> sizes(157_675_969)
    (94605581, 788379)
    """
    return count * 3 // 5, count // 200


def papers(count: int = LABELLED, seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the papers that train, and of those that validate, int32, in the order of the permutation.

    The full graph's take 1 GB at most while they are drawn, and 0.4 GB afterwards.

    Args:
        count: n; the default is the benchmark's.
        seed: of the generator; any other than the benchmark's is another split.

    Raises:
        UserError: so few papers that none would validate, or what `permutation` refuses.
    """
    train, validation = sizes(count)
    if not validation:
        raise UserError(
            f"{count} labelled papers are too few to split: one in 200 validates, give at least 200"
        )
    order = permutation(count, seed, train + validation)
    return order[:train], order[train:]


def permutation(count: int, seed: int = SEED, first: int | None = None) -> np.ndarray:
    """The first places of torch's random permutation of 0 … n - 1, int32.

    Args:
        count: n.
        seed: as given to `torch.manual_seed`.
        first: how many places; None for all. No more are drawn.

    Raises:
        UserError: n is so large that torch draws otherwise, or the seed is no 32-bit number.

    >>> permutation(10).tolist()
    [2, 6, 1, 8, 4, 5, 0, 9, 3, 7]
    """
    from mlperf_jax.input_pipelines.igbh import loops

    if not 0 <= count < _MOST:
        raise UserError(
            f"{count:,} papers cannot be permuted: between 0 and {_MOST - 1:,} can, beyond which torch draws in "
            "another way (the 19-class labels of the full graph are not the benchmark's)"
        )
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed} is no number of 32 bits: give one between 0 and {2**32 - 1}")
    first = count if first is None else min(first, count)
    order, random = np.arange(count, dtype=np.int32), np.random.RandomState(seed)
    steps = min(first, count - 1)  # the last place is swapped with itself, and no word is drawn
    for begin in range(0, steps, _WORDS):
        words = random.randint(0, 2**32, min(_WORDS, steps - begin), np.uint32)
        loops.shuffle(order, begin, words)
    return order if first == count else order[:first].copy()

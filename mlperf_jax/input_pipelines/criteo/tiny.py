"""A small stand-in for Criteo's click logs: clicks from a planted model, written as the real files.

Each id of nine tables has a hidden sign, drawn once. What the signs do alone says little about the click;
what the products of two of them, or of one and a dense feature, do says nearly all. A model that is linear
in its inputs, like a logistic regression on the ids (one-hot or multi-hot) and the dense features, cannot
see products: each sign is as often + as -. `scripts/bench_criteo.py --regression` measures it.

Shape legend: n samples of a day.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from mlperf_jax.input_pipelines import building
from mlperf_jax.input_pipelines.criteo import files, multi_hot

ROWS = (
    *(20, 12, 8, 16, 10, 3, 9, 6, 7, 20, 20, 12, 5),
    *(12, 10, 10, 4, 8, 6, 24, 40, 24, 12, 9, 9, 6),
)
BAGS = (*(2, 2, 1, 1, 3, 1, 1, 1, 1, 2, 2, 2, 1), *(2, 2, 2, 1, 1, 1, 3, 8, 4, 3, 2, 1, 1))
DAYS = {0: 24_576, 1: 24_576, 2: 24_576, 23: 16_385}  # day 23 is odd: its half is rounded up
_PAIRS = ((0, 9), (10, 22))  # tables whose signs multiply
_WITH_DENSE = ((21, 0), (11, 5), (14, 9), (19, 12))  # tables whose sign turns a dense feature
_SIGNED = sorted({t for pair in _PAIRS for t in pair} | {t for t, _ in _WITH_DENSE})
_HINT = 0.35  # what a sign does alone: it is where learning begins
_SEED = 2023


def write(folder: str, rows: Sequence[int] = ROWS, bags: Sequence[int] = BAGS) -> None:
    """Writes the day files into a folder, which appears under its name only when it is complete."""
    with building.alone(folder) as target, building.unfinished(target) as part:
        part.mkdir()
        _write(part, rows, bags)


def _write(folder: pathlib.Path, rows: Sequence[int], bags: Sequence[int]) -> None:
    rng = np.random.default_rng(_SEED)
    signs = [rng.permuted(np.resize([-1.0, 1.0], n)) for n in rows]
    slight = [rng.normal(0, 0.15, n) for n in rows]
    matrices = list(multi_hot.bag_matrices(rows, bags))
    for day, samples in DAYS.items():
        ids = np.stack([_popular(rng, n, samples) for n in rows], 1)  # [n, 26]
        counts = np.floor(rng.lognormal(1.0, 1.0, (samples, files.DENSE)))
        dense = np.log(counts.astype(np.float32) + 3)
        click = rng.random(samples) < _click_rate(ids, dense, signs, slight)
        labels, dense_name, sparse = (folder / name for name in files.day_files(day))
        np.save(labels, click.astype(np.int32)[:, None])
        np.save(dense_name, dense)
        multi_hot.write_npz(sparse, ids.T, matrices)


def _popular(rng: np.random.Generator, rows: int, samples: int) -> np.ndarray:
    """Ids of which low ones come more often, as in real logs: i32 [n]."""
    return np.minimum((rng.random(samples) ** 1.5 * rows).astype(np.int32), rows - 1)


def _click_rate(
    ids: np.ndarray, dense: np.ndarray, signs: Sequence[np.ndarray], slight: Sequence[np.ndarray]
) -> np.ndarray:
    """Probability of a click, [n]."""
    tables = range(len(signs))
    sign = np.stack([signs[t][ids[:, t]] for t in tables], 1)
    logit = -1.2 + np.sum([slight[t][ids[:, t]] for t in tables], 0)
    centred = (dense - dense.mean(0)) / dense.std(0)
    logit += _HINT * sign[:, _SIGNED].sum(1)
    for a, b in _PAIRS:
        logit += 1.5 * sign[:, a] * sign[:, b]
    for table, feature in _WITH_DENSE:
        logit += 1.4 * sign[:, table] * centred[:, feature]
    return 1 / (1 + np.exp(-logit))

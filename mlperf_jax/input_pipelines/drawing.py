"""What data sets share that draw batches such as theirs without a file: ids as frequent as words and clicks are."""

from __future__ import annotations

import numpy as np

from mlperf_jax.input_pipelines.sources import Batch


def log_uniform(rng: np.random.Generator, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Ids int32 below `count`, of which id i is 1 / (i + 1) times as frequent as id 0: Zipf's law, about.

    >>> ids = log_uniform(np.random.default_rng(0), 1000, (10_000,))
    >>> int(ids.min()), int(ids.max()) < 1000, bool(np.mean(ids == 0) > 0.05)
    (0, True, True)
    """
    ids = np.exp(rng.random(shape) * np.log(count + 1)).astype(np.int64) - 1
    return np.minimum(ids, count - 1).astype(np.int32)


def windows(rng: np.random.Generator, rows: int, length: int, vocabulary: int) -> Batch:
    """{"inputs": int32 [rows, length], "labels": the same one token later}, tokens as frequent as words."""
    ids = log_uniform(rng, vocabulary, (rows, length + 1))
    return {"inputs": ids[:, :-1], "labels": ids[:, 1:]}

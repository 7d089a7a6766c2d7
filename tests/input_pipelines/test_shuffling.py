"""The order that needs no table: a permutation an epoch, without a pattern."""

import numpy as np
import pytest

from mlperf_jax.input_pipelines.shuffling import shuffled


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 65, 1000])
def test_each_epoch_of_the_shuffle_is_another_permutation(n):
    orders = [shuffled(np.arange(e * n, (e + 1) * n), n, seed=3).tolist() for e in range(3)]
    assert all(sorted(order) == list(range(n)) for order in orders)
    if n >= 64:
        assert orders[0] != orders[1] != orders[2]
        assert orders[0] != shuffled(np.arange(n), n, seed=4).tolist()


def test_the_shuffle_has_no_pattern():
    n, rows = 100_000, 200
    order = shuffled(np.arange(n), n, seed=0)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.015  # 4.7 standard deviations
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.015
    # of a hundred classes as they lie, a batch holds as many as by chance
    classes = [len(np.unique(some // (n // 100))) for some in order.reshape(-1, rows)]
    assert abs(np.mean(classes) - 100 * (1 - 0.99**rows)) < 0.5

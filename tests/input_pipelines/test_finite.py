"""Whether numbers are finite, in every type that is read."""

import ml_dtypes
import numpy as np
import pytest

from mlperf_jax.input_pipelines.finite import all_finite


@pytest.mark.parametrize("kind", [ml_dtypes.float8_e4m3fn, np.float16, np.float32])
def test_every_value_of_a_type_is_told(kind):
    some = np.arange(-600, 600).astype(kind)
    some = some[np.isfinite(some.astype(np.float32))]
    largest = ml_dtypes.finfo(kind).max
    assert all_finite(some) and all_finite(np.array([largest, -largest], kind))
    assert all_finite(np.zeros((0, 3), kind))
    for bad in (np.nan, -np.nan, np.inf, -np.inf):  # float8 makes NaN of infinity
        assert not all_finite(np.append(some, kind(bad)))

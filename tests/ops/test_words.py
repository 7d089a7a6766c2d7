"""Narrow numbers in 32-bit words and back, bit for bit."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.ops.words import packed, unpacked, words_of


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e4m3fn", "int8"])
def test_rows_come_back_bit_for_bit(dtype):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    rows = np.random.default_rng(0).integers(0, 256, (3, 5, 24 * dtype.itemsize), np.uint8)
    rows = rows.view(dtype)
    words = packed(rows)
    assert words.dtype == np.uint32 and words.shape == (3, 5, words_of(24, dtype))
    found = np.asarray(unpacked(jnp.asarray(words), dtype))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.view(np.uint8), rows.view(np.uint8))


def test_a_word_holds_numbers_that_lie_apart():
    words = packed(np.arange(8, dtype=np.uint8)[None])
    assert words.tolist() == [[0 | 2 << 8 | 4 << 16 | 6 << 24, 1 | 3 << 8 | 5 << 16 | 7 << 24]]


def test_rows_of_no_whole_number_of_words_are_refused():
    with pytest.raises(UserError, match="rows of 6 uint8 are no whole number of 32-bit words"):
        packed(np.zeros((2, 6), np.uint8))

"""Rows of narrow numbers as 32-bit words: what devices gather well, and compile gathers of within seconds.

A word of a row [W] of b-bit numbers holds those that lie W b / 32 apart, the first in its lowest bits, so that taking
words apart gives whole slices of the row. Other orders would interleave lanes.

W width · n words of a row
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mlperf_jax.errors import UserError


def words_of(width: int, dtype: jax.typing.DTypeLike) -> int:
    """How many words hold a row.

    Raises:
        UserError: a number of them that is not whole.

    >>> words_of(1024, jnp.float8_e4m3fn), words_of(1024, jnp.float32)
    (256, 1024)
    """
    bits = width * jnp.dtype(dtype).itemsize * 8
    if bits % 32:
        raise UserError(f"rows of {width} {jnp.dtype(dtype)} are no whole number of 32-bit words")
    return bits // 32


def packed(rows: np.ndarray) -> np.ndarray:
    """Rows [..., W] of 1, 2 or 4 bytes a number as uint32 [..., n]."""
    each = 4 // rows.dtype.itemsize
    parts = rows.reshape(*rows.shape[:-1], each, words_of(rows.shape[-1], rows.dtype))
    return np.ascontiguousarray(parts.swapaxes(-1, -2)).view(np.uint32)[..., 0]


def unpacked(words: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The rows [..., W] of uint32 words [..., n].

    >>> rows = np.arange(8, dtype=np.float16).reshape(2, 4)
    >>> bool((unpacked(packed(rows), jnp.float16) == rows).all())
    True
    """
    bits = jnp.dtype(dtype).itemsize * 8
    narrow = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}[bits]
    parts = [(words >> shift).astype(narrow) for shift in range(0, 32, bits)]
    return lax.bitcast_convert_type(jnp.concatenate(parts, -1), dtype)

"""Whether numbers are finite, by their bits: a pass over memory, also of types that NumPy computes with one by one."""

from __future__ import annotations

import numpy as np

# by element type: whole numbers of its size, with and without a sign, and from where on its bits are no finite number
_BEYOND = {
    "float8_e4m3fn": (np.int8, np.uint8, 0x7F),
    "float16": (np.int16, np.uint16, 0x7C00),
    "float32": (np.int32, np.uint32, 0x7F800000),
}


def all_finite(values: np.ndarray) -> bool:
    """Whether no value of a contiguous array in float32, float16 or float8_e4m3fn is NaN or infinite.

    >>> all_finite(np.array([1, -2], np.float16)), all_finite(np.array([1, -np.inf], np.float16))
    (True, False)
    """
    signed, unsigned, beyond = _BEYOND[values.dtype.name]
    sign = np.iinfo(signed).max + 1
    # bits without the sign are in the order of the values; negative ones are the largest without a sign
    return (
        int(values.view(signed).max(initial=0)) < beyond
        and int(values.view(unsigned).max(initial=0)) < sign + beyond
    )

"""How torch's layers start, for networks whose reference is written in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def uniform(fan_in: int) -> nnx.Initializer:
    """U(-b, b) with b = 1 / sqrt(fan_in): kernels and biases of convolutions and linear layers."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init

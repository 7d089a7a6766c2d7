"""A feature pyramid with biased convolutions: P3 to P7 from C3, C4 and C5.

Reference: torchvision's FeaturePyramidNetwork with LastLevelP6P7(256, 256), which makes P6 from P5.

B batch · S image side · C channels of the pyramid
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mlperf_jax.ops import conv as convs

# torch's kaiming_uniform_(a=1): within sqrt(3 / fan_in) on both sides
_uniform = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")


class FeaturePyramid(nnx.Module):
    """C3, C4, C5 to five maps of equal width, each half the one before."""

    def __init__(
        self,
        features_in: Sequence[int],
        width: int,
        dtype: jax.typing.DTypeLike,
        *,
        rngs: nnx.Rngs,
    ):
        """Makes the pyramid.

        Args:
          features_in: channels of C3, C4 and C5.
          width: C; 256.
          dtype: of the computation.
          rngs: keys.
        """

        def conv(features: int, size: int, stride: int = 1) -> convs.Conv:
            around: dict[str, Any] = {"bias": 0.0, "kernel_init": _uniform, "dtype": dtype}
            pad = size // 2
            return convs.Conv(
                features, width, size, stride=stride, padding=pad, **around, rngs=rngs
            )

        self.inner = nnx.List(conv(features, 1) for features in features_in)
        self.outer = nnx.List(conv(width, 3) for _ in features_in)
        self.p6, self.p7 = conv(width, 3, 2), conv(width, 3, 2)

    def __call__(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        """Args: C3, C4, C5. Returns: P3 to P7, [B, S / 8, S / 8, C] to [B, S / 128, S / 128, C]."""
        inner = [conv(x) for conv, x in zip(self.inner, maps, strict=True)]
        for finer in range(len(inner) - 2, -1, -1):
            inner[finer] += upsample(inner[finer + 1], inner[finer].shape[1:3])
        pyramid = [conv(x) for conv, x in zip(self.outer, inner, strict=True)]
        p6 = self.p6(pyramid[-1])
        return [*pyramid, p6, self.p7(nnx.relu(p6))]


def upsample(x: jax.Array, sides: Sequence[int]) -> jax.Array:
    """Nearest neighbour to a map about twice as large: output i shows input floor(i in / out).

    For out = 2 in and out = 2 in - 1, all that halving with rounding up leaves, that is i // 2.
    A repeat's gradient is a sum of neighbours; a gather's would be a scatter.

    >>> upsample(jnp.arange(2.0).reshape(1, 1, 2, 1), (2, 3)).reshape(2, 3).tolist()
    [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    """
    rows, columns = sides
    for side, out in zip(x.shape[1:3], sides):
        if out not in (2 * side, 2 * side - 1):
            raise ValueError(f"a map of side {side} cannot grow to {out}")
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return x[:, :rows, :columns]

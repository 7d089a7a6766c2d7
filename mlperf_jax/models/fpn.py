"""A feature pyramid with biased convolutions: P3 to P7 from C3, C4 and C5.

Reference: torchvision's FeaturePyramidNetwork with LastLevelP6P7(256, 256), which makes P6 from P5.

B batch · S image side · C channels of the pyramid
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from mlperf_jax.ops import conv as convs

# torch's kaiming_uniform_(a=1): within sqrt(3 / fan_in) on both sides
_uniform = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")


class BiasedConv(nnx.Module):
    """A square convolution with a bias.

    >>> init = nnx.initializers.he_normal()
    >>> conv = BiasedConv(4, 8, 3, stride=2, kernel_init=init, rngs=nnx.Rngs(0))
    >>> conv(jnp.ones([2, 7, 7, 4])).shape
    (2, 4, 4, 8)
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        size: int,
        *,
        stride: int = 1,
        dtype: jax.typing.DTypeLike = jnp.float32,
        kernel_init: nnx.Initializer = _uniform,
        bias: float = 0.0,
        rngs: nnx.Rngs,
    ):
        kept = jnp.promote_types(dtype, jnp.float32)
        shape = (size, size, features_in, features_out)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, kept))
        self.bias = nnx.Param(jnp.full(features_out, bias, kept))
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: jax.Array, *, wide: bool = False) -> jax.Array:
        """Args: x [B, H, W, C], wide: keep the sums as they are added, in at least float32.

        Returns: [B, H / stride, W / stride, F], zeros of half the kernel around x; in `dtype` if not wide.
        """
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        padding = kernel.shape[0] // 2
        if not wide or self.dtype == self.kernel[...].dtype:
            y = convs.conv2d(x, kernel, stride=self.stride, padding=padding)
            return y + self.bias[...].astype(self.dtype)
        y = lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            ((padding, padding),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            preferred_element_type=self.kernel[...].dtype,
        )
        return y + self.bias[...]


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
        self.inner = nnx.List(BiasedConv(f, width, 1, dtype=dtype, rngs=rngs) for f in features_in)
        self.outer = nnx.List(
            BiasedConv(width, width, 3, dtype=dtype, rngs=rngs) for _ in features_in
        )
        self.p6 = BiasedConv(width, width, 3, stride=2, dtype=dtype, rngs=rngs)
        self.p7 = BiasedConv(width, width, 3, stride=2, dtype=dtype, rngs=rngs)

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

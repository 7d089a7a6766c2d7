"""Grouped convolutions, in the form that the platform computes fastest.

Groups of a few channels starve a matrix unit and, on XLA:CPU, fall off the fast path. A kernel of several
groups written as blocks on the diagonal of a wider one gives the same sums with zeros added.

B batch · H, W image height and width · C channels in and out · G groups · k kernel side
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from mlperf_jax.errors import UserError
from mlperf_jax.ops import conv as convs
from mlperf_jax.ops.shard import platform

# A TPU's matrix unit multiplies 128 channels at a time whether they are there or not.
_TPU_LANES = 128


class GroupedConv(nnx.Module):
    """A square convolution in groups without bias, parameter `kernel` [k, k, C / G, C].

    >>> init = nnx.initializers.he_normal()
    >>> conv = GroupedConv(8, 3, groups=4, stride=2, padding=1, kernel_init=init, rngs=nnx.Rngs(0))
    >>> conv(jnp.ones([2, 8, 8, 8])).shape, conv.kernel.shape
    ((2, 4, 4, 8), (3, 3, 2, 8))
    """

    def __init__(
        self,
        features: int,
        size: int,
        *,
        groups: int,
        stride: int = 1,
        padding: convs.Padding = "SAME",
        dtype: jax.typing.DTypeLike = jnp.float32,
        kernel_init: nnx.Initializer,
        rngs: nnx.Rngs,
    ):
        if features % groups:
            raise UserError(
                f"{features} channels do not split into {groups} groups: choose groups that divide them"
            )
        kept = jnp.promote_types(dtype, jnp.float32)
        shape = (size, size, features // groups, features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, kept))
        self.groups = groups
        self.stride = stride
        self.padding: convs.Padding = padding
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H / stride, W / stride, C] in `dtype`."""
        kernel = self.kernel[...].astype(self.dtype)
        return grouped_conv2d(
            x.astype(self.dtype), kernel, self.groups, stride=self.stride, padding=self.padding
        )


def grouped_conv2d(
    x: jax.Array,
    kernel: jax.Array,
    groups: int,
    *,
    stride: int = 1,
    padding: convs.Padding = "SAME",
) -> jax.Array:
    """Convolves each group of channels of x with its own kernels.

    On CPUs one dense convolution (gradients of a 3x3 at 128 channels in 32 groups: 34 ms for 1,431); on
    TPUs groups are joined up to 128 channels, the width of the matrix unit; GPUs have kernels of their own.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C / G, F]; group g makes the features g F / G and on.
      groups: G.
      stride: in both directions.
      padding: as in `conv2d`.

    Returns:
      [B, H', W', F].
    """
    joined = _joined(platform(), groups, kernel.shape[2])
    if joined > 1:
        kernel, groups = join_groups(kernel, groups, joined), groups // joined
    if groups == 1:
        return convs.conv2d(x, kernel, stride=stride, padding=padding)
    pads = padding if isinstance(padding, str) else ((padding, padding),) * 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _joined(platform: str, groups: int, channels: int) -> int:
    """How many groups, of so many input channels each, become one."""
    if platform == "cpu":
        return groups
    if platform == "tpu":
        joined = min(groups, max(1, _TPU_LANES // channels))
        return joined if groups % joined == 0 else 1
    return 1


def join_groups(kernel: jax.Array, groups: int, joined: int) -> jax.Array:
    """A kernel [k, k, c, F] of G groups as one [k, k, c joined, F] of G / joined.

    Each wider group holds the kernels of `joined` groups on its diagonal, zeros beside them.
    """
    rows, columns, inside, features = kernel.shape
    parts = kernel.reshape(rows, columns, 1, inside, groups // joined, joined, features // groups)
    diagonal = jnp.eye(joined, dtype=kernel.dtype)[:, None, None, :, None]
    return (parts * diagonal).reshape(rows, columns, joined * inside, features)

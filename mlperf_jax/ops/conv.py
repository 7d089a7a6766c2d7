"""Convolution and pooling in two and three dimensions, in the form that the platform computes fastest.

All forms of one operation are exactly equivalent; they differ in the order of floating-point sums.

Groups of a few channels starve a matrix unit and, on XLA:CPU, fall off the fast path. A kernel of several
groups written as blocks on the diagonal of a wider one gives the same sums with zeros added.

B batch · D depth · H, W height and width · C input channels · F output features · G groups · k kernel side
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from mlperf_jax.errors import UserError
from mlperf_jax.ops import dense
from mlperf_jax.ops.shard import platform

Padding = int | Literal["SAME"]

# On XLA:CPU a strided convolution's gradients cost more than gathering its patches while the output
# is small: at 64 images and 64 channels, forward and both gradients of a 3x3/2 took 0.46 of the
# convolution's time for 4 positions, 0.16 for 1 (128 channels), 1.0 for 16 and 1.5 for 256.
_FEW_POSITIONS = 16
# A TPU's matrix unit multiplies 128 channels at a time whether they are there or not.
_TPU_LANES = 128
# Channels of the convolutions that XLA:CPU gets for groups, and how many: each of them takes time to compile.
_CPU_LANES = 32
_CPU_CONVOLUTIONS = 8


class Conv(nnx.Module):
    """A square convolution, parameters `kernel` [k, k, C / G, F] and `bias` [F], a number or drawn, unless it is None.

    >>> init = nnx.initializers.he_normal()
    >>> conv = Conv(4, 8, 3, stride=2, groups=2, bias=0.0, kernel_init=init, rngs=nnx.Rngs(0))
    >>> conv(jnp.ones([2, 8, 8, 4])).shape, conv.kernel.shape
    ((2, 4, 4, 8), (3, 3, 2, 8))
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        size: int,
        *,
        stride: int = 1,
        padding: Padding = "SAME",
        groups: int = 1,
        bias: float | nnx.Initializer | None = None,
        dtype: jax.typing.DTypeLike = jnp.float32,
        kernel_init: nnx.Initializer,
        rngs: nnx.Rngs,
    ):
        if features_in % groups:
            raise UserError(
                f"{features_in} channels do not split into {groups} groups: choose groups that divide them"
            )
        kept = jnp.promote_types(dtype, jnp.float32)
        shape = (size, size, features_in // groups, features_out)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, kept))
        drawn = bias(rngs.params(), (features_out,), kept) if callable(bias) else bias
        self.bias = None if drawn is None else nnx.Param(jnp.full(features_out, drawn, kept))
        self.stride = stride
        self.padding: Padding = padding
        self.groups = groups
        self.dtype = dtype

    def __call__(self, x: jax.Array, *, wide: bool = False) -> jax.Array:
        """[B, H, W, C] -> [B, H / stride, W / stride, F].

        In `dtype`; `wide`: kept as the sums are added, in at least float32.
        """
        kernel = self.kernel[...]
        y = conv2d(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=self.padding,
            groups=self.groups,
            dtype=kernel.dtype if wide else None,
        )
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: Padding = "SAME",
    groups: int = 1,
    dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """Convolves x, or each group of its channels, with kernels of the same dtype.

    Of several groups CPUs make up to eight dense convolutions of 32 channels or more (gradients of a 3x3 at 128
    channels in 32 groups: 320 times as fast), TPUs join groups up to 128 channels, the width of the matrix unit;
    GPUs have kernels for them.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C / G, F]; group g makes the features g F / G and on.
      stride: in both directions.
      padding: "SAME" as in TensorFlow, where a stride of 2 pads an even side by (0, 1), or that many
        zeros on all four sides.
      groups: G.
      dtype: of the result; that of x by default.

    Returns:
      [B, H', W', F].
    """
    joined = _joined(platform(), groups, kernel.shape[2])
    if joined > 1:
        kernel, groups = join_groups(kernel, groups, joined), groups // joined
    if platform() == "cpu" and groups > 1:
        pairs = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1))
        parts = [conv2d(*pair, stride=stride, padding=padding, dtype=dtype) for pair in pairs]
        return jnp.concatenate(parts, -1)
    pads = _pads(x.shape[1:3], kernel.shape[0], stride, padding)
    if platform() == "cpu" and dtype in (None, x.dtype):
        if kernel.shape[:2] == (1, 1) and not any(map(any, pads)):
            return dense.product(x[:, ::stride, ::stride], kernel[0, 0])
        outs = _output_sides(x.shape[1:3], kernel.shape[0], stride, pads)
        if stride > 1 and outs[0] * outs[1] <= _FEW_POSITIONS:
            patches = _patches(x, kernel.shape[0], stride, pads, outs)
            return dense.product(patches, kernel.reshape(-1, kernel.shape[-1]))
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        preferred_element_type=dtype,
    )


def _joined(platform: str, groups: int, channels: int) -> int:
    """How many groups, of so many input channels each, become one."""
    if platform == "cpu":
        joined = min(groups, max(-(-_CPU_LANES // channels), -(-groups // _CPU_CONVOLUTIONS)))
        return joined if groups % joined == 0 else groups
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


def conv3d(x: jax.Array, kernel: jax.Array, *, stride: int = 1) -> jax.Array:
    """Convolves x with a cube of odd side, k // 2 zeros around it on all six sides (torch's padding).

    On XLA:CPU the k planes under the kernel become channels, and the depth rows of a two-dimensional
    convolution. Forward and both gradients of a 3x3x3 took, in ms on 2 cores, plain and folded:

        [8, 16, 16, 16, 8] -> 8                166    5.4
        [8, 16, 16, 16, 8] -> 16, stride 2     454    2.0
        [8, 8, 8, 8, 16] -> 16                  34    1.5

    Args:
      x: [B, D, H, W, C].
      kernel: [k, k, k, C, F] of the same dtype.
      stride: in all three directions.

    Returns:
      [B, D', H', W', F]; a side n becomes (n - 1) // stride + 1.
    """
    size, pad = kernel.shape[0], kernel.shape[0] // 2
    if size == 1 and stride == 1:
        return dense.product(x, kernel[0, 0, 0])
    if platform() != "cpu":
        layout = ("NDHWC", "DHWIO", "NDHWC")
        pads = ((pad, pad),) * 3
        return lax.conv_general_dilated(x, kernel, (stride,) * 3, pads, dimension_numbers=layout)
    depth = (x.shape[1] - 1) // stride + 1
    last = (depth - 1) * stride + 1
    padded = jnp.pad(x, ((0, 0), (pad, pad), (0, 0), (0, 0), (0, 0)))
    planes = [lax.slice_in_dim(padded, i, i + last, stride, axis=1) for i in range(size)]
    folded = jnp.concatenate(planes, axis=-1)  # [B, D', H, W, k C]
    flat = folded.reshape(-1, *folded.shape[2:])
    square = kernel.transpose(1, 2, 0, 3, 4).reshape(size, size, -1, kernel.shape[-1])
    y = conv2d(flat, square, stride=stride, padding=pad)
    return y.reshape(x.shape[0], depth, *y.shape[1:])


def double3d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Doubles the sides: torch's transposed convolution with kernel 2, stride 2 and no padding.

    Its windows do not overlap, so every voxel becomes its own 2x2x2 block, and all blocks together
    are one matrix product, on every platform.

    Args:
      x: [B, D, H, W, C].
      kernel: [2, 2, 2, C, F] of the same dtype.

    Returns:
      [B, 2 D, 2 H, 2 W, F].
    """
    batch, depth, height, width, channels = x.shape
    features = kernel.shape[-1]
    blocks = dense.product(x, kernel.transpose(3, 0, 1, 2, 4).reshape(channels, -1))
    blocks = blocks.reshape(batch, depth, height, width, 2, 2, 2, features)
    spread = blocks.transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return spread.reshape(batch, 2 * depth, 2 * height, 2 * width, features)


def max_pool(x: jax.Array, size: int, *, stride: int, padding: Padding = "SAME") -> jax.Array:
    """Maximum over square windows; the padding never wins.

    A maximum of slices, first along rows, then along columns: XLA turns the gradient of a windowed
    maximum into a scatter, on the CPU 3.47 times as long and on GPUs with sums in no fixed order.
    TPUs have the windowed form in hardware. Differs: where several values of a window share the
    maximum the gradient is split among them; the windowed form gives it to the first. After a ReLU
    the usual tie, of zeros, has no gradient either way.

    Args:
      x: [B, H, W, C].
      size: side of the window.
      stride: in both directions.
      padding: as in `conv2d`.

    Returns:
      [B, H', W', C].
    """
    pads = _pads(x.shape[1:3], size, stride, padding)
    if platform() == "tpu":
        window = (1, size, size, 1)
        whole = ((0, 0), *pads, (0, 0))
        return lax.reduce_window(x, -jnp.inf, lax.max, window, (1, stride, stride, 1), whole)
    outs = _output_sides(x.shape[1:3], size, stride, pads)
    for axis in (2, 1):
        before, after = pads[axis - 1]
        edges = [(before, after) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(x, edges, constant_values=-jnp.inf)
        last = (outs[axis - 1] - 1) * stride + 1
        x = lax.slice_in_dim(padded, 0, last, stride, axis)
        for first in range(1, size):
            x = jnp.maximum(x, lax.slice_in_dim(padded, first, first + last, stride, axis))
    return x


def _pads(sides, size: int, stride: int, padding: Padding) -> tuple[tuple[int, int], ...]:
    if padding == "SAME":
        pads = lax.padtype_to_pads(sides, (size, size), (stride, stride), "SAME")
        return tuple((int(before), int(after)) for before, after in pads)
    return ((padding, padding),) * 2


def _output_sides(sides, size: int, stride: int, pads) -> tuple[int, ...]:
    return tuple((side + sum(pad) - size) // stride + 1 for side, pad in zip(sides, pads))


def _patches(x: jax.Array, size: int, stride: int, pads, outs) -> jax.Array:
    """The values under the kernel at each output position: [B, H', W', k * k * C]."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    last_row, last_column = ((out - 1) * stride + 1 for out in outs)
    taps = [
        x[:, row : row + last_row : stride, column : column + last_column : stride]
        for row in range(size)
        for column in range(size)
    ]
    return jnp.concatenate(taps, axis=-1)

"""3D U-Net of the KiTS19 benchmark: five halvings, five doublings, instance norm, no dropout.

Between the layers volumes lie in blocks of voxels (`ops.space_to_depth`), on platforms where that is faster.

Reference: mlcommons/training, retired_benchmarks/unet3d/pytorch, model/unet3d.py and model/layers.py.

B batch · D, H, W depth, height and width of a patch · C channels · K classes
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mlperf_jax.errors import UserError
from mlperf_jax.ops import space_to_depth
from mlperf_jax.ops.instance_norm import InstanceNorm
from mlperf_jax.ops.space_to_depth import Blocks
from mlperf_jax.ops.torch_law import uniform


class Conv(nnx.Module):
    """A cubic convolution without bias: `kernel` [k, k, k, C, F]."""

    def __init__(self, features_in, features_out, size, *, stride=1, dtype, rngs):
        kept = jnp.promote_types(dtype, jnp.float32)
        shape = (size, size, size, features_in, features_out)
        self.kernel = nnx.Param(uniform(features_in * size**3)(rngs.params(), shape, kept))
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: jax.Array, before: Blocks, after: Blocks, *, parts: int = 1) -> jax.Array:
        return space_to_depth.conv3d(
            x.astype(self.dtype),
            self.kernel[...],
            before,
            after,
            stride=self.stride,
            parts=parts,
        )


class Double(nnx.Module):
    """Transposed convolution, kernel 2, stride 2: `kernel` [2, 2, 2, C, F] and `bias` [F].

    Torch takes F for the fan-in of a transposed convolution, and so do the bounds here.
    """

    def __init__(self, features_in, features_out, *, dtype, rngs):
        kept = jnp.promote_types(dtype, jnp.float32)
        init = uniform(features_out * 8)
        self.kernel = nnx.Param(init(rngs.params(), (2, 2, 2, features_in, features_out), kept))
        self.bias = nnx.Param(init(rngs.params(), (features_out,), kept))
        self.dtype = dtype

    def __call__(self, x: jax.Array, before: Blocks, after: Blocks) -> jax.Array:
        y = space_to_depth.double3d(x.astype(self.dtype), self.kernel[...], before, after)
        return y + space_to_depth.tile(self.bias[...], after).astype(self.dtype)


class Block(nnx.Module):
    """Twice: 3x3x3 convolution, instance norm, ReLU. The first convolution carries the stride."""

    def __init__(self, features_in, features_out, *, stride=1, dtype, rngs):
        self.conv1 = Conv(features_in, features_out, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.norm1 = InstanceNorm(features_out, dtype=dtype, rngs=rngs)
        self.conv2 = Conv(features_out, features_out, 3, dtype=dtype, rngs=rngs)
        self.norm2 = InstanceNorm(features_out, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, before: Blocks, after: Blocks, *, parts: int = 1) -> jax.Array:
        """[B, *before.grid, ...] to [B, *after.grid, ...], by way of shifted blocks."""
        between = after.shift()
        x = nnx.relu(self.norm1(self.conv1(x, before, between, parts=parts), between))
        return nnx.relu(self.norm2(self.conv2(x, between, after), after))


class Up(nnx.Module):
    """Doubles the sides, puts the skip behind the result, and runs a block over both."""

    def __init__(self, features_in, features_out, *, dtype, rngs):
        self.double = Double(features_in, features_out, dtype=dtype, rngs=rngs)
        self.block = Block(2 * features_out, features_out, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, skip: jax.Array, before: Blocks, after: Blocks) -> jax.Array:
        both = jnp.concatenate([self.double(x, before, after), skip], axis=-1)
        return self.block(both, after, after, parts=2)


class Head(nnx.Module):
    """1x1x1 convolution with bias, to class logits in at least float32."""

    def __init__(self, features_in, classes, *, dtype, rngs):
        kept = jnp.promote_types(dtype, jnp.float32)
        init = uniform(features_in)
        self.kernel = nnx.Param(init(rngs.params(), (1, 1, 1, features_in, classes), kept))
        self.bias = nnx.Param(init(rngs.params(), (classes,), kept))
        self.dtype = dtype

    def __call__(self, x: jax.Array, blocks: Blocks) -> jax.Array:
        kernel = space_to_depth.pointwise(self.kernel[0, 0, 0], blocks).astype(self.dtype)
        bias = space_to_depth.tile(self.bias[...], blocks)
        return jnp.matmul(x.astype(self.dtype), kernel, preferred_element_type=bias.dtype) + bias


class UNet3D(nnx.Module):
    """Patches to class logits.

    >>> model = UNet3D((4, 8), 3, jnp.float32, rngs=nnx.Rngs(0))
    >>> model(jnp.zeros([2, 16, 16, 16, 1])).shape
    (2, 16, 16, 16, 3)
    """

    def __init__(
        self,
        filters: Sequence[int],
        classes: int,
        dtype: jax.typing.DTypeLike,
        *,
        rngs: nnx.Rngs,
    ):
        """Makes the network.

        Args:
          filters: channels at each resolution from the finest down; the benchmark has (32, 64, 128,
            256, 320). One more halving, the bottleneck, keeps the last number.
          classes: K, the background included.
          dtype: of the computation.
          rngs: keys.
        """
        around = {"dtype": dtype, "rngs": rngs}
        self.features = (*filters, filters[-1])
        self.input = Block(1, filters[0], **around)
        self.down = nnx.List(
            Block(a, b, stride=2, **around) for a, b in itertools.pairwise(filters)
        )
        self.bottleneck = Block(filters[-1], filters[-1], stride=2, **around)
        wide = [filters[-1], *reversed(filters)]
        self.up = nnx.List(Up(a, b, **around) for a, b in itertools.pairwise(wide))
        self.head = Head(filters[0], classes, **around)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, D, H, W, 1] -> [B, D, H, W, K] in at least float32.

        Raises:
          UserError: a side is not a multiple of 2 to the number of halvings.
        """
        times = 2 ** (len(self.down) + 1)
        if any(side % times for side in x.shape[1:4]):
            raise UserError(
                f"unet3d: a patch of {'x'.join(map(str, x.shape[1:4]))} cannot be halved "
                f"{len(self.down) + 1} times; every side must be a multiple of {times}"
            )
        levels = [
            space_to_depth.fitting([side >> level for side in x.shape[1:4]], features)
            for level, features in enumerate(self.features)
        ]
        skips = [self.input(space_to_depth.pack(x, levels[0]), levels[0], levels[0])]
        halvings = zip((*self.down, self.bottleneck), itertools.pairwise(levels), strict=True)
        for down, (above, here) in halvings:
            skips.append(down(skips[-1], above, here))
        y = skips.pop()
        levels.reverse()
        for up, skip, (below, here) in zip(
            self.up, reversed(skips), itertools.pairwise(levels), strict=True
        ):
            y = up(y, skip, below, here)
        return space_to_depth.unpack(self.head(y, levels[-1]), levels[-1])


class Layer(NamedTuple):
    """A convolution: cells of its kernel, channels in and out, and its output side over the patch's."""

    taps: int
    features_in: int
    features_out: int
    scale: float


def conv_layers(filters: Sequence[int], classes: int) -> Iterator[Layer]:
    """The convolutions in order; the FLOP count reads this.

    >>> len(list(conv_layers((32, 64, 128, 256, 320), 3)))
    28
    """

    def block(features_in: int, features_out: int, scale: float) -> Iterator[Layer]:
        yield Layer(27, features_in, features_out, scale)
        yield Layer(27, features_out, features_out, scale)

    before = 1
    for level, features in enumerate((*filters, filters[-1])):
        yield from block(before, features, 0.5**level)
        before = features
    for level, features in reversed(list(enumerate(filters))):
        yield Layer(1, before, features, 0.5**level)  # each voxel has one tap of the 2x2x2
        yield from block(2 * features, features, 0.5**level)
        before = features
    yield Layer(1, before, classes, 1.0)


def flops_per_sample(filters: Sequence[int], classes: int, patch: Sequence[int]) -> float:
    """FLOPs to train on one patch: two per multiply-add, forward and both gradients.

    The first convolution needs no gradient of its input.

    >>> round(flops_per_sample((32, 64, 128, 256, 320), 3, (128, 128, 128)) / 1e9)
    2860
    """
    voxels = math.prod(patch)
    macs = [
        layer.taps * layer.features_in * layer.features_out * voxels * layer.scale**3
        for layer in conv_layers(filters, classes)
    ]
    return 2 * (3 * sum(macs) - macs[0])

"""The body of ResNeXt50_32x4d with frozen batch norms: what RetinaNet sees with.

Reference: torchvision's resnext50_32x4d, its norms replaced by FrozenBatchNorm2d, cut before the pooling.

B batch · S image side · C channels
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from mlperf_jax.errors import UserError
from mlperf_jax.models import resnet
from mlperf_jax.ops import conv as convs

EPSILON = 1e-5
_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}

# torch's kaiming_normal_(mode="fan_out", nonlinearity="relu")
_he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class FrozenNorm(nnx.Module):
    """Batch norm as a fixed scale and shift: x w / sqrt(var + eps) + (b - mean w / sqrt(var + eps)).

    All four arrays are statistics, not parameters: no gradient, no update, in training as in evaluation.
    """

    def __init__(self, features: int, *, dtype: jax.typing.DTypeLike):
        kept = jnp.promote_types(dtype, jnp.float32)
        self.scale = nnx.BatchStat(jnp.ones(features, kept))
        self.bias = nnx.BatchStat(jnp.zeros(features, kept))
        self.mean = nnx.BatchStat(jnp.zeros(features, kept))
        self.var = nnx.BatchStat(jnp.ones(features, kept))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        factor = self.scale[...] * lax.rsqrt(self.var[...] + EPSILON)
        shift = self.bias[...] - self.mean[...] * factor
        return (x.astype(shift.dtype) * factor + shift).astype(self.dtype)


class ConvNorm(nnx.Module):
    """A convolution and the frozen norm after it."""

    def __init__(self, features_in, features_out, size, *, stride, padding, dtype, rngs):
        self.conv = convs.Conv(
            features_in,
            features_out,
            size,
            stride=stride,
            padding=padding,
            dtype=dtype,
            kernel_init=_he_normal,
            rngs=rngs,
        )
        self.norm = FrozenNorm(features_out, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


class BlockShape(NamedTuple):
    """One bottleneck: channels in, inner width, channels out, stride, and whether its shortcut is projected."""

    features_in: int
    inner: int
    features: int
    stride: int
    project: bool


def block_shapes(stages: Sequence[int], width: int) -> list[list[BlockShape]]:
    """The bottlenecks of each stage: inner width 2 w, out 4 w, doubled from stage to stage.

    >>> block_shapes((3, 4, 6, 3), 64)[1][0]
    BlockShape(features_in=256, inner=256, features=512, stride=2, project=True)
    """
    return [
        [
            BlockShape(b.features_in, 2 * b.width, resnet.EXPANSION * b.width, b.stride, b.project)
            for b in stage
        ]
        for stage in resnet.block_shapes(stages, width)
    ]


class Bottleneck(nnx.Module):
    """1x1, grouped 3x3 that carries the stride, 1x1, around a shortcut."""

    def __init__(self, shape: BlockShape, *, groups, dtype, rngs):
        around: dict[str, Any] = {"dtype": dtype, "kernel_init": _he_normal, "rngs": rngs}
        self.conv1 = convs.Conv(shape.features_in, shape.inner, 1, padding=0, **around)
        self.norm1 = FrozenNorm(shape.inner, dtype=dtype)
        self.conv2 = convs.Conv(
            shape.inner, shape.inner, 3, groups=groups, stride=shape.stride, padding=1, **around
        )
        self.norm2 = FrozenNorm(shape.inner, dtype=dtype)
        self.conv3 = convs.Conv(shape.inner, shape.features, 1, padding=0, **around)
        self.norm3 = FrozenNorm(shape.features, dtype=dtype)
        wide: dict[str, Any] = {"stride": shape.stride, "padding": 0, "dtype": dtype, "rngs": rngs}
        self.shortcut = (
            ConvNorm(shape.features_in, shape.features, 1, **wide) if shape.project else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNeXt(nnx.Module):
    """Images to the outputs of all stages, C2 to C5.

    >>> body = ResNeXt((1, 1, 1, 1), 8, 4, jnp.float32, rngs=nnx.Rngs(0))
    >>> [y.shape for y in body(jnp.zeros([1, 64, 64, 3]))]
    [(1, 16, 16, 32), (1, 8, 8, 64), (1, 4, 4, 128), (1, 2, 2, 256)]
    """

    def __init__(
        self,
        stages: Sequence[int],
        width: int,
        groups: int,
        dtype: jax.typing.DTypeLike,
        *,
        rngs: nnx.Rngs,
    ):
        """Makes the body.

        Args:
          stages: bottlenecks per stage; (3, 4, 6, 3).
          width: channels of the stem; 64.
          groups: of the 3x3 convolutions; 32.
          dtype: of the computation.
          rngs: keys.
        """
        self.stem = ConvNorm(3, width, 7, stride=2, padding=3, dtype=dtype, rngs=rngs)
        self.stages = nnx.List(
            nnx.List(Bottleneck(shape, groups=groups, dtype=dtype, rngs=rngs) for shape in stage)
            for stage in block_shapes(stages, width)
        )

    def __call__(self, image: jax.Array) -> list[jax.Array]:
        """Args: image [B, S, S, 3]. Returns: stage by stage [B, S / 4, S / 4, 4 w] to [B, S / 32, …]."""
        x = nnx.relu(self.stem(image))
        x = convs.max_pool(x, 3, stride=2, padding=1)
        outputs = []
        for stage in self.stages:
            for block in stage:
                x = block(x)
            outputs.append(x)
        return outputs


# -- torchvision weights ---------------------------------------------------------------------------


def from_torchvision(
    tensors: Mapping[str, np.ndarray],
    *,
    stages: Sequence[int] = (3, 4, 6, 3),
    width: int = 64,
    groups: int = 32,
) -> dict[str, np.ndarray]:
    """Weights of torchvision's classifier resnext50_32x4d for this body.

    Args:
      tensors: the state dict as arrays, say read from safetensors. Kernels are OIHW. The classifier
        `fc` and `num_batches_tracked` are ignored.
      stages: as in `ResNeXt`.
      width: as in `ResNeXt`.
      groups: as in `ResNeXt`.

    Returns:
      Arrays by path in the body ("stages/0/0/conv2/kernel"), kernels HWIO.

    Raises:
      UserError: names what is missing, unexpected or of the wrong shape.
    """
    leaves = list(_leaves(stages, width, groups))
    known = {name for _, name, _ in leaves}
    ignored = ("num_batches_tracked", "fc.weight", "fc.bias")
    faults = [f"{name} is missing" for name in sorted(known - set(tensors))]
    faults += [
        f"{name} is unexpected"
        for name in sorted(set(tensors) - known)
        if not name.endswith(ignored)
    ]
    faults += [
        f"{name} has shape {tuple(tensors[name].shape)}, not {shape}"
        for _, name, shape in leaves
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if faults:
        more = f"; and {len(faults) - 6} more" if len(faults) > 6 else ""
        raise UserError(
            f"torchvision weights do not fit a ResNeXt with stages {tuple(stages)}, width {width} and "
            f"{groups} groups: {'; '.join(faults[:6])}{more}. Give the state dict of resnext50_32x4d."
        )
    return {
        path: np.ascontiguousarray(
            np.asarray(tensors[name]).transpose(2, 3, 1, 0) if len(shape) == 4 else tensors[name]
        )
        for path, name, shape in leaves
    }


def _leaves(
    stages: Sequence[int], width: int, groups: int
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Our path, torchvision's name and its shape there, array by array."""

    def pair(conv: str, norm: str, their_conv: str, their_norm: str, *shape: int):
        yield f"{conv}/kernel", f"{their_conv}.weight", shape
        for ours, theirs in _NORM.items():
            yield f"{norm}/{ours}", f"{their_norm}.{theirs}", shape[:1]

    yield from pair("stem/conv", "stem/norm", "conv1", "bn1", width, 3, 7, 7)
    for i, stage in enumerate(block_shapes(stages, width)):
        for j, block in enumerate(stage):
            ours, theirs = f"stages/{i}/{j}", f"layer{i + 1}.{j}"
            kernels = (
                (block.inner, block.features_in, 1, 1),
                (block.inner, block.inner // groups, 3, 3),
                (block.features, block.inner, 1, 1),
            )
            for k, shape in enumerate(kernels, 1):
                names = f"{ours}/conv{k}", f"{ours}/norm{k}", f"{theirs}.conv{k}", f"{theirs}.bn{k}"
                yield from pair(*names, *shape)
            if block.project:
                down = f"{theirs}.downsample"
                names = f"{ours}/shortcut/conv", f"{ours}/shortcut/norm", f"{down}.0", f"{down}.1"
                yield from pair(*names, block.features, block.features_in, 1, 1)

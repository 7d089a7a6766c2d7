"""The body of ResNeXt50_32x4d with frozen batch norms: what RetinaNet sees with.

Reference: torchvision's resnext50_32x4d, its norms replaced by FrozenBatchNorm2d, cut before the pooling.

B batch · S image side · C channels
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from mlperf_jax.models import importing, resnet
from mlperf_jax.ops import conv as convs

EPSILON = 1e-5

# torch's kaiming_normal_(mode="fan_out", nonlinearity="relu")
_he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


# stages, width -> bottlenecks twice as wide inside as ResNet's
block_shapes = functools.partial(resnet.block_shapes, widening=2)


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


class ResNeXt(resnet.Body):
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
        conv = functools.partial(convs.Conv, dtype=dtype, kernel_init=_he_normal, rngs=rngs)
        norm = functools.partial(FrozenNorm, dtype=dtype)
        super().__init__(block_shapes(stages, width), conv, norm, norm, groups=groups)

    def __call__(self, image: jax.Array) -> list[jax.Array]:
        return self.features(image)


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
      stages, width, groups: as in `ResNeXt`.

    Returns:
      Arrays by path in the body ("stages/0/0/conv2/kernel"), kernels HWIO.

    Raises:
      UserError: names what is missing, unexpected or of the wrong shape.
    """
    wanted = f"ResNeXt with stages {tuple(stages)}, width {width} and {groups} groups"
    body = {name: x for name, x in tensors.items() if name not in ("fc.weight", "fc.bias")}
    return importing.fitted(body, leaves(stages, width, groups), wanted)


def leaves(stages: Sequence[int], width: int, groups: int) -> list[importing.Leaf]:
    """The arrays of the body."""
    return list(resnet.body_leaves(block_shapes(stages, width), groups))

"""ResNet v1.5 with bottlenecks: ResNet-50 and its shrunken kin.

Reference: mlcommons/training, retired_benchmarks/resnet-tf2 (the network of rounds v0.5 to v4.0).

B batch · S image side · C channels · K classes
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from mlperf_jax.errors import UserError
from mlperf_jax.models import importing
from mlperf_jax.ops import conv as convs, norm as norms

EXPANSION = 4  # a bottleneck ends with four times the width of its stage
_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}

# Keras he_normal: sigma = sqrt(2 / fan_in), cut at two sigma and corrected for the cut
_he_normal = nnx.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")


class BlockShape(NamedTuple):
    """One bottleneck: channels in, inner width, channels out, stride, and whether its shortcut is projected."""

    features_in: int
    inner: int
    features: int
    stride: int
    project: bool


def block_shapes(stages: Sequence[int], width: int, widening: int = 1) -> list[list[BlockShape]]:
    """The bottlenecks of each stage; the constructor and the FLOP count both read this.

    The first block of a stage projects its shortcut and, but for the first stage, halves the image.

    Args:
      stages: bottlenecks per stage.
      width: a quarter of the first stage's outputs; doubled from stage to stage.
      widening: of the inner width; 2 in ResNeXt50_32x4d.

    >>> block_shapes((3, 4, 6, 3), 64)[1][0]
    BlockShape(features_in=256, inner=128, features=512, stride=2, project=True)
    """
    shapes, features_in = [], width
    for i, blocks in enumerate(stages):
        inner, features = widening * width * 2**i, EXPANSION * width * 2**i
        first = BlockShape(features_in, inner, features, 1 if i == 0 else 2, True)
        shapes.append([first] + [BlockShape(features, inner, features, 1, False)] * (blocks - 1))
        features_in = features
    return shapes


class ConvNorm(nnx.Module):
    """A convolution and the norm after it."""

    def __init__(self, conv: convs.Conv, norm: Any):
        self.conv = conv
        self.norm = norm

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; the 3x3 carries the stride (that is the v1.5)."""

    def __init__(self, shape: BlockShape, conv, norm, last_norm, *, padding, groups):
        inner, features, stride = shape.inner, shape.features, shape.stride
        self.conv1 = conv(shape.features_in, inner, 1, padding=0)
        self.norm1 = norm(inner)
        self.conv2 = conv(inner, inner, 3, stride=stride, padding=padding, groups=groups)
        self.norm2 = norm(inner)
        self.conv3 = conv(inner, features, 1, padding=0)
        self.norm3 = last_norm(features)
        self.shortcut = (
            ConvNorm(conv(shape.features_in, features, 1, stride=stride, padding=0), norm(features))
            if shape.project
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Body(nnx.Module):
    """Stem and stages: what ResNet classifies by, and what RetinaNet sees with.

    Blocks are modules of their own, not a scanned stack: a stage has at most five equal ones, and
    importers, LARS and readers see the arrays that the reference has.
    """

    def __init__(
        self,
        shapes: Sequence[Sequence[BlockShape]],
        conv: Callable[..., convs.Conv],
        norm: Callable[[int], Any],
        last_norm: Callable[[int], Any],
        *,
        padding: convs.Padding = 1,
        groups: int = 1,
    ):
        """Makes stem and stages.

        Args:
          shapes: of the bottlenecks, stage by stage.
          conv: makes a convolution of channels in and out, side, `stride`, `padding` and `groups`.
          norm: makes the norm of so many channels.
          last_norm: the same for the last one of a block.
          padding: of the 3x3 convolutions and the pool.
          groups: of the 3x3 convolutions.
        """
        width = shapes[0][0].features_in
        self.stem = ConvNorm(conv(3, width, 7, stride=2, padding=3), norm(width))
        self.stages = nnx.List(
            nnx.List(
                Bottleneck(shape, conv, norm, last_norm, padding=padding, groups=groups)
                for shape in stage
            )
            for stage in shapes
        )
        self.pads: convs.Padding = padding

    def features(self, image: jax.Array) -> list[jax.Array]:
        """[B, S, S, 3] -> C2 to C5, the outputs of the stages: [B, S / 4, S / 4, C] to [B, S / 32, …]."""
        x = nnx.relu(self.stem(image))  # [B, S/2, S/2, C]
        x = convs.max_pool(x, 3, stride=2, padding=self.pads)  # [B, S/4, S/4, C]
        outputs = []
        for stage in self.stages:
            for block in stage:
                x = block(x)
            outputs.append(x)
        return outputs


class ResNet(Body):
    """Images to class logits.

    >>> model = ResNet((1, 1, 1, 1), 16, 10, None, jnp.float32, rngs=nnx.Rngs(0))
    >>> model(jnp.zeros([2, 32, 32, 3])).shape
    (2, 10)
    """

    def __init__(
        self,
        stages: Sequence[int],
        width: int,
        classes: int,
        bn_span: int | None,
        dtype: jax.typing.DTypeLike,
        *,
        padding: Literal["same", "symmetric"] = "same",
        zero_gamma: bool = False,
        rngs: nnx.Rngs,
    ):
        """Makes the network.

        Args:
          stages: bottlenecks per stage; ResNet-50 is (3, 4, 6, 3).
          width: channels of the stem and inner width of the first stage; 64.
          classes: K; 1000.
          bn_span: consecutive rows that share batch statistics; None is the whole batch.
          dtype: of the computation.
          padding: of 3x3 convolutions and the pool: "same" as in TensorFlow, the reference, where a
            stride of 2 pads (0, 1), or "symmetric" as in torch, (1, 1). Weights trained with one
            lose accuracy with the other.
          zero_gamma: whether the last norm of each block starts at 0; the reference's starts at 1.
          rngs: keys.

        Raises:
          UserError: for another padding.
        """
        if padding not in ("same", "symmetric"):
            raise UserError(f"resnet: padding {padding!r} is unknown; choose 'same' or 'symmetric'")
        conv = functools.partial(convs.Conv, dtype=dtype, kernel_init=_he_normal, rngs=rngs)
        norm = functools.partial(norms.BatchNorm, span=bn_span, dtype=dtype, rngs=rngs)
        last = functools.partial(norm, scale_init=nnx.initializers.zeros) if zero_gamma else norm
        pads = "SAME" if padding == "same" else 1
        super().__init__(block_shapes(stages, width), conv, norm, last, padding=pads)
        kept = jnp.promote_types(dtype, jnp.float32)
        self.head = nnx.Linear(
            width * 2 ** (len(stages) - 1) * EXPANSION,
            classes,
            dtype=dtype,
            param_dtype=kept,
            preferred_element_type=kept,
            kernel_init=nnx.initializers.normal(0.01),
            rngs=rngs,
        )

    def __call__(self, image: jax.Array) -> jax.Array:
        """Classifies images.

        Args:
          image: [B, S, S, 3].

        Returns:
          Logits [B, K] in `promote_types(dtype, f32)`.
        """
        x = self.features(image)[-1]
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # [B, S/32, S/32, 32 C]
        return self.head(x.mean((1, 2)))


def flops_per_sample(
    stages: Sequence[int], width: int, classes: int, image_size: int, *, training: bool = True
) -> int:
    """Floating-point operations of convolutions and head for one image.

    Training counts each layer three times, for its result and the gradients of kernel and input,
    less the gradient of the image, which nobody asks for.

    >>> flops_per_sample((3, 4, 6, 3), 64, 1000, 224, training=False)
    8178368512
    """
    side = -(-image_size // 2)
    stem = side**2 * 7 * 7 * 3 * width
    products, features = stem, width
    side = -(-side // 2)
    for shape in (shape for stage in block_shapes(stages, width) for shape in stage):
        features = shape.features
        outs = (-(-side // shape.stride)) ** 2
        products += side**2 * shape.features_in * shape.inner  # 1x1
        products += outs * 9 * shape.inner**2  # 3x3
        products += outs * shape.inner * features  # 1x1
        products += outs * shape.features_in * features * shape.project
        side = -(-side // shape.stride)
    products += features * classes
    return 2 * (3 * products - stem if training else products)


# -- torchvision weights ---------------------------------------------------------------------------


def from_torchvision(
    tensors: Mapping[str, np.ndarray],
    *,
    stages: Sequence[int] = (3, 4, 6, 3),
    width: int = 64,
    classes: int = 1000,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights of torchvision's ResNet (v1.5, trained with symmetric padding) for this model.

    Args:
      tensors: the state dict as arrays, say read from safetensors. Kernels are OIHW.
        `num_batches_tracked` is ignored.
      stages, width, classes: as in `ResNet`; by default ResNet-50's.

    Returns:
      (params, stats): nested dicts with string keys, kernels HWIO.

    Raises:
      UserError: names what is missing, unexpected or of the wrong shape.
    """
    wanted = f"ResNet with stages {tuple(stages)}, width {width} and {classes} classes"
    found = importing.fitted(tensors, leaves(stages, width, classes), wanted)
    stats = {path: x for path, x in found.items() if path.endswith(("/mean", "/var"))}
    params = {path: x for path, x in found.items() if path not in stats}
    return unflatten_dict(params, sep="/"), unflatten_dict(stats, sep="/")


def to_torchvision(params: Mapping[str, Any], stats: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `from_torchvision`: a state dict that torchvision loads strictly."""
    stages = [len(params["stages"][str(i)]) for i in range(len(params["stages"]))]
    width = params["stem"]["conv"]["kernel"].shape[-1]
    ours = flatten_dict(params, sep="/") | flatten_dict(stats, sep="/")
    tensors = {}
    for leaf in leaves(stages, width, params["head"]["bias"].shape[0]):
        value = np.asarray(ours[leaf.path])
        order = (3, 2, 0, 1) if value.ndim == 4 else None
        tensors[leaf.name] = np.ascontiguousarray(value.transpose(order))
        if leaf.path.endswith("/var"):
            counter = leaf.name.replace("running_var", "num_batches_tracked")
            tensors[counter] = np.zeros((), np.int64)
    return tensors


def leaves(stages: Sequence[int], width: int, classes: int) -> list[importing.Leaf]:
    """The arrays of ResNet."""
    shapes = block_shapes(stages, width)
    fc = classes, shapes[-1][-1].features
    head = [("head/kernel", "fc.weight", fc), ("head/bias", "fc.bias", fc[:1])]
    return [*body_leaves(shapes), *(importing.Leaf(*leaf) for leaf in head)]


def body_leaves(
    shapes: Sequence[Sequence[BlockShape]], groups: int = 1
) -> Iterator[importing.Leaf]:
    """The arrays of a body."""

    def pair(conv: str, norm: str, their_conv: str, their_norm: str, *shape: int):
        yield importing.Leaf(f"{conv}/kernel", f"{their_conv}.weight", shape)
        for ours, theirs in _NORM.items():
            yield importing.Leaf(f"{norm}/{ours}", f"{their_norm}.{theirs}", shape[:1])

    yield from pair("stem/conv", "stem/norm", "conv1", "bn1", shapes[0][0].features_in, 3, 7, 7)
    for i, stage in enumerate(shapes):
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

"""RetinaNet: a ResNeXt body, a feature pyramid, and two heads shared by its levels.

Reference: mlcommons/training, retired_benchmarks/retinanet (torchvision's RetinaNet with 264 classes, no
background class, and frozen norms).

B batch · S image side · H, W cells of a level · A anchors of a cell · N = H W A · K classes
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlperf_jax.errors import UserError
from mlperf_jax.models import importing, resnext
from mlperf_jax.models.fpn import FeaturePyramid
from mlperf_jax.ops import anchors as anchorlib, boxes as boxlib, conv as convs, focal, matching

ANCHORS = 9  # of a cell: three sizes, three ratios
PRIOR = 0.01  # score of every class at the start

_small = nnx.initializers.normal(0.01)


class Outputs(NamedTuple):
    """Raw outputs by level, P3 first; rows slow, then columns, anchors of a cell fast.

    Attributes:
      logits: [B, N, K] each, or [B, H, W, A K].
      deltas: [B, N, 4] each, or [B, H, W, A 4]: the box code of the anchors.
    """

    logits: list[jax.Array]
    deltas: list[jax.Array]


class Head(nnx.Module):
    """3x3 convolutions with ReLU, then one to the outputs of all anchors of a cell."""

    def __init__(self, width, depth, outputs, *, bias, dtype, rngs):
        around = {"padding": 1, "dtype": dtype, "kernel_init": _small, "rngs": rngs}
        self.tower = nnx.List(convs.Conv(width, width, 3, bias=0.0, **around) for _ in range(depth))
        self.head = convs.Conv(width, ANCHORS * outputs, 3, bias=bias, **around)
        self.outputs = outputs

    def __call__(self, x: jax.Array, *, wide: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, A outputs]."""
        for conv in self.tower:
            x = nnx.relu(conv(x))
        return self.head(x, wide=wide)

    def flat(self, y: jax.Array) -> jax.Array:
        """[B, H, W, A outputs] -> [B, N, outputs]."""
        return y.reshape(y.shape[0], -1, self.outputs)


class RetinaNet(nnx.Module):
    """Images to raw outputs.

    >>> sizes = dict(stages=(1, 1, 1, 1), width=8, groups=4, pyramid_width=8, head_depth=1, classes=3)
    >>> model = RetinaNet(**sizes, dtype=jnp.float32, rngs=nnx.Rngs(0))
    >>> [y.shape for y in model(jnp.zeros([1, 64, 64, 3])).logits]
    [(1, 576, 3), (1, 144, 3), (1, 36, 3), (1, 9, 3), (1, 9, 3)]
    """

    def __init__(
        self,
        *,
        stages: Sequence[int],
        width: int,
        groups: int,
        pyramid_width: int,
        head_depth: int,
        classes: int,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Makes the network.

        Args:
          stages: bottlenecks per stage; (3, 4, 6, 3).
          width: channels of the stem; 64.
          groups: of the body's 3x3 convolutions; 32.
          pyramid_width: channels of pyramid and heads; 256.
          head_depth: convolutions in each head before the last; 4.
          classes: K; 264.
          dtype: of the computation.
          rngs: keys.
        """
        self.body = resnext.ResNeXt(stages, width, groups, dtype, rngs=rngs)
        features = [stage[-1].features for stage in resnext.block_shapes(stages, width)]
        self.pyramid = FeaturePyramid(features[-3:], pyramid_width, dtype, rngs=rngs)
        around: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        prior = -math.log((1 - PRIOR) / PRIOR)
        self.classification = Head(pyramid_width, head_depth, classes, bias=prior, **around)
        self.regression = Head(pyramid_width, head_depth, 4, bias=0.0, **around)

    def __call__(self, image: jax.Array, *, wide: bool = False, flat: bool = True) -> Outputs:
        """The raw outputs of images.

        Args:
          image: [B, S, S, 3].
          wide: outputs in at least float32, for evaluation: steps of bfloat16 are 0.03 in the logit of a
            weak score, and 1.6 pixels for the largest anchors. In training they would double the largest
            array there is.
          flat: anchor by anchor; False leaves those of a cell side by side. On TPUs, whose arrays are tiled, to take
            them apart is to copy them.

        Returns:
          `Outputs`, in the dtype of the computation if not wide.
        """
        maps = self.pyramid(self.body(image)[-3:])
        heads = self.classification, self.regression
        raw = ((head, [head(x, wide=wide) for x in maps]) for head in heads)
        return Outputs(*([head.flat(y) if flat else y for y in ys] for head, ys in raw))


def detection_loss(
    outputs: Outputs, anchors: Sequence[np.ndarray], boxes: jax.Array, label: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Focal loss of the classes and L1 loss of the box codes, of weight 1 each.

    Both are summed over an image's anchors, divided by its foreground anchors (at least 1), and averaged
    over images. Ignored anchors count in neither. L1 is the reference's; not the smooth one.

    Args:
      outputs: of the network.
      anchors: by level [N, 4].
      boxes: [B, G, 4] in pixels of the network's input, padded.
      label: int32 [B, G], -1 for padding.

    Returns:
      Two scalars in `promote_types(dtype, f32)`.
    """
    matches = matching.match(np.concatenate(anchors), boxes, label)
    kept = jnp.promote_types(outputs.logits[0].dtype, jnp.float32)
    share = 1 / jnp.maximum(matches.foreground.sum(1, dtype=jnp.int32), 1).astype(kept)
    share = share[:, None] / label.shape[0]  # [B, 1]
    counted = jnp.where(matches.foreground | matches.background, share, 0)
    classes = jnp.where(matches.foreground, matches.label, -1)
    classification = box = jnp.zeros((), kept)
    first = 0
    # level by level: to join the logits of all levels would be to copy them
    for logits, deltas, level in zip(*outputs, anchors, strict=True):
        here = slice(first, first := first + len(level))
        cells = (*logits.shape[:-1], -1)
        classification += focal.focal_loss_of_cells(
            logits, classes[:, here].reshape(cells), counted[:, here].reshape(cells)
        )
        inside = matches.foreground[:, here, None]
        wanted = jnp.where(inside, matches.boxes[:, here], level)  # no logarithm of 0
        code = boxlib.encode(wanted, jnp.asarray(level))
        off = deltas.astype(kept) - code.reshape(deltas.shape)
        weight = jnp.broadcast_to(jnp.where(inside, share[..., None], 0), code.shape)
        box += jnp.sum(jnp.abs(off) * weight.reshape(deltas.shape))
    return classification, box


def frozen_patterns(trainable_stages: int) -> tuple[str, ...]:
    """Paths of the weights that are never trained: all below the last `trainable_stages` stages.

    >>> frozen_patterns(3)
    ('body/stem/.*', 'body/stages/0/.*')
    """
    frozen = tuple(f"body/stages/{i}/.*" for i in range(4 - trainable_stages))
    return ("body/stem/.*", *frozen) if trainable_stages <= 4 else ()


def from_torchvision(
    tensors: Mapping[str, np.ndarray],
    *,
    stages: Sequence[int] = (3, 4, 6, 3),
    width: int = 64,
    groups: int = 32,
    trainable_stages: int = 3,
) -> dict[str, np.ndarray]:
    """Weights by path in the run's state, from torchvision's classifier or its whole RetinaNet.

    Args:
      tensors: the state dict as arrays: of resnext50_32x4d, which gives the body alone, or of a RetinaNet
        with that body ("backbone.body.conv1.weight", …), which gives everything.
      stages, width, groups: as in `RetinaNet`.
      trainable_stages: what lies below is `frozen`.

    Returns:
      "params/…", "frozen/body/…" and, for the norms, "stats/body/…".

    Raises:
      UserError: names what is missing, unexpected or of the wrong shape.
    """
    prefix = "backbone.body."
    whole = any(name.startswith(prefix) for name in tensors)
    inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    body = resnext.from_torchvision(
        inside if whole else tensors, stages=stages, width=width, groups=groups
    )
    frozen = "|".join(frozen_patterns(trainable_stages))
    found = {}
    for path, array in body.items():
        part = "frozen" if re.fullmatch(frozen, f"body/{path}") else "params"
        found[f"{part if path.endswith('/kernel') else 'stats'}/body/{path}"] = array
    if whole:
        rest = {name: a for name, a in tensors.items() if not name.startswith(prefix)}
        found |= {f"params/{_our_path(name)}": importing.transposed(a) for name, a in rest.items()}
    return found


_THEIRS = (  # torchvision's names of pyramid and heads, and ours
    (r"backbone\.fpn\.inner_blocks\.(\d+)\.0", r"pyramid/inner/\1"),
    (r"backbone\.fpn\.layer_blocks\.(\d+)\.0", r"pyramid/outer/\1"),
    (r"backbone\.fpn\.extra_blocks\.(p\d)", r"pyramid/\1"),
    (r"head\.(\w+)_head\.conv\.(\d+)\.0", r"\1/tower/\2"),
    (r"head\.(\w+)_head\.(?:cls_logits|bbox_reg)", r"\1/head"),
)


def _our_path(name: str) -> str:
    """Our path of a weight of pyramid or heads."""
    module, _, leaf = name.rpartition(".")
    for pattern, ours in _THEIRS:
        if re.fullmatch(pattern, module) and leaf in ("weight", "bias"):
            return f"{re.sub(pattern, ours, module)}/{'kernel' if leaf == 'weight' else 'bias'}"
    raise UserError(f"torchvision weights hold {name!r}, which no RetinaNet has")


# -- operations ------------------------------------------------------------------------------------


def flops_per_sample(
    *,
    stages: Sequence[int],
    width: int,
    groups: int,
    pyramid_width: int,
    head_depth: int,
    classes: int,
    image_size: int,
    trainable_stages: int = 3,
    training: bool = True,
) -> int:
    """Floating-point operations of all convolutions for one image; arguments as in `RetinaNet`.

    Training counts a layer three times, for its result and the gradients of kernel and input; what is
    frozen once; and what comes right behind it, whose input wants no gradient, twice.
    """
    side = -(-image_size // 2)
    trained = trainable_stages > 4
    layers = [(side**2 * 49 * 3 * width, 2 if trained else 1)]  # (multiplications, times)
    side = -(-side // 2)
    for index, stage in enumerate(resnext.block_shapes(stages, width)):
        for number, block in enumerate(stage):
            outs = -(-side // block.stride)
            times = 3 if index >= len(stages) - trainable_stages else 1
            edge = number == 0 and index == len(stages) - trainable_stages and not trained
            first = 2 if edge else times
            layers.append((side**2 * block.features_in * block.inner, first))
            layers.append((outs**2 * 9 * block.inner**2 // groups, times))
            layers.append((outs**2 * block.inner * block.features, times))
            if block.project:
                layers.append((outs**2 * block.features_in * block.features, first))
            side = outs
    grids = anchorlib.grids(image_size)
    features = [stage[-1].features for stage in resnext.block_shapes(stages, width)][-3:]
    for grid, channels in zip(grids, features, strict=False):
        layers.append((grid**2 * channels * pyramid_width, 3))
    square = 9 * pyramid_width**2
    layers += [(grid**2 * square, 3) for grid in grids]  # three outputs, P6 and P7
    head = 2 * head_depth * square + 9 * pyramid_width * ANCHORS * (classes + 4)
    layers.append((sum(grid**2 for grid in grids) * head, 3))
    return 2 * sum(count * (times if training else 1) for count, times in layers)

"""Inception v3 as FID takes its features: the network of 2015 with the pooling that its TensorFlow original has.

Reference: pytorch-fid 0.3.0 (`pt_inception-2015-12-05-6726825d.pth`). Differs from torchvision's: average pools leave
the padding out of the mean, and the last block takes a maximum instead. The network only judges, so its norms are folded
into the convolutions before them.

B batch · S image side · H, W height and width · C channels · F output features
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from mlperf_jax.errors import UserError
from mlperf_jax.models import importing
from mlperf_jax.ops import conv as convs, resize

FEATURES = 2048
SIDE = 299
FILE = "pt_inception-2015-12-05-6726825d.safetensors"
HELP = (
    "fetch https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth "
    'and convert it, where torch is installed: python -c "import torch, safetensors.torch as s; '
    "s.save_file(torch.load('pt_inception-2015-12-05-6726825d.pth', weights_only=True), "
    f"'{FILE}')\""
)
_EPSILON = 1e-3
_CLASSES = 1008  # of the classifier, which the file has and FID does not ask


# -- the network as a table ------------------------------------------------------------------------


class Layer(NamedTuple):
    """A convolution, its norm and a ReLU.

    Attributes:
      name: torch's.
      features: F.
      size: height and width of the kernel.
      stride: in both directions.
      padded: whether zeros around keep height and width.
    """

    name: str
    features: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


Pool = Literal["average", "maximum", "halving"]  # 3x3; the last one has stride 2 and no padding
Fork = list[Layer]  # all take the same input, and what they give is put side by side
Branch = tuple[Layer | Pool | Fork, ...]  # one after the other
Block = list[Branch]  # all take the same input, and what they give is put side by side


def _pooled_block(pool: int) -> Block:
    return [
        (Layer("branch1x1", 64),),
        (Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, (5, 5))),
        (
            Layer("branch3x3dbl_1", 64),
            Layer("branch3x3dbl_2", 96, (3, 3)),
            Layer("branch3x3dbl_3", 96, (3, 3)),
        ),
        ("average", Layer("branch_pool", pool)),
    ]


def _long_block(width: int) -> Block:
    row, column = (1, 7), (7, 1)
    return [
        (Layer("branch1x1", 192),),
        (
            Layer("branch7x7_1", width),
            Layer("branch7x7_2", width, row),
            Layer("branch7x7_3", 192, column),
        ),
        (
            Layer("branch7x7dbl_1", width),
            Layer("branch7x7dbl_2", width, column),
            Layer("branch7x7dbl_3", width, row),
            Layer("branch7x7dbl_4", width, column),
            Layer("branch7x7dbl_5", 192, row),
        ),
        ("average", Layer("branch_pool", 192)),
    ]


def _forked_block(pool: Pool) -> Block:
    row, column = (1, 3), (3, 1)
    return [
        (Layer("branch1x1", 320),),
        (
            Layer("branch3x3_1", 384),
            [Layer("branch3x3_2a", 384, row), Layer("branch3x3_2b", 384, column)],
        ),
        (
            Layer("branch3x3dbl_1", 448),
            Layer("branch3x3dbl_2", 384, (3, 3)),
            [Layer("branch3x3dbl_3a", 384, row), Layer("branch3x3dbl_3b", 384, column)],
        ),
        (pool, Layer("branch_pool", 192)),
    ]


def _halved(name: str, features: int) -> Layer:
    return Layer(name, features, (3, 3), stride=2, padded=False)


# name of the module (none where its layers are the network's own) -> its branches
NETWORK: list[tuple[str, Block]] = [
    (
        "",
        [
            (
                _halved("Conv2d_1a_3x3", 32),
                Layer("Conv2d_2a_3x3", 32, (3, 3), padded=False),
                Layer("Conv2d_2b_3x3", 64, (3, 3)),
                "halving",
                Layer("Conv2d_3b_1x1", 80),
                Layer("Conv2d_4a_3x3", 192, (3, 3), padded=False),
                "halving",
            )
        ],
    ),
    ("Mixed_5b", _pooled_block(32)),
    ("Mixed_5c", _pooled_block(64)),
    ("Mixed_5d", _pooled_block(64)),
    (
        "Mixed_6a",
        [
            (_halved("branch3x3", 384),),
            (
                Layer("branch3x3dbl_1", 64),
                Layer("branch3x3dbl_2", 96, (3, 3)),
                _halved("branch3x3dbl_3", 96),
            ),
            ("halving",),
        ],
    ),
    ("Mixed_6b", _long_block(128)),
    ("Mixed_6c", _long_block(160)),
    ("Mixed_6d", _long_block(160)),
    ("Mixed_6e", _long_block(192)),
    (
        "Mixed_7a",
        [
            (Layer("branch3x3_1", 192), _halved("branch3x3_2", 320)),
            (
                Layer("branch7x7x3_1", 192),
                Layer("branch7x7x3_2", 192, (1, 7)),
                Layer("branch7x7x3_3", 192, (7, 1)),
                _halved("branch7x7x3_4", 192),
            ),
            ("halving",),
        ],
    ),
    ("Mixed_7b", _forked_block("average")),
    ("Mixed_7c", _forked_block("maximum")),
]


class Place(NamedTuple):
    """A layer of the network: the module it belongs to ("" for the network), and the channels it takes."""

    module: str
    layer: Layer
    channels: int

    @property
    def name(self) -> str:
        """Torch's: "Mixed_5b.branch1x1"."""
        return f"{self.module}.{self.layer.name}".lstrip(".")


def places() -> Iterator[Place]:
    """The layers in their order; constructor and importer read this."""
    channels = 3
    for module, block in NETWORK:
        widths = []
        for branch in block:
            width = channels
            for step in branch:
                if not isinstance(step, str):
                    layers = [step] if isinstance(step, Layer) else step
                    yield from (Place(module, layer, width) for layer in layers)
                    width = sum(layer.features for layer in layers)
            widths.append(width)
        channels = sum(widths)


# -- the modules -----------------------------------------------------------------------------------


class ConvNorm(nnx.Module):
    """A convolution with bias, and a ReLU: `kernel` [h, w, C, F] and `bias` [F]."""

    def __init__(self, layer: Layer, channels: int, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs):
        init = nnx.initializers.he_normal()
        shape = (*layer.size, channels, layer.features)
        self.kernel = nnx.Param(init(rngs.params(), shape, dtype))
        self.bias = nnx.Param(jnp.zeros(layer.features, dtype))
        self.stride = layer.stride
        self.padded = layer.padded

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', F]."""
        kernel = self.kernel[...]
        y = lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            [(side // 2, side // 2) if self.padded else (0, 0) for side in kernel.shape[:2]],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,  # TPUs and GPUs would round the factors
        )
        return nnx.relu(y + self.bias[...])


class Part(nnx.Module):
    """The layers of one block, each under torch's name."""


class Inception(Part):
    """Images to the features that FID compares.

    >>> jax.eval_shape(lambda: Inception(rngs=nnx.Rngs(0))(jnp.zeros([2, 512, 512, 3]))).shape
    (2, 2048)
    """

    def __init__(
        self,
        *,
        side: int | None = SIDE,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Makes the network.

        Args:
          side: that images are resized to; None leaves them as they are, of at least 75 pixels.
          dtype: of parameters and computation, at least float32 for FID.
          rngs: keys; what FID asks for are the weights of `read_weights`.
        """
        self.side = side
        self.dtype = dtype
        for module, _ in NETWORK[1:]:
            setattr(self, module, Part())
        for place in places():
            layer = ConvNorm(place.layer, place.channels, dtype, rngs)
            setattr(self._part(place.module), place.layer.name, layer)

    def _part(self, module: str) -> Part:
        return getattr(self, module) if module else self

    def __call__(self, image: jax.Array) -> jax.Array:
        """The means over the last map.

        Args:
          image: [B, H, W, 3] in [0, 1], not rounded to 8 bits.

        Returns:
          Features [B, 2048] in `dtype`.
        """
        x = image.astype(self.dtype)
        x = 2 * (x if self.side is None else resize.bilinear(x, self.side, self.side)) - 1
        for module, block in NETWORK:
            part = self._part(module)
            x = jnp.concatenate([_through(part, branch, x) for branch in block], -1)
        return x.mean((1, 2))


def _through(part: Part, branch: Branch, x: jax.Array) -> jax.Array:
    for step in branch:
        if isinstance(step, str):
            x = _pooled(x, step)
        elif isinstance(step, Layer):
            x = getattr(part, step.name)(x)
        else:
            x = jnp.concatenate([getattr(part, layer.name)(x) for layer in step], -1)
    return x


def _pooled(x: jax.Array, pool: Pool) -> jax.Array:
    if pool == "halving":
        return convs.max_pool(x, 3, stride=2, padding=0)
    if pool == "maximum":
        return convs.max_pool(x, 3, stride=1, padding=1)
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))
    zero = np.zeros((), x.dtype)
    sums = lax.reduce_window(x, zero, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), pads)
    rows, columns = (_neighbours(side) for side in x.shape[1:3])
    return sums / jnp.asarray(np.outer(rows, columns)[..., None], x.dtype)


def _neighbours(side: int) -> np.ndarray:
    """How many of a place, the one before it and the one after it there are.

    >>> _neighbours(4).tolist(), _neighbours(1).tolist()
    ([2, 3, 3, 2], [1])
    """
    at = np.arange(side)
    return np.minimum(at + 1, side - 1) - np.maximum(at - 1, 0) + 1


# -- weights ---------------------------------------------------------------------------------------


def read_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Parameters by path ("Mixed_5b/branch1x1/kernel"), from pytorch-fid's weights as safetensors.

    Raises:
      UserError: the file is missing, damaged, a pickle, or of another network such as torchvision's.
    """
    path = Path(path)
    if path.suffix in (".pth", ".pt", ".ckpt", ".bin"):
        raise UserError(f"{path} is a pickle, which is not opened as it may run code: {HELP}")
    if not path.is_file():
        raise UserError(f"{path} is missing: FID is taken by pytorch-fid's network; {HELP}")
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error}): {HELP}") from error
    return folded(tensors)


def folded(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters by path of a state dict of pytorch-fid's network, norms folded in float64.

    The classifier is not needed, but tells the network from torchvision's, which has 1,000 classes.

    Raises:
      UserError: names what is missing, unexpected or of another shape.
    """
    norm = ("weight", "bias", "running_mean", "running_var")
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (_CLASSES, FEATURES),
        "fc.bias": (_CLASSES,),
    }
    for name, layer, channels in ((p.name, p.layer, p.channels) for p in places()):
        shapes[f"{name}.conv.weight"] = (layer.features, channels, *layer.size)
        shapes |= {f"{name}.bn.{kind}": (layer.features,) for kind in norm}
    given = {name: x for name, x in tensors.items() if not name.endswith("num_batches_tracked")}
    if faults := importing.misfits(given, shapes):
        raise UserError(
            f"these weights are not those of FID's Inception: {importing.some(faults, 4, '; ')}; {HELP}"
        )
    found = {}
    for name in (place.name for place in places()):
        kernel = np.asarray(tensors[f"{name}.conv.weight"])
        scale, shift, mean, var = (np.asarray(tensors[f"{name}.bn.{k}"], np.float64) for k in norm)
        gain = scale / np.sqrt(var + _EPSILON)
        kept = np.promote_types(kernel.dtype, np.float32)
        path = name.replace(".", "/")
        found[f"{path}/kernel"] = (importing.transposed(kernel) * gain).astype(kept)
        found[f"{path}/bias"] = (shift - mean * gain).astype(kept)
    return found

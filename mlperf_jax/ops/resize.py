"""Images of another size, as the networks that judge them want it: to the last bit Pillow's, and torch's bilinear.

B batch · H, W height and width · C channels
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.errors import UserError

_BITS = 22  # Pillow's weights for 8-bit pixels are integers over 2**22
_CUBIC = -0.5  # Pillow's a; torch has -0.75
_MOST_TAPS = 2**24 // 255**2  # of so many 8-bit products float32 holds every sum


def pillow_bicubic(images: jax.Array, height: int, width: int) -> jax.Array:
    """`Image.resize((width, height), BICUBIC)` of Pillow, every bit of it for images no higher than wide.

    Columns are resized first and rounded to 8 bits, then rows; Pillow 13 begins with the rows of some images that are
    higher than wide, which moves some pixels by one. When an image shrinks the kernel grows with it, so
    nothing aliases. The sums are Pillow's, of integers; each weight is taken apart into three digits of 8 bits,
    whose products matrix units add up without an error.

    Args:
        images: [B, H, W, C] uint8.
        height: of the result.
        width: of the result.

    Returns:
        [B, height, width, C] uint8.

    Raises:
        UserError: more than 64 times as large a side as is wanted.

    >>> pillow_bicubic(jnp.full([1, 5, 4, 3], 200, jnp.uint8), 3, 8)[0, :, 0, 0].tolist()
    [200, 200, 200]
    """
    wide = _weighed(images, _digits(images.shape[2], width), "koi,bhic->kbhoc")
    return _weighed(wide, _digits(images.shape[1], height), "koi,biwc->kbowc")


def bilinear(images: jax.Array, height: int, width: int) -> jax.Array:
    """torch's `interpolate(mode="bilinear", align_corners=False)`: two neighbours a side, aliased if it shrinks.

    Args:
        images: [B, H, W, C] floats.
        height: of the result.
        width: of the result.

    Returns:
        [B, height, width, C] in the dtype of the images.

    >>> bilinear(jnp.arange(2.0)[None, :, None, None], 4, 1)[0, :, 0, 0].tolist()
    [0.0, 0.25, 0.75, 1.0]
    """
    for axis, size in ((1, height), (2, width)):
        if size == images.shape[axis]:
            continue
        first, share = _neighbours(images.shape[axis], size)
        shape = [-1 if a == axis else 1 for a in range(4)]
        share = jnp.asarray(share.reshape(shape), images.dtype)
        second = np.minimum(first + 1, images.shape[axis] - 1)
        one, other = (jnp.take(images, at, axis) for at in (first, second))
        images = (1 - share) * one + share * other
    return images


def shortest_side(images: jax.Array, side: int) -> jax.Array:
    """torchvision's `Resize(side, BICUBIC)` and `CenterCrop(side)` of Pillow's images.

    Args:
        images: [B, H, W, C] uint8.
        side: S, of the result.

    Returns:
        [B, S, S, C] uint8.
    """
    short = min(images.shape[1:3])
    sizes = [side * length // short for length in images.shape[1:3]]
    images = pillow_bicubic(images, *sizes)
    top, left = (
        round((size - side) / 2) for size in sizes
    )  # halves to even, as torchvision has it
    return images[:, top : top + side, left : left + side]


# -- weights -----------------------------------------------------------------------------------------


def pillow_weights(size: int, wanted: int) -> np.ndarray:
    """Pillow's integer weights [wanted, size] of bicubic for 8-bit pixels; each row sums to about 2**22."""
    scale = size / wanted
    stretch = max(scale, 1.0)
    reach = 2 * stretch
    weights = np.zeros((wanted, size), np.int64)
    for row in range(wanted):
        centre = (row + 0.5) * scale
        first = max(int(centre - reach + 0.5), 0)
        last = min(int(centre + reach + 0.5), size)
        taps = _cubic((np.arange(first, last) - centre + 0.5) / stretch)
        taps = taps / np.cumsum(taps)[-1]  # added one after the other, as Pillow does
        weights[row, first:last] = np.trunc(taps * 2**_BITS + np.where(taps < 0, -0.5, 0.5))
    return weights


def _cubic(x: np.ndarray) -> np.ndarray:
    """The cubic kernel of Keys, zero from 2 on."""
    x, a = np.abs(x), _CUBIC
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


@functools.cache
def _digits(size: int, wanted: int) -> np.ndarray:
    """The weights [3, wanted, size] in base 256, the lowest digit first, only the highest signed; float32."""
    weights = pillow_weights(size, wanted)
    if (weights != 0).sum(1).max() > _MOST_TAPS:
        raise UserError(
            f"resize: {size} pixels to {wanted} is over 64 times as small; shrink the images beforehand"
        )
    return np.stack([weights & 255, weights >> 8 & 255, weights >> 16]).astype(np.float32)


def _weighed(images: jax.Array, digits: np.ndarray, axes: str) -> jax.Array:
    """Sums of pixels by their weights, rounded to 8 bits."""
    # whole numbers below 256 are exact even in bfloat16, which TPUs multiply float32 in
    sums = jnp.einsum(axes, digits, images.astype(jnp.float32), preferred_element_type=jnp.float32)
    low, middle, high = sums.astype(jnp.int32)
    total = low + (middle << 8) + (high << 16) + (1 << _BITS - 1)
    return jnp.clip(total >> _BITS, 0, 255).astype(jnp.uint8)


def _neighbours(size: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """The lower neighbour of each pixel's centre, and the share that the upper one has."""
    at = np.maximum((np.arange(wanted) + 0.5) * (size / wanted) - 0.5, 0)
    first = at.astype(np.int64)
    return first, at - first

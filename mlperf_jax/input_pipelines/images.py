"""Images: encoded bytes to pixels, the reference's crop sampling, its resize kernel, its means.

Decoding. All fast decoders wrap libjpeg-turbo and give the same pixels; OpenCV is 0.96 times as fast as
simplejpeg (scripts/bench_decode.py), which is used where it is installed: it can be told to be silent
about the bytes that `decode_rows` leaves unread. Leaving them unread is 1.05 times as fast in training.
OpenCV is the fallback and the decoder of everything that is not a JPEG. Both paths give equal pixels,
but for CMYK files (one grey level).

Shape legend: H, W height and width of the image as stored; S side of the training image.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from mlperf_jax.errors import UserError

try:
    import simplejpeg
except ImportError:  # no wheel for this platform: OpenCV decodes, whole images only
    simplejpeg = None

# RGB means of the training set, in 0..255 (reference: resnet-tf2 imagenet_preprocessing.py).
MEANS = np.array([123.68, 116.78, 103.94], np.float32)
# What submissions on DALI and JAX used in its place.
IMAGENET_MEANS = np.array([0.485, 0.456, 0.406], np.float32) * 255
IMAGENET_STDS = np.array([0.229, 0.224, 0.225], np.float32) * 255

_COLOUR = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

Bytes = bytes | memoryview
Window = tuple[int, int, int, int]  # top, left, height, width


class ImageError(ValueError):
    """The bytes are not a whole image that can be decoded."""


@dataclasses.dataclass(frozen=True)
class JpegHeader:
    """What a JPEG says of itself before its pixels.

    Attributes:
        height, width: in pixels.
        components: 1 grey, 3 colour, 4 CMYK.
        height_at: offset of the two bytes that hold the height.
        rows_per_block: rows one line of blocks covers: 8 or, with halved chroma, 16.
        sequential: one interleaved scan, top to bottom (not progressive).
        scan_at: offset of the first scan.
    """

    height: int
    width: int
    components: int
    height_at: int
    rows_per_block: int
    sequential: bool
    scan_at: int


def jpeg_header(data: Bytes) -> JpegHeader:
    """Reads the markers before the first scan.

    Raises:
        ImageError: not a JPEG, or it ends before its first scan.
    """
    if data[:2] != b"\xff\xd8":
        raise ImageError("not a JPEG (no start marker)")
    at, frame = 2, None
    try:
        while True:
            while data[at] != 0xFF:  # padding and junk between segments, as libjpeg allows
                at += 1
            while data[at] == 0xFF:
                at += 1
            marker, at = data[at], at + 1
            if marker == 0x01 or 0xD0 <= marker <= 0xD8:
                continue
            if marker == 0xDA:
                break
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                frame = (marker, at)
            at += int.from_bytes(data[at : at + 2], "big") or 2
        if frame is None:
            raise ImageError("JPEG without a frame header")
        kind, f = frame
        components, in_scan = data[f + 7], data[at + 2]
        vertical = max(data[f + 9 + 3 * c] & 15 for c in range(components))
    except (IndexError, ValueError) as error:
        raise ImageError(f"truncated JPEG: {len(data)} bytes end within the header") from error
    height = int.from_bytes(data[f + 3 : f + 5], "big")
    width = int.from_bytes(data[f + 5 : f + 7], "big")
    if not height or not width:
        raise ImageError(f"JPEG of {height} x {width} pixels")
    sequential = kind in (0xC0, 0xC1) and in_scan == components
    return JpegHeader(height, width, components, f + 3, 8 * vertical, sequential, at)


def decode(data: Bytes) -> np.ndarray:
    """Decodes a JPEG (grey, RGB or CMYK) or PNG to RGB, uint8 [H, W, 3]; EXIF rotation is ignored.

    Raises:
        ImageError: not an image, or a truncated one.
    """
    if data[:2] != b"\xff\xd8":
        return _decode_other(data)
    header = jpeg_header(data)
    return decode_rows(data, header, header.height)


def decode_rows(data: Bytes, header: JpegHeader, stop: int) -> np.ndarray:
    """Decodes the rows of a JPEG above `stop`, uint8 [at least stop, W, 3], equal to a full decode.

    Most of the cost is undoing the entropy code, which can only start at the top; what lies below the
    crop need not be read. The decoder is told that the image ends there, by writing a smaller height
    into a copy of the header. Two further rows per chroma row keep the interpolation of chroma right.
    """
    tail = max(header.scan_at, len(data) - 256)  # files may end in a little junk; look there first
    if b"\xff\xd9" not in bytes(data[tail:]) and b"\xff\xd9" not in bytes(data[header.scan_at :]):
        raise ImageError(f"truncated JPEG: {len(data)} bytes, no end marker")
    end = stop + header.rows_per_block // 4
    if simplejpeg is None or not header.sequential or end >= header.height:
        return _decode_jpeg(data)
    at = header.height_at
    return _decode_jpeg(b"".join((data[:at], end.to_bytes(2, "big"), data[at + 2 :])))


def _decode_jpeg(data: Bytes) -> np.ndarray:
    if simplejpeg is None:
        return _decode_other(data)
    try:
        return simplejpeg.decode_jpeg(data, "RGB", strict=False)
    except ValueError as error:
        raise ImageError(f"corrupt JPEG: {error}") from error


def _decode_other(data: Bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), _COLOUR) if data else None
    if image is None:
        raise ImageError(f"{len(data)} bytes that are no JPEG or PNG image")
    return image


def complaint(data: Bytes) -> str | None:
    """Returns what the decoder has against an image that training would silently accept, or None."""
    if simplejpeg is None or data[:2] != b"\xff\xd8":
        return None
    try:
        simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError as error:
        return str(error)
    return None


def report(source: Any, split: str, sizes: Sequence[int], examine: Callable) -> list[str]:
    """Lines on the first and the last image of every group of records; "problem: …" for what is wrong.

    Args:
        source: of records that have an `image`, see `sources.Source`.
        split: what it is called.
        sizes: records of each group (shards, classes), as they follow one another.
        examine: raises for a record that is not as it must be.
    """
    ends = np.cumsum(sizes)
    looked_at = {int(i) for end, n in zip(ends, sizes) if n for i in (end - n, end - 1)}
    problems = []
    for index in sorted(looked_at):
        try:
            record = source[index]
            examine(record)
            decode(record.image)
            found = complaint(record.image)
        except (UserError, ValueError, OSError) as error:
            found = str(error)
        if found:
            where = source.describe(index)
            problems.append(f"problem: {found if where in found else f'{where}: {found}'}")
    said = f"{split}: decoded {len(looked_at)} images, {len(problems)} with problems"
    return [*problems, said]


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """Encodes RGB uint8 [H, W, 3] as a JPEG with halved chroma."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def sample_crop(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    min_area: float = 0.05,
    aspect: tuple[float, float] = (0.75, 1.33),
    min_covered: float = 0.1,
    attempts: int = 100,
) -> Window:
    """Samples a training crop as TensorFlow's `sample_distorted_bounding_box` does without boxes.

    One attempt draws the aspect ratio (width/height) uniformly, then the height uniformly among the
    integers for which the area lies in [min_area, 1] of the image and the crop fits, then the place.
    The object to cover is the whole image, so a crop below `min_covered` of its area is refused and
    drawn again: with the reference's numbers areas start at 0.1, not at 0.05. After `attempts` the
    whole image is taken.
    Reference: resnet-tf2 imagenet_preprocessing.py; TensorFlow sample_distorted_bounding_box_op.cc,
    which never puts a crop at the last possible row or column; neither do we.

    Returns:
        (top, left, height, width) in pixels.
    """
    area = height * width
    for _ in range(attempts):
        ratio = rng.uniform(*aspect)
        size = _crop_size(height, width, ratio, min_area * area, rng)
        if size is None or size[0] * size[1] < max(1, min_covered * area):
            continue
        h, w = size
        top = int(rng.integers(height - h)) if h < height else 0
        left = int(rng.integers(width - w)) if w < width else 0
        return top, left, h, w
    return 0, 0, height, width


def _crop_size(
    height: int, width: int, ratio: float, min_area: float, rng: np.random.Generator
) -> tuple[int, int] | None:
    low = round((min_area / ratio) ** 0.5)
    high = round((height * width / ratio) ** 0.5)
    if round(high * ratio) > width:  # the tallest crop whose rounded width still fits
        high = int((width + 0.5 - 1e-7) / ratio)
        high -= round(high * ratio) > width
    high = min(high, height)
    h = high if low >= high else int(rng.integers(low, high + 1))
    if h * round(h * ratio) < min_area:  # rounding may miss the bounds by a pixel
        h += 1
    if h * round(h * ratio) > height * width:
        h -= 1
    w = round(h * ratio)
    fits = 0 < w <= width and 0 < h <= height and min_area <= h * w <= height * width
    return (h, w) if fits else None


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes uint8 [H, W, 3] to f32 [height, width, 3] as `tf.compat.v1.image.resize` does.

    Bilinear between the two nearest pixels in each direction, output pixel i lying at input i * H/height
    (no half-pixel centres, corners not aligned, no antialiasing), to float32 rounding.
    Reference: TensorFlow resize_bilinear_op.cc with its legacy scaler.
    """
    prepare_opencv()
    matrix = np.array([[image.shape[1] / width, 0, 0], [0, image.shape[0] / height, 0]])
    four = cv2.cvtColor(
        image, cv2.COLOR_RGB2RGBA
    )  # OpenCV is twice as fast on these, to equal values
    resized = cv2.warpAffine(
        four.astype(np.float32),
        matrix,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return cv2.cvtColor(resized, cv2.COLOR_RGBA2RGB)


def crop_flip_resize(data: Bytes, window_of, flip: bool, size: int) -> np.ndarray:
    """Decodes an image, crops it, mirrors it if asked, and resizes it to f32 [size, size, 3].

    The order is the reference's: the resize kernel leans to the top left, so a mirrored crop resized
    is not a resized crop mirrored.

    Args:
        data: JPEG or PNG bytes.
        window_of: (H, W) -> window, called once the size is known.
        flip: mirror left and right.
        size: S.
    """
    if data[:2] == b"\xff\xd8":
        header = jpeg_header(data)
        top, left, h, w = window_of(header.height, header.width)
        image = decode_rows(data, header, top + h)
    else:
        image = decode(data)
        top, left, h, w = window_of(*image.shape[:2])
    crop = image[top : top + h, left : left + w]
    return resize(cv2.flip(crop, 1) if flip else crop, size, size)


def resize_crop_centre(image: np.ndarray, size: int, short: int) -> np.ndarray:
    """Resizes the short side to `short` and takes the middle, f32 [size, size, 3].

    The resized sides are float32 products cut to integers, so a few sizes give short - 1.
    Reference: resnet-tf2 imagenet_preprocessing.py, the evaluation branch.
    """
    height, width = image.shape[:2]
    scale = np.float32(short) / np.float32(min(height, width))
    sides = int(np.float32(height) * scale), int(np.float32(width) * scale)
    top, left = (sides[0] - size) // 2, (sides[1] - size) // 2
    return resize(image, *sides)[top : top + size, left : left + size]


def normalise(image: np.ndarray, how: str) -> np.ndarray:
    """Subtracts the reference's means ("reference"), or (x - mean)/std as submissions did.

    Works in place on a contiguous f32 [H, W, 3] image, as `resize` makes them, or on a copy.
    """
    flat = np.ascontiguousarray(image).reshape(image.shape[0], -1)  # rows long enough for SIMD
    means, scales = _per_row(image.shape[1], how)
    flat -= means
    if scales is not None:
        flat *= scales
    return flat.reshape(image.shape)


def denormalise(images: np.ndarray, how: str) -> np.ndarray:
    """The pixels u8 [..., H, W, 3] of images that `normalise` made.

    >>> pixels = np.arange(48, dtype=np.float32).reshape(4, 4, 3)
    >>> bool((denormalise(normalise(pixels.copy(), "imagenet_std"), "imagenet_std") == pixels).all())
    True
    """
    means, scales = (MEANS, 1.0) if how == "reference" else (IMAGENET_MEANS, IMAGENET_STDS)
    return np.clip(np.rint(images * scales + means), 0, 255).astype(np.uint8)


@functools.cache
def _per_row(width: int, how: str) -> tuple[np.ndarray, np.ndarray | None]:
    if how == "reference":
        return np.tile(MEANS, width), None
    return np.tile(IMAGENET_MEANS, width), np.tile(1 / IMAGENET_STDS, width)


@functools.cache
def prepare_opencv() -> None:
    """Turns OpenCV's own threads off: rows are decoded in parallel already.

    Raises:
        UserError: it is not the declared one. OpenCV 4 interpolates at coordinates rounded to 1/32 pixel, which
            is off by up to 6 of 255.
    """
    if int(cv2.__version__.split(".")[0]) < 5:
        raise UserError(
            f"OpenCV {cv2.__version__} resizes inexactly: pip install -U opencv-python-headless, and remove "
            "other packages of OpenCV"
        )
    cv2.setNumThreads(1)

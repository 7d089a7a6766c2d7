"""Decoding, the crop sampler and the resize kernel, against slow twins written from the rule."""

import io

import cv2
import numpy as np
import pytest
from photographs import photograph
from PIL import Image

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import images


def jpeg(image, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", **({"quality": 90} | options))
    return file.getvalue()


def plain_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    top, bottom, down = _neighbours(image.shape[0], height)
    left, right, along = _neighbours(image.shape[1], width)
    pixels = image.astype(np.float32)
    columns = pixels[:, left]
    columns += (pixels[:, right] - columns) * along[:, None]
    rows = columns[top]
    rows += (columns[bottom] - rows) * down[:, None, None]
    return rows


def _neighbours(size: int, out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    at = np.arange(out, dtype=np.float32) * (np.float32(size) / np.float32(out))
    low = np.floor(at).astype(np.int64)
    return low, np.minimum(low + 1, size - 1), at - low.astype(np.float32)


def slow_resize(image, height, width):
    """TensorFlow's v1 bilinear kernel, pixel by pixel, in float32."""
    out = np.zeros((height, width, image.shape[2]), np.float32)
    scale = [np.float32(image.shape[i]) / np.float32((height, width)[i]) for i in (0, 1)]
    for i in range(height):
        for j in range(width):
            y, x = np.float32(i) * scale[0], np.float32(j) * scale[1]
            top, left = int(y), int(x)
            bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            dy, dx = y - np.float32(top), x - np.float32(left)
            corners = image[[top, top, bottom, bottom], [left, right, left, right]]
            a, b, c, d = corners.astype(np.float32)
            upper, lower = a + (b - a) * dx, c + (d - c) * dx
            out[i, j] = upper + (lower - upper) * dy
    return out


@pytest.mark.parametrize(
    ("size", "out"),
    [
        ((37, 53), (32, 32)),
        ((20, 9), (32, 32)),
        ((32, 32), (32, 32)),
        ((301, 33), (24, 40)),
        ((1, 1), (4, 4)),
    ],
)
def test_resize_equals_the_reference_kernel(size, out):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = slow_resize(image, *out)
    for resized in (images.resize(image, *out), plain_resize(image, *out)):
        assert resized.dtype == np.float32
        np.testing.assert_allclose(resized, expected, atol=1e-3, rtol=0)  # of 255


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (2001, 1501)])
def test_fast_and_plain_resize_agree_at_full_size(size):
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    plain = plain_resize(image, 224, 224)
    np.testing.assert_allclose(images.resize(image, 224, 224), plain, atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [(375, 500), (2, 3), (97, 1)])
def test_resize_gives_the_values_of_three_channels(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    matrix = np.array([[size[1] / 224, 0, 0], [0, size[0] / 224, 0]])
    how = {"flags": cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, "borderMode": cv2.BORDER_REPLICATE}
    plain = cv2.warpAffine(image.astype(np.float32), matrix, (224, 224), **how)
    np.testing.assert_array_equal(images.resize(image, 224, 224), plain)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(97, 131), (64, 48), (120, 33)])
def test_rows_above_the_crop_equal_a_full_decode(subsampling, size):
    data = jpeg(photograph(np.random.default_rng(2), *size), subsampling=subsampling)
    header, full = images.jpeg_header(data), images.decode(data)
    assert full.shape == (*size, 3)
    for stop in range(1, size[0] + 1):
        rows = images.decode_rows(data, header, stop)
        np.testing.assert_array_equal(rows[:stop], full[:stop])


def test_progressive_and_restart_files_decode_equally():
    image = photograph(np.random.default_rng(3), 90, 70)
    for options in ({"progressive": True}, {"restart_marker_rows": 1}):
        data = jpeg(image, **options)
        header = images.jpeg_header(data)
        assert header.sequential != options.get("progressive", False)
        rows = images.decode_rows(data, header, 40)
        np.testing.assert_array_equal(rows[:40], images.decode(data)[:40])


def test_decoders_agree(monkeypatch):
    data = jpeg(photograph(np.random.default_rng(4), 80, 60))
    fast = images.decode(data)
    np.testing.assert_array_equal(fast, np.asarray(Image.open(io.BytesIO(data))))
    monkeypatch.setattr(images, "simplejpeg", None)
    np.testing.assert_array_equal(fast, images.decode(data))
    crop = images.crop_flip_resize(memoryview(data), lambda h, w: (3, 4, 30, 20), False, 16)
    np.testing.assert_allclose(crop, slow_resize(fast[3:33, 4:24], 16, 16), atol=1e-3)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_grey_and_cmyk_files_become_rgb(mode):
    image = Image.fromarray(photograph(np.random.default_rng(5), 40, 50)).convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("RGB")).astype(int)
    assert abs(images.decode(file.getvalue()) - expected).max() <= 1


def test_png_named_jpeg_and_rotated_files():
    image = photograph(np.random.default_rng(6), 40, 50)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    np.testing.assert_array_equal(images.decode(file.getvalue()), image)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter turn: the reference does not look at it
    assert images.decode(jpeg(image, exif=exif)).shape == (40, 50, 3)


def test_damaged_images_are_refused():
    data = jpeg(photograph(np.random.default_rng(7), 60, 60))
    cases = [
        (data[: len(data) // 2], "truncated JPEG: .* no end marker"),
        (data[:100], "end within the header"),
        (b"", "0 bytes that are no JPEG or PNG"),
        (b"hello, world", "no JPEG or PNG"),
    ]
    for damaged, message in cases:
        with pytest.raises(images.ImageError, match=message):
            images.decode(damaged)
        with pytest.raises(images.ImageError, match=message):
            images.crop_flip_resize(memoryview(damaged), lambda h, w: (0, 0, h, w), False, 8)
    scan = images.jpeg_header(data).scan_at
    noisy = data[: scan + 200] + bytes(80) + data[scan + 280 :]
    assert images.complaint(data) is None
    assert images.complaint(noisy)


def test_flip_comes_before_the_resize():
    image = photograph(np.random.default_rng(8), 50, 70)
    data = jpeg(image, quality=100, subsampling=0)
    flipped = images.crop_flip_resize(data, lambda h, w: (5, 6, 31, 43), True, 16)
    crop = images.decode(data)[5:36, 6:49]
    np.testing.assert_allclose(flipped, slow_resize(crop[:, ::-1], 16, 16), atol=1e-3)
    assert abs(flipped - slow_resize(crop, 16, 16)[:, ::-1]).max() > 1  # they do differ


def test_crops_keep_to_area_and_aspect():
    rng, height, width = np.random.default_rng(0), 375, 500
    crops = np.array([images.sample_crop(height, width, rng) for _ in range(4000)])
    top, left, h, w = crops.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    share, aspect = h * w / (height * width), w / h
    # 0.1 of the object has to be covered, and the object is the whole image.
    assert 0.1 <= share.min() < 0.12
    assert share.max() > 0.9
    assert aspect.min() > 0.75 - 0.01
    assert aspect.max() < 1.33 + 0.01
    # Aspect ratios are uniform (the refused small crops have any): quartiles of U[0.75, 1.33].
    np.testing.assert_allclose(
        np.quantile(aspect, [0.25, 0.5, 0.75]), [0.895, 1.04, 1.185], atol=0.02
    )
    # Heights are uniform between their bounds, so half of the crops cover less than about 0.35.
    assert 0.3 < np.median(share) < 0.4
    # Never at the last possible place (TensorFlow's sampler leaves it out), but next to it.
    assert (top + h < height)[h < height].all()
    assert (left + w < width).all()


def test_crops_below_a_minimum_area_do_not_occur():
    rng = np.random.default_rng(1)
    crops = [images.sample_crop(40, 40, rng, min_area=0.6) for _ in range(500)]
    assert all(h * w >= 0.6 * 1600 for _, _, h, w in crops)


@pytest.mark.parametrize("size", [(10, 1000), (1000, 10), (1, 1)])
def test_the_whole_image_where_no_crop_fits(size):
    crop = images.sample_crop(*size, np.random.default_rng(2), min_area=0.5)
    assert crop == (0, 0, *size)


@pytest.mark.parametrize(("size", "resized"), [((375, 500), (256, 341)), ((500, 334), (383, 256))])
def test_evaluation_crop(size, resized):
    image = photograph(np.random.default_rng(9), *size)
    top, left = (resized[0] - 224) // 2, (resized[1] - 224) // 2
    expected = plain_resize(image, *resized)[top : top + 224, left : left + 224]
    np.testing.assert_allclose(images.resize_crop_centre(image, 224, 256), expected, atol=1e-3)


def test_evaluation_sides_are_float32_products_cut_down():
    short = {
        min(h, 300): int(np.float32(h) * (np.float32(256) / np.float32(h))) for h in range(200, 300)
    }
    assert set(short.values()) == {255, 256}  # a few sizes lose a pixel, as in the reference
    size = next(h for h, side in short.items() if side == 255)
    image = photograph(np.random.default_rng(10), size, size + 40)
    assert images.resize_crop_centre(image, 224, 256).shape == (224, 224, 3)


def test_normalise():
    image = np.random.default_rng(11).uniform(0, 255, (4, 5, 3)).astype(np.float32)
    reference = images.normalise(image.copy(), "reference")
    np.testing.assert_allclose(reference, image - [123.68, 116.78, 103.94], atol=1e-4)
    std = images.normalise(image.copy(), "imagenet_std")
    expected = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(std, expected, atol=1e-5)


def test_an_old_opencv_is_refused(monkeypatch):
    images.prepare_opencv.cache_clear()
    monkeypatch.setattr(cv2, "__version__", "4.11.0")
    with pytest.raises(UserError, match=r"OpenCV 4\.11\.0 resizes inexactly"):
        images.resize(np.zeros((3, 4, 3), np.uint8), 2, 2)

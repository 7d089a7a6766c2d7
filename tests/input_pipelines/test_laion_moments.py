"""Images to moments: the transform beside torchvision's, shards made, taken up, and refused."""

import io
import os
import tarfile
import threading

import cv2
import numpy as np
import pytest
from laion_toys import write_tar

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import images
from mlperf_jax.input_pipelines.laion import files, moments, prepare, prepare_all
from scripts import make_laion_reference as reference

FORM = files.Form(8, 3)
SIDE = 24
TORCHVISION = np.load(reference.RESIZED)


@pytest.mark.parametrize("size", reference.SIZES)
def test_the_transform_is_torchvision_s(size):
    """To float32 rounding; clamped overshoot, antialiasing, another cubic or another crop are off by 0.1 and more."""
    height, width = size
    found = moments.resize_crop(reference.image(height, width), reference.SIDE)
    assert found.dtype == np.float32 and found.shape == (24, 24, 3)
    np.testing.assert_allclose(found, TORCHVISION[f"{height}x{width}"], atol=4e-6)


def test_only_what_is_cropped_is_computed():
    image = reference.image(40, 900)
    middle = image[:, 430:470]
    np.testing.assert_allclose(
        moments.resize_crop(image, 40), middle.astype(np.float32) / 255, atol=1e-6
    )


# -- shards ----------------------------------------------------------------------------------------


class Encoder:
    """Moments that tell images apart: means of eighths of each image, in each channel another."""

    def __init__(self):
        self.given = []

    def __call__(self, batch):
        self.given.append(batch.copy())
        means = batch.reshape(len(batch), 3, 8, 3, 8, 3).mean((2, 4))
        return np.concatenate([means, -means, means[..., :2]], -1)


def png(number: int, height: int = 30, width: int = 40) -> bytes:
    draw = np.random.RandomState(number)
    image = draw.randint(0, 256, (height, width, 3)).astype(np.uint8)
    return cv2.imencode(".png", image)[1].tobytes()


def shard_of_images(folder, count: int = 7, number: int = 0):
    folder.mkdir(exist_ok=True)
    held = []
    for i in range(count):
        held += [(f"{i:03d}.json", b"{}"), (f"{i:03d}.png", png(i, 30 + i))]
        held += [(f"{i:03d}.txt", f"image {i}".encode())]
    write_tar(folder / files.shard_name(number), held, mtime=0.5)
    return folder / files.shard_name(number)


def test_a_shard_of_moments_is_made_of_one_of_images(tmp_path):
    encoder = Encoder()
    shard = shard_of_images(tmp_path / "images")
    assert prepare(shard, encoder, tmp_path / "moments", rows=3, side=SIDE)
    assert [batch.shape for batch in encoder.given] == [(3, SIDE, SIDE, 3)] * 3
    assert not encoder.given[2][1:].any(), "the last batch is filled up with zeros"
    assert encoder.given[0].min() >= -0.5 and encoder.given[0].max() <= 1.5, "[0, 1], not [-1, 1]"
    assert abs(encoder.given[0].mean() - 0.5) < 0.02
    with tarfile.open(tmp_path / "moments" / "00000.tar") as tar:
        assert tar.getnames() == [f"{i:03d}.{end}" for i in range(7) for end in ("npy", "txt")]
        for i in range(7):
            array = np.load(io.BytesIO(tar.extractfile(f"{i:03d}.npy").read()))
            assert array.shape == (1, 8, 3, 3) and array.dtype == np.float32
            image = moments.resize_crop(images.decode(png(i, 30 + i)), SIDE)
            np.testing.assert_array_equal(array[0], Encoder()(image[None])[0].transpose(2, 0, 1))
            assert tar.extractfile(f"{i:03d}.txt").read() == f"image {i}".encode()
    index = tmp_path / "00000.idx"
    assert files.write_index(str(index), str(tmp_path / "moments" / "00000.tar"), FORM) == 7


def test_shards_that_are_there_are_kept(tmp_path):
    for number in range(3):
        shard_of_images(tmp_path / "images", 2, number)
    said, encoder = [], Encoder()
    made = tmp_path / "moments"
    prepare_all(tmp_path / "images", encoder, made, shards=[1], rows=2, side=SIDE)

    def stops(batch):
        if len(encoder.given) == 2:
            raise KeyboardInterrupt
        return encoder(batch)

    options = {"rows": 2, "side": SIDE, "report": said.append}
    with pytest.raises(KeyboardInterrupt):
        prepare_all(tmp_path / "images", stops, made, shards=range(3), **options)
    assert sorted(os.listdir(made)) == ["00000.tar", "00001.tar"]
    prepare_all(tmp_path / "images", encoder, made, shards=range(3), **options)
    assert said == [
        "00000.tar: made",
        "00001.tar: there already",
        "00000.tar: there already",
        "00001.tar: there already",
        "00002.tar: made",
    ]
    assert len(encoder.given) == 3


def test_images_are_decoded_in_threads_and_no_further_ahead_than_two_batches(tmp_path, monkeypatch):
    shard, decode, names, begun, most = (
        shard_of_images(tmp_path / "images", 12),
        images.decode,
        set(),
        [],
        [],
    )

    def noted(data):
        names.add(threading.current_thread().name)
        begun.append(1)
        return decode(data)

    def encode(batch):
        encoded.append(1)
        most.append(len(begun) - 2 * len(encoded))
        return Encoder()(batch)

    encoded: list[int] = []
    monkeypatch.setattr(images, "decode", noted)
    prepare(shard, encode, tmp_path / "moments", rows=2, side=SIDE)
    assert threading.main_thread().name not in names
    assert len(begun) == 12 and max(most) <= 4


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([("1.jpg", b"\xff\xd8 cut"), ("1.txt", b"")], r"00000\.tar, 1\.jpg: truncated JPEG.*: fetch"),
        ([("1.png", png(1)[:99]), ("1.txt", b"")], r"00000\.tar, 1\.png: 99 bytes that are no JPEG or PNG"),
        ([("1.png", png(1))], r"holds no 1\.txt for the key 1: fetch the images again"),
        ([("1.png", png(1)), ("1.jpg", b""), ("1.txt", b"")], r"holds 2 images for the key 1"),
        ([("1.txt", b"")], r"holds 0 images for the key 1"),
        ([("1.npy", b"")], r"00000\.tar holds no images with captions"),
    ],
)  # fmt: skip
def test_images_that_are_not_whole(tmp_path, held, message):
    write_tar(tmp_path / "00000.tar", held)
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "00000.tar", Encoder(), tmp_path / "moments", side=SIDE)
    assert os.listdir(tmp_path / "moments") == []


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda batch: batch[:1, :3, :3], r"gives moments \[1, 3, 3, 3\] of 4 images: they are \[4, S, S"),
        (lambda batch: batch.transpose(0, 3, 1, 2), r"gives moments \[4, 3, 24, 24\] of 4 images"),
        (lambda batch: batch[:, :3, :3] * np.nan, r"00000\.tar, 000\.png: its moments are not finite"),
    ],
)  # fmt: skip
def test_an_encoder_of_something_else(tmp_path, encode, message):
    shard = shard_of_images(tmp_path / "images", 3)
    with pytest.raises(UserError, match=message):
        prepare(shard, encode, tmp_path / "moments", rows=4, side=SIDE)
    assert os.listdir(tmp_path / "moments") == []

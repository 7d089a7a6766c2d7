"""Images -> moments: tars of `KEY.jpg` and `KEY.txt` to shards of `KEY.npy` and `KEY.txt`, as the organisers have it.

An image is a float32 tensor in [0, 1] before it is resized, and so what bicubic weights overshoot is not clamped. It
enters the encoder in [0, 1] too, though that was trained on [-1, 1]: a mistake of the reference (mlcommons/training,
issue 721) which the organisers' moments, and every reference convergence point, have in them; it is kept.

Reference: mlcommons/training, stable_diffusion/webdataset_images2latents.py.
Shape legend: B images at a time, H and W sides of an image, I side of what is encoded, S side of a latent, C its
channels.
"""

from __future__ import annotations

import collections
import concurrent.futures
import io
import os
import pathlib
import tarfile
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building, images
from mlperf_jax.input_pipelines.laion import files, tars

Encode = Callable[[np.ndarray], np.ndarray]
_A = np.float32(-0.75)  # of the cubic, as torch has it
_AHEAD = 2  # batches that are decoded while one is encoded


# -- images --------------------------------------------------------------------------------------


def resize_crop(image: np.ndarray, side: int) -> np.ndarray:
    """The middle of an image whose shorter side was resized to I, from uint8 [H, W, 3] to f32 [I, I, 3] about [0, 1].

    As torchvision's ToTensor, Resize(I, bicubic) without antialiasing and CenterCrop(I): four pixels in each direction
    weigh in, however much smaller the image becomes. Only what is kept is computed.
    """
    height, width = image.shape[:2]
    sides = [
        side if n <= min(height, width) else int(side * n / min(height, width))
        for n in (height, width)
    ]
    # Python rounds halves to even, and torchvision is Python here
    firsts = [round((n - side) / 2.0) for n in sides]
    rows, columns = (
        _taps(n, m, first, side) for n, m, first in zip((height, width), sides, firsts)
    )
    needed, places = np.unique(rows[0], return_inverse=True)
    pixels = image[needed].astype(np.float32) / np.float32(255)
    lines = np.zeros((len(needed), side, 3), np.float32)
    for at, weights in zip(*columns):
        lines += weights[:, None] * pixels[:, at]
    found = np.zeros((side, side, 3), np.float32)
    for at, weights in zip(places.reshape(4, side), rows[1]):
        found += weights[:, None, None] * lines[at]
    return found


def _taps(n: int, m: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of n pixels make pixels first .. first + count - 1 of m, and their weights: int and f32, [4, count]."""
    at = np.arange(first, first + count, dtype=np.float32)
    centre = np.float32(n) / np.float32(m) * (at + np.float32(0.5)) - np.float32(0.5)
    low = np.floor(centre)
    t = centre - low
    weights = _far(t + 1), _near(t), _near(1 - t), _far(2 - t)
    pixels = low.astype(np.int64) + np.arange(-1, 3)[:, None]
    return np.clip(pixels, 0, n - 1), np.stack(weights)


def _near(x: np.ndarray) -> np.ndarray:
    return ((_A + 2) * x - (_A + 3)) * x * x + 1


def _far(x: np.ndarray) -> np.ndarray:
    return ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A


# -- shards --------------------------------------------------------------------------------------


def prepare(
    shard: str | os.PathLike,
    encode: Encode,
    folder: str | os.PathLike,
    *,
    rows: int = 16,
    side: int = 512,
) -> bool:
    """Makes a shard of moments from one of images; the images are decoded in threads, ahead of the encoder.

    Args:
        shard: tar of `KEY.jpg` (or another of the organisers' endings) and `KEY.txt`; other members are left out.
        encode: images f32 [B, I, I, 3] in [0, 1] -> moments [B, S, S, 2C], means and then logarithms of variances; is
            always given B images, the last ones perhaps zeros.
        folder: where the shard of the same name goes; it appears when it is whole.
        rows: B.
        side: I.

    Returns:
        Whether it was made: False where it is there already.

    Raises:
        UserError: the tar or an image is damaged, a pair is not whole, moments are not finite or of another shape.
    """
    with building.alone(pathlib.Path(folder, os.path.basename(shard)), resumes=True) as target:
        if target.exists():
            return False
        with tars.Tar(os.fspath(shard)) as tar, building.unfinished(target) as part:
            samples = _samples(tar)
            write_shard(part, _encoded(tar, samples, encode, rows, side))
        return True


def prepare_all(
    source: str | os.PathLike,
    encode: Encode,
    folder: str | os.PathLike,
    *,
    shards: Iterable[int] = range(832),
    rows: int = 16,
    side: int = 512,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Makes shards of moments, one after the other; those that are there are kept. Arguments as `prepare` has them.

    Args:
        source: holds `00000.tar` and so on, of images.
        shards: which ones; several machines or devices each take their own, such as `range(3, 832, 8)`.
        report: is told of each shard.
    """
    for number in shards:
        name = files.shard_name(number)
        made = prepare(pathlib.Path(source, name), encode, folder, rows=rows, side=side)
        report(f"{name}: {'made' if made else 'there already'}")


def write_shard(path: str | os.PathLike, samples: Iterable[tuple[str, np.ndarray, bytes]]) -> None:
    """Writes a tar of keys, moments f32 [S, S, 2C] and captions in UTF-8."""
    with tarfile.open(path, "w") as tar:
        for key, moments, caption in samples:
            array = io.BytesIO()
            planes = np.ascontiguousarray(moments.transpose(2, 0, 1), "<f4")
            np.lib.format.write_array(array, planes[None], (1, 0), allow_pickle=False)
            for ending, data in ((files.ARRAY, array.getvalue()), (files.CAPTION, caption)):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _samples(tar: tars.Tar) -> list[tuple[str, tars.Member, tars.Member]]:
    """Key, image and caption of each sample."""
    found = []
    for key, members in tars.samples(tar, (files.CAPTION, *files.IMAGES)).items():
        caption = members.pop(files.CAPTION, None)
        if caption is None or len(members) != 1:
            what = f"{len(members)} images" if caption else f"no {key}.{files.CAPTION}"
            raise UserError(f"{tar.path} holds {what} for the key {key}: fetch the images again")
        found.append((key, *members.values(), caption))
    if not found:
        raise UserError(f"{tar.path} holds no images with captions: fetch the organisers' images")
    return found


def _encoded(
    tar: tars.Tar,
    samples: list[tuple[str, tars.Member, tars.Member]],
    encode: Encode,
    rows: int,
    side: int,
) -> Iterator[tuple[str, np.ndarray, bytes]]:
    begun: collections.deque = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(samples) + _AHEAD * rows, rows):
            chunk = samples[first : first + rows]
            if chunk:
                begun.append(
                    (
                        chunk,
                        [
                            pool.submit(
                                _pixels, tar.path, image.name, tar.read(image.at, image.size), side
                            )
                            for _, image, _ in chunk
                        ],
                    )
                )
            if first < _AHEAD * rows or not begun:
                continue
            done, pixels = begun.popleft()
            batch = np.zeros((rows, side, side, 3), np.float32)
            for row, one in enumerate(pixels):
                batch[row] = one.result()
            found = np.asarray(encode(batch))
            if found.ndim != 4 or len(found) != rows or found.shape[1] != found.shape[2]:
                raise UserError(
                    f"the encoder gives moments {list(found.shape)} of {rows} images: they are [{rows}, S, S, 2C]"
                )
            for (key, image, caption), moments in zip(done, found):
                if not np.isfinite(moments).all():
                    raise UserError(
                        f"{tar.path}, {image.name}: its moments are not finite: encode in float32, and see whether the "
                        "weights are the autoencoder's"
                    )
                yield key, moments, tar.read(caption.at, caption.size)


def _pixels(tar: str, name: str, data: bytes, side: int) -> np.ndarray:
    try:
        return resize_crop(images.decode(data), side)
    except images.ImageError as error:
        raise UserError(f"{tar}, {name}: {error}: fetch the images again") from error

"""Writes tests/input_pipelines/data/laion*: a tar of the library webdataset, and what torchvision makes of images.

Run by hand, with torch, torchvision and webdataset installed, from the root of the repository:

    python scripts/make_laion_reference.py

Samples and images follow from seeds, hence the tests import this file for them; the libraries are imported where they
are used. The tar has times with fractions, for which Python's tarfile writes headers of their own, and a member of
another kind in each sample, as the organisers' shards have.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

DATA = pathlib.Path(__file__).parents[1] / "tests/input_pipelines/data"
TAR, RESIZED = DATA / "laion_webdataset.tar", DATA / "laion_resized.npz"
FORM = (8, 4)  # channels and side of the tar's moments
CAPTIONS = {"000000003": "a red circle", "000000001": "", "000000120": "naïve café, 東京"}
SIDE = 24  # of the resized images
# heights and widths: smaller, equal and larger ones, whole and broken scales, every kind of an offset's rounding
SIZES = ((24, 24), (24, 25), (27, 24), (24, 29), (31, 47), (17, 40), (50, 24), (96, 65), (240, 170))


def moments(key: str) -> np.ndarray:
    """The array of a sample, f32 [1, 2C, S, S]."""
    channels, side = FORM
    draw = np.random.RandomState(int(key))
    return draw.standard_normal((1, channels, side, side)).astype(np.float32)


def image(height: int, width: int) -> np.ndarray:
    """Noise, uint8 [height, width, 3]: bicubic weights overshoot at every edge."""
    draw = np.random.RandomState(height * 1000 + width)
    return draw.choice([0, 60, 255], (height, width, 3)).astype(np.uint8)


def write_tar() -> None:
    import webdataset

    with webdataset.TarWriter(str(TAR), mtime=1_700_000_000.25) as writer:  # pyright: ignore
        for key, caption in CAPTIONS.items():
            more: dict[str, Any] = {"npy": moments(key), "txt": caption, "json": {"key": key}}
            writer.write({"__key__": key, **more})
    read = {s["__key__"]: s for s in webdataset.WebDataset(str(TAR), shardshuffle=False).decode()}
    assert list(read) == list(CAPTIONS)
    for key, sample in read.items():
        assert (sample["npy"] == moments(key)).all() and sample["txt"] == CAPTIONS[key]


def write_resized() -> None:
    import torch
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, ToTensor

    torch.set_num_threads(1)
    made = Compose(
        [ToTensor(), Resize(SIDE, InterpolationMode.BICUBIC, antialias=False), CenterCrop(SIDE)]
    )
    found = {f"{h}x{w}": made(image(h, w)).numpy().transpose(1, 2, 0) for h, w in SIZES}
    assert max(array.max() for array in found.values()) > 1.05  # nothing was clamped
    np.savez_compressed(RESIZED, **found)


def main() -> None:
    write_tar()
    write_resized()
    for path in (TAR, RESIZED):
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

"""JPEG to training example beside a PyTorch DataLoader, and decoders beside each other.

    python scripts/bench_decode.py --cores 1                # two minutes
    python scripts/bench_decode.py --cores 2 --readers 2    # two threads of ours, two worker processes

Everything runs on the same synthetic photographs (500 x 375, 4:2:0, quality 90, about 112 KB, the size of
ImageNet's), by processor time in all threads and worker processes. The DataLoader does what torchvision does
(RandomResizedCrop, flip, ToTensor, Normalize on Pillow images), written out here because torchvision is not
needed for anything else. Decoders and torch that are not installed are left out.
"""

from __future__ import annotations

import importlib
import io
import itertools
import math
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import measuring

# isort: split

import cv2
import numpy as np
from PIL import Image

from mlperf_jax.input_pipelines import images
from mlperf_jax.input_pipelines.imagenet import ImageNet

CLASSES = ("n01440764", "n01443537")
BATCH = 64


def photograph(rng: np.random.Generator, height: int = 375, width: int = 500) -> bytes:
    """A JPEG with the spectrum of natural images, amplitude 1/f^1.1, in brightness and in colour."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = 1 / np.maximum(frequency, 1 / width) ** 1.1

    def field() -> np.ndarray:
        phase = np.exp(2j * np.pi * rng.random(amplitude.shape))
        values = np.fft.irfft2(amplitude * phase, s=(height, width))
        return values / values.std()

    pixels = 120 + 55 * field()[..., None] + 18 * np.stack([field() for _ in range(3)], -1)
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def decoders() -> dict[str, Callable[[bytes], np.ndarray]]:
    found: dict[str, Callable] = {
        "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
        "OpenCV": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB),
    }
    others = {
        "simplejpeg": lambda m: lambda data: m.decode_jpeg(data),
        "imagecodecs": lambda m: lambda data: m.jpeg8_decode(data),
        "kornia_rs": lambda m: lambda data: m.io.decode_image_jpeg(data),
    }
    for name, make in others.items():
        try:
            decode = make(importlib.import_module(name))
            decode(photograph(np.random.default_rng(0), 32, 32))
            found[name] = decode
        except (ImportError, AttributeError):
            print(f"  ({name} is not installed)")
    rng = np.random.default_rng(0)

    def crop(data: bytes) -> np.ndarray:
        header = images.jpeg_header(data)
        top, _, height, _ = images.sample_crop(header.height, header.width, rng)
        return images.decode_rows(data, header, top + height)

    found["ours, down to the crop"] = crop
    return found


def passes(folder: str, count: int, threads: int) -> Callable[[], Any]:
    """A call reads so many images of ours, with threads that end with the call as DataLoader's workers do."""
    batches = ImageNet().train(folder).batched(BATCH)
    return lambda: [None for _ in itertools.islice(batches.stream(threads=threads), count // BATCH)]


def torch_dataset(paths: list[pathlib.Path]):
    """What torchvision's ImageFolder and its usual training transform do to one file."""
    import torch

    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

    class Photographs(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int):
            with open(paths[index], "rb") as file:
                image = Image.open(file).convert("RGB")
            image = image.crop(random_box(image.width, image.height, torch.rand))
            image = image.resize((224, 224), Image.Resampling.BILINEAR)
            if torch.rand(()) < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            pixels = torch.from_numpy(np.array(image, copy=True)).permute(2, 0, 1).contiguous()
            return pixels.to(torch.float32).div(255).sub_(mean).div_(std), index % 2

    return Photographs()


def random_box(width: int, height: int, rand: Callable) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = width * height * (0.05 + 0.95 * float(rand(())))
        ratio = math.exp(math.log(3 / 4) + float(rand(())) * math.log(16 / 9))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(float(rand(())) * (width - w + 1))
            top = int(float(rand(())) * (height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height


def torch_passes(paths: list[pathlib.Path], workers: int) -> Callable[[], Any]:
    """The same of a DataLoader: worker processes start anew each time; their time counts once they ended."""
    import torch

    torch.set_num_threads(1)
    data = torch_dataset(paths)

    def run() -> None:
        for _ in torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=workers):
            pass

    return run


def write(files: list[bytes], folder: str) -> list[pathlib.Path]:
    """Writes the files as class folders and, from these, as the prepared data set."""
    paths = []
    for index, data in enumerate(files):
        for split in ("train", "val"):
            name = CLASSES[index % 2]
            path = pathlib.Path(folder, "raw", split, name, f"{name}_{split}_{index}.JPEG")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            if split == "train":
                paths.append(path)
    ImageNet().build(f"{folder}/prepared", f"{folder}/raw")
    return paths


def main() -> None:
    parser = measuring.parser(__doc__, rounds=7, seconds=0.5)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--readers", type=int, default=0, help="threads of ours, workers of theirs")
    options = parser.parse_args()
    count = options.images // BATCH * BATCH
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    files = [photograph(rng) for _ in range(count)]
    size = np.mean([len(file) for file in files]) / 1e3
    sides = {
        name: lambda decode=decode: [decode(file) for file in files[:BATCH]]
        for name, decode in decoders().items()
    }
    print(f"{measuring.header()}\ndecode one of {count} images of {size:.0f} KB after another:")
    spent = measuring.in_turns(sides, options.rounds, options.seconds)
    measuring.report(
        spent, next(name for name in ("simplejpeg", "OpenCV") if name in sides), "an image", BATCH
    )
    with tempfile.TemporaryDirectory() as folder:
        paths = write(files, folder)
        sides = {
            "ours, prepared": passes(f"{folder}/prepared", count, options.readers),
            "ours, class folders": passes(f"{folder}/raw", count, options.readers),
        }
        try:
            sides = {"DataLoader": torch_passes(paths, options.readers), **sides}
        except ImportError:
            print("  (torch is not installed)")
        spent = measuring.in_turns(sides, options.rounds, 0, settle=False)
    print(f"read, decode, crop, flip, resize to 224, normalise, {options.readers} readers:")
    measuring.report(spent, next(iter(sides)), "an image", count)


if __name__ == "__main__":
    main()

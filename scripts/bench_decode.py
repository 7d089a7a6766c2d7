"""Images a second per core: JPEG decoders alone, our training pipeline, and a PyTorch DataLoader.

    python scripts/bench_decode.py                 # about two minutes on two cores
    python scripts/bench_decode.py --images 512

Everything runs on the same synthetic photographs (500 x 375, 4:2:0, quality 90, about 112 KB, the size
of ImageNet's), in one process after another. "per core" is images per second of processor time, in all
threads and worker processes, so that other work on the machine disturbs it little. The DataLoader does
what torchvision does (RandomResizedCrop, flip, ToTensor, Normalize on Pillow images), written out here
because torchvision is not needed for anything else. Decoders and torch that are not installed are
left out.
"""

from __future__ import annotations

import argparse
import importlib
import io
import itertools
import math
import pathlib
import resource
import tempfile
import time
from collections.abc import Callable

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


def processor_seconds() -> float:
    usage = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def line(name: str, count: int, wall: float, cpu: float) -> float:
    print(f"  {name:<42}{count / wall:>9.0f} images/s {count / cpu:>9.0f} per core")
    return count / cpu


def best(name: str, count: int, run: Callable[[], None], repeats: int = 3) -> float:
    timings = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), processor_seconds()
        run()
        timings.append((processor_seconds() - cpu, time.perf_counter() - wall))
    cpu, wall = min(timings)
    return line(name, count, wall, cpu)


def bench_decoders(files: list[bytes]) -> dict[str, float]:
    print("decode one image after another:")
    return {
        name: best(name, len(files), lambda d=decode: [d(f) for f in files] and None)
        for name, decode in decoders().items()
    }


def bench_ours(folder: str, count: int, threads: int) -> float:
    batches = ImageNet().train(folder).batched(BATCH).stream(threads=threads)
    for _ in itertools.islice(batches, 2):  # opens the files, fills the pipeline
        pass

    def run() -> None:
        for _ in itertools.islice(batches, count // BATCH):
            pass

    return best(f"ours, {threads} threads", count // BATCH * BATCH, run)


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


def bench_torch(paths: list[pathlib.Path], workers: int) -> float:
    import torch

    torch.set_num_threads(1)
    data = torch_dataset(paths)

    def run() -> None:  # worker processes start anew each time; their time counts once they ended
        loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=workers)
        for _ in loader:
            pass

    return best(f"PyTorch DataLoader, num_workers={workers}", len(paths), run)


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
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=256)
    count = parser.parse_args().images
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    files = [photograph(rng) for _ in range(count)]
    print(
        f"{count} images of {np.mean([len(f) for f in files]) / 1e3:.0f} KB, OpenCV {cv2.__version__}"
    )
    alone = bench_decoders(files)
    with tempfile.TemporaryDirectory() as folder:
        paths = write(files, folder)
        print("read, decode, crop, flip, resize to 224, normalise, batch of 64:")
        ours = {t: bench_ours(f"{folder}/prepared", 2 * count, t) for t in (0, 1, 2)}
        plain = bench_ours(f"{folder}/raw", 2 * count, 2)
        try:
            theirs = {w: bench_torch(paths, w) for w in (0, 2)}
        except ImportError:
            print("  (torch is not installed)")
            return
    limit = alone["ours, down to the crop"]
    print(
        f"ours / DataLoader per core: {ours[2] / max(theirs.values()):.2f} (prepared), "
        f"{plain / max(theirs.values()):.2f} (class folders)"
    )
    print(f"ours / its decoder alone: {ours[2] / limit:.2f}")


if __name__ == "__main__":
    main()

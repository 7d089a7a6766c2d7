"""Training records a second per core of the pipelines that work on pixels and voxels.

    python scripts/bench_input.py

RetinaNet's scenes are synthetic photographs of 1024 x 768 with seven boxes (Open Images' usual size and
mean), 3D U-Net's patches come from memory-mapped volumes of 200 x 344 x 344 voxels. By processor time, in
all threads, so that other work on the machine disturbs it little. `planning` takes its rates per core from
here; ResNet-50's is measured by bench_decode.py, DLRM's by bench_criteo.py.
"""

from __future__ import annotations

import itertools
import pathlib
import tempfile
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from bench_decode import photograph

from mlperf_jax.input_pipelines.kits19 import patches as kits19_patches
from mlperf_jax.input_pipelines.openimages import data_set as openimages, files

SECONDS = 8.0


def rate(record: Callable[[int], Any]) -> float:
    """Calls a processor-second, from the second call on."""
    record(0)
    begin, done = time.process_time(), 0
    for index in itertools.count(1):
        record(index)
        done = index
        if time.process_time() - begin > SECONDS:
            break
    return done / (time.process_time() - begin)


def scenes() -> float:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 700, (7, 2, 2)).astype(np.float32)
    boxes = np.concatenate([corners.min(1), corners.max(1) + 8], 1)
    label = np.arange(7, dtype=np.int32)
    photographs = [photograph(rng, 768, 1024) for _ in range(16)]
    read = openimages.TrainScene(openimages.EvalScene(800, 1024, 264))

    def record(index: int) -> dict[str, Any]:
        image = photographs[index % len(photographs)]
        scene = files.Scene(image, index, boxes, label, np.zeros(7, np.uint8))
        return read.random_map(scene, np.random.default_rng(index))

    return rate(record)


def patches(folder: pathlib.Path) -> float:
    shape, rng = (200, 344, 344), np.random.default_rng(0)
    volumes = []
    for case in range(4):
        image, label = folder / f"{case}_x.npy", folder / f"{case}_y.npy"
        np.save(image, rng.normal(size=shape).astype(np.float32))
        np.save(label, np.zeros(shape, np.uint8))
        box = kits19_patches.Box((60, 100, 120), (120, 180, 200))
        arrays = (np.load(path, mmap_mode="r") for path in (image, label))
        volumes.append(SimpleNamespace(image=next(arrays), label=next(arrays), boxes={1: (box,)}))
    patch = kits19_patches.Patch(128, 0.4, "reference")
    return rate(lambda i: patch.random_map(volumes[i % len(volumes)], np.random.default_rng(i)))


def main() -> None:
    print(f"retinanet: {scenes():.0f} images/s per core")
    with tempfile.TemporaryDirectory() as folder:
        print(f"unet3d: {patches(pathlib.Path(folder)):.0f} patches/s per core")


if __name__ == "__main__":
    main()

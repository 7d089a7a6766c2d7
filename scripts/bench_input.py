"""Training records a second and core that the pipelines make, beside two yardsticks.

    python scripts/bench_input.py --cores 1                  # all; two minutes, 1 GB of temporary disk
    python scripts/bench_input.py --cores 1 resnet dlrm

`planning` takes `records_per_core` from here. Rates are by processor time, yet they are those of one machine
on one day: its load alone moves them by half. So two fixed pieces of work take turns with each pipeline, and a
record's time is said in theirs too: a "JPEG" is one photograph of 500 x 375 decoded by simplejpeg, a "copy" is
64 MiB copied by NumPy. "supports" is the least rate of all rounds, cut to two digits.

resnet: such photographs to training crops of 224. retinanet: photographs of 1024 x 768 with seven boxes (Open
Images' usual size and mean). unet3d: patches of memory-mapped volumes of 200 x 344 x 344 voxels. dlrm: day
files of the official bag sizes from the page cache, checked. stable_diffusion: moments of 64 x 64 x 8 from the
page cache, with the bytes of their captions as tokens; CLIP's byte pairs come on top.
"""

from __future__ import annotations

import itertools
import pathlib
import pydoc
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import measuring

# isort: split

import bench_criteo
import bench_decode
import cv2
import numpy as np
import simplejpeg

from mlperf_jax.input_pipelines.imagenet import ImageNet
from mlperf_jax.input_pipelines.kits19 import patches as kits19_patches
from mlperf_jax.input_pipelines.laion import Laion, moments
from mlperf_jax.input_pipelines.openimages import data_set as openimages, files
from mlperf_jax.input_pipelines.tokenizers import clip_bpe

Side = tuple[Callable[[], Any], int]  # a call, and how many records it makes


def yardsticks() -> dict[str, Callable[[], Any]]:
    data = bench_decode.photograph(np.random.default_rng(0))
    source = np.ones(1 << 23)
    target = np.zeros_like(source)
    return {
        "JPEG": lambda: simplejpeg.decode_jpeg(data),
        "copy": lambda: np.copyto(target, source),
    }


def resnet(folder: pathlib.Path) -> Side:
    rng = np.random.default_rng(0)
    bench_decode.write([bench_decode.photograph(rng) for _ in range(128)], str(folder))
    rows = bench_decode.BATCH
    batches = ImageNet().train(f"{folder}/prepared").batched(rows).stream(threads=0)
    return lambda: next(batches), rows


def retinanet(folder: pathlib.Path) -> Side:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 700, (7, 2, 2)).astype(np.float32)
    boxes = np.concatenate([corners.min(1), corners.max(1) + 8], 1)
    label = np.arange(7, dtype=np.int32)
    photographs = [bench_decode.photograph(rng, 768, 1024) for _ in range(16)]
    read = openimages.TrainScene(openimages.EvalScene(800, 1024, 264))
    index = itertools.count()

    def record() -> dict[str, Any]:
        i = next(index)
        image = photographs[i % len(photographs)]
        scene = files.Scene(image, i, boxes, label, np.zeros(7, np.uint8))
        return read.random_map(scene, np.random.default_rng(i))

    return record, 1


def unet3d(folder: pathlib.Path) -> Side:
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
    index = itertools.count()

    def record() -> dict[str, Any]:
        i = next(index)
        return patch.random_map(volumes[i % len(volumes)], np.random.default_rng(i))

    return record, 1


def dlrm(folder: pathlib.Path) -> Side:
    days, _ = bench_criteo.write(folder, 400_000)
    batches = bench_criteo.stream(days)
    return lambda: next(batches), bench_criteo.BATCH


def stable_diffusion(folder: pathlib.Path) -> Side:
    array = np.random.default_rng(0).normal(size=(64, 64, 8)).astype(np.float32)
    lines = pydoc.render_doc(np.ndarray).splitlines()
    captions = [line.strip() for line in lines if 40 < len(line.strip()) < 80]
    clip_bpe.train(captions, 1024, folder / clip_bpe.VOCABULARY)
    said = itertools.cycle(caption.encode() for caption in captions)
    samples = ((f"{i:09d}", array, next(said)) for i in range(1024))
    moments.write_shard(folder / "00000.tar", samples)
    data = Laion(shards=1)
    data.build(folder)
    batches = data.train(folder).batched(256).stream(threads=0)
    return lambda: next(batches), 256


def supported(rate: float) -> int:
    """The rate, cut to two digits.

    >>> supported(3_678_901.0)
    3600000
    """
    step = 10 ** max(0, len(str(int(rate))) - 2)
    return int(rate) // step * step


def main() -> None:
    kinds = {side.__name__: side for side in (resnet, retinanet, unet3d, dlrm, stable_diffusion)}
    parser = measuring.parser(__doc__, rounds=9)
    parser.add_argument("kinds", nargs="*", choices=[*kinds, []], default=[])
    options = parser.parse_args()
    cv2.setNumThreads(1)
    print(measuring.header())
    for kind in options.kinds or kinds:
        with tempfile.TemporaryDirectory() as folder:
            call, records = kinds[kind](pathlib.Path(folder))
            sides = {kind: call, **yardsticks()}
            spent = measuring.in_turns(sides, options.rounds, options.seconds)
        rates = [records / seconds for seconds in spent[kind]]
        print(
            f"{kind}: {measuring.spread(rates)} records/s per core, supports {supported(min(rates)):,}"
        )
        for name in yardsticks():
            took = [value / records for value in measuring.ratios(spent, name, kind)]
            each = measuring.spread([1e6 * value for value in spent[name]])
            print(
                f"  a record takes {measuring.spread(took)} times a {name} of {each} us", flush=True
            )


if __name__ == "__main__":
    main()

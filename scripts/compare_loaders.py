"""The same rows from several loaders, side by side: processor time a row, the first batch, and memory.

    python scripts/compare_loaders.py jpeg              # some three minutes on two cores
    python scripts/compare_loaders.py tokens criteo
    python scripts/compare_loaders.py jpeg --batch 1024 --rounds 7

"pipeline" is `Split.batched(…).stream`, "grain" Grain's own `batch` over the very same rows. They take turns
in one process, a few batches each. The first batch (wall and processor time) and the most memory of the first
four are of a fresh process for each loader, again in turns.

jpeg: synthetic photographs (bench_decode.py), training crops of 224. tokens: windows of 8,192 of a Megatron
file, shuffled as Llama 3.1's. criteo: random clicks of the official bag sizes (bench_criteo.py).
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import measuring

# isort: split

import bench_criteo
import bench_decode
import cv2
import grain
import numpy as np

from mlperf_jax.input_pipelines import criteo, pipeline
from mlperf_jax.input_pipelines.criteo import files
from mlperf_jax.input_pipelines.criteo.click_log import ClickLog
from mlperf_jax.input_pipelines.imagenet import ImageNet
from mlperf_jax.input_pipelines.tokens import megatron
from mlperf_jax.input_pipelines.tokens.megatron_file import Writer

PHOTOGRAPHS, CLICKS, TOKENS = 128, 400_000, 1 << 24
KINDS = {"jpeg": 256, "tokens": 64, "criteo": 65_536}  # and their batch sizes
Loader = Callable[[int, int], Iterator[Any]]  # (batch size, threads)


# -- what is read --------------------------------------------------------------------------------


def write(kind: str, folder: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    if kind == "jpeg":
        bench_decode.write([bench_decode.photograph(rng) for _ in range(PHOTOGRAPHS)], str(folder))
    elif kind == "criteo":
        bench_criteo.write(folder, CLICKS)
    else:
        with Writer(folder / "tokens", np.int32) as writer:
            for _ in range(TOKENS >> 10):
                writer.add(rng.integers(0, 128_000, 1024, np.int32))


def opened(kind: str, folder: pathlib.Path) -> pipeline.Split:
    """The training data."""
    if kind == "jpeg":
        return ImageNet().train(f"{folder}/prepared")
    if kind == "criteo":
        part = files.open_day(str(folder), 0, criteo.BAGS)
        log = ClickLog((part,), criteo.ROWS, criteo.BAGS)
        return pipeline.training(log, shuffle=False)
    windows = megatron.GptTraining((f"{folder}/tokens",), 8192, 100_000, vocabulary=128_000)
    return pipeline.training(windows, shuffle=False)


def loaders(kind: str, folder: pathlib.Path) -> dict[str, Loader]:
    """By name."""
    data = opened(kind, folder)
    return {
        "pipeline": lambda b, t: data.batched(b).stream(threads=t),
        "grain": lambda b, t: _grain(data.batched(b), b, t),
    }


def _grain(batches: pipeline.Batches, rows: int, threads: int) -> Iterator[Any]:
    """A thread builds a whole batch, so each needs one to work on."""
    options = grain.ReadOptions(threads, max(threads, 1) if threads else 0)
    return iter(batches.rows[0].batch(rows, drop_remainder=True).to_iter_dataset(options))


# -- in turns --------------------------------------------------------------------------------------


def compare(kind: str, folder: pathlib.Path, options: argparse.Namespace) -> None:
    rows, threads = options.batch or KINDS[kind], options.threads
    started = {name: make(rows, threads) for name, make in loaders(kind, folder).items()}
    sides = {name: lambda batches=batches: next(batches) for name, batches in started.items()}
    spent = measuring.in_turns(sides, options.rounds, options.seconds)
    print(f"{kind}: {rows} rows a batch, {threads} threads")
    measuring.report(spent, "grain", "a row", rows)


def fresh(kind: str, folder: pathlib.Path, options: argparse.Namespace) -> None:
    rows = options.batch or KINDS[kind]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in loaders(kind, folder)}
    for _, name in measuring.turns(tuple(found), options.rounds):
        words = ["--child", name, "--folder", str(folder), "--batch", str(rows)]
        words += ["--threads", str(options.threads), kind]
        said = subprocess.run(
            [sys.executable, __file__, *words], check=True, capture_output=True, text=True
        )
        found[name].append(json.loads(said.stdout.splitlines()[-1]))
    print(f"{kind}: of a fresh process")
    for key, what in (
        ("wall", "s to the first batch by the clock"),
        ("cpu", "s of processor time to it"),
        ("memory", "MB more at most for four"),
    ):
        spent = {name: [each[key] for each in every] for name, every in found.items()}
        for name, values in spent.items():
            print(f"  {name:10} {measuring.spread(values):>24} {what}")
        less = measuring.spread(measuring.ratios(spent, "pipeline", "grain"))
        print(f"  grain / pipeline {less}", flush=True)


def child(kind: str, options: argparse.Namespace) -> None:
    batches = loaders(kind, pathlib.Path(options.folder))[options.child](
        options.batch, options.threads
    )
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak of imports is forgotten
    before, wall, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    _kept = next(batches)
    said = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    for _kept in itertools.islice(batches, 3):  # one is held while the next is made, as by a step
        time.sleep(said["wall"] / 2)
    print(json.dumps({**said, "memory": memory("VmHWM") - before}))


def memory(what: str) -> float:
    """Of this process, in MB; Linux alone says it."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(what))


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    parser.add_argument("--batch", type=int, help="rows of a batch; each kind has its own default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    if options.child:
        child(options.kinds[0], options)
        return
    print(measuring.header())
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as name:
            write(kind, pathlib.Path(name))
            compare(kind, pathlib.Path(name), options)
            fresh(kind, pathlib.Path(name), options)


if __name__ == "__main__":
    main()

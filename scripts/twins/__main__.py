"""The training step that `mlperf-jax bench --all` measured, in PyTorch: `python scripts/twins ROW.json OUT.json [--no-compiled]`.

    mlperf-jax bench --all --twins scripts/twins --variants --json card.json

ROW.json is the report of our step; the twin is made of its configuration: the same layers, whose trained weights must be as
many as ours, the same batch, the same optimizer at a constant rate, weights in float32 and autocast where ours computes
in bfloat16. On CUDA it is compiled (repeated layers once), convolutions lie channels last, and attention is PyTorch's own,
which is flash attention where it can be. On a CPU it runs eagerly. Each file here is the twin of one kind of model, in plain
PyTorch or `transformers`, as one would write it by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
os.environ["JAX_PLATFORMS"] = "cpu"  # the device is PyTorch's

import numpy as np
import torch

from mlperf_jax.benchmarks import registry
from mlperf_jax.core.bench import Passes
from mlperf_jax.core.bench_all import SECONDS
from scripts.twins.step import TWINS, Twin


def measured(row: dict[str, Any], compiled: bool) -> dict[str, Any]:
    """The twin of a report, as a report."""
    given = registry.benchmark_class(row["benchmark"]).from_config(row["config"])
    twin = Twin(given, compiled=compiled)
    if twin.parameters != row["parameters"]:
        sys.exit(f"the twin has {twin.parameters:,} weights and ours {row['parameters']:,}")

    def window(steps: int) -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            twin.step()
        twin.wait()
        return (time.perf_counter() - begin) / steps

    first = window(1)
    loss = float(twin.step())
    if not np.isfinite(loss):
        sys.exit(f"the twin's loss is {loss}")
    warmup = max(1, row["warmup"])
    limits = Passes(row["steps"], warmup, SECONDS, evaluation=False, memory=None)
    steps = limits.within(window(warmup))
    seconds = window(steps)
    rate = given.batch_size / seconds
    return {
        "benchmark": row["benchmark"],
        "batch_size": given.batch_size,
        "parameters": twin.parameters,
        "dtype": given.dtype,
        "steps": steps,
        "step_seconds": seconds,
        "examples_per_second": rate,
        "mfu": row["mfu"] and row["mfu"] * rate / row["examples_per_second"],
        "memory_bytes": torch.cuda.max_memory_allocated() if twin.device == "cuda" else None,
        "compile_seconds_train": first,
        "loss": loss,
        "note": twin.note,
        "versions": {"torch": torch.__version__},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("row", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument(
        "--compiled",
        action=argparse.BooleanOptionalAction,
        default=torch.cuda.is_available(),
        help="with torch.compile; by default where CUDA is",
    )
    arguments = parser.parse_args()
    row = json.loads(arguments.row.read_text())
    if row["benchmark"] not in TWINS:
        sys.exit(f"{row['benchmark']} has no twin")
    arguments.out.write_text(json.dumps(measured(row, arguments.compiled), indent=2) + "\n")


if __name__ == "__main__":
    main()

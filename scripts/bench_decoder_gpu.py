"""Times a Llama-shaped train step at 8,192 tokens in bfloat16 beside the same model in PyTorch.

Ours is the step that `run` compiles, measured by `core.bench`. PyTorch's half is torch.compile with
bfloat16 autocast and scaled_dot_product_attention, which takes flash attention or the script ends. Both
do the same work: loss, gradients, clipping, AdamW over float32 parameters; MFU counts the model's FLOPs
(`DecoderConfig.flops_per_token`, the causal half of attention, no recomputation) in both.

    python scripts/bench_decoder_gpu.py [--shape 1b] [--batch 1] [--remat attention] [--json FILE]
    JAX_PLATFORMS=cpu python scripts/bench_decoder_gpu.py --shape tiny       # both halves run, anywhere

The halves run one after the other, each in a process of its own, as one framework's memory pool leaves
the other no room; they take `--rounds` turns, by the clock, as a GPU's work takes no processor time. On one
H200 the bars are 45 % MFU and 1.0 times PyTorch: the exit code is 1 when a GPU misses one.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

import measuring

from mlperf_jax.core import peaks
from mlperf_jax.models.decoder_config import DecoderConfig, RopeScaling

MFU_BAR, RATIO_BAR = 0.45, 1.0


def shapes() -> dict[str, tuple[DecoderConfig, int]]:
    """Name -> model and tokens of a sequence; 1b and 3b are Llama 3.2's, with their tied heads."""
    eight = DecoderConfig.llama31_8b()
    scaled = RopeScaling(factor=32.0)
    return {
        "8b": (eight, 8192),
        "3b": (
            eight.replace(
                layers=28, width=3072, heads=24, hidden=8192, rope_scaling=scaled, tied=True
            ),
            8192,
        ),
        "1b": (
            eight.replace(
                layers=16, width=2048, head_dim=64, hidden=8192, rope_scaling=scaled, tied=True
            ),
            8192,
        ),
        "tiny": (
            eight.replace(
                layers=2, width=64, heads=4, kv_heads=2, head_dim=16, hidden=192, vocab=512
            ),
            128,
        ),
    }


def chosen(arguments: argparse.Namespace) -> tuple[DecoderConfig, int]:
    config, tokens = shapes()[arguments.shape]
    remat = None if arguments.remat == "none" else arguments.remat
    return config.replace(remat=remat), tokens


# -- the halves, each in its own process -----------------------------------------------------------


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    import decoder_twin

    from mlperf_jax.core import bench
    from mlperf_jax.core.options import RunOptions

    config, tokens = chosen(arguments)
    benchmark = decoder_twin.Step(
        decoder=config, tokens=tokens, batch_size=arguments.batch, dtype=arguments.dtype
    )
    found = bench.bench(
        benchmark,
        RunOptions(mesh="data=1", seed=0),
        steps=arguments.steps,
        warmup=arguments.warmup,
    )
    return {
        "device": found.device,
        "step_seconds": found.step_seconds,
        "memory_bytes": found.memory_bytes,
        "compile_seconds": found.compile_seconds_train,
        "versions": found.versions,
    }


def theirs(arguments: argparse.Namespace) -> dict[str, Any]:
    import decoder_twin
    import torch
    from torch.nn import attention

    config, tokens = chosen(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stepper = decoder_twin.TwinStepper(
        config, device=device, dtype=arguments.dtype, compiled=not arguments.eager
    )
    batch = stepper.place(decoder_twin.random_batch(config, arguments.batch, tokens))
    torch.set_float32_matmul_precision("high")
    # grouped heads and a causal mask are what flash attention takes; anything else is an error
    backends = attention.SDPBackend.FLASH_ATTENTION
    with attention.sdpa_kernel(backends):
        begin = time.perf_counter()
        stepper.step(batch)
        stepper.wait()
        first = time.perf_counter() - begin
        for _ in range(arguments.warmup):
            stepper.step(batch)
        stepper.wait()
        begin = time.perf_counter()
        for _ in range(arguments.steps):
            stepper.step(batch)
        stepper.wait()
        seconds = (time.perf_counter() - begin) / arguments.steps
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "step_seconds": seconds,
        "memory_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "compile_seconds": first,
        "versions": {"torch": torch.__version__},
    }


def measured(half: str) -> dict[str, Any]:
    """One half's figures, from a child with this one's arguments."""
    command = [sys.executable, __file__, *sys.argv[1:], "--half", half]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"the half {half!r} ended with exit code {done.returncode}; its words are above")
    return json.loads(done.stdout.splitlines()[-1])


# -- both ------------------------------------------------------------------------------------------


def summary(arguments: argparse.Namespace, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The medians of both halves, their MFU, and what was measured."""
    config, tokens = chosen(arguments)
    flops = tokens * config.flops_per_token(tokens)
    report: dict[str, Any] = {
        "shape": arguments.shape,
        "matrix_parameters": config.matrix_parameters,
        "batch": arguments.batch,
        "tokens": tokens,
        "dtype": arguments.dtype,
        "remat": arguments.remat,
        "teraflops_per_step": flops * arguments.batch / 1e12,
    }
    for half, found in runs.items():
        each = [run["step_seconds"] for run in found]
        rate = arguments.batch / statistics.median(each)
        device = found[0]["device"]
        report[half] = {
            **found[-1],
            "step_seconds": statistics.median(each),
            "step_seconds_each": each,
            "tokens_per_second": rate * tokens,
            "mfu": peaks.utilisation(flops, rate, device, 1, arguments.dtype),
        }
    spent = {half: [run["step_seconds"] for run in found] for half, found in runs.items()}
    report["ratios"] = measuring.ratios(spent, "ours", "torch")
    report["ratio"] = statistics.median(report["ratios"])
    return report


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    head = (
        f"Llama {report['shape']}, {report['batch']} x {report['tokens']:,} tokens, {report['dtype']}, "
        f"remat {report['remat']}, on {report['ours']['device']}"
    )
    lines = [head, f"{'':6}{'ms a step':>12}{'tokens/s':>12}{'MFU':>8}{'GiB':>8}{'first s':>9}"]
    for half in ("ours", "torch"):
        row = report[half]
        mfu = "-" if row["mfu"] is None else f"{100 * row['mfu']:.1f} %"
        memory = "-" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 2**30:.1f}"
        lines.append(
            f"{half:6}{1e3 * row['step_seconds']:12.2f}{row['tokens_per_second']:12,.0f}{mfu:>8}"
            f"{memory:>8}{row['compile_seconds']:9.1f}"
        )
    return "\n".join([*lines, f"{measuring.spread(report['ratios'])} times as fast as PyTorch"])


def parse() -> argparse.Namespace:
    parser = measuring.parser(__doc__, seconds=None)
    parser.add_argument("--shape", choices=tuple(shapes()), default="1b")
    parser.add_argument("--batch", type=int, default=1, help="sequences of a step")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--remat", choices=("none", "attention", "full"), default="attention")
    for name, value in (("steps", 10), ("warmup", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--eager", action="store_true", help="PyTorch without torch.compile")
    parser.add_argument("--json", type=pathlib.Path, help="where the report is written too")
    parser.add_argument("--half", choices=("ours", "torch"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.half:
        found = ours(arguments) if arguments.half == "ours" else theirs(arguments)
        print(json.dumps(found))
        return
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "torch": []}
    for _, half in measuring.turns(tuple(runs), arguments.rounds):
        runs[half].append(measured(half))
    report = summary(arguments, runs)
    print(table(report))
    print(json.dumps(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    mfu = report["ours"]["mfu"]
    sys.exit(mfu is not None and (mfu < MFU_BAR or report["ratio"] < RATIO_BAR))


if __name__ == "__main__":
    main()

"""Times the tiny decoder's train step beside the same model in PyTorch eager, on a CPU.

Both halves hold the same weights, take the same batch and do the same work: loss, gradients, clipping,
AdamW, all in float32. Ours is the step that `run` compiles. The halves take turns, so that whatever
else the machine does hits both. Each turn begins with a step that is not counted, in which the other
half's threads come to rest.

    python scripts/compare_decoder_torch.py [--kind llama] [--steps 10] [--repeats 9] [--cores 1]

On a machine with other work only `--cores 1` and processor time say something: PyTorch's threads wait
for each other after every operation, and those of a busy machine wait long. Ends with exit code 1 when
ours is slower than PyTorch, by the median of the turns' ratios.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

if "--cores" in sys.argv:  # before either half starts its threads
    os.sched_setaffinity(0, range(int(sys.argv[sys.argv.index("--cores") + 1])))

import decoder_twin
import jax
import torch

from mlperf_jax.core import bench, loop, mesh as meshes, state as states
from mlperf_jax.models.decoder_config import DecoderConfig, RopeScaling
from mlperf_jax.optimizers.tree import ParamTree

SAME = 1e-4  # how far the losses of the same weights may lie apart


def decoder(arguments: argparse.Namespace) -> DecoderConfig:
    """A Llama (rope with 3.1's scaling, grouped queries) or a GPT3 of the sizes asked for."""
    a = arguments
    llama = DecoderConfig(
        layers=a.layers,
        width=a.width,
        heads=a.heads,
        kv_heads=max(1, a.heads // 2),
        head_dim=a.width // a.heads,
        hidden=3 * a.width,
        vocab=a.vocab,
        rope_theta=500_000.0,
        rope_scaling=RopeScaling(),
        remat=None if a.remat == "none" else a.remat,
    )
    if a.kind == "llama":
        return llama
    return llama.replace(
        kv_heads=a.heads,
        hidden=4 * a.width,
        positions="learned",
        max_positions=a.tokens,
        norm="layer_offset",
        feed_forward="gelu",
        bias=True,
        tied=True,
    )


class Ours:
    """The compiled step of the core on one device, and its state."""

    def __init__(self, benchmark: decoder_twin.Step, batch: Any):
        mesh = meshes.make_mesh("data=1")
        assembly = states.assemble(benchmark, mesh)
        key = jax.device_put(jax.random.key(0), meshes.replicated(mesh))
        self.stepper = bench.Stepper(loop.compile_train(assembly), assembly.create(0), key)
        self.parameters = ParamTree.from_params(assembly.abstract["params"]).count()
        self.batch = jax.device_put(batch, meshes.batch_sharding(mesh))

    def step(self) -> Any:
        return self.stepper.step(self.batch)

    def wait(self) -> None:
        jax.block_until_ready(self.stepper.state)


def milliseconds(
    step: Callable[[], Any], wait: Callable[[], None], steps: int
) -> tuple[float, float]:
    """Of one step, by the clock and on all processors; the mean of `steps` after one not counted."""
    step()
    wait()
    begin = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    wait()
    end = time.perf_counter(), time.process_time()
    return (end[0] - begin[0]) / steps * 1e3, (end[1] - begin[1]) / steps * 1e3


def report(what: str, found: dict[str, list[tuple[float, float]]], kind: int) -> float:
    """Prints one kind of time of both halves; returns how many times as fast ours is."""
    ours, theirs = ([times[kind] for times in found[name]] for name in ("ours", "torch"))
    ratios = [b / a for a, b in zip(ours, theirs)]
    print(what)
    for name, values, unit in (
        ("ours", ours, "ms a step"),
        ("torch", theirs, "ms a step"),
        ("ratio", ratios, "times as fast as PyTorch eager"),
    ):
        middle = statistics.median(values)
        print(f"  {name:6} {middle:8.2f} {unit} ({min(values):.2f} … {max(values):.2f})")
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kind", choices=("llama", "gpt3"), default="llama")
    for name, value in (("layers", 3), ("width", 128), ("heads", 4), ("vocab", 1024)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("tokens", 128), ("batch", 16), ("steps", 10), ("repeats", 9)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--remat",
        choices=("none", "full", "attention", "dots", "dots_no_batch"),
        default="full",
        help="what ours recomputes; new memory for what is kept costs a CPU more than that",
    )
    parser.add_argument("--cores", type=int, help="take only so many; default all")
    arguments = parser.parse_args()
    config = decoder(arguments)

    batch = decoder_twin.random_batch(config, arguments.batch, arguments.tokens)
    benchmark = decoder_twin.Step(
        decoder=config, tokens=arguments.tokens, batch_size=arguments.batch, dtype="float32"
    )
    ours = Ours(benchmark, batch)
    theirs = decoder_twin.TwinStepper(config.replace(remat=None), device="cpu")
    theirs.load(decoder_twin.exported(ours.stepper.state["params"], config))
    placed = theirs.place(batch)
    assert ours.parameters == theirs.parameters, (ours.parameters, theirs.parameters)
    print(
        f"python {platform.python_version()}, jax {jax.__version__}, torch {torch.__version__}, "
        f"{len(os.sched_getaffinity(0))} cores\n"
        f"{arguments.kind}, {config.layers} layers of {config.width}, {config.vocab} vocabulary rows, "
        f"{arguments.batch} x {arguments.tokens} tokens, float32: {ours.parameters:,} parameters in both"
    )
    for number in range(3):  # the same weights, and the same ones again after each update
        pair = float(ours.step()), float(theirs.step(placed))
        print(f"loss of step {number}: ours {pair[0]:.6f}, torch {pair[1]:.6f}")
        assert abs(pair[0] - pair[1]) < SAME, "the two halves do not compute the same"

    found: dict[str, list[tuple[float, float]]] = {"ours": [], "torch": []}
    for repeat in range(-1, arguments.repeats):  # the first turn warms up
        times = {
            "ours": milliseconds(ours.step, ours.wait, arguments.steps),
            "torch": milliseconds(lambda: theirs.step(placed), theirs.wait, arguments.steps),
        }
        for name in found if repeat >= 0 else ():
            found[name].append(times[name])
    report("processor time", found, 1)
    sys.exit(report("by the clock", found, 0) < 1)


if __name__ == "__main__":
    main()

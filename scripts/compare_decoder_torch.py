"""Times the tiny decoder's train step beside the same model in PyTorch, eager and compiled, on a CPU.

Both halves hold the same weights, take the same batch and do the same work: loss, gradients, clipping,
AdamW, all in float32. Ours is the step that `run` compiles.

    python scripts/compare_decoder_torch.py --cores 1                     # a Llama of 3 layers, width 128
    python scripts/compare_decoder_torch.py --cores 1 --kind gpt3 --layers 2 --width 96 --tokens 64

`--compiled` adds a side: the loss and its gradients by `torch.compile`, which needs a C++ compiler.
Ends with exit code 1 when ours is slower than PyTorch eager, by the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from typing import Any

import measuring

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import optax

from mlperf_jax import benchmarks
from mlperf_jax.core import bench, loop, mesh as meshes, state as states, synthetic
from scripts.twins import decoder, training
from scripts.twins.step import Twin

SAME = 1e-4  # how far the losses of the same weights may lie apart


def benchmark(arguments: argparse.Namespace) -> Any:
    """A Llama 3.1 (grouped queries) or a GPT3 of the sizes asked for."""
    a = arguments
    llama = a.kind == "llama"
    sizes = {
        "layers": a.layers,
        "width": a.width,
        "heads": a.heads,
        "kv_heads": max(1, a.heads // 2) if llama else a.heads,
        "head_dim": a.width // a.heads,
        "hidden": (3 if llama else 4) * a.width,
        "vocab": a.vocab,
        "sequence_length": a.tokens,
        "batch_size": a.batch,
        "remat": None if a.remat == "none" else a.remat,
        "dtype": "float32",
    }
    if llama:
        return benchmarks.get("llama31_8b", **sizes)
    return benchmarks.get("gpt3", **sizes, max_positions=a.tokens)


class Ours:
    """The compiled step of the core on one device, and its state; AdamW at the twin's rate."""

    def __init__(self, given: Any) -> None:
        mesh = meshes.make_mesh("data=1")
        adamw = optax.adamw(
            training.RATE,
            given.beta_1,
            given.beta_2,
            given.epsilon,
            weight_decay=given.weight_decay,
        )
        assembly = states.assemble(given, mesh, adamw)
        key = jax.device_put(jax.random.key(0), meshes.replicated(mesh))
        self.stepper = bench.Stepper(loop.compile_train(assembly), assembly.create(0), key)
        self.parameters = bench.trained_parameters(assembly)
        (self.batch,) = synthetic.batches(given, given.buckets(), mesh)

    def step(self) -> Any:
        return self.stepper.step(self.batch)

    def wait(self) -> None:
        jax.block_until_ready(self.stepper.state)


def main() -> None:
    parser = measuring.parser(__doc__, rounds=9)
    parser.add_argument("--kind", choices=("llama", "gpt3"), default="llama")
    for name, value in (("layers", 3), ("width", 128), ("heads", 4), ("vocab", 1024)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("tokens", 128), ("batch", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--remat",
        choices=("none", "full", "attention", "dots", "dots_no_batch"),
        default="full",
        help="what ours recomputes; new memory for what is kept costs a CPU more than that",
    )
    parser.add_argument("--compiled", action="store_true", help="beside torch.compile too")
    arguments = parser.parse_args()
    given = benchmark(arguments)
    ours = Ours(given)
    params = jax.tree.map(np.asarray, ours.stepper.state["params"])
    theirs = {}
    for name in ("PyTorch eager", "torch.compile")[: 1 + arguments.compiled]:
        twin = Twin(given.replace(remat=None), compiled=name == "torch.compile")
        decoder.load(twin.model, decoder.exported(params, given.decoder()))
        assert ours.parameters == twin.parameters, (ours.parameters, twin.parameters)
        theirs[name] = twin.step
    print(
        f"{measuring.header()}\n{arguments.kind}, {given.layers} layers of {given.width}, "
        f"{given.vocab} vocabulary rows, {arguments.batch} x {arguments.tokens} tokens, "
        f"remat {given.remat}, float32: {ours.parameters:,} parameters in both"
    )
    for number in range(3):  # the same weights, and the same ones again after each update
        losses = {"ours": float(ours.step())} | {k: float(step()) for k, step in theirs.items()}
        print(f"loss of step {number}:", *(f"{name} {loss:.6f}" for name, loss in losses.items()))
        apart = max(losses.values()) - min(losses.values())
        assert apart < SAME, "the sides do not compute the same"

    def our_step() -> None:
        ours.step()
        ours.wait()

    spent = measuring.in_turns(theirs | {"ours": our_step}, arguments.rounds, arguments.seconds)
    for name in theirs:
        measuring.report({k: spent[k] for k in (name, "ours")}, name, "a step")
    sys.exit(statistics.median(measuring.ratios(spent, "ours", "PyTorch eager")) < 1)


if __name__ == "__main__":
    main()

"""Times BERT's train step on packed rows, on padded ones, and the same model in PyTorch on padded ones.

    python scripts/bench_bert.py [--json FILE]                                # BERT-large in bfloat16, on a GPU
    JAX_PLATFORMS=cpu python scripts/bench_bert.py --size small --cores 1     # a small one, by processor time

All three take the same 448 sequences of 512 tokens at most, as long as those of Wikipedia are, in micro-batches, and
take turns in one process. Ours is the step that `run` compiles, without dropout, so that both halves give one loss,
which is checked. PyTorch's is the twin of scripts/twins, compiled on a GPU. `--no-twin` leaves it out; so does a machine without torch.

Steps are timed by the clock on an accelerator, by processor time on a CPU. The exit code is 1 when packing gains less
than 1.8 times, or a GPU is slower than PyTorch. 998 sequences/s and H200 is the best rate in the logs of rounds, of runs
without padding.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import measuring

# isort: split

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs room beside us

import jax
import numpy as np
import stepping

from mlperf_jax.benchmarks.bert import Bert
from mlperf_jax.input_pipelines.wikipedia import drawing, files

PACKING_BAR, RATIO_BAR, PUBLISHED = 1.8, 1.0, 998
SAME = {
    "float32": 1e-5,
    "bfloat16": 5e-3,
}  # how far two losses of the same weights and sequences may lie apart
SMALL = {"layers": 2, "width": 128, "heads": 2, "hidden": 512, "vocab": 8192}
RECORDS = 4096


def benchmark(arguments: argparse.Namespace) -> Bert:
    """The recipe for 448, of the size that is asked for, without dropout."""
    sizes = SMALL if arguments.size == "small" else {}
    return Bert(
        **sizes,
        dropout=0.0,
        batch_size=arguments.batch,
        gradient_accumulation_steps=arguments.micro_batches,
        dtype=arguments.dtype,
        remat=arguments.remat,
    )


def write_examples(folder: str, given: Bert) -> None:
    """Random sequences with the lengths of Wikipedia's, 0.15 of them masked."""
    rng, target = np.random.default_rng(0), pathlib.Path(folder) / "wikipedia"
    target.mkdir()
    lengths = drawing.lengths(RECORDS, rng, given.sequence_length).tolist()
    made = (drawing.example(rng, n, given.predictions, given.vocab) for n in lengths)
    files.write(files.part(target, "train", 0, 1), made, given.sequence_length, given.vocab)


def batch_of(given: Bert, folder: str) -> Any:
    """The first batch of training."""
    return given.data().train(folder).batched(given.rows, seed=0)[0]


def sides_of(arguments: argparse.Namespace, folder: str) -> Iterator[tuple[str, Any]]:
    given = benchmark(arguments)
    write_examples(folder, given)
    padded = given.replace(packed=False)
    yield "padded", stepping.Ours(padded, batch_of(padded, folder))
    yield "packed", stepping.Ours(given, batch_of(given, folder))
    if not arguments.no_twin and importlib.util.find_spec("torch"):
        from scripts.twins.step import Twin

        compiled = jax.default_backend() == "gpu" and not arguments.eager
        yield "PyTorch, padded", Twin(padded, batch_of(padded, folder), compiled=compiled)


def report(
    arguments: argparse.Namespace, sides: dict[str, Any], spent: measuring.Spent
) -> dict[str, Any]:
    """What was measured: seconds, sequences a second, ratios, shares of peaks."""
    given, device = benchmark(arguments), jax.devices()[0].device_kind
    found: dict[str, Any] = {"header": measuring.header(), "device": device, "command": sys.argv}
    for name, values in spent.items():
        # the work is that of real tokens, whoever computes more
        row = stepping.rates(given, values, PUBLISHED if arguments.size == "large" else None)
        found[name] = {"rows": sides[name].rows, **row}
    found["losses"] = {name: sides[name].loss for name in ("padded", "packed")}
    found["gains"] = {
        f"packed over {name}": measuring.ratios(spent, "packed", name)
        for name in spent
        if name != "packed"
    }
    return found


def show(found: dict[str, Any]) -> None:
    print(f"{found['header']}, {found['device']}")
    for name, row in found.items():
        if isinstance(row, dict) and "rows" in row:
            print(stepping.told(name, row, "sequences"))
    print("  losses: " + ", ".join(f"{name} {loss:.6f}" for name, loss in found["losses"].items()))
    for name, values in found["gains"].items():
        print(f"  {name}: {measuring.spread(values)} times as fast")


def main() -> None:
    parser = stepping.parser(__doc__)
    parser.add_argument("--size", choices=("large", "small"), default="large")
    parser.add_argument("--batch", type=int, default=448, help="sequences of a step")
    parser.add_argument("--micro-batches", type=int, default=8)
    arguments = stepping.given(parser)
    with tempfile.TemporaryDirectory() as folder:
        sides = dict(sides_of(arguments, folder))
        spent = stepping.timed(sides, arguments.rounds, arguments.steps)
        found = report(arguments, sides, spent)
    show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    one, other = found["losses"].values()
    if abs(one - other) > SAME[arguments.dtype] * abs(one):
        sys.exit(f"the losses differ: {one} and {other}")
    gains = {name: statistics.median(values) for name, values in found["gains"].items()}
    on_gpu = jax.default_backend() == "gpu"
    slower = on_gpu and gains.get("packed over PyTorch, padded", RATIO_BAR) < RATIO_BAR
    sys.exit(int(gains["packed over padded"] < PACKING_BAR or slower))


if __name__ == "__main__":
    main()

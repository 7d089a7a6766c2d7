"""What the scripts share that time whole train steps beside another library's: our compiled step, and turns of steps."""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import measuring

# isort: split

import jax
import numpy as np

from mlperf_jax.core import bench, evaluation, mesh as meshes, peaks, state as states, step as train
from mlperf_jax.core.benchmark import Benchmark


def parser(doc: str | None) -> argparse.ArgumentParser:
    """With the options that every script has that times steps beside PyTorch's."""
    made = measuring.parser(doc, seconds=None)
    made.add_argument("--dtype", choices=("bfloat16", "float32"))
    made.add_argument("--remat", default="none", help="default none, as one device has room")
    made.add_argument("--steps", type=int, help="of a turn; default 5, of the small size 1")
    made.add_argument("--no-twin", action="store_true", help="ours alone")
    made.add_argument("--eager", action="store_true", help="PyTorch without torch.compile")
    made.add_argument("--json", type=pathlib.Path, help="where the report is written too")
    return made


def given(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, those left out as they are for the size."""
    arguments = parser.parse_args()
    small = arguments.size == "small"
    arguments.dtype = arguments.dtype or ("float32" if small else "bfloat16")
    arguments.steps = arguments.steps or (1 if small else 5)
    arguments.remat = None if arguments.remat == "none" else arguments.remat
    return arguments


class Ours:
    """The compiled step on one device, as `run` compiles it; the loss of its first step."""

    def __init__(self, given: Benchmark, batch: Mapping[str, np.ndarray]) -> None:
        mesh = meshes.make_mesh("data=1")
        assembly = states.assemble(given, mesh)
        key = jax.device_put(jax.random.key(0), meshes.replicated(mesh))
        self.rows = len(next(iter(batch.values())))
        self.batch = jax.device_put(dict(batch), meshes.batch_sharding(mesh))
        jitted = train.jit_train_step(assembly)
        program = assembly.compile(jitted, assembly.abstract, self.batch, key)
        programs = {evaluation.shape_key(self.batch): program}
        self.stepper = bench.Stepper(programs, assembly.create(0), key)
        self.loss = float(self.step())

    def step(self) -> Any:
        return self.stepper.step(self.batch)

    def wait(self) -> None:
        jax.block_until_ready(self.stepper.state)


def timed(sides: Mapping[str, Any], rounds: int, steps: int) -> measuring.Spent:
    """Seconds a step of each side, a value for each round; each turn begins with a step that is not counted.

    By the clock on an accelerator, by processor time on a CPU.

    Args:
        sides: have `step()` and `wait()`.
        rounds: turns of each.
        steps: of a turn.
    """
    clock: Callable[[], float] = time.perf_counter
    if jax.default_backend() == "cpu":
        clock = measuring.at_rest
    spent: measuring.Spent = {name: [] for name in sides}
    for _, name in measuring.turns(tuple(sides), rounds):
        side = sides[name]
        side.step()
        side.wait()
        begin = clock()
        for _ in range(steps):
            side.step()
        side.wait()
        spent[name].append((clock() - begin) / steps)
        print(f"  {name}: {spent[name][-1]:.4g} s", file=sys.stderr, flush=True)
    return spent


def rates(given: Benchmark, values: list[float], published: float | None) -> dict[str, Any]:
    """What a side's seconds a step amount to: samples a second, the share of a published rate, MFU."""
    rate = given.batch_size / statistics.median(values)
    device = jax.devices()[0].device_kind
    return {
        "step_seconds": values,
        "samples_per_second": rate,
        "published": published,
        "of_published": rate / published if published else None,
        "mfu": peaks.utilisation(given.flops_per_sample, rate, device, 1, given.dtype),
    }


def told(name: str, row: Mapping[str, Any], samples: str) -> str:
    """A side's line: its rows, seconds and rates."""
    share, mfu = row["of_published"], row["mfu"]
    parts = [
        f"  {name:16} {row['rows']} rows, {measuring.spread(row['step_seconds'])} s a step",
        f"{measuring.number(row['samples_per_second'])} {samples}/s",
        *([] if share is None else [f"{100 * share:.1f} % of {row['published']:g}"]),
        *([] if mfu is None else [f"MFU {100 * mfu:.1f} %"]),
    ]
    return ", ".join(parts)


def report(
    given: Benchmark, sides: Mapping[str, Any], spent: measuring.Spent, samples: str, published: Any
) -> dict[str, Any]:
    """What was found, with a line printed for each side."""
    device = jax.devices()[0].device_kind
    found: dict[str, Any] = {"header": measuring.header(), "device": device, "command": sys.argv}
    print(f"{found['header']}, {device}")
    for name, values in spent.items():
        found[name] = {"rows": sides[name].rows, **rates(given, values, published)}
        print(told(name, found[name], samples))
    return found


def end(
    arguments: argparse.Namespace, found: dict[str, Any], spent: measuring.Spent, twin: str
) -> NoReturn:
    """Tells how much faster ours is than its twin, if that took part, writes all down, and exits.

    The exit code is 1 when a GPU is slower with ours.
    """
    gains = measuring.ratios(spent, "ours", twin) if twin in spent else []
    if gains:
        found[f"ours over {twin}"] = gains
        print(f"  ours over {twin}: {measuring.spread(gains)} times as fast")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    on_gpu = jax.default_backend() == "gpu"
    sys.exit(int(on_gpu and bool(gains) and statistics.median(gains) < 1))

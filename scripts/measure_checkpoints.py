"""Measures what saving and restoring a checkpoint costs: GiB for a second of processor time.

Beside both, of as many bytes in the same run: a plain write of the host's memory with fsync, and a plain read into
memory that is there. What is saved are random numbers:

    resnet   the full-size benchmark's state: 430 leaves, most of them small.
    large    leaves of 64 MiB.

    python scripts/measure_checkpoints.py --cores 1 [--rounds 5] [--folder DIR]
"""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import measuring

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from mlperf_jax import benchmarks
from mlperf_jax.core import mesh as meshes, state as states
from mlperf_jax.core.checkpoints import Checkpoints

GIB = 2**30


def shapes_of(kind: str) -> Any:
    if kind == "large":
        return {f"leaf_{i}": jax.ShapeDtypeStruct((4096, 4096), np.float32) for i in range(4)}
    assembly = states.assemble(benchmarks.get("resnet", dtype="float32"), meshes.make_mesh(None))
    return assembly.kept(assembly.abstract)


def drawn(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    numbers = np.random.default_rng(0).normal(size=leaf.shape)
    return jax.device_put(np.asarray(numbers, leaf.dtype))


def sides(state: Any, folder: pathlib.Path, checkpoints: Checkpoints) -> dict[str, Callable]:
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    memory = np.zeros(size, np.uint8)
    memory[::512] = 1  # all of it is there
    plain, steps = folder / "plain", iter(range(1, 1_000_000))

    def save() -> None:
        checkpoints.save(next(steps), state, {})
        checkpoints.wait()

    def write() -> None:
        with open(plain, "wb", buffering=0) as file:
            file.write(memory.data)
            os.fsync(file.fileno())

    def read() -> None:
        with open(plain, "rb", buffering=0) as file:
            file.readinto(memory.data)

    return {
        "save": save,
        "plain write": write,
        "restore": lambda: checkpoints.restore(state),
        "plain read": read,
    }


def main() -> None:
    parser = measuring.parser(__doc__, seconds=0.5)
    parser.add_argument("--folder", help="whose disk is written to; default the temporary one")
    options = parser.parse_args()
    print(measuring.header())
    for kind in ("resnet", "large"):
        state = jax.tree.map(drawn, shapes_of(kind))
        leaves = jax.tree.leaves(state)
        size = sum(leaf.nbytes for leaf in leaves) / GIB
        print(f"{kind}: {len(leaves)} leaves, {size:.3f} GiB")
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            folder = pathlib.Path(name)
            with Checkpoints(folder / "checkpoints", keep=1, identity={"state": kind}) as made:
                called = sides(state, folder, made)
                for first in ("save", "plain write"):  # there is something to read
                    called[first]()
                spent = measuring.in_turns(called, options.rounds, options.seconds)
        for side, plain in (("save", "plain write"), ("restore", "plain read")):
            for name in (side, plain):
                rates = measuring.spread([size / seconds for seconds in spent[name]])
                print(f"  {name:12} {rates} GiB a processor second", flush=True)
            times = measuring.spread(measuring.ratios(spent, plain, side))
            print(f"  {side} takes {times} times as long as a {plain}")


if __name__ == "__main__":
    main()

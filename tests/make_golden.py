"""Writes tests/golden/<benchmark>.txt: what each leaf is, and where it lives on data=2, fsdp=4.

python tests/make_golden.py [NAME …]   # all by default
"""

import os
import pathlib
import sys
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

HERE = pathlib.Path(__file__).parent


def assembly(name: str) -> Any:
    """The full-size program on that mesh."""
    from mlperf_jax import benchmarks
    from mlperf_jax.core import mesh as meshes, preflight, state

    benchmark = preflight.resolve_dtype(benchmarks.get(name))
    return state.assemble(benchmark, meshes.make_mesh("data=2,fsdp=4"))


def describe(of: Any) -> str:
    """The parameter tree's table, then each leaf's sharding."""
    from mlperf_jax.optimizers import tree as trees

    lines = [str(of.tree), "", "sharding of what is not replicated on data=2, fsdp=4"]
    for path, leaf in trees.flatten_paths(of.abstract["params"]).items():
        if any(axis is not None for axis in leaf.sharding.spec):
            lines.append(f"{path} {tuple(leaf.sharding.spec)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    sys.path.insert(0, str(HERE.parent))  # of this checkout, whatever is installed
    from mlperf_jax import benchmarks

    (HERE / "golden").mkdir(exist_ok=True)
    for name in sys.argv[1:] or benchmarks.names():
        file = HERE / "golden" / f"{name}.txt"
        file.write_text(describe(assembly(name)))
        print(f"wrote {file}")

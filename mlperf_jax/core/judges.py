"""Networks that only judge (Inception for FID, CLIP, a target player): on the devices while an evaluation lasts.

They are seen from shapes alone until then, and belong to no state, gradient or checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from mlperf_jax.core import mesh as meshes, starts, state as states
from mlperf_jax.core.benchmark import Benchmark, Shape
from mlperf_jax.errors import UserError
from mlperf_jax.optimizers import tree as trees


@dataclass(frozen=True)
class Judges:
    """The judges of a benchmark without their arrays.

    Attributes:
        benchmark: whose.
        graphdef: the module's.
        abstract: shapes, dtypes and shardings of its arrays: "params" and "stats".
    """

    benchmark: Benchmark
    graphdef: nnx.GraphDef
    abstract: states.State

    def module(self, arrays: states.State) -> nnx.Module:
        """The module in evaluation behaviour, holding these arrays."""
        return states.in_evaluation(
            states.merge(self.graphdef, arrays.get("params", {}), {}, arrays.get("stats", {}))
        )

    def sources(self, data_dir: str) -> Mapping[str, starts.Source]:
        """Where each array comes from, by path; none is read.

        Raises:
            UserError: a file or an array is missing, or an array is not the module's.
        """
        given, wanted = self.benchmark.judge_weights(data_dir), trees.flatten_paths(self.abstract)
        for path in sorted({*given, *wanted}):
            if path not in given:
                raise UserError(
                    f"judge_weights lacks {path!r}: all arrays of a judge must be given"
                )
            if path not in wanted:
                raise UserError(f"judge_weights has {path!r}, which no judge has")
            shape = tuple(getattr(given[path], "shape", wanted[path].shape))
            if shape != wanted[path].shape:
                raise UserError(
                    f"judge_weights has {path!r} of shape {shape}, the judge {wanted[path].shape}"
                )
        return given

    def load(self, data_dir: str) -> states.State:
        """The arrays, each read straight onto the devices that hold it."""
        sources, leaves = self.sources(data_dir), trees.flatten_paths(self.abstract)
        return trees.unflatten({p: starts.read_leaf(p, leaves[p], sources[p]) for p in leaves})


def judges_of(benchmark: Benchmark, mesh: Mesh) -> Judges | None:
    """The judges that evaluations of this benchmark need, as they lie on the mesh; None for none."""
    found: dict[str, Any] = {}

    def shapes(key: jax.Array) -> states.State:
        module = benchmark.judges(nnx.Rngs(key))
        if module is None:
            return {}
        found["graphdef"], parts = states.split(module)
        return {part: arrays for part, arrays in parts.items() if arrays}

    def placed(path: str, leaf: Shape) -> Shape:
        spec = meshes.leaf_spec(path, leaf.shape, (), mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    with jax.set_mesh(mesh):
        parts = jax.eval_shape(shapes, states.abstract_key())
    if not found:
        return None
    return Judges(benchmark, found["graphdef"], trees.map_with_path(placed, parts))

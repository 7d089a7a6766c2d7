"""How programs over a mesh are compiled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

# A TPU's compiler gathers arrays while products run, if it is asked to. Flags of MaxText's for dense
# models; by the compiler's own cost model they save 12 % of Llama 3.1 8B's step over fsdp=32 of v6e.
_OVERLAP = {
    "xla_enable_async_all_gather": True,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
}


def options(mesh: Mesh) -> dict[str, Any]:
    """Options of the compiler for programs over this mesh; those in LIBTPU_INIT_ARGS are left to it."""
    gathers = mesh.shape.get("fsdp", 1) * mesh.shape.get("tensor", 1) > 1
    if mesh.devices.flat[0].platform != "tpu" or not gathers:
        return {}
    words = os.environ.get("LIBTPU_INIT_ARGS", "").split()
    given = {word.lstrip("-").partition("=")[0] for word in words}
    return {name: value for name, value in _OVERLAP.items() if name not in given}


def compiled(lowered: Any, wanted: Mapping[str, Any]) -> Any:
    """The program with these options; without, by a compiler that does not know one of them."""
    try:
        return lowered.compile(compiler_options=dict(wanted) or None)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return lowered.compile()

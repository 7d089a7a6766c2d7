"""How programs over a mesh are compiled."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping

import jax
from jax.experimental.compilation_cache import compilation_cache
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


# Where a device has fewer than eight rows a TPU's compiler makes rows out of parts of each image before it convolves,
# and copies them there and back. By its own account its convolutions want no such thing (jax 0.10.2, libtpu 0.0.42;
# RetinaNet's row in docs/plan.md). Each of these alone changes nothing.
_ROWS_AS_THEY_ARE = {
    "xla_tpu_run_space_to_batch": False,
    "xla_tpu_run_space_to_batch_after_spmd": False,
    "xla_tpu_run_space_to_batch_on_new_platforms": False,
}


# XLA:CPU gives products and sums to its library YNN. With some transposed sums, such as those of RetinaNet's
# step, the library reads where nothing is and the process dies (jaxlib 0.10.2, a processor without AVX-512).
_YNN = "xla_cpu_experimental_ynn_fusion_type"
_PRODUCTS_ALONE = {_YNN: "LIBRARY_FUSION_TYPE_DOT"}


def options(mesh: Mesh) -> dict[str, str | bool]:
    """Options of the compiler for programs over this mesh; those of XLA_FLAGS and LIBTPU_INIT_ARGS are left to it."""
    platform = mesh.devices.flat[0].platform
    if platform == "cpu":
        return {} if _YNN in os.environ.get("XLA_FLAGS", "") else dict(_PRODUCTS_ALONE)
    if platform != "tpu":
        return {}
    gathers = mesh.shape.get("fsdp", 1) * mesh.shape.get("tensor", 1) > 1
    wanted = _ROWS_AS_THEY_ARE | (_OVERLAP if gathers else {})
    words = os.environ.get("LIBTPU_INIT_ARGS", "").split()
    given = {word.lstrip("-").partition("=")[0] for word in words}
    return {name: value for name, value in wanted.items() if name not in given}


@functools.cache
def _knows(name: str, value: str | bool) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def known(wanted: Mapping[str, str | bool]) -> dict[str, str | bool]:
    """Those of the options that this process's compiler has."""
    return {name: value for name, value in wanted.items() if _knows(name, value)}


def compiled(lowered: jax.stages.Lowered, wanted: Mapping[str, str | bool]) -> jax.stages.Compiled:
    """The program with those of the options that the compiler knows."""
    try:
        return lowered.compile(compiler_options=dict(wanted) or None)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return lowered.compile(compiler_options=known(wanted) or None)


@contextlib.contextmanager
def safe_cache(mesh: Mesh) -> Iterator[None]:
    """Within it, JAX's compile cache is used unless programs from it could hang on this mesh.

    Over several CPU devices they could. Collectives must run in one order on all devices; a program that
    XLA:CPU has stored and read again keeps that order among those outside of loops, and among those in
    the body of one, but not between the two: one device may enter a loop while the others wait for it
    in front of it. Compiled anew, the loop waits (jaxlib 0.10.2, TF_CPP_VMODULE=thunk_executor=6).
    """
    on = getattr(jax.config, "jax_enable_compilation_cache", True)
    if mesh.devices.flat[0].platform != "cpu" or mesh.size == 1 or not on:
        yield
        return
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX asks once whether it has one
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()

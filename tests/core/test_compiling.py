"""Options of the compiler: where there is something to gather, unless the environment has a say."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from mlperf_jax.core import compiling, mesh

GATHER = "xla_enable_async_all_gather"
FUSION = "xla_tpu_enable_async_collective_fusion"


def tpus(**sizes):
    devices = np.full(tuple(sizes.values()), SimpleNamespace(platform="tpu"))
    return SimpleNamespace(devices=devices, shape=sizes)


def test_tpus_gather_beside_products_where_weights_or_activations_are_split():
    assert compiling.options(tpus(data=2, fsdp=4))[GATHER] is True
    assert compiling.options(tpus(data=2, tensor=2))[GATHER] is True
    assert compiling.options(tpus(data=8)) == {}
    assert compiling.options(mesh.make_mesh("fsdp=8")) == {}  # no TPU


def test_the_environment_goes_first(monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", f"--{FUSION}=false --xla_other=3")
    found = compiling.options(tpus(fsdp=4))
    assert FUSION not in found and f"{FUSION}_multiple_steps" in found


def test_a_compiler_that_does_not_know_an_option_does_without():
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    assert compiling.compiled(lowered, {"xla_tpu_no_such_option": True})(2.0) == 3


def test_other_errors_of_the_compiler_are_not_swallowed():
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    with pytest.raises(jax.errors.JaxRuntimeError):
        compiling.compiled(lowered, {"xla_cpu_parallel_codegen_split_count": "many"})

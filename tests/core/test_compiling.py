"""Options of the compiler, where there is something to gather; programs that must not come from a cache."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from jax.experimental.compilation_cache import compilation_cache

from mlperf_jax.core import compiling, mesh

GATHER = "xla_enable_async_all_gather"
FUSION = "xla_tpu_enable_async_collective_fusion"


def tpus(**sizes):
    devices = np.full(tuple(sizes.values()), SimpleNamespace(platform="tpu"))
    return SimpleNamespace(devices=devices, shape=sizes)


def test_tpus_gather_beside_products_where_weights_or_activations_are_split():
    assert compiling.options(tpus(data=2, fsdp=4))[GATHER] is True
    assert compiling.options(tpus(data=2, tensor=2))[GATHER] is True
    assert GATHER not in compiling.options(tpus(data=8))
    assert GATHER not in compiling.options(mesh.make_mesh("fsdp=8"))  # no TPU


def test_no_tpu_makes_rows_of_parts_of_images(monkeypatch):
    assert compiling.options(tpus(data=8))["xla_tpu_run_space_to_batch"] is False
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_run_space_to_batch=true")
    assert "xla_tpu_run_space_to_batch" not in compiling.options(tpus(data=8))


def test_sums_are_kept_from_a_library_that_reads_where_nothing_is(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    wanted = compiling.known(compiling.options(mesh.make_mesh("data=1")))
    total = jax.jit(lambda x: x.sum(-1), compiler_options=wanted)
    text = total.lower(jnp.ones((256, 512))).compile().as_text()
    assert "__ynn_fusion" not in text
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")
    assert compiling.options(mesh.make_mesh("data=1")) == {}, "the user's own goes first"


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


@pytest.fixture
def stored(tmp_path):
    """Names of the programs in a compile cache of the test's own, which takes all."""
    settings = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}

    def use(values):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    use(settings)
    yield lambda: {path.name.rpartition("-")[0].partition("-")[0] for path in tmp_path.iterdir()}
    use(before)


@pytest.mark.parametrize(("axes", "kept"), [("data=1", True), ("data=8", False)])
def test_programs_over_several_cpu_devices_are_always_compiled_anew(stored, axes, kept):
    assembly = toys.prepared(toys.Toy(), axes)
    split = jax.sharding.NamedSharding(assembly.mesh, jax.sharding.PartitionSpec("data"))

    def total(x):
        return x.sum()

    def after(x):
        return x.max()

    given = jax.ShapeDtypeStruct((8,), np.float32, sharding=split)
    program = assembly.compile(jax.jit(total), given)
    assert program(jax.device_put(np.ones(8, np.float32), split)) == 8
    assert ("jit_total" in stored()) is kept
    jax.jit(after).lower(given).compile()  # as before, afterwards
    assert "jit_after" in stored()


def test_a_cache_that_is_off_stays_off(stored):
    jax.config.update("jax_enable_compilation_cache", False)
    with compiling.safe_cache(mesh.make_mesh("data=8")):
        pass
    assert not getattr(jax.config, "jax_enable_compilation_cache", True)

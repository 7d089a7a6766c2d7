"""Scales of benchmarks: smaller and smaller, and what does not fit is never run."""

import itertools
import math

import jax
import pytest
import toys

from mlperf_jax import benchmarks
from mlperf_jax.core import bench as benches, mesh as meshes, scales, state as states
from mlperf_jax.core.bench import bench
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import UserError

TOY = toys.Toy(dtype="float32").tiny()
ONE = RunOptions(mesh="data=1")


class Scaled(toys.Toy):
    """Of other scales than batches."""

    scales = ({"batch_size": 16, "rate": 0.5}, {"batch_size": 8})


def sizes(given):
    """What memory follows from, whichever of it a benchmark has."""
    layers = getattr(given, "layers", 1) * getattr(given, "width", 1)
    nodes = getattr(given, "size_of_graph", None)
    micro = given.rows / given.gradient_accumulation_steps
    tables = sum(getattr(given, "table_rows", ()))
    return layers, tables, sum(nodes.nodes.values()) if nodes else 0, micro


@pytest.mark.parametrize("name", benchmarks.registry._BENCHMARKS)
def test_each_scale_is_a_smaller_configuration(name):
    given = benchmarks.get(name)
    assert given.scales, "no device has room for a whole one"
    found = [sizes(scaled) for scaled in scales.ladder(given)]
    assert len(found) >= 3
    for larger, smaller in itertools.pairwise(found):
        assert smaller != larger
        assert all(a <= b for a, b in zip(smaller, larger, strict=True))


def test_the_last_scale_is_halved_until_a_batch_is_one():
    resnet = benchmarks.get("resnet")
    assert [b.batch_size for b in scales.ladder(resnet)] == [408, 204, 102, 32, 8], (
        "8 are normed together"
    )
    unspanned = Scaled(span=None)
    assert [b.batch_size for b in scales.ladder(unspanned)] == [16, 8, 4, 2, 1]
    assert [b.batch_size for b in scales.ladder(toys.Toy(span=None))] == [32, 16, 8, 4, 2, 1]


def test_batches_that_make_no_smaller_arrays_are_left_out():
    rgat = benchmarks.get("rgat")
    assert [(b.batch_size, b.rows) for b in scales.ladder(rgat)] == [(4096, 8), (1024, 2), (512, 1)]


def test_a_field_that_was_given_is_kept():
    assert [b.rate for b in scales.ladder(Scaled(rate=0.1))][:2] == [0.1, 0.1]
    assert [b.batch_size for b in scales.ladder(Scaled(batch_size=4, span=None))] == [4, 4, 2, 1]


def test_tiny_is_measured_as_it_is():
    assert next(iter(scales.ladder(Scaled().tiny()))) == Scaled().tiny()


def test_what_does_not_fit_is_refused_before_it_is_run(monkeypatch):
    monkeypatch.setattr(states.Assembly, "create", None)
    with pytest.raises(scales.TooLarge, match=r"state takes .* lower --batch-size"):
        bench(TOY, ONE, memory=1e-9)
    state = benches._bytes_of(states.assemble(TOY, meshes.make_mesh("data=1")).abstract)
    with pytest.raises(scales.TooLarge, match="a step of resnet takes"):
        bench(TOY, ONE, memory=(state + 1) / scales.GIB)


def test_the_first_scale_that_fits_is_measured():
    given = toys.Toy(span=None, dtype="float32").tiny()
    whole = bench(given, ONE, steps=1, warmup=0, evaluation=False)
    assert whole.evaluation_examples_per_second is None
    assert "evaluation" not in whole.rows()
    assert whole.changed == {"span": None}
    assert whole.memory_bytes
    limit = (whole.memory_bytes - 1) / scales.GIB
    less = bench(given, ONE, steps=1, warmup=0, evaluation=False, fit=True, memory=limit)
    assert less.batch_size < given.batch_size
    assert less.memory_bytes < whole.memory_bytes
    assert less.parameters == whole.parameters
    with pytest.raises(UserError, match="no scale of resnet fits; of the smallest, resnet's state"):
        bench(given, ONE, fit=True, memory=1e-9)


def test_an_account_that_was_too_low_costs_a_scale_and_no_more(monkeypatch):
    given, create, tried = toys.Toy(span=None).tiny(), states.Assembly.create, []

    def full(assembly, seed):
        tried.append(assembly.benchmark.batch_size)
        if len(tried) < 3:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no more")
        return create(assembly, seed)

    monkeypatch.setattr(states.Assembly, "create", full)
    assert bench(given, ONE, steps=1, warmup=0, fit=True, evaluation=False).batch_size == 8
    assert tried == [32, 16, 8]


def test_slow_steps_are_fewer():
    assert benches.Passes(20, 5, None, True, None).within(100.0) == 20
    assert benches.Passes(20, 5, 2.0, True, None).within(0.25) == 8
    assert benches.Passes(20, 5, 2.0, True, None).within(100.0) == benches.LEAST_STEPS
    report = bench(TOY, ONE, steps=50, warmup=1, seconds=1e-6, evaluation=False)
    assert report.steps == benches.LEAST_STEPS


def test_weights_are_counted_with_those_of_tables():
    given = benchmarks.get("dlrm_dcnv2", tiny=True, dtype="float32")
    assembly = states.assemble(given, meshes.make_mesh("data=1"))
    dense = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(assembly.abstract["params"]))
    rows = sum(given.table_rows) * given.width
    assert benches.trained_parameters(assembly) == dense + rows

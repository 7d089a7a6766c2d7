"""DLRM-DCNv2's configuration against its rules, and its tables on any mesh."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks.dlrm_dcnv2 import DlrmDcnV2
from mlperf_jax.core import checkpoints, mesh as meshes, preflight, state as states, step as train
from mlperf_jax.errors import UserError
from mlperf_jax.ops.embedding_plan import bytes_per_device
from mlperf_jax.optimizers import tree as trees
from mlperf_jax.results import rcp

MESHES = ("data=1", "data=8", "data=2,fsdp=4")
PLACEMENTS = ("auto", "rows", "columns")  # each alone: tests/ops/test_embedding.py


def tiny(**fields):
    """The tiny benchmark with fewer tables and layers: half of the time to compile."""
    sizes = dict(
        table_rows=(20, 12, 3, 40, 9, 24), bag_sizes=(2, 1, 1, 5, 1, 2), bottom=(16,), top=(8,),
        cross_layers=1, cross_rank=4, batch_size=64,
    )  # fmt: skip
    return benchmarks.get("dlrm_dcnv2", tiny=True, **(sizes | fields))


def batch_of(benchmark, number=0):
    """Made-up samples: the ids have duplicates, within bags too."""
    generator = np.random.default_rng(number)
    size = benchmark.batch_size
    ids = [
        generator.integers(0, rows, (size, bag))
        for rows, bag in zip(benchmark.table_rows, benchmark.bag_sizes, strict=True)
    ]
    return {
        "dense": generator.normal(size=(size, 13)).astype(np.float32),
        "ids": np.concatenate(ids, 1).astype(np.int32),
        "label": generator.integers(0, 2, size).astype(np.float32),
    }


def by_table(benchmark, tables):
    """Leaf values of the tables' own rows, whatever their placement."""
    found = {}
    for store in benchmark.plan().stores.values():
        for place in store.places:
            at = store.positions(place.bag.name, np.arange(place.bag.rows))
            for leaf, values in tables[store.kind].items():
                found[f"{place.bag.name}/{leaf}"] = np.asarray(values)[at]
    return found


def placed(assembly, values):
    """A fresh state whose tables hold these values (as `by_table` gives them)."""
    state, tables = assembly.create(0), {}
    for store in assembly.benchmark.plan().stores.values():
        leaves = {n: np.array(leaf) for n, leaf in state["tables"][store.kind].items()}
        for place in store.places:
            at = store.positions(place.bag.name, np.arange(place.bag.rows))
            for name, leaf in leaves.items():
                leaf[at] = values[f"{place.bag.name}/{name}"]
        tables[store.kind] = leaves
    tables = jax.tree.map(jax.device_put, tables, assembly.shardings["tables"])
    return {**state, "tables": tables}


def stepped(benchmark, mesh, values=None, steps=2):
    assembly = states.assemble(benchmark, meshes.make_mesh(mesh))
    state = assembly.create(0) if values is None else placed(assembly, values)
    first = by_table(benchmark, state["tables"])
    program, sharding = train.jit_train_step(assembly), meshes.batch_sharding(assembly.mesh)
    for number in range(steps):
        batch = jax.device_put(batch_of(benchmark, number), sharding)
        state, _ = program(state, batch, jax.random.key(0))
    return first, {**by_table(benchmark, state["tables"]), "params": state["params"]}


def test_every_placement_and_mesh_trains_alike():
    with jax.enable_x64(True):
        first, wanted = stepped(tiny(dtype="float64"), "data=1")
        for placement, mesh in zip(PLACEMENTS, itertools.cycle(MESHES[1:]), strict=False):
            benchmark = tiny(dtype="float64", placement=placement)
            _, found = stepped(benchmark, mesh, first)
            for path, one in trees.flatten_paths(wanted).items():
                other = trees.flatten_paths(found)[path]
                np.testing.assert_allclose(other, one, rtol=0, atol=1e-12, err_msg=path)


@pytest.mark.parametrize("placement", ["auto", "columns"])
def test_a_checkpoint_of_spread_tables_is_read_on_another_mesh(tmp_path, placement):
    benchmark = tiny(dtype="float32", placement=placement)
    eight, two = (states.assemble(benchmark, meshes.make_mesh(m)) for m in ("data=8", "fsdp=2"))
    state = eight.create(5)
    spread = [leaf["rows"] for leaf in state["tables"].values()]
    assert any(len({str(s.index) for s in rows.addressable_shards}) == 8 for rows in spread)
    with checkpoints.Checkpoints(tmp_path, identity={}) as saving:
        saving.save(1, state, {})
        saving.wait()
        found = saving.restore(two.abstract)
    assert found is not None
    for one, other, wanted in zip(
        jax.tree.leaves(state["tables"]),
        jax.tree.leaves(found[0]["tables"]),
        jax.tree.leaves(two.shardings["tables"]),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
        assert other.sharding == wanted


def test_micro_batches_and_skipped_ones_change_nothing():
    with jax.enable_x64(True):
        _, whole = stepped(tiny(dtype="float64"), "data=1", steps=1)
        fields = dict(dtype="float64", gradient_accumulation_steps=4, nonfinite="skip")
        _, parts = stepped(tiny(**fields), "data=8", steps=1)
        for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
            np.testing.assert_allclose(other, one, rtol=0, atol=1e-12)
        bad = tiny(**fields)
        assembly = states.assemble(bad, meshes.make_mesh("data=8"))
        state = assembly.create(0)
        before = jax.tree.map(np.asarray, state["tables"])
        batch = batch_of(bad)
        batch["dense"][:] = np.nan
        batch = jax.device_put(batch, meshes.batch_sharding(assembly.mesh))
        state, scalars = train.jit_train_step(assembly)(state, batch, jax.random.key(0))
        assert np.isnan(scalars["loss"])
        jax.tree.map(
            np.testing.assert_array_equal, before, jax.tree.map(np.asarray, state["tables"])
        )


def test_a_step_takes_table_accumulator_and_what_a_batch_does():
    """Tables of 60 MB, samples of few look-ups: no temporary of a table's size."""
    benchmark = tiny(
        dtype="float32",
        table_rows=(60_000, 40_000, 9),
        bag_sizes=(4, 2, 1),
        width=64,
        bottom=(64,),
    )
    for mesh, devices in (("data=1", 1), ("data=8", 8)):
        assembly = states.assemble(benchmark, meshes.make_mesh(mesh))
        batch = train.abstract_batch(benchmark.buckets()[0], meshes.batch_sharding(assembly.mesh))
        key = jax.eval_shape(lambda: jax.random.key(0))
        compiled = assembly.compile(train.jit_train_step(assembly), assembly.abstract, batch, key)
        memory = compiled.memory_analysis()
        plan = benchmark.plan()
        tables = bytes_per_device(plan.stores.values(), plan.bytes_per_row, devices)
        assert memory.alias_size_in_bytes > tables
        assert memory.argument_size_in_bytes < 1.02 * tables + 600_000  # the network is small
        assert memory.temp_size_in_bytes < tables / 6


# -- the rules ---------------------------------------------------------------------------------------


def test_sizes_and_counts_are_the_fact_sheets():
    benchmark = DlrmDcnV2()
    plan = benchmark.plan()
    assert sum(benchmark.table_rows) == 204_184_588
    assert sum(benchmark.bag_sizes) == 214
    assert plan.parameters == 26_135_627_264
    assert plan.parameters + 16_044_545 == benchmark.parameters == 26_151_671_809
    # 96.18 MFLOP: three passes without the gradient of the dense features
    assert benchmark.flops_per_sample == 6 * 16_030_464 - 2 * 13 * 512


def test_recipes_are_those_of_the_official_files():
    recipes = DlrmDcnV2.recipes()
    points = rcp.points_of("dlrm_dcnv2", "6.0.0")
    assert {point.batch_size for point in points} == set(recipes)
    for point in points:
        logged = preflight.full_log(recipes[point.batch_size])
        for key, value in point.hyperparameters.items():
            assert logged[key] == value, (point.batch_size, key)


@pytest.mark.parametrize(("batch", "every"), [(55_296, 3793), (65_536, 3200), (135_168, 1551)])
def test_twenty_evaluations_in_the_one_epoch(batch, every):
    benchmark = benchmarks.get("dlrm_dcnv2", batch_size=batch)
    steps = list(itertools.islice(benchmark.eval_steps(), 21))
    assert steps[:2] == [every, 2 * every]
    assert steps[19] * batch <= benchmark.last_sample < steps[20] * batch
    assert benchmark.last_sample <= benchmark.train_samples
    assert benchmark.position(15 * 3793)["epoch_num"] < 0.75 or batch != 55_296


def test_closed_refuses_another_network_by_name():
    options = benchmarks.RunOptions()
    for field, value in (
        ("width", 64), ("cross_layers", 2), ("adagrad_epsilon", 1e-7), ("clip_norm", 1.0)
    ):  # fmt: skip
        changes = {field: value} | ({"bottom": (512, 256, 64)} if field == "width" else {})
        with pytest.raises(UserError, match=field):
            preflight.resolve_division(DlrmDcnV2(dtype="float32", **changes), options)
    assert preflight.resolve_division(DlrmDcnV2(dtype="float32", shards=8), options) == "closed"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"bag_sizes": (1, 2)}, "26 tables and bag_sizes 2"),
        ({"width": 64}, "128 features and the embeddings 64"),
        ({"shards": 12}, "12 bins: choose a power of two"),
        ({"placement": "nowhere"}, "placement must be auto, rows, tables, columns or replicated"),
        (
            {"table_rows": (0,) * 26},
            "table_rows must be one or more whole numbers, each at least 1",
        ),
    ],
)
def test_wrong_fields_are_named(fields, words):
    with pytest.raises(UserError, match=words):
        DlrmDcnV2(**fields)


def test_more_devices_than_shards_are_refused():
    benchmark = tiny(shards=4, placement="rows", dtype="float32")
    with pytest.raises(UserError, match="4 bins, which 8 devices"):
        states.assemble(benchmark, meshes.make_mesh("data=8"))


def test_scores_are_sigmoids_in_float32_with_the_label_in_their_sign():
    benchmark = tiny(dtype="float32")
    assembly = states.assemble(benchmark, meshes.make_mesh("data=1"))
    state = assembly.create(0)
    batch = batch_of(benchmark)
    predict = train.jit_predict_step(assembly)
    view = assembly.eval_view(state)
    scores = predict(view, batch, jnp.ones(64, bool), jax.random.key(0))
    assert scores.dtype == jnp.float32
    np.testing.assert_array_equal(np.signbit(scores), batch["label"] > 0)
    assert np.all(np.abs(scores) < 1) and np.all(np.abs(scores) > 0)
    assert json.dumps(benchmark.config())


def test_tables_that_do_not_fit_are_refused_before_they_are_made(monkeypatch):
    assembly = states.assemble(DlrmDcnV2(dtype="float32"), meshes.make_mesh("data=8"))
    monkeypatch.setattr(states, "_memory", lambda mesh: 16e9)
    with pytest.raises(UserError, match=r"on each of 8 device\(s\) with 14\.90 GiB .* 16 such"):
        assembly.create(0)

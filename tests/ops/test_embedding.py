"""Bags and row updates on every placement and mesh against NumPy, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax.core import mesh as meshes
from mlperf_jax.errors import UserError
from mlperf_jax.ops import embedding, embedding_rows, pretend
from mlperf_jax.ops.embedding_plan import Bag, make_plan
from mlperf_jax.ops.shard import ROWS
from mlperf_jax.optimizers import rows

pytestmark = pytest.mark.usefixtures("x64")

W, B = 8, 32
BAGS = [Bag("a", 100, 3), Bag("b", 7, 1), Bag("c", 33, 5), Bag("d", 3, 2), Bag("e", 60, 3)]
MIXED = {"a": "rows", "b": "replicated", "c": "columns", "d": "tables", "e": "auto"}
OPTIMIZERS = {
    "sgd": rows.sgd(lambda count: 0.1 * 0.5**count),
    "adagrad": rows.adagrad(0.1, 1e-3),
    "rowwise_adagrad": rows.rowwise_adagrad(0.1, 1e-3),
}


def tables(seed=0):
    generator = np.random.default_rng(seed)
    return {bag.name: generator.normal(size=(bag.rows, W)) for bag in BAGS}


def ids_of(kind="even", seed=1):
    """Ids [B, bag size] by table; "skewed": all samples ask one row of each table, over and over."""
    generator = np.random.default_rng(seed)
    found = {}
    for bag in BAGS:
        high = bag.rows if kind == "even" else 1
        found[bag.name] = generator.integers(0, high, (B, bag.size)).astype(np.int32)
    return found


def dense_step(kind, table, grad, squares, count=0):
    """One step with a dense gradient."""
    if kind == "sgd":
        return table - 0.1 * 0.5**count * grad, squares
    squares = squares + (grad**2 if kind == "adagrad" else (grad**2).mean(1, keepdims=True))
    return table - 0.1 * grad / (np.sqrt(squares) + 1e-3), squares


def arrays(store, values, optimizer, mesh):
    """The store's array and slots on the mesh, holding these tables."""
    whole = np.zeros((store.rows, W))
    for place in store.places:
        whole[store.positions(place.bag.name, np.arange(place.bag.rows))] = values[place.bag.name]
    table = {"rows": jnp.asarray(whole), **optimizer.init(jnp.asarray(whole))}
    where = {n: jax.NamedSharding(mesh, embedding.spec(store, x.ndim)) for n, x in table.items()}
    return {name: jax.device_put(leaf, where[name]) for name, leaf in table.items()}


def names_of(store):
    return [place.bag.name for place in store.places]


def check(plan, mesh_text, kind, ids, steps=2):
    mesh, optimizer = meshes.make_mesh(mesh_text), OPTIMIZERS[kind]
    for store in plan.stores.values():
        embedding.check_mesh(store, mesh)
        check_store(store, mesh, kind, optimizer, ids, steps)


def check_store(store, mesh, kind, optimizer, ids, steps):
    """Some steps on random gradients; sums, rows and untouched rows compared after each."""
    truth = {name: (table, np.zeros(())) for name, table in tables().items()}
    state = arrays(store, tables(), optimizer, mesh)
    looked_up = np.concatenate([ids[name] for name in names_of(store)], 1)

    def both(table, ids, grads, count):
        sums = embedding.pool(store, table["rows"], ids, mesh)
        return sums, embedding.update(store, table, ids, grads, optimizer.step, count, mesh)

    program = jax.jit(both, donate_argnums=0)
    for number in range(steps):
        grads = np.random.default_rng(number).normal(size=(len(looked_up), len(store.places), W))
        split = jax.NamedSharding(mesh, jax.P(ROWS))
        sums, state = program(state, *jax.device_put((looked_up, grads), split), number)
        for index, name in enumerate(names_of(store)):
            table, squares = truth[name]
            wanted = table[ids[name]].sum(1)
            np.testing.assert_allclose(sums[:, index], wanted, rtol=0, atol=1e-13)
            grad = np.zeros_like(table)
            for k in range(ids[name].shape[1]):
                np.add.at(grad, ids[name][:, k], grads[:, index])
            truth[name] = dense_step(kind, table, grad, squares, number)
            found = np.asarray(state["rows"])[store.positions(name, np.arange(len(table)))]
            np.testing.assert_allclose(found, truth[name][0], rtol=0, atol=1e-13)
            untouched = np.setdiff1d(np.arange(len(table)), ids[name])
            np.testing.assert_array_equal(found[untouched], table[untouched])


@pytest.mark.parametrize("mesh", ["data=1", "data=8", "data=2,expert=2,tensor=2"])
@pytest.mark.parametrize("way", ["rows", "tables", "columns", "replicated"])
def test_each_way_equals_dense_steps(way, mesh):
    plan = make_plan(BAGS, width=W, bins=8, way=way)
    check(plan, mesh, "adagrad", ids_of())


@pytest.mark.parametrize("kind", ["sgd", "rowwise_adagrad"])
def test_each_optimizer_on_mixed_placements(kind):
    plan = make_plan(BAGS, width=W, bins=8, ways=MIXED, replicate_bytes=1)
    assert set(plan.stores) == {"split", "columns", "replicated"}
    check(plan, "data=2,fsdp=2,expert=2", kind, ids_of())


def test_a_replicated_table_larger_than_the_batch():
    """Its gradients are gathered and not added up densely."""
    assert sum(bag.rows for bag in BAGS) > 8 * len(BAGS)
    plan = make_plan(BAGS, width=W, bins=8, way="replicated")
    check(plan, "data=8", "adagrad", {name: ids[:8] for name, ids in ids_of().items()})


def test_ids_that_all_ask_one_device_overflow_the_room_and_are_all_answered(monkeypatch):
    plan = make_plan(BAGS, width=W, bins=8, way="rows")
    rooms = []
    exchange = embedding._exchange

    def watched(send, room, *rest):
        rooms.append(room)
        return exchange(send, room, *rest)

    monkeypatch.setattr(embedding, "_exchange", watched)
    monkeypatch.setattr(embedding, "SPARE", 0)  # or this small batch would have room for all
    check(plan, "data=8", "adagrad", ids_of("skewed"))
    lookups = B // 8 * sum(bag.size for bag in BAGS)
    assert max(rooms) == lookups and min(rooms) < lookups / 4


def test_a_row_twice_in_a_bag_counts_twice():
    table = np.arange(12.0).reshape(3, 4)
    (found,) = embedding_rows.fixed_bags(jnp.asarray(table), jnp.array([[2, 2, 0]]), [3])
    np.testing.assert_array_equal(found[0], 2 * table[2] + table[0])


def test_gradients_of_a_row_are_summed_before_they_are_squared():
    """One id in two samples: the accumulator is (g1 + g2)^2 and not g1^2 + g2^2."""
    table = {"rows": jnp.zeros((3, 1)), "accumulator": jnp.zeros((3, 1))}
    grads = jnp.array([[2.0], [3.0]])
    ids, bags, step = (
        jnp.array([1, 1]),
        jnp.arange(2),
        functools.partial(rows.adagrad(0.5).step, count=0),
    )
    after = embedding_rows.update_rows(table, ids, bags, grads, step)
    np.testing.assert_array_equal(after["accumulator"], [[0.0], [25.0], [0.0]])
    assert float(after["rows"][1, 0]) == pytest.approx(-0.5)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_rows_that_run_over_chunks_are_stepped_once(monkeypatch, chunk):
    monkeypatch.setattr(embedding_rows, "CHUNK", chunk)
    generator = np.random.default_rng(0)
    ids = np.r_[np.full(9, 4), [0, 0, 1, 5, 5, 5, 6, 6, 6, 6]].astype(np.int32)  # 6: no such row
    grads = generator.normal(size=(len(ids), 2))
    start = generator.normal(size=(6, 2))
    table = {"rows": jnp.asarray(start), "accumulator": jnp.zeros((6, 2))}
    order = generator.permutation(len(ids))
    ids, grads = jnp.asarray(ids[order]), jnp.asarray(grads[order])
    step = functools.partial(rows.adagrad(0.1, 1e-3).step, count=0)
    after = embedding_rows.update_rows(table, ids, jnp.arange(len(ids)), grads, step)
    ids, grads = np.asarray(ids), np.asarray(grads)
    dense = np.zeros((6, 2))
    np.add.at(dense, ids[ids < 6], grads[ids < 6])
    wanted, squares = dense_step("adagrad", start, dense, 0.0)
    np.testing.assert_allclose(after["rows"], wanted, rtol=1e-14)
    np.testing.assert_allclose(after["accumulator"], squares, rtol=1e-14)
    np.testing.assert_array_equal(after["rows"][2:4], start[2:4])


def test_a_gpu_takes_many_look_ups_a_turn(monkeypatch):
    monkeypatch.setattr(embedding_rows, "CHUNK", 4)
    monkeypatch.setattr(embedding_rows, "GPU_CHUNK", 16)
    ids = [jnp.zeros(33, jnp.int32)]
    assert embedding_rows._chunked(ids, [0])[1] == 4
    with pretend.platform("gpu"):
        (padded,), chunk = embedding_rows._chunked(ids, [0])
    assert (len(padded), chunk) == (48, 16)


def test_loose_bags_leave_out_what_has_no_bag(monkeypatch):
    monkeypatch.setattr(embedding_rows, "CHUNK", 4)
    table = np.random.default_rng(0).normal(size=(5, 3))
    ids, bags = np.array([0, 1, 4, 4, 2, 3, 3]), np.array([2, 0, 2, 2, 9, 0, 1])
    found = embedding_rows.loose_bags(jnp.asarray(table), jnp.asarray(ids), jnp.asarray(bags), 3)
    np.testing.assert_allclose(
        found, [table[1] + table[3], table[3], table[0] + 2 * table[4]], rtol=1e-15
    )


def test_a_mesh_that_does_not_divide_the_plan_is_refused():
    mesh = meshes.make_mesh("data=8")
    for way, words in (("rows", "4 bins, which 8 devices"), ("columns", "12 columns, which 8")):
        (store,) = make_plan(BAGS, width=12, bins=4, way=way).stores.values()
        with pytest.raises(UserError, match=words):
            embedding.check_mesh(store, mesh)


@pytest.mark.parametrize(("way", "kind"), [("rows", "split"), ("columns", "columns")])
def test_a_step_takes_its_batch_besides_the_table(way, kind):
    """No gradient, copy or gathered part of a table: temporaries are of the batch's size, and small."""
    bags = [Bag("big", 80_000, 4), Bag("other", 40_000, 2)]
    (store,) = make_plan(bags, width=64, bins=8, way=way).stores.values()
    assert store.kind == kind
    for text, devices in (("data=1", 1), ("data=8", 8)):
        mesh = meshes.make_mesh(text)
        whole = jax.ShapeDtypeStruct((store.rows, 64), jnp.float32)
        where = jax.NamedSharding(mesh, embedding.spec(store))
        table = {n: whole.update(sharding=where) for n in ("rows", "accumulator")}
        samples = jax.NamedSharding(mesh, jax.P(ROWS))
        ids = jax.ShapeDtypeStruct((64, 6), jnp.int32, sharding=samples)
        grads = jax.ShapeDtypeStruct((64, 2, 64), jnp.float32, sharding=samples)
        optimizer = rows.adagrad(0.1)

        def step(table, ids, grads, mesh=mesh, optimizer=optimizer):
            return embedding.update(store, table, ids, grads, optimizer.step, 0, mesh)

        compiled = jax.jit(step, donate_argnums=0, out_shardings=dict.fromkeys(table, where))
        memory = compiled.lower(table, ids, grads).compile().memory_analysis()
        part = store.rows * 64 * 4 // devices
        assert memory.alias_size_in_bytes >= 2 * part
        assert memory.temp_size_in_bytes < part / 4

"""Rows spread over a mesh by their numbers: every id has one place, and gets its own row on any mesh."""

import functools
import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mlperf_jax.core import mesh as meshes
from mlperf_jax.errors import UserError
from mlperf_jax.ops import row_store
from mlperf_jax.ops.row_store import RowStore, take

W, B, K = 4, 8, 300
STORES = [RowStore(5), RowStore(1000), RowStore(1000, 8), RowStore(70_003, 16), RowStore(5, 8)]


def rows_of(store, dtype=np.float32):
    """[N, W], exact in float16; neighbours differ."""
    return (np.arange(store.count * W).reshape(-1, W) % 2039).astype(dtype)


def whole(store, dtype=np.float32):
    """The array as a device without a mesh would hold it."""
    table = rows_of(store, dtype)
    return store.read((slice(None), slice(None)), lambda first, last: table[first:last])


@pytest.mark.parametrize("store", STORES, ids=str)
def test_every_id_has_a_place_of_its_own(store):
    ids = np.arange(store.count)
    places = store.positions(ids)
    assert len(np.unique(places)) == store.count and 0 <= places.min() <= places.max() < store.rows
    np.testing.assert_array_equal(np.asarray(store.positions(jnp.asarray(ids))), places)
    array = whole(store)
    assert array.shape == (store.rows, W)
    np.testing.assert_array_equal(array[places], rows_of(store))
    rest = np.delete(array, places, axis=0)
    np.testing.assert_array_equal(rest, np.zeros_like(rest))


def test_neighbours_stay_together_and_blocks_are_dealt():
    store = RowStore(70_003, 16)
    assert store.block == 512
    places = store.positions(np.arange(16 * store.block))
    steps = np.diff(places)
    assert (steps == 1).sum() == 16 * (store.block - 1), "a file is read in long pieces"
    assert set(places[:: store.block] // store.capacity) == set(range(16))
    assert RowStore(269_346_174, 512).rows / 269_346_174 < 1.001
    assert RowStore(269_346_174, 512).block == row_store.BLOCK


@pytest.mark.parametrize("parts", [1, 3, 16])
def test_a_part_is_read_by_itself(parts):
    store, asked = RowStore(70_003, 16), []
    table = rows_of(store)

    def rows(first, last):
        asked.append(last - first)
        return table[first:last]

    edges = np.linspace(0, store.rows, parts + 1).astype(int)
    found = [store.read((slice(a, b), slice(1, 3)), rows) for a, b in itertools.pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(found), whole(store)[:, 1:3])
    assert sum(n for n in asked if n > 1) <= store.count and max(asked) <= store.block


def wanted(store, ids, dtype):
    return np.where((ids >= 0)[..., None], rows_of(store, dtype)[np.maximum(ids, 0)], 0)


@functools.cache
def ids_of(kind, count):
    generator = np.random.default_rng(3)
    ids = generator.integers(0, count, (B, K)).astype(np.int32)
    if kind == "one bin":  # far more than an even share: further turns
        ids %= 7
    if kind == "one device":
        ids[1:] = -1
    if kind == "nobody":
        ids[:] = -1
    ids[:, ::5] = -1
    return ids


def grouped(store, ids):
    """The ids of each row bin by bin, -1 last."""
    place = store.positions(np.maximum(ids, 0)) // store.capacity
    order = np.argsort(np.where(ids < 0, store.bins, place), 1, kind="stable")
    return np.take_along_axis(ids, order, 1)


@pytest.mark.parametrize("kind", ["even", "one bin", "one device", "nobody"])
@pytest.mark.parametrize("mesh", ["data=1", "data=2,fsdp=2,tensor=2"])
def test_each_look_up_gets_its_row_on_any_mesh(mesh, kind):
    store = RowStore(70_003, 16)
    ids = grouped(store, ids_of(kind, store.count))
    found = taken(store, mesh, ids, np.float32)
    np.testing.assert_array_equal(found, wanted(store, ids, np.float32))


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float64"])
@pytest.mark.parametrize("store", [RowStore(1000, 8), RowStore(1000)], ids=str)
def test_in_any_type(store, dtype, x64):
    ids = grouped(store, ids_of("even", store.count))
    found = taken(store, "data=4", ids, np.dtype(dtype))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, wanted(store, ids, np.dtype(dtype)))


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
@pytest.mark.parametrize("mesh", ["data=1", "data=2,expert=2"])
def test_look_ups_out_of_order_are_no_numbers(mesh, dtype):
    store = RowStore(70_003, 16)
    ids = grouped(store, ids_of("even", store.count))
    ids[3] = ids[3, ::-1]
    found = taken(store, mesh, ids, np.dtype(dtype))
    if dtype == "uint8":
        assert np.isnan(np.array([127], np.uint8).view(ml_dtypes.float8_e4m3fn).astype(float))
        assert (found[3] == 127).all()
    else:
        assert np.isnan(found[3]).all()
    right = np.arange(len(ids)) != 3
    np.testing.assert_array_equal(found[right], wanted(store, ids, np.dtype(dtype))[right])


def taken(store, text, ids, dtype):
    mesh = meshes.make_mesh(text)
    where = jax.sharding.NamedSharding(mesh, row_store.spec(store))
    table = jax.device_put(whole(store, dtype), where)
    batch = jax.device_put(ids, meshes.batch_sharding(mesh))
    found = jax.jit(functools.partial(take, store, mesh=mesh))(table, batch)
    assert found.sharding.is_equivalent_to(meshes.batch_sharding(mesh), 3)
    return np.asarray(found)


def test_a_row_travels_once():
    """No device ever holds more than what it asked for and what it is asked for."""
    store, mesh = RowStore(70_003, 16), meshes.make_mesh("data=8")
    table = jax.ShapeDtypeStruct((store.rows, 256), jnp.uint8)
    ids = jax.ShapeDtypeStruct((8, 4096), jnp.int32)
    where = jax.sharding.NamedSharding(mesh, row_store.spec(store)), meshes.batch_sharding(mesh)
    program = jax.jit(functools.partial(take, store, mesh=mesh), in_shardings=where)
    memory = program.lower(table, ids).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 8 * 4096 * 256


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="0 rows in 1 bins: there must be at least one"):
        RowStore(0)
    with pytest.raises(UserError, match="dealt to 6 bins, which 4 devices do not divide"):
        row_store.check_mesh(RowStore(100, 6), meshes.make_mesh("data=4"))
    row_store.check_mesh(RowStore(100), meshes.make_mesh("data=4"))


def test_what_does_not_fit_the_memory_is_told():
    stores = [(RowStore(64 * 2**20, 16), 1024), (RowStore(2**10), 1024)]  # 64 GiB and 1 MiB
    row_store.check_fit(stores, 4, 17 * 2**30)
    row_store.check_fit([], 1, 0)
    with pytest.raises(
        UserError, match=r"64.00 GiB do not fit: 32.00 .* on each of 2 .*; 4 such devices would"
    ):
        row_store.check_fit(stores, 2, 17 * 2**30)
    with pytest.raises(
        UserError, match="no number of such devices would do, or give their rows fewer"
    ):
        row_store.check_fit(stores, 2, 2**30)

"""Plans of embedding tables: every row has one place, bins are balanced, what does not fit is said."""

import numpy as np
import pytest

from mlperf_jax.benchmarks.dlrm_dcnv2 import DlrmDcnV2
from mlperf_jax.errors import UserError
from mlperf_jax.ops.embedding_plan import WAYS, Bag, bytes_per_device, check_fit, make_plan

BAGS = [Bag("a", 100, 3), Bag("b", 7, 1), Bag("c", 33, 5), Bag("d", 1, 2), Bag("e", 60, 1)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bins", [1, 4, 8])
def test_each_row_has_a_place_of_its_own(way, bins):
    plan = make_plan(BAGS, width=4, bins=bins, way=way, replicate_bytes=300)
    assert sorted(p.bag.name for s in plan.stores.values() for p in s.places) == list("abcde")
    for store in plan.stores.values():
        taken = np.concatenate(
            [store.positions(p.bag.name, np.arange(p.bag.rows)) for p in store.places]
        )
        assert len(np.unique(taken)) == len(taken)
        assert taken.min() >= 0 and taken.max() < store.rows
    assert plan.parameters == sum(bag.rows for bag in BAGS) * 4


def test_each_way_is_what_it_says():
    for way, pieces in (("rows", 8), ("tables", 1)):
        store = make_plan(BAGS, width=4, bins=8, way=way).stores["split"]
        assert {place.pieces for place in store.places} == {pieces}
    for kind in ("columns", "replicated"):
        assert set(make_plan(BAGS, width=4, bins=8, way=kind).stores) == {kind}
    mixed = make_plan(
        BAGS, width=4, bins=8, way="rows", ways={"b": "replicated", "c": "columns", "a": "tables"}
    )
    found = {p.bag.name: (s.kind, p.pieces) for s in mixed.stores.values() for p in s.places}
    assert found == {
        "a": ("split", 1), "b": ("replicated", 1), "c": ("columns", 1), "d": ("split", 8),
        "e": ("split", 8),
    }  # fmt: skip


@pytest.mark.parametrize("bins", [8, 16, 64])
def test_the_full_tables_are_balanced(bins):
    plan = DlrmDcnV2(shards=bins).plan()
    split = plan.stores["split"]
    big = [bag.rows for bag in plan.bags if bag.rows * 1024 > 12_500_000]
    assert sum(place.bag.rows for place in split.places) == sum(big)
    assert split.capacity * bins < 1.26 * sum(big)
    assert all(bag.rows <= 12_207 for bag in (p.bag for p in plan.stores["replicated"].places))
    for devices in (d for d in (2, 4, 8) if d <= bins):
        load = split.lookups(devices)
        assert load.sum() == pytest.approx(sum(split.sizes))
        assert load.max() < 1.25 * load.mean()
    # on as many devices as bins one more piece of a table costs more than the look-ups it would spare
    assert split.lookups(bins).max() < 2.2 * split.lookups(bins).mean()


def test_tables_on_one_device_have_slots_of_their_own():
    split = DlrmDcnV2(shards=16).plan().stores["split"]
    for devices in (1, 2, 8, 16):
        slots = split.slots(devices)
        for device in range(devices):
            here = [
                slot
                for place, slot in zip(split.places, slots, strict=True)
                if device in split.devices(place, devices)
            ]
            assert len(set(here)) == len(here)
        for place in split.places:  # and a table is where its rows are
            at = split.positions(place.bag.name, np.arange(min(place.bag.rows, 4096)))
            where = set(at // (split.rows // devices))
            assert where == set(split.devices(place, devices))


def test_the_plan_prints_every_table():
    text = str(DlrmDcnV2().plan())
    lines = text.splitlines()
    assert len(lines) == 1 + 26 + 1
    table, rows, bag, way, pieces, size = lines[1].split()
    assert (table, rows, bag, way, size) == ("cat_0", "40,000,000", "3", "rows", "38.147")
    assert int(pieces) in (16, 32, 64)
    assert "bins of" in lines[-1] and "look-ups a sample" in lines[-1]


def bytes_per_sample(plan, devices, batch_size):
    """What a device's memory moves in a training step for each of its own samples, at most.

    The busiest device counts, every look-up as if it were of a row of its own: rows and accumulators read
    and written, gradients of bags read for each look-up, and what is on its way between devices.
    """
    tables = gradients = exchange = 0.0
    row = plan.bytes_per_row // 2  # of weights, and as much of accumulators
    for store in plan.stores.values():
        if store.kind == "split":
            size = float(store.lookups(devices).max()) * devices
            exchange += 10 * row * devices * (max(store.slots(devices)) + 1) * (devices > 1)
            tables, gradients = tables + 5 * size * row, gradients + size * row
        else:  # replicated: a dense gradient is cleared, added to, summed, applied
            size, dense = sum(store.sizes), 4 * store.rows * row * devices / batch_size
            tables, gradients = tables + size * row + dense, gradients + 2 * size * row + dense
    return {"tables": tables, "gradients": gradients, "exchange": exchange}


def test_a_step_moves_little_more_than_the_rows_looked_up():
    """The fact sheet's bound: a row read forward, row and accumulator read and written backward."""
    bound = 5 * 214 * 512
    for bins, ratio in ((1, 1.0), (8, 1.02), (16, 1.05), (64, 1.35)):
        moved = bytes_per_sample(DlrmDcnV2(shards=bins).plan(), bins, 65_536)
        assert moved["tables"] < ratio * bound, bins
        assert moved["gradients"] < 0.45 * bound
    assert moved["exchange"] < 64 * 10 * 512 * 5


def test_what_does_not_fit_is_said_with_what_would():
    plan = DlrmDcnV2(shards=8).plan()
    check_fit(plan.stores.values(), plan.bytes_per_row, 8, 80e9)
    with pytest.raises(UserError) as error:
        check_fit(plan.stores.values(), plan.bytes_per_row, 4, 32e9)
    needed = bytes_per_device(plan.stores.values(), plan.bytes_per_row, 4) / 2**30
    assert f"{needed:.2f} GiB on each of 4 device(s) with 29.80 GiB" in str(error.value)
    assert f"{needed - 32e9 / 2**30:.2f} GiB too much" in str(error.value)
    assert "8 such devices would do" in str(error.value)
    everywhere = DlrmDcnV2(placement="replicated").plan()
    with pytest.raises(UserError, match=r"do not fit: 194\.73 GiB .* shard the large tables"):
        check_fit(everywhere.stores.values(), everywhere.bytes_per_row, 1024, 80e9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bins": 6}, "6 bins: choose a power of two"),
        ({"bins": 0}, "0 bins"),
        ({"bins": 4, "way": "diagonal"}, "'diagonal'; the ways are auto, rows"),
        ({"bins": 4, "ways": {"x": "rows"}}, r"known names; see \['x'\]"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(UserError, match=words):
        make_plan(BAGS, width=4, **arguments)


def test_a_table_without_rows_is_refused():
    with pytest.raises(UserError, match="table x has 0 rows"):
        Bag("x", 0, 1)

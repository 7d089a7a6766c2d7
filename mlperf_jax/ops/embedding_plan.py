"""Where embedding tables live: replicated, whole on one device, dealt out by rows, or cut by columns.

A plan is made for a number of *bins* and runs on any mesh whose devices divide them, so the arrays have
the same shape on every such mesh and a checkpoint of one is read on another. Tables that share a
placement share one array, a *store*. A split store is bins of equal size one after the other; a table
takes a power of two of them, evenly spaced, so that it is spread over fewer devices too. Its row i is in
piece i mod that number: neighbours in id are neighbours in frequency, and shall not be on one device.
One bin is "table-wise", all bins "row-wise".

T tables · L look-ups of a sample in them · R rows of an array · W width
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from mlperf_jax.errors import UserError

Kind = Literal["replicated", "columns", "split"]
Way = Literal["auto", "rows", "tables", "columns", "replicated"]
WAYS = ("auto", "rows", "tables", "columns", "replicated")

# Weights and accumulators up to this are replicated: an exchange of their sums would cost more than the
# addition of their gradients over all devices. 12,207 rows of width 128, as submissions on 64 and 128 GPUs.
REPLICATE_BYTES = 12_500_000
# What it costs a device that a table has a piece there, in look-ups of a sample: sums for every sample of
# the batch are cleared, added to, sent, received and added up, and gradients are as many again (10 rows'
# worth), while a look-up reads a row and a gradient, and reads and writes row and accumulator (6).
PIECE_COST = 10 / 6
SPARE = 1.25  # how much larger than the tables the bins may be
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Bag:
    """A table of `rows`, of which a sample looks up `size`; their rows are summed."""

    name: str
    rows: int
    size: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.size < 1:
            raise UserError(
                f"embedding table {self.name} has {self.rows} rows and bags of {self.size}: "
                "both are at least 1"
            )


@dataclasses.dataclass(frozen=True)
class Place:
    """A table's rows in its store.

    Row i is in bin `first + (i mod pieces) * stride`, there at `offset + i // pieces`.
    """

    bag: Bag
    pieces: int = 1
    first: int = 0
    stride: int = 1
    offset: int = 0

    @property
    def bins(self) -> slice:
        return slice(self.first, self.first + (self.pieces - 1) * self.stride + 1, self.stride)

    @property
    def length(self) -> int:
        """Rows it takes in each of its bins."""
        return -(-self.bag.rows // self.pieces)


@dataclasses.dataclass(frozen=True)
class Store:
    """Tables in one array of [bins * capacity, W].

    Attributes:
        kind: "split" (by bins over the devices), "columns" (W over the devices) or "replicated".
        places: the tables; their look-ups are asked for, and their bags given, in this order.
        bins, capacity: how the rows are divided; 1 bin unless split.
        width: W.
    """

    kind: Kind
    places: tuple[Place, ...]
    bins: int
    capacity: int
    width: int

    @property
    def rows(self) -> int:
        return self.bins * self.capacity

    @property
    def sizes(self) -> tuple[int, ...]:
        """Look-ups of a sample by table."""
        return tuple(place.bag.size for place in self.places)

    @property
    def parameters(self) -> int:
        """Weights of the tables, without the rows that only fill up bins."""
        return sum(place.bag.rows for place in self.places) * self.width

    def positions(self, name: str, ids: np.ndarray) -> np.ndarray:
        """Rows of the array that hold these rows of a table, for imports, exports and tests."""
        (place,) = [place for place in self.places if place.bag.name == name]
        bin_ = place.first + ids % place.pieces * place.stride
        return bin_ * self.capacity + place.offset + ids // place.pieces

    def devices(self, place: Place, devices: int) -> range:
        """Which of so many devices hold a piece of the table."""
        each = self.bins // devices
        return range(place.first // each, devices, max(1, place.stride // each))

    def slots(self, devices: int) -> tuple[int, ...]:
        """A number for each table, small, and different for tables that share a device."""
        taken = np.zeros(devices, np.int64)
        found = {}
        for place in sorted(self.places, key=lambda p: (-p.pieces, p.first, p.offset)):
            on = list(self.devices(place, devices))
            found[place.bag.name] = slot = int(taken[on].max())
            taken[on] = slot + 1
        return tuple(found[place.bag.name] for place in self.places)

    def lookups(self, devices: int) -> np.ndarray:
        """Look-ups of a sample that each device answers, float [devices]."""
        load = np.zeros(self.bins)
        for place in self.places:
            load[place.bins] += place.bag.size / place.pieces
        return load.reshape(devices, -1).sum(1)


@dataclasses.dataclass(frozen=True)
class TablePlan:
    """The stores of a model's tables by kind, in the order of the bags.

    >>> bags = [Bag("items", 1_000_000, 20), Bag("country", 250, 1)]
    >>> print(make_plan(bags, width=16, bins=4))
    table            rows   bag  placement   pieces       GiB
    items       1,000,000    20  rows             4     0.119
    country           250     1  replicated       -     0.000
    split: 4 bins of 250,000 rows (0.0 % spare), 5.0 to 5.0 look-ups a sample each
    """

    bags: tuple[Bag, ...]
    stores: Mapping[Kind, Store]
    width: int
    bytes_per_row: int

    @property
    def parameters(self) -> int:
        return sum(store.parameters for store in self.stores.values())

    def __str__(self) -> str:
        lines = ["table            rows   bag  placement   pieces       GiB"]
        where = {p.bag: (s, p) for s in self.stores.values() for p in s.places}
        for bag in self.bags:
            store, place = where[bag]
            names = {1: "table"} if store.bins > 1 else {}
            kind = names.get(place.pieces, "rows") if store.kind == "split" else store.kind
            pieces = str(place.pieces) if store.kind == "split" else "-"
            size = bag.rows * self.bytes_per_row / GIB
            lines.append(
                f"{bag.name:9} {bag.rows:11,} {bag.size:5}  {kind:10} {pieces:>7} {size:9.3f}"
            )
        if split := self.stores.get("split"):
            spare = 1 - sum(place.bag.rows for place in split.places) / split.rows
            load = split.lookups(split.bins)
            lines.append(
                f"split: {split.bins} bins of {split.capacity:,} rows ({spare:.1%} spare), "
                f"{load.min():.1f} to {load.max():.1f} look-ups a sample each".replace("%", " %")
            )
        return "\n".join(lines)


def check_bins(bins: int) -> None:
    """Nothing, if a plan can be made for so many bins.

    Raises:
        UserError: it is no power of two.
    """
    if bins < 1 or bins & (bins - 1):
        raise UserError(f"tables are split into {bins} bins: choose a power of two")


def make_plan(
    bags: Sequence[Bag],
    *,
    width: int,
    bins: int,
    way: Way = "auto",
    ways: Mapping[str, Way] | None = None,
    replicate_bytes: int = REPLICATE_BYTES,
) -> TablePlan:
    """Places the tables: small ones replicated, the others so that bytes and look-ups are balanced.

    Args:
        bags: the tables, in the model's order.
        width: W.
        bins: for how many devices the plan is made, a power of two; it runs on any that divide it.
        way: "auto", or one placement for all tables.
        ways: the same by table, for those that shall differ from `way`.
        replicate_bytes: tables up to this size, accumulators included, are small.

    Raises:
        UserError: `bins` is no power of two, a way or a table is unknown, or a name comes twice.
    """
    check_bins(bins)
    names = [bag.name for bag in bags]
    chosen = dict.fromkeys(names, way) | dict(ways or {})
    if len(set(names)) < len(names) or set(chosen) != set(names):
        odd = sorted(set(chosen) - set(names)) or names
        raise UserError(f"embedding tables need one name each, and ways known names; see {odd}")
    for name, one in chosen.items():
        if one not in WAYS:
            raise UserError(f"table {name} is placed {one!r}; the ways are {', '.join(WAYS)}")
    bytes_per_row = width * 8  # a float32 and its accumulator, as Adagrad has one
    groups: dict[str, list[Bag]] = {way: [] for way in WAYS}
    for bag in bags:
        small = chosen[bag.name] == "auto" and bag.rows * bytes_per_row <= replicate_bytes
        groups["replicated" if small else chosen[bag.name]].append(bag)
    fixed = dict.fromkeys(groups["rows"], bins) | dict.fromkeys(groups["tables"], 1)
    stores: dict[Kind, Store] = {}
    if fixed or groups["auto"]:
        stores["split"] = _balanced(groups["auto"], fixed, bins, width)
    for kind in ("columns", "replicated"):
        if groups[kind]:
            stores[kind] = _stacked(kind, groups[kind], width)
    return TablePlan(tuple(bags), stores, width, bytes_per_row)


def bytes_per_device(stores: Iterable[Store], bytes_per_row: int, devices: int) -> int:
    """Weights and accumulators that one of so many devices holds."""
    parts = ((s.rows, 1 if s.kind == "replicated" else devices) for s in stores)
    return sum(rows * bytes_per_row // ways for rows, ways in parts)


def check_fit(stores: Iterable[Store], bytes_per_row: int, devices: int, room: float) -> None:
    """Nothing, if one of so many devices has room (bytes) for its part of the stores.

    Raises:
        UserError: it has not; says by how much, and how many devices would.
    """
    stores = tuple(stores)
    needed = bytes_per_device(stores, bytes_per_row, devices)
    if needed <= room:
        return
    fixed = sum(store.rows * bytes_per_row for store in stores if store.kind == "replicated")
    advice = "replicate less: shard the large tables"
    if fixed < room:
        more = next(
            n
            for n in (2**i for i in range(60))
            if n > devices and bytes_per_device(stores, bytes_per_row, n) <= room
        )
        each = bytes_per_device(stores, bytes_per_row, more) / GIB
        advice = f"{more} such devices would do ({each:.2f} GiB each)"
    whole = sum(place.bag.rows for store in stores for place in store.places) * bytes_per_row
    raise UserError(
        f"the embedding tables and their accumulators do not fit: {needed / GIB:.2f} GiB on each of "
        f"{devices} device(s) with {room / GIB:.2f} GiB of memory, {(needed - room) / GIB:.2f} GiB too "
        f"much (all tables once: {whole / GIB:.2f} GiB); {advice}"
    )


def _stacked(kind: Kind, bags: Sequence[Bag], width: int) -> Store:
    places, end = [], 0
    for bag in bags:
        places.append(Place(bag, offset=end))
        end += bag.rows
    return Store(kind, tuple(places), 1, end, width)


def _balanced(free: Sequence[Bag], fixed: Mapping[Bag, int], bins: int, width: int) -> Store:
    """Doubles and halves the pieces of single tables, from some beginnings, while that gains anything."""
    best, lowest = None, math.inf
    for pieces in sorted({1, max(1, bins // 8), bins}):
        store = _pack(dict.fromkeys(free, pieces) | dict(fixed), bins, width)
        score = _score(store)
        while True:
            have = {place.bag: place.pieces for place in store.places}
            moves = [
                have | {bag: have[bag] * factor // 2}
                for bag in free
                for factor in (1, 4)
                if 1 <= have[bag] * factor // 2 <= bins
            ]
            packed = [_pack(move, bins, width) for move in moves]
            scores = [_score(one) for one in packed]
            if not scores or min(scores) >= score:
                break
            score, store = min(scores), packed[int(np.argmin(scores))]
        if best is None or score < lowest:
            best, lowest = store, score
    assert best is not None
    return best


def _pack(pieces: Mapping[Bag, int], bins: int, width: int) -> Store:
    """Tables of most pieces first, each where its bins are emptiest.

    A table of p pieces takes the bins of one residue modulo bins / p, and tables of fewer pieces come
    later, so the bins it takes are always equally full.
    """
    filled, load = np.zeros(bins, np.int64), np.zeros(bins)
    ideal = max(1, sum(bag.rows for bag in pieces) // bins)
    work = max(1e-9, sum(bag.size for bag in pieces) / bins)
    places = {}
    for bag, count in sorted(pieces.items(), key=lambda p: (-p[1], -p[0].rows, -p[0].size)):
        starts = np.arange(bins // count)
        level = np.maximum(filled[starts] / ideal, load[starts] / work)
        # of equally full ones, those whose neighbours are emptier: they share a device on small meshes
        near = [load.reshape(-1, n).sum(1)[starts // n] for n in (2, 4, 8) if n <= bins]
        first = int(np.lexsort((*near, level))[0])
        place = places[bag] = Place(bag, count, first, len(starts), int(filled[first]))
        filled[place.bins] += place.length
        load[place.bins] += bag.size / count + PIECE_COST
    in_order = tuple(places[bag] for bag in pieces)
    return Store("split", in_order, bins, int(filled.max()), width)


def _score(store: Store) -> float:
    """Look-ups of the busiest bin, and pieces of the bin that has most; far worse if rows are spare.

    The mean number of pieces leads the search on where one move alone does not change the largest.
    """
    depth = np.zeros(store.bins)
    for place in store.places:
        depth[place.bins] += 1
    ideal = sum(place.bag.rows for place in store.places) / store.bins
    over = max(1.0, store.capacity / (SPARE * ideal + 1))
    pieces = PIECE_COST * (0.4 * depth.max() + 0.6 * depth.mean())
    return float(store.lookups(store.bins).max() + pieces) * over**4

"""Rows that are only looked up, spread over a mesh by their numbers alone, and sent to whoever asks.

A table that no gradient touches, such as the features of a graph's nodes, may be larger than a device's memory.
Blocks of consecutive rows are dealt to bins in turn, and each device holds as many bins as any other; so a part is
read from a file in long pieces, and popular rows that lie together do not all live on one device. A device sends
each owner the numbers of the rows that it wants, and gets the rows back: two exchanges, in which every row travels
once, where a gather left to the compiler sends all rows that anyone asked for to everybody.

An exchange has room for an even share of the look-ups, and an eighth more. What is beyond that travels in further
turns, so that no row is ever missing.

N rows · W width · B rows of a batch · K look-ups of each
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from mlperf_jax.errors import UserError
from mlperf_jax.ops.embedding import SPARE, devices_of
from mlperf_jax.ops.embedding_plan import GIB
from mlperf_jax.ops.hints import rarely
from mlperf_jax.ops.shard import ROWS

BLOCK = 1024  # rows that stay together, in a table that has enough of them
_BLOCKS = 8  # of a bin, at least: a few make up for each other's popularity

Ids = TypeVar("Ids", np.ndarray, jax.Array)


@dataclasses.dataclass(frozen=True)
class RowStore:
    """What lies where.

    Attributes:
        count: N.
        bins: into which the rows are divided; 1 keeps all of them on every device.
    """

    count: int
    bins: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or self.bins < 1:
            raise UserError(
                f"{self.count} rows in {self.bins} bins: there must be at least one of each"
            )

    @property
    def block(self) -> int:
        """Rows of a block: a power of two."""
        return 1 << max(0, min(BLOCK, self.count // (_BLOCKS * self.bins)).bit_length() - 1)

    @property
    def capacity(self) -> int:
        """Rows that a bin has room for."""
        return -(-self.count // (self.block * self.bins)) * self.block

    @property
    def rows(self) -> int:
        """Rows of the array: N, and what fills up the bins."""
        return self.count if self.bins == 1 else self.bins * self.capacity

    def positions(self, ids: Ids) -> Ids:
        """Where in the array the rows of these numbers are.

        >>> store = RowStore(50, bins=2)
        >>> store.block, store.positions(np.array([0, 1, 2, 3, 4, 49])).tolist()
        (2, [0, 1, 26, 27, 2, 25])
        """
        if self.bins == 1:
            return ids
        block, within = ids // self.block, ids % self.block
        return block % self.bins * self.capacity + block // self.bins * self.block + within

    def read(self, index: tuple[slice, ...], rows: Callable[[int, int], np.ndarray]) -> np.ndarray:
        """A part of the array, from what gives consecutive rows; zeros where bins are only filled up.

        Args:
            index: slices of the array [rows, W].
            rows: (first, last) -> rows first..last of the table, [last - first, W].
        """
        first, last, _ = index[0].indices(self.rows)
        if self.bins == 1:
            return rows(first, last)[:, *index[1:]]
        none = rows(0, 0)
        found = np.zeros((last - first, *none.shape[1:]), none.dtype)
        at = first
        while at < last:
            bin_, place = divmod(at, self.capacity)
            block, within = divmod(place, self.block)
            begin = (block * self.bins + bin_) * self.block + within
            length = min(self.block - within, last - at)
            real = max(0, min(length, self.count - begin))
            if real:
                found[at - first : at - first + real] = rows(begin, begin + real)
            at += length
        return found[:, *index[1:]]


def spec(store: RowStore) -> PartitionSpec:
    """How the array lies on the mesh."""
    return PartitionSpec(ROWS) if store.bins > 1 else PartitionSpec()


def check_mesh(store: RowStore, mesh: Mesh) -> None:
    """Nothing, if the rows can be spread over this mesh.

    Raises:
        UserError: the devices do not divide the bins.
    """
    devices = devices_of(mesh)
    if store.bins > 1 and store.bins % devices:
        raise UserError(
            f"the rows of a table are dealt to {store.bins} bins, which {devices} devices do not divide: use a "
            "number of devices that does, or another number of bins"
        )


def check_fit(stores: Sequence[tuple[RowStore, int]], devices: int, room: float) -> None:
    """Nothing, if one of so many devices has room (bytes) for its part of stores, each with the bytes of a row.

    Raises:
        UserError: it has not; says how many devices would.
    """

    def needed(devices: int) -> int:
        return sum(store.rows // min(store.bins, devices) * size for store, size in stores)

    if needed(devices) <= room:
        return
    most = max(store.bins for store, _ in stores)
    enough = next(
        (n for n in range(devices + 1, most + 1) if most % n == 0 and needed(n) <= room), 0
    )
    advice = f"{enough} such devices would do" if enough else "no number of such devices would do"
    raise UserError(
        f"tables of {sum(s.count * size for s, size in stores) / GIB:,.2f} GiB do not fit: "
        f"{needed(devices) / GIB:,.2f} GiB on each of {devices} device(s) with {room / GIB:,.2f} GiB of memory; "
        f"{advice}, or give their rows fewer bytes"
    )


def take(store: RowStore, table: jax.Array, ids: jax.Array, mesh: Mesh | None = None) -> jax.Array:
    """The rows of these numbers.

    Where rows are spread, look-ups must come bin by bin, as whoever makes a batch can order them for nothing, while a
    device would have to sort. If they do not, all that the sample gets is NaN, of integers their bytes 0x7f: the
    NaN of float8.

    Args:
        store: what lies where.
        table: [rows, W], as `spec` says.
        ids: [B, K] numbers below N, those of a bin together and bins ascending; negative ones, which come last, ask
            for nothing and get zeros.
        mesh: the mesh that all of this lives on; one device without.

    Returns:
        [B, K, W], the batch over the mesh's devices.
    """
    devices = devices_of(mesh)
    local = functools.partial(_own, store)
    if devices > 1:
        if store.bins > 1:
            local = functools.partial(_exchanged, store, devices=devices)
        batch = PartitionSpec(ROWS)
        specs = {"in_specs": (spec(store), batch), "out_specs": batch}
        local = jax.shard_map(local, mesh=mesh, **specs, check_vma=False)
    found = local(table, ids)
    return found if store.bins == 1 else _if_ascending(store, ids, found)


def _own(store: RowStore, table: jax.Array, ids: jax.Array) -> jax.Array:
    found = table[store.positions(jnp.maximum(ids, 0))]
    return jnp.where((ids >= 0)[..., None], found, jnp.zeros((), table.dtype))


def _if_ascending(store: RowStore, ids: jax.Array, found: jax.Array) -> jax.Array:
    """What was found [B, K, W] for samples whose ids' bins never fall."""
    bins = jnp.where(ids < 0, store.bins, ids // store.block % store.bins)
    ascend = jnp.all(bins[:, 1:] >= bins[:, :-1], 1)[:, None, None]
    if jnp.issubdtype(found.dtype, jnp.floating):
        return jnp.where(ascend, found, jnp.nan)
    no_number = np.frombuffer(b"\x7f" * found.dtype.itemsize, found.dtype)[0]
    return jnp.where(ascend, found, no_number)


def _exchanged(store: RowStore, table: jax.Array, ids: jax.Array, *, devices: int) -> jax.Array:
    many, size = ids.shape
    width, local = table.shape[1], table.shape[0]
    room = min(size, math.ceil(1.125 * size / devices) + SPARE)
    at = store.positions(jnp.maximum(ids, 0))
    owner = jnp.where(ids < 0, devices, at // local)  # [b, K]
    whose = jnp.arange(devices + 1, dtype=owner.dtype)
    edges = jax.vmap(lambda owner: jnp.searchsorted(owner, whose))(owner).astype(jnp.int32)
    start, count = edges[:, :-1], jnp.diff(edges)  # [b, devices]
    # of each look-up, how many of its owner's come before it
    rank = jnp.arange(size, dtype=jnp.int32) - jnp.take_along_axis(
        start, jnp.minimum(owner, devices - 1), 1
    )

    def turn(i: Any, found: jax.Array) -> jax.Array:
        place = i * room + jnp.arange(room, dtype=jnp.int32)
        index = jnp.minimum(start[..., None] + place, size - 1).reshape(many, -1)
        ask = jnp.take_along_axis(at % local, index, 1).reshape(many, devices, room)
        ask = jnp.where(place < count[..., None], ask, 0)
        asked = lax.all_to_all(ask, ROWS, 1, 1, tiled=True)
        got = lax.all_to_all(table[asked], ROWS, 1, 1, tiled=True)  # [b, devices, room, W]
        here = (owner < devices) & (rank >= i * room) & (rank < (i + 1) * room)
        slot = jnp.where(here, owner * room + rank - i * room, 0)
        mine = jax.vmap(lambda got, slot: got[slot])(got.reshape(many, -1, width), slot)
        return jnp.where(here[..., None], mine, found)

    found = turn(0, jnp.zeros((many, size, width), table.dtype))
    if room < size:
        turns = lax.pmax(-(-jnp.max(count) // room), ROWS)
        found = lax.fori_loop(1, turns, rarely(turn), found)
    return found

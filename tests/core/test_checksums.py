"""The checksum must not depend on how an array is cut, and must notice what happens to arrays."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P, SingleDeviceSharding

from mlperf_jax.core.checkpoints import checksums
from mlperf_jax.core.checkpoints.checksums import Block, leaf_sum


def slow_sum(data):
    """The definition, word by word, in Python integers."""
    words = np.ascontiguousarray(data).reshape(-1)
    words = words.view(f"<u{min(words.dtype.itemsize, 4)}")
    total = 0
    for i, word in enumerate(words):
        h = (int(word) + i * checksums.GOLDEN) % 2**32
        h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
        h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
        total += h ^ h >> 16
    return total % 2**64


def values(shape, dtype):
    generator = np.random.default_rng(3)
    if dtype == "bool":
        return generator.integers(0, 2, shape).astype(bool)
    if dtype in ("int8", "uint16", "complex128"):
        return generator.integers(0, 100, shape).astype(dtype)
    return generator.normal(size=shape).astype(jnp.dtype(dtype))


def pieces(data, cuts):
    """All blocks of an array that is cut at these positions along each axis."""
    ranges = [list(zip([0, *c], [*c, n])) for c, n in zip(cuts, data.shape)]
    blocks = [Block((), data)]
    for axis, spans in enumerate(ranges):
        blocks = [
            Block((*b.start, low), np.take(b.data, range(low, high), axis))
            for b in blocks
            for low, high in spans
        ]
    return blocks


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float64", "complex128", "int8", "uint16", "bool"]
)
def test_sum_is_its_definition_however_the_array_is_cut(dtype):
    data = values((6, 5, 8), dtype)
    whole = leaf_sum([Block((0, 0, 0), data)], data.shape)
    assert whole == slow_sum(data)
    for cuts in ([[3], [], []], [[], [2, 3], []], [[], [], [1, 7]], [[1], [4], [2]]):
        blocks = pieces(data, cuts)
        assert len(blocks) > 1
        assert leaf_sum(blocks, data.shape) == whole
        assert leaf_sum(blocks[1:], data.shape) != whole


def test_sum_of_long_and_of_many_short_runs(monkeypatch):
    data = values((40, 300), "float32")
    whole = slow_sum(data)
    for chunk in (1, 7, 64, 299, 300, 1 << 15):
        monkeypatch.setattr(checksums, "CHUNK", chunk)
        assert leaf_sum([Block((0, 0), data)], data.shape) == whole
        assert leaf_sum(pieces(data, [[9], [100, 103]]), data.shape) == whole


def test_sum_of_scalars_and_of_nothing():
    assert leaf_sum([Block((), np.float32(2.5))], ()) == slow_sum(np.float32([2.5]))
    assert leaf_sum([Block((0, 0), np.zeros((0, 3), np.float32))], (0, 3)) == 0
    assert leaf_sum([], (4,)) == 0


def test_every_single_bit_and_every_swap_changes_the_sum():
    data = values((3, 5), "float32")
    seen = {leaf_sum([Block((0, 0), data)], data.shape)}
    for i in range(data.size):
        for bit in range(32):
            other = data.copy()
            other.view(np.uint32).reshape(-1)[i] ^= np.uint32(1 << bit)
            seen.add(leaf_sum([Block((0, 0), other)], data.shape))
        for j in range(i):
            other = data.copy().reshape(-1)
            other[[i, j]] = other[[j, i]]
            seen.add(leaf_sum([Block((0, 0), other.reshape(3, 5))], data.shape))
    assert len(seen) == 1 + data.size * 32 + data.size * (data.size - 1) // 2


def test_zeros_and_all_flipped_signs_are_noticed():
    data = values((100,), "float32")
    sums = {leaf_sum([Block((0,), d)], (100,)) for d in (data, -data, 0 * data, data[::-1].copy())}
    assert len(sums) == 4


def test_owned_blocks_hold_each_value_once():
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    data = values((8, 12), "float32")
    for spec in (P(), P("data"), P(None, "fsdp"), P("fsdp", "data"), P(("data", "fsdp"))):
        blocks = checksums.owned_blocks(jax.device_put(data, NamedSharding(mesh, spec)))
        assert sum(block.data.size for block in blocks) == data.size
        assert leaf_sum(blocks, data.shape) == leaf_sum([Block((0, 0), data)], data.shape)


def test_parameters_sha256_is_what_the_design_says_on_any_mesh():
    kernel, table = values((8, 4), "float32"), values((8, 2), "bfloat16")
    expected = hashlib.sha256()
    for name, leaf in (("params/dense/kernel", kernel), ("tables/0/rows", table)):
        expected.update(f"{name} {leaf.dtype} {leaf.shape}\n".encode() + leaf.tobytes())
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    one = SingleDeviceSharding(jax.devices()[0])
    for sharding in (one, NamedSharding(mesh, P("data")), NamedSharding(mesh, P())):
        state = {
            "tables": [{"rows": jax.device_put(table, sharding)}],
            "params": {"dense": {"kernel": jax.device_put(kernel, sharding)}},
            "opt": {"count": jnp.zeros(())},
        }
        assert checksums.parameters_sha256(state) == expected.hexdigest()
        state["params"]["dense"]["kernel"] += 1
        assert checksums.parameters_sha256(state) != expected.hexdigest()


def test_parameters_sha256_is_none_above_its_limit(monkeypatch):
    state = {"params": {"w": jnp.zeros(100)}}
    monkeypatch.setattr(checksums, "HASHED_LIMIT", 400)
    assert checksums.parameters_sha256(state) is not None
    monkeypatch.setattr(checksums, "HASHED_LIMIT", 399)
    assert checksums.parameters_sha256(state) is None

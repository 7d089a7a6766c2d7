"""Checksums of arrays: one that does not depend on the mesh, and the run's parameters_sha256.

The mesh-independent checksum of a leaf is the sum, modulo 2**64, of a hash of every 32-bit word
together with its position in the *global* array:

    leaf_sum = sum over i of mix(word[i] + i * GOLDEN)   (mod 2**64)

A sum can be cut anywhere and added up in any order. So each process hashes the shards that it owns,
in host memory, and the totals agree whether a leaf lay whole on one device or was cut over 512; a
checkpoint saved on one mesh verifies on another without reading anything twice. One changed, zeroed
or moved word changes the sum unless 32-bit hashes happen to cancel, about 2**-32 (the odds of a
CRC-32, which cannot be cut and added this way).
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

CHUNK = 1 << 15  # words hashed at a time: 128 KiB of temporaries stay in the second-level cache
GOLDEN = 0x9E3779B1  # odd, near 2**32 / golden ratio: neighbours land far apart
MASK = (1 << 64) - 1
HASHED_LIMIT = 8 << 30  # bytes; parameters_sha256 is None above

Key = tuple[str, ...]


class Block(NamedTuple):
    """A host copy of one shard and where it starts in the global array."""

    start: tuple[int, ...]
    data: np.ndarray


def flatten(tree: Any) -> dict[Key, Any]:
    """Returns the leaves of a tree by their path, as strings, whatever the containers are.

    Optimizer states hold named tuples; their fields and positions become path components, so that
    what is stored is a nest of dicts and nothing else.
    """
    return {
        tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def owned_blocks(array: jax.Array) -> list[Block]:
    """Returns host copies of the shards of which this process holds the first replica.

    The copies outlive the array: its buffers may be donated right afterwards. (On CPU devices they
    are views that the runtime keeps alive; it copies instead of donating in that case.)
    """
    blocks = []
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            start = tuple(s.indices(n)[0] for s, n in zip(shard.index, array.shape))
            blocks.append(Block(start, np.asarray(shard.data)))
    return blocks


def leaf_sum(blocks: Iterable[Block], shape: tuple[int, ...]) -> int:
    """Returns the checksum of these blocks of a global array of this shape, in [0, 2**64)."""
    return sum(_block_sum(block, shape) for block in blocks) & MASK


def parameters_sha256(state: Mapping[str, Any]) -> str | None:
    """Returns the SHA-256 of weights: `params` and `tables`, of a run those that its evaluation reads.

    It runs over the leaves sorted by path; each contributes its path, dtype, shape and little-endian
    bytes. The same weights give the same digest on any mesh.

    Returns:
        64 hexadecimal digits, or None where a leaf is not addressable by this process or the leaves
        together exceed 8 GiB.
    """
    leaves = flatten({name: state[name] for name in ("params", "tables") if name in state})
    if sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values()) > HASHED_LIMIT:
        return None
    digest = hashlib.sha256()
    for key, leaf in sorted(leaves.items(), key=lambda item: "/".join(item[0])):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            if not leaf.is_fully_replicated:
                return None
            leaf = leaf.addressable_data(0)
        shape = tuple(int(n) for n in leaf.shape)
        digest.update(f"{'/'.join(key)} {leaf.dtype} {shape}\n".encode())
        digest.update(_unsigned(np.asarray(leaf)).data)
    return digest.hexdigest()


def _unsigned(data: np.ndarray) -> np.ndarray:
    """Returns the values, flat, as little-endian unsigned words of one, two or four bytes."""
    width = min(data.dtype.itemsize, 4)
    words = np.ascontiguousarray(data).reshape(-1).view(f"u{width}")
    return words.astype(f"<u{width}", copy=False)


def _block_sum(block: Block, shape: tuple[int, ...]) -> int:
    data = block.data
    if data.size == 0:
        return 0
    per_value = max(1, data.dtype.itemsize // 4)  # words
    strides = [per_value * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    # Axes after `cut` are whole, so from `cut` on the block is one contiguous run of the array.
    cut = len(shape) - 1
    while cut > 0 and data.shape[cut] == shape[cut]:
        cut -= 1
    cut = max(cut, 0)
    first = np.zeros(1, np.uint64)  # where each run starts in the array, in words
    for axis in range(cut):
        steps = np.arange(data.shape[axis], dtype=np.uint64) + np.uint64(block.start[axis])
        first = np.add.outer(first, steps * np.uint64(strides[axis])).reshape(-1)
    if shape:
        first = first + np.uint64(block.start[cut] * strides[cut])
    words = _unsigned(data).reshape(first.size, -1)
    # Positions count modulo 2**32: only words 16 GiB apart within a leaf share one.
    return _words_sum(words, first.astype(np.uint32) * np.uint32(GOLDEN))


def _words_sum(words: np.ndarray, first: np.ndarray) -> int:
    """Returns the sum of the hashed words; `first` [runs] is each run's position times GOLDEN."""
    runs, length = words.shape
    width = min(length, CHUNK)
    together = max(1, CHUNK // width)  # many short runs at once, or a piece of a long one
    ramp = np.arange(width, dtype=np.uint32) * np.uint32(GOLDEN)
    total = 0
    for top in range(0, runs, together):
        for left in range(0, length, width):
            part = words[top : top + together, left : left + width]
            begin = first[top : top + together] + np.uint32(left * GOLDEN & 0xFFFFFFFF)
            total += _mixed_sum(part, begin[:, None] + ramp[: part.shape[1]])
    return total


def _mixed_sum(words: np.ndarray, hashed: np.ndarray) -> int:
    """Returns the sum of mix(words + positions); `hashed` holds the positions and is overwritten.

    The mixing is the finalizer of MurmurHash3 (public domain): each input bit flips every output
    bit with a probability close to one half.
    """
    hashed += words
    spare = np.right_shift(hashed, 16)
    hashed ^= spare
    hashed *= np.uint32(0x85EBCA6B)
    np.right_shift(hashed, 13, out=spare)
    hashed ^= spare
    hashed *= np.uint32(0xC2B2AE35)
    np.right_shift(hashed, 16, out=spare)
    hashed ^= spare
    return int(hashed.sum(dtype=np.uint64))

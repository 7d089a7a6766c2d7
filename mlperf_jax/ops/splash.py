"""The splash attention kernel of JAX (Pallas, TPU): what it takes, its blocks, its mask.

B batch · T queries · S keys · N heads · K key and value heads · H width of a head's queries and keys ·
V width of its values
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as pallas_splash
from jax.sharding import NamedSharding, PartitionSpec

NAME = "attention"
NOBODY = -(2**31)  # the segment of what fills up a tile
_LANES = 128
_FEWEST = _LANES // 2  # of fewer queries or keys a tile is mostly empty, and XLA's scores are small
_MOST_PARTIAL = 4  # the fused kernel keeps one dq per block of keys until they are summed


class _Largest(NamedTuple):
    """Largest blocks of queries and keys, forward and backward."""

    q: int
    kv: int
    q_back: int
    kv_back: int
    compute: int  # keys multiplied at once
    fused: bool  # dq, dk and dv by one kernel instead of two: 5 products instead of 7


# These compile with segments in the vector memory that the compiler grants without a flag (blocks of
# 2048 throughout do not). Public recipes fuse the backward pass on TPU7x and do not on v5p; no speed
# was measured here.
_COMMON = _Largest(1024, 1024, 1024, 1024, 1024, False)
# of heads wider than 256, such as the autoencoder's one of 512
_WIDE = _Largest(512, 512, 512, 512, 512, False)
_FUSED = _Largest(2048, 1024, 1024, 2048, 1024, True)
_FUSED_KINDS = ("TPU v6 lite", "TPU7x")


def misfit(
    dtype, queries: int, keys: int, widths: Collection[int], causal: bool, ways: int
) -> str | None:
    """What the kernel would refuse, in words, or None; queries are split into `ways` parts."""
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"{dtype}, only bfloat16 and float32"
    if min(queries // ways, keys) < _FEWEST:
        return (
            f"{queries // ways} queries and {keys} keys on a device, only {_FEWEST} or more of each"
        )
    if causal and ways > 1 and queries % (ways * _LANES):  # a part's tiles must begin where it does
        return f"{queries} causal queries in {ways} parts, only multiples of {_LANES} per part"
    for width in widths:
        if width % 64:
            return f"head dimension {width}, only multiples of 64"
    return None


def whole_tiles(length: int) -> int:
    """The length of the tiles of 128 that hold so many queries or keys.

    >>> whole_tiles(77), whole_tiles(256)
    (128, 256)
    """
    return -(-length // _LANES) * _LANES


def block_sizes(queries: int, keys: int, width: int) -> pallas_splash.BlockSizes:
    """Blocks for `queries` and `keys` on one device, both multiples of 128.

    >>> block_sizes(1024, 3072, 128).block_kv, block_sizes(4096, 4096, 512).block_kv
    (1024, 512)
    """
    largest = _largest(keys, width)
    kv, kv_back = _fitting(keys, largest.kv), _fitting(keys, largest.kv_back)
    q_back = _fitting(queries, largest.q_back)
    return pallas_splash.BlockSizes(
        block_q=_fitting(queries, largest.q),
        block_kv=kv,
        block_kv_compute=_fitting(kv, largest.compute),
        block_q_dkv=q_back,
        block_kv_dkv=kv_back,
        block_kv_dkv_compute=_fitting(kv_back, largest.compute),
        block_q_dq=None if largest.fused else q_back,
        block_kv_dq=None if largest.fused else kv_back,
        use_fused_bwd_kernel=largest.fused,
    )


def _largest(keys: int, width: int) -> _Largest:
    if width > 2 * _LANES:
        return _WIDE
    partial = keys // _fitting(keys, _FUSED.kv_back)
    fused = _device_kind() in _FUSED_KINDS and width <= _LANES and partial <= _MOST_PARTIAL
    return _FUSED if fused else _COMMON


def _device_kind() -> str:
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (jax.devices()[0] if device is None else device).device_kind


def _fitting(size: int, largest: int) -> int:
    """The largest multiple of 128 up to `largest` that divides `size`."""
    return max(block for block in range(_LANES, largest + 1, _LANES) if size % block == 0)


def make_kernel(
    heads: int, queries: int, keys: int, width: int, causal: bool, ways: int, interpret: bool
) -> Any:
    """The kernel with its block mask; blocks without a visible key are skipped.

    Args:
        heads: query heads on one device.
        queries: on one device; a multiple of 128, as are the keys.
        keys: S.
        width: H or V, whichever is larger.
        causal: whether query t sees keys 0 ... t only.
        ways: parts of the queries; each gets its own rows of the mask through `kernel_spec`.
        interpret: run on any device, for tests.

    Returns:
        A pytree that is called with one row's q, k, v and segment ids.
    """
    if causal:
        mask, shards = pallas_splash.CausalMask((queries * ways, keys), shard_count=ways), ways
    else:  # every part sees all keys, so one part's mask serves all
        mask, shards = pallas_splash.FullMask((queries, keys)), 1
    return pallas_splash.make_splash_mha(
        pallas_splash.MultiHeadMask([mask] * heads),
        block_sizes=block_sizes(queries, keys, width),
        head_shards=1,  # all heads have one mask, so each device of `tensor` gets the same kernel
        q_seq_shards=shards,
        residual_checkpoint_name=NAME,
        interpret=interpret,
    )


def kernel_spec(kernel: Any, axis: str | None) -> Any:
    """The kernel as a shard_map spec: rows of its mask over the mesh axis `axis`, if any."""
    mesh = jax.sharding.get_abstract_mesh()
    return kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, axis)))


def apply(kernel: Any, q, k, v, q_segments, k_segments) -> jax.Array:
    """The kernel over a batch on one device.

    Args:
        kernel: of `make_kernel`.
        q: [B, T, N, H], already scaled.
        k: [B, S, K, H].
        v: [B, S, K, V].
        q_segments: [B, T] or None.
        k_segments: [B, S] or None.

    Returns:
        [B, T, N, V].
    """
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # [B, N, T, H]
    if q_segments is None:
        out = jax.vmap(kernel)(q, k, v)
    else:
        ids = pallas_splash.SegmentIds(q=q_segments, kv=k_segments)
        out = jax.vmap(kernel)(q, k, v, ids)
    return out.swapaxes(1, 2)

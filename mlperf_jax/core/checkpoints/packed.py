"""The small arrays of a checkpoint, in one file for each process.

Orbax takes more than half a millisecond of processor time for an array, however small: that was half of what a
checkpoint of ResNet-50 took, most of whose arrays are norms' (scripts/measure_checkpoints.py).

    small_00000          a line of JSON, [[leaf, start, shape, bytes], …], then the blocks' bytes in this order
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from mlperf_jax.core.checkpoints.checksums import Block
from mlperf_jax.core.checkpoints.folder import write_whole

LIMIT = 1 << 18  # bytes of the whole leaf: what is small must not depend on the mesh


def is_small(leaf: Any) -> bool:
    """Returns whether an array belongs in these files; one without values is in none."""
    return 0 < math.prod(leaf.shape) * leaf.dtype.itemsize <= LIMIT


def write(path: epath.Path, process: int, blocks: Mapping[str, Sequence[Block]]) -> None:
    """Writes a process's blocks of the small leaves, by leaf; also where it owns none."""
    own = [(name, block) for name, each in blocks.items() for block in each]
    index = [[name, block.start, block.data.shape, block.data.nbytes] for name, block in own]
    parts = [json.dumps(index).encode(), b"\n", *(block.data.tobytes() for _, block in own)]
    write_whole(_file(path, process), b"".join(parts))


def read(
    path: epath.Path, processes: int, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Returns leaves, each on the sharding that its abstract value has.

    Args:
        path: the checkpoint's folder.
        processes: that saved it.
        wanted: of the small leaves those to be read.

    Raises:
        OSError, ValueError, TypeError: a file is gone, or is not what was written.
    """
    whole = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in wanted.items()}
    for process in range(processes):
        index, _, data = _file(path, process).read_bytes().partition(b"\n")
        end = 0
        for name, start, shape, size in json.loads(index):
            begin, end = end, end + size
            if name in whole:
                place = tuple(slice(first, first + n) for first, n in zip(start, shape))
                values = np.frombuffer(data[begin:end], whole[name].dtype)
                whole[name][place] = values.reshape(shape)
        if end != len(data):
            raise ValueError(f"{_file(path, process).name} has {len(data)} bytes, not {end}")
    return {
        name: jax.make_array_from_callback(leaf.shape, leaf.sharding, whole[name].__getitem__)
        for name, leaf in wanted.items()
    }


def _file(path: epath.Path, process: int) -> epath.Path:
    return path / f"small_{process:05d}"

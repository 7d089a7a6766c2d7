"""One id becomes a bag: the organisers' multi-hot synthesis, and the files it is written to.

Every id of a table has a fixed bag: itself first, then ids drawn once, uniformly from the table. One
legacy generator, seeded with 0, serves all tables in their order; duplicates are kept.
Reference: recommendation_v2/torchrec_dlrm, scripts/materialize_synthetic_multihot_dataset.py.

Shape legend: n rows of a table, k ids of its bag, S samples of a day.
"""

from __future__ import annotations

import os
import pathlib
import zipfile
from collections.abc import Iterator, Sequence

import numpy as np

from mlperf_jax.input_pipelines import building

CHUNK = 1 << 22  # ids drawn or written at once: the stream of draws is the same however it is cut


def draw_bags(random: np.random.RandomState, rows: int, first: int, out: np.ndarray) -> None:
    """Fills `out`, i32 [m, k], with the bags of ids first .. first + m - 1 of a table of so many rows.

    The generator must stand where the bags before these left it.
    """
    count, size = out.shape
    out[:, 0] = np.arange(first, first + count, dtype=np.int32)
    if size > 1:
        out[:, 1:] = random.randint(0, rows, (count, size - 1), np.int32)


def pieces(rows: int, size: int) -> Iterator[tuple[int, int]]:
    """Cuts rows of so many ids into ranges (first, last) of some megabytes."""
    step = max(1, CHUNK // size)
    return ((first, min(first + step, rows)) for first in range(0, rows, step))


def bag_matrix(random: np.random.RandomState, out: np.ndarray) -> None:
    """Fills `out`, i32 [n, k], with the bags of ids 0 .. n - 1, drawing n (k - 1) numbers."""
    for first, last in pieces(*out.shape):
        draw_bags(random, len(out), first, out[first:last])


def bag_matrices(rows: Sequence[int], bags: Sequence[int], seed: int = 0) -> Iterator[np.ndarray]:
    """Yields the matrix i32 [n, k] of each table, in order.

    >>> [m.tolist() for m in bag_matrices([3, 2], [2, 1])]
    [[[0, 0], [1, 1], [2, 0]], [[0], [1]]]
    """
    random = np.random.RandomState(seed)
    for n, k in zip(rows, bags, strict=True):
        out = np.empty((n, k), np.int32)
        bag_matrix(random, out)
        yield out


def save_matrices(
    folder: str | os.PathLike, rows: Sequence[int], bags: Sequence[int]
) -> list[np.ndarray]:
    """Writes the matrix of each table to `folder/<table>.npy` and returns them memory-mapped.

    Tables that are there already are kept: the state of the generator after each lies beside it.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(0)
    for table, (n, k) in enumerate(zip(rows, bags, strict=True)):
        done, state = folder / f"{table}.npy", folder / f"{table}.state.npz"
        if done.exists():
            kept = np.load(state)
            random.set_state(("MT19937", kept["key"], int(kept["position"]), 0, 0.0))
            continue
        with building.unfinished(done) as part:
            out = np.lib.format.open_memmap(part, "w+", np.dtype("<i4"), (n, k))
            bag_matrix(random, out)
            out.flush()
            del out
            kept = random.get_state(legacy=False)["state"]  # pyright: ignore
            np.savez(state, key=kept["key"], position=kept["pos"])
    return [np.load(folder / f"{table}.npy", mmap_mode="r") for table in range(len(rows))]


def write_npz(path: str | os.PathLike, columns: np.ndarray, matrices: Sequence[np.ndarray]) -> None:
    """Writes the bags of a day as `numpy.savez` would, byte for byte, a piece at a time.

    Args:
        path: of the new file, members "0", "1", … i32 [S, k].
        columns: ids before the modulo, i32 [tables, S].
        matrices: bags of each table, i32 [n, k].
    """
    samples = columns.shape[1]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for table, (ids, matrix) in enumerate(zip(columns, matrices, strict=True)):
            rows, size = matrix.shape
            header = {"descr": "<i4", "fortran_order": False, "shape": (samples, size)}
            with archive.open(f"{table}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for first, last in pieces(samples, size):
                    member.write(matrix[ids[first:last] % rows].data)

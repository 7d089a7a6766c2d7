"""Features in fewer bytes: copies in float16 or float8, as the rules allow.

`<data>/<size>/<dtype>/<type>.npy`, [N, W]. Float8 is e4m3 with scale 1, without infinities and up to 448 (the form
that accelerators compute in, and the records' choice), stored as bytes since NumPy's header has no name for it. The
full graph takes 1.12 TB or 0.56 TB, and about 80 processor-minutes either way. `<data>/<size>/<dtype>.json` notes what they
were made of, so that copies of features that were replaced since are told.

Shape legend: N nodes of a type, W width of a node's features.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mlperf_jax.errors import DataError, UserError, did_you_mean
from mlperf_jax.input_pipelines import building, finite
from mlperf_jax.input_pipelines.igbh import arrays
from mlperf_jax.input_pipelines.igbh.sizes import Size

DTYPES = {"float16": np.dtype(np.float16), "float8_e4m3fn": arrays.FLOAT8}
_CHUNK = 1 << 22  # numbers converted at once: 16 MB
_SYNCED = 64  # so many pieces are on the disk before the note says so


def _known(dtype: str) -> np.dtype:
    if dtype not in DTYPES:
        raise UserError(f"features have no copy of type {dtype!r}{did_you_mean(dtype, DTYPES)}")
    return DTYPES[dtype]


def _stored(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.uint8) if dtype == arrays.FLOAT8 else dtype


def open_copies(folder: pathlib.Path, size: Size, dtype: str) -> Mapping[str, arrays.Mapped]:
    """Opens the copies of all types.

    Raises:
        UserError: one is missing or not as `write_copies` leaves it, or was made of other features than lie there.
    """
    wanted, again = (
        _known(dtype),
        "remove it if it is there, and build it: mlperf-jax data build rgat",
    )
    found = {}
    for kind, count in size.nodes.items():
        path = folder / dtype / f"{kind}.npy"
        _check_source(folder, kind, dtype)
        opened = arrays.open_npy(path, (count, size.width), (_stored(wanted),), again=again)
        found[kind] = dataclasses.replace(opened, dtype=wanted, scattered=True)
    return found


def read(source: arrays.Mapped, first: int, last: int) -> np.ndarray:
    """The features of nodes first..last, [last - first, W].

    Raises:
        DataError: a value is not finite; names the node.
    """
    rows = source.read(first, last)
    if not finite.all_finite(rows):
        at = int(np.argmin(np.isfinite(rows.astype(np.float32)).all(1)))
        raise DataError(
            f"{source.path}, node {first + at:,}: its features are not finite; remove this file and build it again "
            "if it is a copy, else fetch it again"
        )
    return rows


def _check_source(folder: pathlib.Path, kind: str, dtype: str) -> None:
    """Nothing, unless the features lie there and are not those that the copy of a type was made of.

    Raises:
        UserError: they are others.
    """
    source, noted = folder / "processed" / kind / "node_feat.npy", _sources(folder, dtype)
    if kind in noted and source.is_file() and noted[kind] != building.fingerprint(source):
        raise UserError(
            f"{folder / dtype / kind}.npy was made of other features than {source} now holds: make it anew with "
            "mlperf-jax data build rgat --data-dir DIR"
        )


def _note(folder: pathlib.Path, dtype: str) -> pathlib.Path:
    return folder / f"{dtype}.json"


def _sources(folder: pathlib.Path, dtype: str) -> dict[str, Any]:
    """By type the fingerprint of what its copy was made of, as far as that was noted."""
    try:
        found = json.loads(_note(folder, dtype).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_copies(
    folder: pathlib.Path,
    features: Mapping[str, arrays.Mapped],
    dtype: str,
    say: Callable[[str], None] = print,
) -> None:
    """Writes the copies of all types that are not there yet or of other features; a killed build is taken up.

    Args:
        folder: `<data>/<size>`, of an opened graph.
        features: its features, float32.
        dtype: "float16" or "float8_e4m3fn".
        say: is told what is being written.

    Raises:
        UserError: the features are copies themselves, a feature is not finite in the new type (names node
            and column), or the disk has no room.
    """
    wanted = _known(dtype)
    for kind, source in features.items():
        if source.dtype != np.float32:
            raise UserError(
                f"{source.path} holds {source.dtype}: copies are made of the features as they were handed out"
            )
        with building.alone(folder / dtype / f"{kind}.npy", resumes=True) as target:
            work = target.with_name(f"{target.name}.incomplete")
            made_of = building.fingerprint(source.path)
            if target.exists() and _sources(folder, dtype).get(kind, made_of) == made_of:
                shutil.rmtree(work, ignore_errors=True)
                continue
            say(f"writing {target}: {len(source):,} nodes")
            settings = {"source": made_of, "shape": source.shape}
            building.begin(work, settings, restart=True)
            _write_copy(source, wanted, work)
            building.publish(work / "array", target)
            with building.unfinished(_note(folder, dtype)) as part:
                part.write_text(json.dumps(_sources(folder, dtype) | {kind: made_of}))
            shutil.rmtree(work)


def _write_copy(source: arrays.Mapped, dtype: np.dtype, work: pathlib.Path) -> None:
    """Fills `array` in the folder of unfinished work, from the row that its note names."""
    path, note = work / "array", work / "rows"
    nodes, width = source.shape
    done = int(note.read_text()) if note.exists() else 0
    if not done:
        room = nodes * width * dtype.itemsize
        building.check_room(work, room)
        arrays.create_npy(path, source.shape, _stored(dtype))
    opened = arrays.open_npy(path, source.shape, (_stored(dtype),))
    values, step = source.array, max(1, _CHUNK // width)
    target = np.memmap(path, _stored(dtype), "r+", opened.offset, source.shape)
    for number, first in enumerate(range(done, nodes, step), start=1):
        piece = values[first : first + step]
        # what is too large becomes infinite or NaN, and is refused
        with np.errstate(over="ignore", invalid="ignore"):
            made = piece.astype(dtype)
        good = np.isfinite(made)
        if not good.all():
            row, column = map(int, np.argwhere(~good)[0])
            raise UserError(
                f"{source.path}, node {first + row:,}, column {column}: {piece[row, column]} is not finite in "
                f"{dtype}: fetch it again, or take a wider type"
            )
        target[first : first + step] = made.view(_stored(dtype))
        if number % _SYNCED == 0:
            target.flush()
            with building.unfinished(note) as part:
                part.write_text(str(first + len(piece)))
    target.flush()

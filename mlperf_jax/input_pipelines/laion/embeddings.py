"""Embeddings of captions made beforehand, which a run reads in place of tokens: `embeddings/00000.npy` of each shard.

An array float16 [N, T, W] in the order of the shard's index, beside it `00000.json` with N and a digest of the shard's
keys: embeddings of other samples are refused. It appears last, and so says that the array is whole.

Shape legend: N samples of a shard, T tokens of a caption, W width of the text encoder.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building, finite, records
from mlperf_jax.input_pipelines.laion import files

FOLDER = "embeddings"
_HEAD = 128  # bytes of a `.npy` header


def write_embeddings(
    folder: str | os.PathLike, shard: files.Shard, arrays: Iterable[np.ndarray]
) -> None:
    """Writes the embeddings of a shard, or leaves what is there; several machines may write different shards.

    Args:
        folder: of all embeddings, `embeddings` beside the index of the shards.
        shard: of `Laion.samples`; its `captions` are what is embedded.
        arrays: [n, T, W] in the order of the captions, N in all; stored as float16.

    Raises:
        UserError: they are not as many as the captions, of several shapes, or not finite in float16.
    """
    with building.alone(f"{os.fspath(folder)}/{shard.name}.json", resumes=True) as note:
        if note.exists() and _parsed(note.read_bytes()) == _note(shard):
            return
        note.unlink(missing_ok=True)
        with building.unfinished(note.with_suffix(".npy")) as part, open(part, "wb") as file:
            shape, rows = (), 0
            for array in arrays:
                if not rows:
                    shape = array.shape[1:]
                    whole = {"descr": "<f2", "fortran_order": False, "shape": (len(shard), *shape)}
                    np.lib.format.write_array_header_1_0(file, whole)
                with np.errstate(over="ignore"):
                    halves = array.astype("<f2")
                rows += len(halves)
                if array.ndim != 3 or halves.shape[1:] != shape or not np.isfinite(halves).all():
                    raise UserError(
                        f"embeddings {list(array.shape)} of {shard.path} before number {rows} are not [n, T, W], not "
                        "all of one shape, or not finite in float16: make them with the benchmark's text encoder"
                    )
                file.write(halves.tobytes())
            if rows != len(shard):
                raise UserError(
                    f"{rows:,} embeddings were given for the {len(shard):,} captions of {shard.path}: give one for "
                    "each"
                )
        with building.unfinished(note) as part:
            part.write_text(json.dumps(_note(shard)))


def _note(shard: files.Shard) -> dict[str, Any]:
    return {"rows": len(shard), "keys": shard.digest()}


def _parsed(note: bytes) -> Any:
    """What a note says; None of a damaged one."""
    try:
        return json.loads(note)
    except ValueError:
        return None


class Embeddings:
    """The embeddings of all shards; opening reads their notes and the headers of their arrays.

    Args:
        folder: of the embeddings.
        samples: what they are of.
        length: T.
        width: W.

    Raises:
        UserError: those of a shard are missing, cut short, of other samples or of another shape.
    """

    def __init__(self, folder: str, samples: files.Samples, length: int, width: int):
        self._given = folder, samples, length, width
        self._files, self._bytes = files.Files(), 2 * length * width
        there = records.listing(folder) or {}
        names = {
            shard.name: (f"{shard.name}.json", f"{shard.name}.npy") for shard in samples.shards
        }
        for shard, pair in names.items():
            if not {*pair} <= {*there}:
                raise UserError(
                    f"{folder} lacks the embeddings of shard {shard}: write them with the "
                    "benchmark's write_embeddings, or train on the captions' tokens"
                )
        self._paths = {shard: f"{folder}/{array}" for shard, (_, array) in names.items()}
        notes = [(f"{folder}/{note}", 0, there[note]) for note, _ in names.values()]
        heads = [(f"{folder}/{array}", 0, min(_HEAD, there[array])) for _, array in names.values()]
        read = self._files.read(notes + heads)
        for shard, note, head in zip(samples.shards, read, read[len(notes) :]):
            path = self._paths[shard.name]
            if _parsed(bytes(note)) != _note(shard):
                raise UserError(
                    f"{path} is of other samples than {shard.path} now has, or {shard.name}.json is damaged: remove "
                    "that and write them again"
                )
            self._check(path, bytes(head), (len(shard), length, width))
            found, expected = there[f"{shard.name}.npy"], _HEAD + len(shard) * self._bytes
            if found != expected:
                raise UserError(
                    f"{path} has {found:,} bytes and its header asks for {expected:,}: copy or write it again"
                )

    def __reduce__(self) -> Any:
        return Embeddings, self._given

    def _check(self, path: str, head: bytes, shape: tuple[int, int, int]) -> None:
        try:
            found, kind, order = records.npy_header(io.BytesIO(head))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is no array ({error}): write it again") from error
        if (found, kind, order) != (shape, np.dtype("<f2"), "C"):
            raise UserError(
                f"{path} holds {kind}{list(found)}, not float16{list(shape)}: write it again with the "
                "benchmark's text encoder"
            )

    def read(self, places: Iterable[tuple[files.Shard, int]], out: np.ndarray) -> None:
        """Writes the embeddings of these samples into `out`, f16 [rows, T, W]."""
        places = list(places)
        starts = [(self._paths[shard.name], _HEAD + index * self._bytes) for shard, index in places]
        ranges = [(path, start, start + self._bytes) for path, start in starts]
        for row, raw in enumerate(self._files.read(ranges)):
            halves = np.frombuffer(raw, "<f2")
            if not finite.all_finite(halves):
                shard, index = places[row]
                raise UserError(
                    f"{self._paths[shard.name]}, row {index} holds values that are not finite: write it again with "
                    "the benchmark's text encoder"
                )
            out[row] = halves.reshape(out.shape[1:])

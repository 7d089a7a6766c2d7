"""Writes a detection data set as tensorflow-datasets lays it out, from a COCO-format export.

The images are copied as they are. Shards are written side by side, each under its name only when it is
whole, so a build that was killed goes on with the shards it lacks; memory is that of the packed labels
and of one image a thread.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import tempfile

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building, images, records, writing
from mlperf_jax.input_pipelines.openimages import coco_labels, files, tiny

LABELS = "labels/openimages-mlperf.json"
PER_SHARD = 1024  # images: some 300 MB
_FEATURES = {
    "image": writing.image(),
    "image_id": writing.integer(),
    "file_name": writing.text(),
    "boxes": writing.array("float32", -1, 4),
    "label": writing.array("int32", -1),
    "crowd": writing.array("uint8", -1),
}


@dataclasses.dataclass(frozen=True)
class Export:
    """One split of an export: its labels, the folder of its images, and their bytes on disk."""

    split: str
    labels: coco_labels.Labels
    folder: str
    size: int

    @property
    def shards(self) -> int:
        return -(-len(self.labels) // PER_SHARD)

    def rows(self, shard: int) -> range:
        return range(shard * PER_SHARD, min((shard + 1) * PER_SHARD, len(self.labels)))

    def facts(self) -> dict[str, int]:
        """What `check` reports, and preflight compares with the recipe."""
        labels = self.labels
        per_image = np.diff(labels.first)
        edges = np.repeat(np.tile(labels.sizes[:, ::-1], 2), per_image, axis=0)  # x, y, x, y
        cut = np.clip(labels.boxes, 0, edges)
        return {
            "boxes": len(labels.label),
            "most_boxes": int(per_image.max()),
            "crowd": int(labels.crowd.sum()),
            "outside": int((cut != labels.boxes).any(1).sum()),
            "empty": int((~files.solid(cut)).sum()),
            "without": int((per_image == 0).sum()),
        }


def write_tiny(folder: str) -> None:
    """Draws the scenes of shapes, exports them, and prepares the export like any other."""
    with tempfile.TemporaryDirectory() as source:
        tiny.export(source, files.COUNTS[files.TINY_NAME])
        write(folder, source, files.CLASSES[files.TINY_NAME])


def write(folder: str, source: str, classes: int) -> None:
    """Prepares an export; see `OpenImages.build`.

    Args:
        folder: <name>/<version>, which appears when all is written.
        source: holds train and validation.
        classes: how many categories the labels must have.

    Raises:
        UserError: labels or images that do not fit, or a disk that is full or may not be written.
    """
    with building.alone(folder, resumes=True) as target:
        if not records.is_prepared(folder):  # else another process wrote it meanwhile
            _write(target, [_export(source, split, classes) for split in files.SPLITS])


def _export(source: str, split: str, classes: int) -> Export:
    """Labels and images of a split, which must fit each other; no image is opened."""
    labels = coco_labels.read(f"{source}/{split}/{LABELS}", classes)
    folder = f"{source}/{split}/data"
    there = records.listing(folder)
    if there is None:
        raise UserError(f"{folder} is missing; it should hold the images of {split}")
    missing = [name for name in labels.files if name not in there]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing):,} of the {len(labels):,} images in the labels, the first is "
            f"{missing[0]}; fetch them, or export the labels again without them"
        )
    return Export(split, labels, folder, sum(there[name] for name in labels.files))


def _write(target: pathlib.Path, exports: list[Export]) -> None:
    work = target.with_name(f"incomplete.{target.name}")
    building.begin(work, {"labels": _digest(exports)}, restart=True)
    name = target.parent.name
    jobs = [
        (export, shard, work / records.shard_name("", name, export.split, shard, export.shards))
        for export in exports
        for shard in range(export.shards)
    ]
    left = [job for job in jobs if not _whole(job[2], len(job[0].rows(job[1])))]
    building.check_room(work, sum(export.size for export in exports) * len(left) // len(jobs))
    building.in_threads(lambda job: _write_shard(*job), left)
    _write_index(work, target, exports)
    (work / building.SETTINGS).unlink()
    building.publish(work, target)


def _digest(exports: list[Export]) -> str:
    """Of all that decides what a shard holds, image bytes apart."""
    total = hashlib.sha256()
    for export in exports:
        labels = export.labels
        total.update(json.dumps([export.folder, PER_SHARD, labels.names, labels.files]).encode())
        for array in (labels.image_ids, labels.first, labels.boxes, labels.label, labels.crowd):
            total.update(array.tobytes())
    return total.hexdigest()


def _whole(path: pathlib.Path, length: int) -> bool:
    """Whether a shard of an earlier build is there; a half one never has its name."""
    return path.exists() and writing.records_in(path) == length


def _write_shard(export: Export, shard: int, path: pathlib.Path) -> None:
    rows = export.rows(shard)
    writing.write_shard(path, (writing.message(_example(export, row)) for row in rows))


def _example(export: Export, row: int) -> dict[str, bytes | int]:
    labels = export.labels
    here = slice(labels.first[row], labels.first[row + 1])
    return {
        "image": _image(f"{export.folder}/{labels.files[row]}", labels.sizes[row]),
        "image_id": int(labels.image_ids[row]),
        "file_name": labels.files[row].encode(),
        "label": labels.label[here].astype("<i4").tobytes(),
        "crowd": labels.crowd[here].astype(np.uint8).tobytes(),
        "boxes": labels.boxes[here].astype("<f4").tobytes(),
    }


def _image(path: str, size: np.ndarray) -> bytes:
    """The bytes of an image that is whole and as large as its labels say."""
    try:
        data = pathlib.Path(path).read_bytes()
        if data[:2] == b"\xff\xd8":
            header = images.jpeg_header(data)
            found = header.height, header.width
            if b"\xff\xd9" not in data[header.scan_at :]:
                raise images.ImageError(f"truncated JPEG: {len(data)} bytes, no end marker")
        else:
            found = images.decode(data).shape[:2]
    except (images.ImageError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: {reason}; fetch it again") from error
    if found != tuple(size):
        raise UserError(
            f"{path} is {found[1]} x {found[0]} pixels and its labels are for {size[1]} x {size[0]}: the "
            "boxes would not fit; use the images that the labels were exported with"
        )
    return data


def _write_index(work: pathlib.Path, target: pathlib.Path, exports: list[Export]) -> None:
    """dataset_info.json, features.json and metadata.json, as tensorflow-datasets writes them."""
    splits = [
        writing.Split(
            export.split,
            [len(export.rows(shard)) for shard in range(export.shards)],
            export.size,
        )
        for export in exports
    ]
    facts = {
        "categories": list(exports[0].labels.names),
        "splits": {export.split: export.facts() for export in exports},
    }
    writing.write_index(work, target.parent.name, target.name, splits, _FEATURES)
    (work / "metadata.json").write_text(json.dumps(facts))

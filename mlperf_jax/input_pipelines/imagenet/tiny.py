"""1,797 handwritten digits as small JPEGs, in the place of ImageNet."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping

import cv2
import numpy as np

from mlperf_jax.input_pipelines import building, digits as handwritten, images, records, writing
from mlperf_jax.input_pipelines.imagenet import files

CLASSES = tuple(map(str, range(10)))
_SIDE = 40  # pixels: room to crop for a side of 32
_SEED = 2012

Digit = tuple[str, bytes, str]  # name of the file, JPEG, class


def digits(counts: Mapping[str, int]) -> dict[str, Iterator[Digit]]:
    """The digits of "train" and of "validation", which has the first so many of a fixed permutation."""
    pixels, labels = handwritten.load()
    order = np.random.default_rng(_SEED).permutation(len(pixels))
    held_out = counts["validation"]
    parts = {"train": order[held_out:], "validation": order[:held_out]}
    return {split: _drawn(pixels, labels, rows) for split, rows in parts.items()}


def _drawn(pixels: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Iterator[Digit]:
    for row in rows:
        grey = (pixels[row] * (255 / 16)).astype(np.uint8)
        large = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_LINEAR)
        jpeg = images.encode_jpeg(np.repeat(large[..., None], 3, -1), 90)
        yield f"digit_{row:04d}.JPEG", jpeg, str(labels[row])


def write(folder: str) -> None:
    """Writes the digits to `<name>/<version>`, as tensorflow-datasets would."""
    features = {
        "image": writing.image(),
        "label": writing.label(len(CLASSES)),
        "file_name": writing.text(),
    }
    splits = []
    with building.alone(folder) as target:
        if records.is_prepared(folder):  # another process wrote it meanwhile
            return
        name = target.parent.name
        with building.unfinished(target) as part:
            part.mkdir()
            for split, drawn in digits(files.COUNTS[name]).items():
                messages = [_message(*digit) for digit in sorted(drawn, key=_order(split))]
                size = sum(map(len, messages))
                splits.append(writing.Split(split, [len(messages)], size))
                writing.write_shard(part / records.shard_name("", name, split, 0, 1), messages)
            writing.write_index(part, name, target.name, splits, features)
            files.note_classes(part, CLASSES)


def _message(name: str, jpeg: bytes, label: str) -> bytes:
    return writing.message(
        {"image": jpeg, "label": CLASSES.index(label), "file_name": name.encode()}
    )


def _order(split: str) -> Callable[[Digit], bytes]:
    """The order that tensorflow-datasets gives the examples of a split: by a hash of their names."""
    return lambda digit: hashlib.md5(f"{split}{digit[0]}".encode()).digest()

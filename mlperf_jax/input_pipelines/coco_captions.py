"""The 30,000 captions of COCO that images are generated for, chosen as the reference chooses them.

Reference: mlcommons/training, retired_benchmarks/stable_diffusion/scripts/datasets/coco-split-resize.py.
Its shuffle by pandas is NumPy's permutation of RandomState(2023), so pandas is not needed. The file that it
writes, and the organisers hand out, is `val2014_30k.tsv` with the columns image_id, id and caption.
"""

from __future__ import annotations

import collections
import csv
import io
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import records

SOURCE, FILE = "captions_val2014.json", "val2014_30k.tsv"
COUNT, SEED = 30_000, 2023


class Caption(NamedTuple):
    """One caption.

    Attributes:
        image_id: COCO's, of the image it was written for; that of a file is COCO_val2014_<twelve digits>.jpg.
        id: of the annotation.
        caption: the text.
    """

    image_id: int
    id: int
    caption: str


def choose(path: str | os.PathLike, count: int = COUNT) -> list[Caption]:
    """The captions of the evaluation, ordered by their ids.

    All are shuffled, the first of each image is kept, and of these the first `count`.

    Args:
        path: COCO 2014's `captions_val2014.json`.
        count: of captions, each of another image.

    Raises:
        UserError: no such file, another one, or fewer images.
    """
    captions = _annotations(records.local(path))
    order = np.random.RandomState(SEED).permutation(len(captions))
    first: dict[int, Caption] = {}
    for caption in (captions[at] for at in order):
        first.setdefault(caption.image_id, caption)
    if len(first) < count:
        raise UserError(
            f"{path} has captions for {len(first):,} images, {count:,} are needed: give COCO 2014's {SOURCE}"
        )
    return sorted(list(first.values())[:count], key=lambda caption: caption.id)


def write(path: str | os.PathLike, captions: Iterable[Caption]) -> None:
    """Writes captions to a file of tab-separated values, byte by byte as pandas does."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, delimiter="\t", lineterminator="\n")
        lines.writerow(Caption._fields)
        lines.writerows(captions)


def read(path: str | os.PathLike, count: int | None = COUNT) -> list[Caption]:
    """The captions of a file that `write` or the reference wrote, in its order.

    Args:
        path: of the file.
        count: how many it must hold; None for any number.

    Raises:
        UserError: no such file, another one, a line that is none, or another number of captions.
    """
    text = _text(
        records.local(path), f"fetch {FILE} from the organisers, or choose it from {SOURCE}"
    )
    lines = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
    try:
        if next(lines, None) != list(Caption._fields):
            raise UserError(
                f"{path} does not begin with the columns image_id, id and caption: fetch {FILE} again"
            )
        captions = [_row(path, lines.line_num, line) for line in lines]
    except csv.Error as error:
        raise UserError(f"{path}, line {lines.line_num}: {error}; fetch {FILE} again") from error
    _refuse_twice(path, captions, [caption.image_id for caption in captions], "image")
    if not captions or (count is not None and len(captions) != count):
        wanted = "some are" if count is None else f"{count:,} are"
        raise UserError(
            f"{path} holds {len(captions):,} captions, {wanted} needed: fetch {FILE} again"
        )
    return captions


def _row(path: str | os.PathLike, number: int, line: list[str]) -> Caption:
    if len(line) != 3 or not (line[0].isdecimal() and line[1].isdecimal()):
        raise UserError(
            f"{path}, line {number}: {line} is no image_id, id and caption; fetch {FILE} again"
        )
    return Caption(int(line[0]), int(line[1]), line[2])


def _annotations(path: str) -> list[Caption]:
    """All captions of COCO's file in its order, newlines taken out."""
    advice = f"fetch annotations_trainval2014.zip from cocodataset.org and unpack {SOURCE}"
    try:
        document = json.loads(_text(path, advice))
        found = [_annotation(path, one) for one in document["annotations"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no file of COCO's captions ({error!r}): {advice}") from error
    _refuse_twice(path, found, [caption.id for caption in found], "annotation")
    return found


def _annotation(path: str, one: Mapping[str, Any]) -> Caption:
    image, ident, text = (one[name] for name in Caption._fields)
    if type(image) is not int or type(ident) is not int or type(text) is not str:
        raise UserError(
            f"{path}: {one} is no caption: its ids must be whole numbers and its caption text"
        )
    return Caption(image, ident, text.replace("\n", "").strip())


def _text(path: str, advice: str) -> str:
    try:
        return records.read_text(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {advice}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): {advice}") from error


def _refuse_twice(
    path: str | os.PathLike, captions: list[Caption], ids: list[int], what: str
) -> None:
    (twice, times), *_ = collections.Counter(ids).most_common(1) or [(0, 0)]
    if times > 1:
        raise UserError(
            f"{pathlib.Path(path).name} has {len(captions):,} captions, and {what} {twice} comes twice: fetch it again"
        )

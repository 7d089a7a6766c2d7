"""The 30,000 captions of COCO that images are generated for, chosen as the reference chooses them, and the real images.

Reference: mlcommons/training, retired_benchmarks/stable_diffusion/scripts/datasets/coco-split-resize.py.
Its shuffle by pandas is NumPy's permutation of RandomState(2023), so pandas is not needed. `laion.prompts` writes and
reads the table that the organisers hand out, `val2014_30k.tsv`.
"""

from __future__ import annotations

import collections
import io
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mlperf_jax.errors import UserError, optional
from mlperf_jax.input_pipelines import records

SOURCE = "captions_val2014.json"
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


def squashed(path: str | os.PathLike, side: int = 512) -> np.ndarray:
    """An image as the reference's statistics saw it, uint8 [side, side, 3]: squeezed, and once more through JPEG.

    Raises:
        UserError: it is missing or damaged, or Pillow is not installed.
    """
    Image = optional("PIL.Image", "pictures", "resizing images of COCO as the reference did")
    try:
        with Image.open(path) as image:
            small = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: fetch val2014.zip from cocodataset.org and unpack it there"
        ) from None
    except OSError as error:
        raise UserError(f"{path} is no whole image ({error}): unpack it again") from error
    file = io.BytesIO()
    small.save(file, "JPEG")
    with Image.open(file) as image:
        return np.asarray(image)


def image_name(image_id: int) -> str:
    """The file of an image of COCO 2014's validation split."""
    return f"COCO_val2014_{image_id:012d}.jpg"


def _annotations(path: str) -> list[Caption]:
    """All captions of COCO's file in its order, newlines taken out."""
    advice = f"fetch annotations_trainval2014.zip from cocodataset.org and unpack {SOURCE}"
    try:
        document = json.loads(records.read_text(path))
        found = [_annotation(path, one) for one in document["annotations"]]
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {advice}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): {advice}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no file of COCO's captions ({error!r}): {advice}") from error
    (twice, times), *_ = collections.Counter(caption.id for caption in found).most_common(1) or [
        (0, 0)
    ]
    if times > 1:
        raise UserError(
            f"{pathlib.Path(path).name} has {len(found):,} captions, and annotation {twice} comes twice: fetch it "
            "again"
        )
    return found


def _annotation(path: str, one: Mapping[str, Any]) -> Caption:
    image, ident, text = (one[name] for name in Caption._fields)
    if type(image) is not int or type(ident) is not int or type(text) is not str:
        raise UserError(
            f"{path}: {one} is no caption: its ids must be whole numbers and its caption text"
        )
    return Caption(image, ident, text.replace("\n", "").strip())

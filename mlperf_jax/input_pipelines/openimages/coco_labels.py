"""Labels of a detection data set in COCO's JSON format, checked and packed into arrays.

The training labels of Open Images are a JSON text of gigabytes; it is read element by element, and boxes
become numbers at once, 57 bytes each.

n boxes of all images
"""

from __future__ import annotations

import dataclasses
import json
import math
from array import array
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import numpy as np

from mlperf_jax.errors import UserError

_CHUNK = 1 << 22  # characters read at a time
_SPACE = " \t\r\n"
_AFTER = tuple(",]}" + _SPACE)  # what ends a value


@dataclasses.dataclass(frozen=True)
class Labels:
    """The images of a split by id, and their boxes in the same order.

    Attributes:
        names: category names by id, ids 0 … K - 1.
        image_ids: increasing.
        files: file name of each image.
        sizes: int32 [images, 2], (height, width) as the labels state them.
        first: int64 [images + 1]: boxes first[i] … first[i + 1] - 1 lie on image i.
        boxes: f32 [n, 4] corners (x0, y0, x1, y1), as given: neither clipped nor left out.
        label: int32 [n].
        crowd: uint8 [n].
    """

    names: tuple[str, ...]
    image_ids: np.ndarray
    files: tuple[str, ...]
    sizes: np.ndarray
    first: np.ndarray
    boxes: np.ndarray
    label: np.ndarray
    crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.files)


def read(path: str, classes: int) -> Labels:
    """Reads and checks a COCO-format file.

    Args:
        path: of the JSON file.
        classes: K; category ids must be 0 … K - 1.

    Raises:
        UserError: not such a file, ids that come twice or point nowhere, category ids from 1, a box that
            is not four finite numbers, or a split without an image or without a box.
    """
    found = _Found()
    try:
        with open(path, encoding="utf-8") as file:
            for key, element in elements(file):
                found.take(key, element)
        return _assembled(found, classes)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; export the labels in COCO format") from None
    except _Fault as fault:
        raise UserError(f"{path}: {fault}") from fault
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path} is no COCO-format JSON: {error}") from error


class _Fault(Exception):
    """What is wrong with the labels, without the file's name."""


# -- one element to a tuple --------------------------------------------------------------------------


def _image(image: Mapping[str, Any]) -> tuple[int, str, int, int]:
    name = _field(image, "file_name", str, "an image")
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise _Fault(
            f"image {image.get('id')} has the file name {name!r}; give names without folders"
        )
    ident = _field(image, "id", int, f"image {name!r}")
    if not 0 <= ident < 2**31:
        raise _Fault(f"image {name!r} has the id {ident}; ids are 0 … 2^31 - 1")
    height, width = (_field(image, side, int, f"image {name!r}") for side in ("height", "width"))
    return ident, name, height, width


class _Found:
    """What a file lists, element by element.

    Annotations are columns of numbers: ten million of them as Python objects would fill a machine.
    """

    def __init__(self) -> None:
        self.images: list[tuple[int, str, int, int]] = []
        self.categories: list[tuple[int, str]] = []
        self.ids, self.owners, self.labels = array("q"), array("q"), array("q")
        self.boxes, self.crowd = array("d"), array("B")

    def take(self, key: str, element: Any) -> None:
        if key == "images":
            self.images.append(_image(element))
        elif key == "annotations":
            self._annotation(element)
        elif key == "categories":
            ident = _field(element, "id", int, "a category")
            self.categories.append((ident, str(element.get("name", ident))))

    def _annotation(self, annotation: Mapping[str, Any]) -> None:
        ident = _field(annotation, "id", int, "an annotation")
        where = f"annotation {ident}"
        box = _field(annotation, "bbox", list, where)
        numbers = [v for v in box if isinstance(v, int | float) and math.isfinite(v)]
        if len(box) != 4 or len(numbers) != 4:
            raise _Fault(
                f"{where} has the bbox {box}; expected four finite numbers x, y, width, height"
            )
        x, y, width, height = numbers
        self.ids.append(ident)
        self.owners.append(_field(annotation, "image_id", int, where))
        self.labels.append(_field(annotation, "category_id", int, where))
        self.boxes.extend((x, y, x + width, y + height))
        self.crowd.append(bool(annotation.get("iscrowd", annotation.get("IsGroupOf", 0))))


def _field(element: Any, name: str, kind: type, where: str) -> Any:
    value = element.get(name) if isinstance(element, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _Fault(f"{where} has the {name} {value!r}; expected {kind.__name__}")
    return value


# -- all elements to arrays --------------------------------------------------------------------------


def _assembled(found: _Found, classes: int) -> Labels:
    images = sorted(found.images)
    if not images:
        raise _Fault("it lists no images")
    if not found.ids:
        raise _Fault(
            "it holds no annotations; a split without a single box can neither train nor score"
        )
    ids, owner, label = (
        np.frombuffer(column, np.int64) for column in (found.ids, found.owners, found.labels)
    )
    image_ids = np.array([image[0] for image in images], np.int64)
    _refuse_twice(image_ids, "image id")
    _refuse_twice(np.array([image[1] for image in images]), "file name")
    _refuse_twice(ids, "annotation id")
    names = _names(found.categories, classes)
    for odd in np.flatnonzero((label < 0) | (label >= classes))[:1]:
        raise _Fault(
            f"annotation {ids[odd]} has the category {label[odd]}; categories are 0..{classes - 1}"
        )
    at = np.searchsorted(image_ids, owner).clip(max=len(image_ids) - 1)
    for odd in np.flatnonzero(image_ids[at] != owner)[:1]:
        raise _Fault(
            f"annotation {ids[odd]} lies on image {owner[odd]}, which is not in the list of images"
        )
    order = np.argsort(at, kind="stable")
    return Labels(
        names=names,
        image_ids=image_ids,
        files=tuple(image[1] for image in images),
        sizes=np.array([image[2:] for image in images], np.int32),
        first=np.concatenate([[0], np.bincount(at, minlength=len(images)).cumsum()]),
        boxes=np.frombuffer(found.boxes).reshape(-1, 4).astype(np.float32)[order],
        label=label[order].astype(np.int32),
        crowd=np.frombuffer(found.crowd, np.uint8)[order],
    )


def _names(categories: list[tuple[int, str]], classes: int) -> tuple[str, ...]:
    ids = sorted(ident for ident, _ in categories)
    if ids == list(range(1, classes + 1)):
        raise _Fault(
            f"category ids run from 1 to {classes}; expected 0 to {classes - 1}. FiftyOne's exporter counts "
            "from 1 since October 2024: export with 0.15.1, which the reference pins"
        )
    if ids != list(range(classes)):
        shown = f"{ids[0]} … {ids[-1]}" if ids else "none"
        raise _Fault(
            f"it has {len(ids)} categories (ids {shown}); expected {classes} with the ids 0 to {classes - 1}, "
            "each once"
        )
    return tuple(name for _, name in sorted(categories))


def _refuse_twice(values: np.ndarray, what: str) -> None:
    ordered = np.sort(values)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise _Fault(
            f"the {what} {twice[0].item()!r} comes twice ({len(twice)} such); export the labels again"
        )


# -- JSON, element by element ------------------------------------------------------------------------


def elements(file: TextIO, chunk: int = _CHUNK) -> Iterator[tuple[str, Any]]:
    """Yields (key, element) for each element of the arrays of a JSON object; other values come whole.

    Args:
        file: the text, read `chunk` characters at a time.
        chunk: more makes it faster and larger.

    Raises:
        ValueError: it is not JSON, or no object, or ends early.

    >>> import io
    >>> list(elements(io.StringIO('{"a": [1, {"b": 2}], "c": "d"}'), 4))
    [('a', 1), ('a', {'b': 2}), ('c', 'd')]
    """
    text = _Text(file, chunk)
    text.expect("{")
    if text.peek() == "}":
        return
    while True:
        key = text.value()
        if not isinstance(key, str):
            raise ValueError(f"a key is {key!r}")
        text.expect(":")
        if text.peek() == "[":
            text.expect("[")
            while text.peek() != "]":
                yield key, text.value()
                if text.peek() != "]":
                    text.expect(",")
            text.expect("]")
        else:
            yield key, text.value()
        if text.peek() == "}":
            return
        text.expect(",")


class _Text:
    """A text that is read as it is parsed."""

    def __init__(self, file: TextIO, chunk: int):
        self._file, self._chunk = file, chunk
        self._text, self._at, self._ended = "", 0, False
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def expect(self, character: str) -> None:
        found = self.peek()
        if found != character:
            raise ValueError(
                f"expected {character!r}, found {found!r}" if found else "the file ends early"
            )
        self._at += 1

    def value(self) -> Any:
        """The next value, however long: more is read until it is whole."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                # a number at the edge may go on: -2 is whole before a comma, not before ".5"
                if self._ended or self._text[end : end + 1] in _AFTER:
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if self._ended:
                    cut = error.pos >= len(self._text.rstrip())
                    raise ValueError("the file ends early" if cut else error.msg) from None
            self._more()

    def _more(self) -> None:
        # what is pending doubles at least, so that a long value is not parsed over and over
        pending = self._text[self._at :]
        read = self._file.read(max(self._chunk, len(pending)))
        self._ended = not read
        self._text, self._at = pending + read, 0

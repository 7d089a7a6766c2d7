"""The captions that quality is measured on: a table of tabs, as pandas writes it, with image_id, id and caption.

Those of MLPerf are 30,000 of COCO's 2014 validation captions, `val2014_30k.tsv`.

Shape legend: N prompts.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import records

FILE = "val2014_30k.tsv"
COLUMNS = ("image_id", "id", "caption")


class Prompts(NamedTuple):
    """Prompts in the order of the file.

    Attributes:
        path: of the file.
        numbers: image_id and id of each, i32 [N, 2].
        captions: [N].
        lines: of the file on which each ends, [N].
    """

    path: str
    numbers: np.ndarray
    captions: tuple[str, ...]
    lines: tuple[int, ...]


def read(path: str) -> Prompts:
    """Reads a file of prompts.

    Raises:
        UserError: it is missing, no such table, or an id is no number or stands twice; names the line.
    """
    try:
        text = records.read_text(path)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: fetch the organisers' {FILE}, the prompts of evaluation"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch it again") from error
    table = csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True)
    numbers, captions, lines, first = [], [], [], {}
    try:
        names = next(table, [])
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise UserError(
                f"{path} has no column {missing[0]}, only {', '.join(names) or 'none'}: it needs image_id, id and "
                "caption in its first line, with tabs between them"
            )
        at = [names.index(name) for name in COLUMNS]
        for row in table:
            where = f"{path}, line {table.line_num}"
            if len(row) != len(names):
                raise UserError(
                    f"{where} has {len(row)} fields of {len(names)}: fetch the file again"
                )
            image, number, caption = (row[i] for i in at)
            if not all(
                field.isascii() and field.isdigit() and len(field) < 10 for field in (image, number)
            ):
                raise UserError(
                    f"{where} has the ids {image!r} and {number!r}, which are no numbers: fetch the file again"
                )
            if first.setdefault(number, table.line_num) != table.line_num:
                raise UserError(
                    f"{where} has the id {number} of line {first[number]} again: fetch the file again"
                )
            numbers.append((int(image), int(number)))
            captions.append(caption)
            lines.append(table.line_num)
    except csv.Error as error:
        raise UserError(
            f"{path}, line {table.line_num} is damaged ({error}): fetch it again"
        ) from error
    if not captions:
        raise UserError(f"{path} holds no prompts: fetch it again")
    return Prompts(path, np.array(numbers, np.int32), tuple(captions), tuple(lines))


def write(path: str | os.PathLike, rows: Iterable[tuple[int, int, str]]) -> None:
    """Writes prompts byte by byte as pandas does.

    Args:
        path: of the file.
        rows: image_id, id and caption of each, such as what `coco_captions.choose` gives.
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(rows)

"""Criteo's raw logs, or the one-hot arrays made of them, become multi-hot day files.

Five stages, each of which a killed build takes up where it was: *parse* (text -> columns, day by day),
*number* (values -> contiguous ids, column by column), *shuffle* (days 0 .. 22 together, column by column),
*one-hot* (columns -> the organisers' `day_d_sparse.npy` and its like), *multi-hot* (bags, day by day).
For the official data they need 4.5 TB of disk beside the source, and 19 GB of memory: an index of 4.2 G
rows for the shuffle, and one column at a time, where the reference holds all 40 in 700 GB.

Reference: torchrec v0.3.2, datasets/scripts (npy_preproc, contiguous and shuffle preprocessing).
Shape legend: n samples of a day, N of all training days.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building
from mlperf_jax.input_pipelines.criteo import multi_hot, numbering, raw_logs
from mlperf_jax.input_pipelines.criteo.files import DENSE, day_files
from mlperf_jax.input_pipelines.criteo.plan import (
    SPARSE_COLUMNS,
    BuildPlan,
    check_room,
    column_type,
    needs,
    raw_file,
    source_form,
    sparse_file,
)

_SETTINGS = ("source", "days", "rows", "bags", "round_ids")  # work is taken up under the same alone
_CHUNK = 1 << 20  # rows handled at once where columns are streamed
# published by the organisers
_FIRST, _LAST, _HALF = 195_841_983, 178_274_637, 89_137_319  # samples of day 0, day 23, validation
_TRAINING = 4_195_197_692
MD5 = {  # file -> bytes without headers, checksum
    "day_0_sparse_multi_hot.npz": (856 * _FIRST, "9287c283b01087427df915257300bf36"),
    "day_23_sparse_multi_hot.npz": (856 * _LAST, "c46b7e31ec6f2f8768fa60bdfc0f6e40"),
    "day_0_dense.npy": (52 * _FIRST, "427113b0c4d85a8fceaf793457302067"),
    "day_23_dense.npy": (52 * _LAST, "cdf7af87cbc7e9b468c0be46b1767601"),
    "day_0_labels.npy": (4 * _FIRST, "4db255ce4388893e7aa1dcf157077975"),
    "day_23_labels.npy": (4 * _LAST, "dd68f93301812026ed6f58dfb0757fa7"),
    "day_0_sparse.npy": (104 * _FIRST, "8b444e74159dbede896e2f3b5ed31ac0"),
    "day_23_sparse.npy": (104 * _LAST, "0c33f1562529cc3bca7f3708e2be63c9"),
    "train_data.bin": (912 * _TRAINING, "4d48daf07cc244f6fa933b832d7fe5a3"),
    "val_data.bin": (912 * _HALF, "c7ca591ad3fd2b09b75d99fa4fc210e2"),
    "test_data.bin": (912 * (_LAST - _HALF), "cf636876d8baf0776287be23b31c2f14"),
}
_HEADERS = 1 << 14  # bytes: no file's headers take more


def write(plan: BuildPlan, say: Callable[[str], None] = print) -> None:
    """Builds the day files; see `Criteo.build`.

    Raises:
        UserError: the source is incomplete or damaged, disk or memory do not suffice, or the work that
            was begun has other settings.
    """
    raw = source_form(plan)
    room = needs(plan, raw)
    say(
        f"building {plan.folder} from {plan.source}: about {room.samples:,} samples, "
        f"{room.disk / 1e9:,.1f} GB of disk and {room.memory / 1e9:,.1f} GB of memory"
    )
    check_room(plan, room)
    settings = {name: getattr(plan, name) for name in _SETTINGS}
    with building.alone(plan.folder, resumes=True):
        if not plan.is_built():  # else another process wrote it meanwhile
            building.begin(plan.work, settings)
            for name, stage in (_FROM_RAW if raw else _FROM_ONE_HOT).items():
                done = plan.work / f"{name}.done"
                if not done.exists():
                    say(f"stage {name}")
                    stage(plan)
                    done.touch()
                for warning in verify(plan.work) if name == "one-hot" else ():
                    say(warning)
            _finish(plan)
    for warning in verify(plan.folder):
        say(warning)


def _each(plan: BuildPlan, work: Callable[..., None], tasks: Iterable[Any]) -> None:
    """Runs `work(plan, task)` for every task, in several processes if the plan says so."""
    building.in_processes(functools.partial(work, plan), list(tasks), plan.processes)


# -- the stages --------------------------------------------------------------------------------


def parse_day(plan: BuildPlan, day: int) -> None:
    """Text -> 40 columns: the label, 13 logarithms, 26 words as u32."""
    folder = plan.column(day, 0).parent
    if folder.exists():
        return
    folder.parent.mkdir(exist_ok=True)
    samples = 0
    with building.unfinished(folder) as part, contextlib.ExitStack() as stack:
        part.mkdir()
        paths = [part / f"{column:02d}" for column in range(raw_logs.FIELDS)]
        files = [stack.enter_context(open(path, "wb", 1 << 20)) for path in paths]
        for lines in raw_logs.read(raw_file(plan, day)):
            columns = [lines.labels, *lines.dense.T, *lines.words.T]
            for file, column in zip(files, columns):
                file.write(np.ascontiguousarray(column).data)
            samples += len(lines.labels)
        if not samples:
            raise UserError(f"{raw_file(plan, day)} is empty; fetch it again")
        (part / "00.json").write_text(json.dumps({"samples": samples}))


def number_column(plan: BuildPlan, column: int) -> None:
    """The words of a column, over all days, become ids; a day's words go once its ids are written."""
    words = plan.work / f"{column:02d}.words"
    progress = plan.work / f"{column:02d}.json"
    state = json.loads(progress.read_text()) if progress.exists() else {"days": 0, "size": 0}
    if state["days"] < len(plan.days):
        vocabulary = numbering.Vocabulary(words, state["size"])
        for number, day in enumerate(plan.days[state["days"] :], state["days"] + 1):
            for piece in _pieces(np.memmap(plan.column(day, column), "<u4", "r")):
                vocabulary.add(np.asarray(piece))
            with building.unfinished(progress) as part:
                part.write_text(json.dumps({"days": number, "size": vocabulary.sync()}))
        vocabulary.close()
        del vocabulary
    left = [day for day in plan.days if not plan.column(day, column, ".id").exists()]
    if left:
        ids_of = numbering.Numbering(words)
        for day in left:
            with (
                building.unfinished(plan.column(day, column, ".id")) as part,
                open(part, "wb") as file,
            ):
                for piece in _pieces(np.memmap(plan.column(day, column), "<u4", "r")):
                    ids_of(np.asarray(piece)).tofile(file)
            plan.column(day, column).unlink()
    words.unlink(missing_ok=True)


def _pieces(array: np.ndarray, rows: int = 16 * _CHUNK) -> Iterable[np.ndarray]:
    return (array[first : first + rows] for first in range(0, len(array), rows))


def _shuffle(plan: BuildPlan) -> None:
    total = sum(plan.samples(day) for day in plan.training)
    order = plan.work / "permutation"
    plan.shuffled(0).parent.mkdir(exist_ok=True)
    if not order.exists():
        with building.unfinished(order) as part:
            permutation(total).tofile(part)
    for column in range(raw_logs.FIELDS):
        shuffle_column(plan, column, np.memmap(order, _index_type(total), "r"))
    order.unlink(missing_ok=True)


def _index_type(total: int) -> str:
    return "<u4" if total < 1 << 32 else "<u8"


def permutation(total: int) -> np.ndarray:
    """`RandomState(0).permutation(total)`, in half of its memory."""
    order = np.arange(total, dtype=_index_type(total))
    np.random.RandomState(0).shuffle(order)
    return order


def shuffle_column(plan: BuildPlan, column: int, order: np.ndarray) -> None:
    """Puts a column of the training days into the shuffled order, and removes the days' files."""
    done = plan.shuffled(column)
    paths = [plan.numbered(day, column) for day in plan.training]
    if not done.exists():
        values = np.empty(len(order), column_type(column))
        at = 0
        for path in paths:
            found = np.fromfile(path, values.dtype)
            if plan.round_ids and column in SPARSE_COLUMNS:
                found = numbering.as_float32(found)
            values[at : at + len(found)] = found
            at += len(found)
        with building.unfinished(done) as part, open(part, "wb") as file:
            for piece in _pieces(order):
                values[piece].tofile(file)
    for path in paths:
        path.unlink(missing_ok=True)


def one_hot_day(plan: BuildPlan, day: int) -> None:
    """Columns -> the three one-hot files of a day; output day d has as many rows as input day d."""
    first, samples = 0, plan.samples(day)
    paths = [plan.numbered(day, column) for column in range(raw_logs.FIELDS)]
    if day in plan.training:
        first = sum(plan.samples(d) for d in plan.training if d < day)
        paths = [plan.shuffled(column) for column in range(raw_logs.FIELDS)]
    columns = [np.memmap(path, column_type(c), "r") for c, path in enumerate(paths)]
    labels, dense, _ = day_files(day)
    parts = {labels: columns[:1], dense: columns[1 : 1 + DENSE], sparse_file(day): columns[-26:]}
    for name, group in parts.items():
        if (plan.work / name).exists():
            continue
        dtype = np.dtype("<f4" if name == dense else "<i4")
        with building.unfinished(plan.work / name) as part:
            out = np.lib.format.open_memmap(part, "w+", dtype, (samples, len(group)))
            for a in range(0, samples, _CHUNK):
                b = min(a + _CHUNK, samples)
                out[a:b] = np.stack([column[first + a : first + b] for column in group], 1)
            out.flush()
            del out


def _adopt(plan: BuildPlan) -> None:
    """Labels and dense features of a one-hot source: linked where that is possible, else copied."""
    for day in plan.days:
        for name in day_files(day)[:2]:
            if not (plan.work / name).exists():
                with building.unfinished(plan.work / name) as part:
                    try:
                        os.link(f"{plan.source}/{name}", part)
                    except OSError:
                        shutil.copyfile(f"{plan.source}/{name}", part)


def _multi_hot(plan: BuildPlan) -> None:
    for columns in ("shuffled", "parsed"):  # not before the one-hot files were marked as done
        shutil.rmtree(plan.work / columns, ignore_errors=True)
    multi_hot.save_matrices(plan.work / "bags", plan.rows, plan.bags)
    _each(plan, multi_hot_day, plan.days)


def multi_hot_day(plan: BuildPlan, day: int) -> None:
    """One-hot ids -> bags; a file of ids that was made here is removed."""
    done = plan.work / day_files(day)[2]
    mine = plan.work / sparse_file(day)
    if not done.exists():
        source = mine if mine.exists() else pathlib.Path(plan.source, sparse_file(day))
        scratch = plan.work / f"{day}.columns"
        columns = by_column(source, scratch)
        matrices = multi_hot.save_matrices(plan.work / "bags", plan.rows, plan.bags)
        with building.unfinished(done) as part:
            multi_hot.write_npz(part, columns, matrices)
            del columns
            scratch.unlink()
    mine.unlink(missing_ok=True)


def by_column(source: pathlib.Path, scratch: pathlib.Path) -> np.ndarray:
    """The ids of a day, i32 [26, n] in a file, so that each table's are read in one go.

    Raises:
        UserError: an id is negative, or the file is not of one-hot ids.
    """
    try:
        ids = np.load(source, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{source} is missing or damaged ({error}); copy it again") from error
    if ids.ndim != 2 or ids.shape[1] != raw_logs.SPARSE or ids.dtype != np.dtype("<i4"):
        raise UserError(
            f"{source} holds {ids.dtype} {list(ids.shape)}, expected int32 [samples, {raw_logs.SPARSE}]"
        )
    columns = np.memmap(scratch, "<i4", "w+", shape=ids.shape[::-1])
    for first in range(0, len(ids), _CHUNK):
        piece = np.asarray(ids[first : first + _CHUNK])
        if piece.min() < 0:
            row, column = map(int, np.argwhere(piece < 0)[0])
            raise UserError(
                f"{source}, sample {first + row}, feature cat_{column}: id {piece[row, column]} is negative; "
                "copy or build this file again"
            )
        columns[:, first : first + _CHUNK] = piece.T
    return columns


def _finish(plan: BuildPlan) -> None:
    """Leaves the day files alone in the folder, and gives it its name."""
    keep = {name for day in plan.days for name in day_files(day)}
    for path in plan.work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in keep:
            path.unlink()
    building.publish(plan.work, pathlib.Path(plan.folder))


_FROM_RAW: dict[str, Callable[[BuildPlan], None]] = {
    "parse": lambda plan: _each(plan, parse_day, plan.days),
    "number": lambda plan: _each(plan, number_column, SPARSE_COLUMNS),
    "shuffle": _shuffle,
    "one-hot": lambda plan: _each(plan, one_hot_day, plan.days),
    "multi-hot": _multi_hot,
}
_FROM_ONE_HOT: dict[str, Callable[[BuildPlan], None]] = {"copy": _adopt, "multi-hot": _multi_hot}


# -- checksums ---------------------------------------------------------------------------------


def verify(folder: str | os.PathLike, limit: int = 1 << 62) -> list[str]:
    """Compares files with the published checksums and returns a warning for each that differs.

    Only those of the official number of samples are compared, days 0 and 23 or HugeCTR's. They are read
    whole: 23 GB of labels and dense features, 320 GB of bags, 4 TB of HugeCTR's records.

    Args:
        limit: leave out files of more bytes.
    """
    warnings = []
    for name, (size, published) in MD5.items():
        path = pathlib.Path(folder, name)
        if size > limit or not path.exists() or not 0 <= path.stat().st_size - size < _HEADERS:
            continue
        found = building.md5(path)
        if found != published:
            warnings.append(f"warning: {path} has md5 {found}, published is {published}")
    return warnings

"""Prepares KiTS19 from NIfTI as the reference does: resampled, clipped, normalised, padded, as `.npy`.

Cases are prepared side by side in threads (unpacking and arithmetic leave Python's lock alone), as many as
memory holds. A file appears under its name when it is complete, a line of the index when its case is; what
has one is not done again.

D, H, W sides of a volume, D the slices. Reference: mlcommons/training,
retired_benchmarks/unet3d/pytorch, preprocess_dataset.py.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building, records
from mlperf_jax.input_pipelines.kits19 import files, patches, tiny as tiny_cases

SPACING = (1.6, 1.2, 1.2)  # millimetres between voxels, after resampling
CLIP = (-79.0, 304.0)  # Hounsfield units
MEAN, STD = 101.0, 76.9
IMAGE, LABEL = "imaging.nii.gz", "segmentation.nii.gz"

_PLANES = 16  # read at a time: in a NIfTI file the first axis lies closest together
_MEMORY_SHARE = 0.5  # of what is free when the build begins


# -- the whole set -----------------------------------------------------------------------------------


def write(folder: str, source: str, tiny: bool, side: int) -> None:
    """Prepares every case that the index lacks; see `Kits19.build`."""
    with building.alone(folder, resumes=True) as target:
        target.mkdir(exist_ok=True)
        if not tiny:
            _build(target, find_cases(source, files.LABELLED), side, say=print)
        elif len(_done(target)) != files.TINY_CASES:
            with tempfile.TemporaryDirectory() as raw:
                tiny_cases.write(pathlib.Path(raw), files.TINY_CASES)
                found = find_cases(raw, files.TINY_CASES)
                _build(target, found, side, say=lambda text: None)


def find_cases(source: str, count: int) -> list[pathlib.Path]:
    """The folders of the labelled cases, complete.

    Raises:
        UserError: there are none, some are missing, or a case lacks one of its two files.
    """
    for folder in (source, f"{source}/data", f"{source}/kits19/data"):
        cases = sorted(p for p in pathlib.Path(folder).glob("case_*") if p.is_dir())
        if cases:
            break
    else:
        raise UserError(
            f"no KiTS19 in {source}: expected case_00000/{IMAGE} and so on; get the volumes with "
            "https://github.com/neheller/kits19 (python -m starter_code.get_imaging) and give its folder "
            "data with --source"
        )
    wanted = [f"case_{i:05d}" for i in range(count)]
    have = {path.name: path for path in cases}
    missing = [name for name in wanted if name not in have]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of the {count} labelled cases, {missing[0]} among them; fetch "
            "them again"
        )
    for name in wanted:
        for file, what in ((IMAGE, "image"), (LABEL, "segmentation")):
            if not (have[name] / file).is_file():
                raise UserError(f"{have[name]} has no {what} ({file}); fetch this case again")
    return [have[name] for name in wanted]


def _build(
    folder: pathlib.Path, cases: Sequence[pathlib.Path], side: int, say: Callable[[str], None]
) -> None:
    done = _done(folder)
    todo = [path for path in cases if path.name not in done]
    building.check_room(folder, _bytes_prepared(todo, side))
    official = files.official_md5() if len(cases) == files.LABELLED else {}
    memory = _Memory((building.available_memory() or 4 << 30) * _MEMORY_SHARE)
    lock = threading.Lock()

    def one(path: pathlib.Path) -> None:
        with memory.taken(_bytes_needed(path)):
            entry = prepare_case(path, folder, side)
        differ = [
            name for name, summed in entry.md5.items() if official.get(name, summed) != summed
        ]
        with lock:
            _append(files.index_path(str(folder)), entry)
            done.add(path.name)
            say(f"{path.name}: {'x'.join(map(str, entry.shape))} ({len(done)} of {len(cases)})")
            for name in differ:
                say(f"note: {name} differs from the organisers' MD5 sum")
            for note in entry.notes:
                say(f"note: {path.name}: {note}")

    building.in_threads(one, todo)


def _done(folder: pathlib.Path) -> set[str]:
    """The cases whose files are there, as long as their index says."""
    there = records.listing(str(folder)) or {}
    index = files.read_index(str(folder)).items()
    return {name for name, e in index if files.sizes(e).items() <= there.items()}


def _bytes_prepared(cases: Sequence[pathlib.Path], side: int) -> int:
    """Five bytes a voxel, by the headers alone."""
    need = 0
    for path in cases:
        volume = _load(path / IMAGE)
        spacing = volume.header["pixdim"][1:4]
        if len(volume.shape) == 3 and np.isfinite(spacing).all():  # else the case will be refused
            shape = resampled_shape(volume.shape, spacing.tolist())
            need += 5 * int(np.prod(np.maximum(shape, side)))
    return need


def _append(path: pathlib.Path, entry: files.Entry) -> None:
    """One line, on the disk before the next case counts as done; a half line is closed first."""
    with open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(entry.to_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


class _Memory:
    """Lets work begin while what it needs is there; anything may begin when nothing else runs."""

    def __init__(self, limit: float):
        self.limit, self.used = limit, 0
        self.changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        with self.changed:
            self.changed.wait_for(lambda: not self.used or self.used + amount <= self.limit)
            self.used += amount
        try:
            yield
        finally:
            with self.changed:
                self.used -= amount
                self.changed.notify_all()


def _bytes_needed(path: pathlib.Path) -> int:
    """Of the two raw volumes and the planes under work; written files are the system's cache."""
    voxels = 0
    for file in (IMAGE, LABEL):
        volume = _load(path / file)
        scaled = volume.dataobj.slope != 1 or volume.dataobj.inter != 0
        item = volume.get_data_dtype().itemsize + (8 if scaled else 0)
        voxels += int(np.prod(volume.shape)) * item
    return voxels + (64 << 20)


# -- one case ----------------------------------------------------------------------------------------


def prepare_case(path: pathlib.Path, folder: pathlib.Path, side: int) -> files.Entry:
    """Writes the `.npy` pair of one case and returns its index line.

    Args:
        path: the case's folder, with both NIfTI files.
        folder: where the pair goes.
        side: the least length of each axis; shorter ones repeat their edges.

    Raises:
        UserError: a file is damaged or not of the expected kind; names it.
    """
    image, label = _load(path / IMAGE), _load(path / LABEL)
    _check_geometry(path, image, label)
    spacing = image.header["pixdim"][1:4].tolist()
    shape = resampled_shape(image.shape, spacing)
    if min(shape) < 1:
        raise UserError(
            f"{path / IMAGE}: {image.shape} voxels {spacing} mm apart are less than one after resampling"
        )
    x, y = (folder / file for file in files.pair(path.name))
    raw = _labels(path / LABEL, label)
    _write_planes(y, nearest_planes(raw, shape), shape, side, np.uint8)
    del raw
    planes = (normalise(plane) for plane in trilinear_planes(_voxels(path / IMAGE, image), shape))
    _write_planes(x, planes, shape, side, np.float32)
    prepared = files.open_volume(y, np.uint8)
    boxes = patches.largest_boxes(prepared)
    notes = () if boxes else ("the segmentation is empty; its patches are taken anywhere",)
    depth, height, width = prepared.shape
    sums = {file.name: building.md5(file) for file in (x, y)}
    return files.Entry(path.name, (depth, height, width), boxes, sums, notes)


def _load(path: pathlib.Path) -> Any:
    """The header and a proxy of the voxels."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        return nibabel.load(path)
    except (ImageFileError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} is no readable NIfTI file ({error}); fetch it again") from error


def _voxels(path: pathlib.Path, volume: Any) -> np.ndarray:
    try:
        return np.asanyarray(volume.dataobj)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} is damaged or cut short ({error}); fetch it again") from error


def _labels(path: pathlib.Path, volume: Any) -> np.ndarray:
    raw = _voxels(path, volume)
    low, high = raw.min(), raw.max()
    if not (low >= 0 and high <= 2):
        raise UserError(
            f"{path} holds labels from {low} to {high}; allowed are 0 (background), 1 (kidney) and 2 "
            "(tumour)"
        )
    return raw.astype(np.uint8)


def _check_geometry(path: pathlib.Path, image: Any, label: Any) -> None:
    """Any spacing will do; the first axis must run along the body, as the target spacing assumes."""
    import nibabel

    if len(image.shape) != 3 or image.shape != label.shape:
        raise UserError(
            f"{path}: {IMAGE} has the shape {image.shape} and {LABEL} {label.shape}; expected the same "
            "three axes"
        )
    spacing = image.header["pixdim"][1:4]
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise UserError(
            f"{path / IMAGE}: its header gives a spacing of {spacing.tolist()} mm; expected three positive "
            "numbers"
        )
    if not (image.header["sform_code"] or image.header["qform_code"]):
        return  # it does not say how it lies
    axes = "".join(letter or "?" for letter in nibabel.aff2axcodes(image.affine))
    if axes[0] not in "SI":
        raise UserError(
            f"{path / IMAGE} is oriented {axes}; KiTS19's first axis runs along the body (IPL); bring image "
            "and segmentation into that order (nibabel.orientations) and build again"
        )


def normalise(plane: np.ndarray) -> np.ndarray:
    """Hounsfield units, clipped, to about zero mean and unit variance over the foreground; f32."""
    return (np.clip(plane, *CLIP) - np.float32(MEAN)) / np.float32(STD)


def _write_planes(
    path: pathlib.Path,
    planes: Iterator[np.ndarray],
    shape: tuple[int, int, int],
    side: int,
    dtype: Any,
) -> None:
    """Writes planes [H, W] as [1, D, H, W], edges repeated up to `side`, and then names the file."""
    pads = [(max(side - n, 0) // 2, max(side - n, 0) - max(side - n, 0) // 2) for n in shape]
    padded = tuple(n + sum(pad) for n, pad in zip(shape, pads, strict=True))
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (1, *padded)}
    # a memory map would end the process on a full disk
    with building.unfinished(path) as part, open(part, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for number, plane in enumerate(planes):
            edge = (number == 0) * pads[0][0] + (number == shape[0] - 1) * pads[0][1]
            wide = np.pad(plane, pads[1:], mode="edge").astype(dtype).tobytes()
            for _ in range(1 + edge):
                file.write(wide)


# -- resampling --------------------------------------------------------------------------------------


def resampled_shape(shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, int, int]:
    """Voxels along each axis at the target spacing, rounded down.

    >>> resampled_shape((100, 512, 512), (3.0, 0.8, 0.8))
    (187, 341, 341)
    """
    depth, height, width = (
        int(mm / target * n) for n, mm, target in zip(shape, spacing, SPACING, strict=True)
    )
    return depth, height, width


def trilinear_planes(volume: np.ndarray, shape: Sequence[int]) -> Iterator[np.ndarray]:
    """Planes [H, W] of the volume resampled with its corner voxels kept in the corners (align_corners).

    The organisers' sums are of files that torch 1.7 made, which adds eight weighted voxels in float32, each
    by one fused multiply-add, and those are what is added here (of the first two products the compiler
    fuses the first). Newer versions of torch differ in the last bit. Reads every plane once, in order.
    """
    depth, rows, columns = (_two_nearest(n, m) for n, m in zip(volume.shape, shape, strict=True))
    reader = _planes(volume)
    kept: dict[int, np.ndarray] = {}
    for *ends, low_weight, high_weight in zip(*depth, strict=True):
        while ends[1] not in kept:
            number, plane = next(reader)
            kept = {n: p for n, p in kept.items() if n >= ends[0]}
            kept[number] = plane
        terms = [
            (
                np.multiply.outer(d * rows[2 + i], columns[2 + j]),
                kept[end][np.ix_(rows[i], columns[j])],
            )
            for end, d in zip(ends, (low_weight, high_weight), strict=True)
            for i in (0, 1)
            for j in (0, 1)
        ]
        first, second, *others = terms
        total = fused_multiply_add(*first, np.multiply(*second))
        for term in others:
            total = fused_multiply_add(*term, total)
        yield total


def fused_multiply_add(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c of float32 arrays, rounded once.

    The product is exact in float64 and the sum there all but always good enough; it is not where it comes
    out halfway between two float32, and these few are nudged to the side of what was rounded off.
    """
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + addend
    halfway = (total.view(np.int64) & 0x1FFFFFFF) == 0x10000000
    if halfway.any():
        s, p, q = total[halfway], product[halfway], addend[halfway]
        lost = (p - (s - (s - p))) + (q - (s - p))
        total[halfway] = np.where(lost == 0, s, np.nextafter(s, np.copysign(np.inf, lost)))
    return total.astype(np.float32)


def nearest_planes(volume: np.ndarray, shape: Sequence[int]) -> Iterator[np.ndarray]:
    """Planes [H, W] of the labels: voxel floor(i * in / out) along each axis, the scale in float32."""
    picks = [
        np.minimum(
            np.floor(np.arange(m, dtype=np.float32) * (np.float32(n) / np.float32(m))), n - 1
        ).astype(np.int64)
        for n, m in zip(volume.shape, shape, strict=True)
    ]
    for number in picks[0]:
        yield volume[number][np.ix_(picks[1], picks[2])]


def _planes(volume: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for first in range(0, volume.shape[0], _PLANES):
        block = np.ascontiguousarray(volume[first : first + _PLANES], np.float32)
        yield from enumerate(block, start=first)


def _two_nearest(size: int, wanted: int) -> tuple[np.ndarray, ...]:
    """Below, above, and their weights, for each of the wanted places along an axis; weights f32."""
    scale = np.float32(size - 1) / np.float32(wanted - 1) if wanted > 1 else np.float32(0)
    place = scale * np.arange(wanted, dtype=np.float32)
    low = np.minimum(place.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    weight = np.clip(place - low.astype(np.float32), 0, 1, dtype=np.float32)
    return low, high, np.float32(1) - weight, weight

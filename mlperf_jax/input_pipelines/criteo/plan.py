"""What a build of Criteo's day files starts from, where its work lies, and what room it needs.

Shape legend: n samples of a day, N of all training days.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import zlib

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building
from mlperf_jax.input_pipelines.criteo import raw_logs
from mlperf_jax.input_pipelines.criteo.files import DENSE, day_files, open_day

LABEL, SPARSE_COLUMNS = 0, range(1 + DENSE, raw_logs.FIELDS)
_PROCESS = 3 * 10**9  # bytes that numbering a column of the official data takes


@dataclasses.dataclass(frozen=True)
class BuildPlan:
    """What is built from what, and where.

    Attributes:
        source: folder with `day_d`, `day_d.gz`, or `day_d_sparse.npy` and its like.
        folder: of the finished day files; work goes on in `<folder>.incomplete`.
        days: the last one is not shuffled and keeps exact ids.
        rows, bags: of each table.
        round_ids: round the training days' ids as float32 does, which the official data carries.
        processes: that work at once where days or columns are independent.
    """

    source: str
    folder: str
    days: tuple[int, ...]
    rows: tuple[int, ...]
    bags: tuple[int, ...]
    round_ids: bool = True
    processes: int = 1

    def is_built(self) -> bool:
        """Whether the day files are there, as their headers have it; those that are damaged are built again."""
        try:
            for day in self.days:
                open_day(self.folder, day, self.bags)
        except UserError:
            return False
        return True

    @property
    def work(self) -> pathlib.Path:
        return pathlib.Path(f"{self.folder}.incomplete")

    @property
    def training(self) -> tuple[int, ...]:
        return self.days[:-1]

    def with_processes(self, cores: int) -> BuildPlan:
        """A plan that works with one process a core, at most eight, where there are work and memory for them."""
        sizes = [p.stat().st_size for p in pathlib.Path(self.source).glob("day_*")]
        wanted = sum(sizes) >> 30  # a process for each GB at most
        fit = (building.available_memory() or 0) // _PROCESS - 1
        return dataclasses.replace(self, processes=max(1, min(8, cores, wanted, fit)))

    def column(self, day: int, column: int, kind: str = "") -> pathlib.Path:
        """File of a column of a parsed day; kind ".id" where its values were numbered."""
        return self.work / "parsed" / str(day) / f"{column:02d}{kind}"

    def numbered(self, day: int, column: int) -> pathlib.Path:
        return self.column(day, column, ".id" if column in SPARSE_COLUMNS else "")

    def shuffled(self, column: int) -> pathlib.Path:
        return self.work / "shuffled" / f"{column:02d}"

    def samples(self, day: int) -> int:
        return json.loads(self.column(day, 0, ".json").read_text())["samples"]


def column_type(column: int) -> str:
    """Type of a numbered column's entries."""
    return "|u1" if column == LABEL else "<i4" if column in SPARSE_COLUMNS else "<f4"


def sparse_file(day: int) -> str:
    """Name of a day's one-hot ids, i32 [n, 26], before the modulo."""
    return f"day_{day}_sparse.npy"


@dataclasses.dataclass(frozen=True)
class Needs:
    """An estimate: samples, bytes of disk at the worst moment, bytes of memory."""

    samples: int
    disk: int
    memory: int


def source_form(plan: BuildPlan) -> bool:
    """Whether the source holds raw logs; False for one-hot arrays.

    Raises:
        UserError: it holds neither, or some days are missing.
    """
    try:
        have = set(os.listdir(plan.source))
    except OSError as error:
        raise UserError(f"cannot read the folder {plan.source}: {error.strerror}") from error
    raw = [day for day in plan.days if {f"day_{day}", f"day_{day}.gz"} & have]
    arrays = [day for day in plan.days if sparse_file(day) in have]
    days, what = (raw, "day_{}") if len(raw) >= len(arrays) else (arrays, "day_{}_sparse.npy")
    if not days:
        raise UserError(
            f"{plan.source} holds neither the raw logs (day_0 or day_0.gz, …) nor one-hot arrays "
            "(day_0_sparse.npy, …): give the folder of one of them with --source"
        )
    missing = [what.format(day) for day in plan.days if day not in days]
    if days is arrays:
        names = [name for day in days for name in day_files(day)[:2]]
        missing += [name for name in names if name not in have]
    if missing:
        raise UserError(
            f"{plan.source} lacks {len(missing)} files, the first is {missing[0]}: all of days "
            f"{plan.days[0]} to {plan.days[-1]} are needed, as ids are numbered over all of them"
        )
    return days is raw


def raw_file(plan: BuildPlan, day: int) -> str:
    path = f"{plan.source}/day_{day}"
    return path if os.path.exists(path) else f"{path}.gz"


def needs(plan: BuildPlan, raw: bool) -> Needs:
    """Estimates what the build needs, from the sizes of the source and the beginning of each log."""
    if raw:
        per_day = [_estimate_lines(raw_file(plan, day)) for day in plan.days]
    else:
        width = 4 * raw_logs.SPARSE
        per_day = [
            os.path.getsize(f"{plan.source}/{sparse_file(day)}") // width for day in plan.days
        ]
    one_hot, multi_hot = 4 * raw_logs.FIELDS, 4 * (1 + DENSE + sum(plan.bags))
    matrices = 4 * sum(n * k for n, k in zip(plan.rows, plan.bags))
    largest = 4 * max(n * k for n, k in zip(plan.rows, plan.bags))
    total, training = sum(per_day), sum(per_day[:-1])
    sparse = 4 * raw_logs.SPARSE * (total if raw else max(per_day))
    disk = max(total * multi_hot + sparse + matrices, raw * (2 * total * one_hot + 4 * training))
    process = min(_PROCESS, 5_000 * total)  # of small data, each new value touches a page
    memory = max(4 * training if raw else 0, largest, plan.processes * process) + process
    return Needs(total, disk, memory)


def _estimate_lines(path: str, sample: int = 1 << 20) -> int:
    """Lines of a log, from those in its first megabyte."""
    with open(path, "rb") as file:
        text = data = file.read(sample)
    if path.endswith(".gz"):
        try:
            text = zlib.decompressobj(wbits=31).decompress(data)  # 31: a gzip header
        except zlib.error as error:
            raise UserError(
                f"{path} is not gzipped, or damaged ({error}); fetch it again"
            ) from error
    return max(1, text.count(b"\n")) * os.path.getsize(path) // max(1, len(data))


def check_room(plan: BuildPlan, room: Needs) -> None:
    """Nothing, if disk and memory suffice; what the work begun holds already counts."""
    held = sum(p.stat().st_size for p in plan.work.rglob("*") if p.is_file())
    building.check_room(plan.work, room.disk - held)
    memory = building.available_memory()
    if memory is not None and memory < room.memory:
        raise UserError(
            f"{memory / 1e9:,.1f} GB of memory are available and the build needs {room.memory / 1e9:,.1f} GB: "
            "run it on a larger machine, or fetch the ready-made files"
        )

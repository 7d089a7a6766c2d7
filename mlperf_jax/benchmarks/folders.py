"""Where the data of a benchmark lie, and how they are made."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import shlex
import sys
from typing import TYPE_CHECKING

from mlperf_jax.core import python_file
from mlperf_jax.core.levers import NONE
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import generated

if TYPE_CHECKING:
    from mlperf_jax.core.benchmark import Benchmark


# what readers' sentences end in
_ADVICE = re.compile(
    r"[;:,] (?:fetch|copy|build|remove|prepare|write|make|take|delete|is this)\b.*", re.DOTALL
)


def data_folder(benchmark: Benchmark, options: RunOptions) -> str:
    """The folder of the data; a tiny benchmark's own is made when it is not there, arrays need none.

    What is damaged in the folder that is tiny's by default is made again, which is said; in one that was named nothing
    is replaced.

    Raises:
        UserError: a full benchmark without `data_dir`, one that is a file, or damaged tiny data in it.
    """
    check_folder(options.data_dir)
    if not needs_folder(benchmark):
        folder = small_folder(options)
        if _complaint(benchmark, folder) is not None:
            _complete(benchmark, folder, mend=options.data_dir is None)
        return folder
    if options.data_dir is None:
        name = benchmark.name
        come = (
            "" if benchmark.own_code else f" (`mlperf-jax data fetch {name}` says whence they come)"
        )
        raise UserError(
            f"{name} needs its data{come}: prepare them with `mlperf-jax data build {name} --data-dir DIR` and "
            "give data_dir (--data-dir DIR), or run it with --tiny"
        )
    return options.data_dir


def check_folder(data_dir: str | os.PathLike | None) -> None:
    """Nothing, unless a data folder is something else.

    Raises:
        UserError: it is a file.
    """
    path = os.path.expanduser(data_dir) if data_dir else None
    if path and os.path.exists(path) and not os.path.isdir(path):
        raise UserError(f"--data-dir {path} is a file: give the folder in which the data lie")


def build_data(benchmark: Benchmark, folder: str, source: str | None = None) -> list[str]:
    """Builds the data of a benchmark below a folder, and the start weights of a tiny one.

    Args:
        benchmark: whose data; what is there already is kept, of tiny what is as it was made.
        folder: the data's.
        source: the downloaded original, where there is one.

    Returns:
        The files of tiny that were made.

    Raises:
        UserError: nothing to build from, damaged originals, or no room on the disk.
    """
    check_folder(folder)
    if benchmark.is_tiny and not _in_memory(benchmark):
        return _make_tiny(benchmark, folder, mend=True)
    benchmark.data().build(folder, source)
    return []


def _make_tiny(benchmark: Benchmark, folder: str, *, mend: bool) -> list[str]:
    from mlperf_jax.input_pipelines import records  # NumPy, which help need not wait for

    def write(below: str) -> None:
        benchmark.data().build(below)
        benchmark.make_start(below)

    config = json.dumps(benchmark.replace(levers=NONE).config(), sort_keys=True, default=str)
    what = f"{benchmark.name} {hashlib.sha256(config.encode()).hexdigest()[:16]}"
    return generated.make(records.local(folder), what, write, mend=mend)


def _complaint(benchmark: Benchmark, folder: str) -> UserError | None:
    """What a run would have against the data before it reads a record; None for nothing."""
    from mlperf_jax.core.benchmark import Benchmark
    from mlperf_jax.core.starts import table_readers

    data = benchmark.data()
    try:
        data.counts(folder)
        for split in ("train", "validation"):
            if hasattr(data, split):
                getattr(data, split)(folder)
        benchmark.start(folder)
        table_readers(benchmark, folder)
        if type(benchmark).judges is not Benchmark.judges:
            benchmark.judge_weights(folder)
    except UserError as error:
        return error
    return None


def _complete(benchmark: Benchmark, folder: str, *, mend: bool) -> None:
    """Makes what is missing of tiny data, and with `mend` again what is damaged.

    Raises:
        UserError: they cannot be used even so; says what makes them again.
    """
    if _in_memory(benchmark):
        return
    known = os.path.isdir(folder) and set(os.listdir(folder))
    placed = _make_tiny(benchmark, folder, mend=mend)
    again = [path for path in placed if known and path.split(os.sep, 1)[0] in known]
    if again:
        print(
            f"note: tiny data in {folder} were damaged and are made again, {len(again)} files such as {again[0]}",
            file=sys.stderr,
        )
    left = _complaint(benchmark, folder)
    if left is not None:
        raise UserError(told_of_tiny(benchmark, folder, str(left))) from left


def told_of_tiny(benchmark: Benchmark, folder: str, said: str) -> str:
    """A sentence about damaged tiny data, with what makes them again in place of what it would have one do.

    Args:
        benchmark: tiny.
        folder: of its data.
        said: the sentence, which speaks of data that are fetched or copied.
    """
    name = python_file.place(type(benchmark)) if benchmark.own_code else benchmark.name
    command = f"mlperf-jax data build {name} --tiny --data-dir {shlex.quote(os.fspath(folder))}"
    if command in said:
        return said
    return f"{_ADVICE.sub('', said)}; tiny data are made again by: {command}"


def _in_memory(benchmark: Benchmark) -> bool:
    from mlperf_jax.core.benchmark import Benchmark
    from mlperf_jax.input_pipelines.in_memory import InMemory  # imports Grain

    has_data = type(benchmark).data is not Benchmark.data
    return has_data and isinstance(benchmark.data(), InMemory)


def needs_folder(benchmark: Benchmark) -> bool:
    """Whether its data lie where only the user can say: not those of tiny, and not arrays in memory."""
    return not benchmark.is_tiny and not _in_memory(benchmark)


def small_folder(options: RunOptions) -> str:
    """The folder of what needs none of the user's: the one that is named all the same, or tiny's own."""
    return options.data_dir or default_tiny_folder()


def default_tiny_folder() -> str:
    """`$XDG_CACHE_HOME/mlperf_jax/data`, where tiny data sets are kept between runs."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return str(pathlib.Path(cache) / "mlperf_jax" / "data")

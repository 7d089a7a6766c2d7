"""Where the data of a benchmark lie, and how they are made."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING

from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building

if TYPE_CHECKING:
    from mlperf_jax.core.benchmark import Benchmark


def data_folder(benchmark: Benchmark, options: RunOptions) -> str:
    """The folder of the data; a tiny benchmark's own is made when it is not there, arrays need none.

    Raises:
        UserError: a full benchmark without `data_dir`.
    """
    from mlperf_jax.core.starts import table_readers

    if not needs_folder(benchmark):
        folder = options.data_dir or default_tiny_folder()
        try:
            benchmark.data().counts(folder)
            benchmark.start(folder)
            table_readers(benchmark, folder)
        except UserError:
            build_data(benchmark, folder)
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


def build_data(benchmark: Benchmark, folder: str, source: str | None = None) -> None:
    """Builds the data of a benchmark below a folder, and the start weights of a tiny one.

    Args:
        benchmark: whose data; what is there already is kept.
        folder: the data's.
        source: the downloaded original, where there is one.

    Raises:
        UserError: nothing to build from, damaged originals, or no room on the disk.
    """
    benchmark.data().build(folder, source)
    if benchmark.is_tiny:
        with building.alone(f"{folder}/{benchmark.name}"):
            benchmark.make_start(folder)


def needs_folder(benchmark: Benchmark) -> bool:
    """Whether its data lie where only the user can say: not those of tiny, and not arrays in memory."""
    from mlperf_jax.core.benchmark import Benchmark
    from mlperf_jax.input_pipelines.in_memory import InMemory  # imports Grain

    has_data = type(benchmark).data is not Benchmark.data
    return not benchmark.is_tiny and not (has_data and isinstance(benchmark.data(), InMemory))


def default_tiny_folder() -> str:
    """`$XDG_CACHE_HOME/mlperf_jax/data`, where tiny data sets are kept between runs."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return str(pathlib.Path(cache) / "mlperf_jax" / "data")

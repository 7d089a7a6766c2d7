"""The index of LAION's shards, written shard by shard in processes; those that are there are kept."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

from mlperf_jax.input_pipelines import building
from mlperf_jax.input_pipelines.laion import files


def build(
    place: files.Place,
    count: int,
    form: files.Form,
    processes: int = 1,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Writes the index of each shard that has none, or one of a shard of another size.

    Args:
        place: where shards and index lie.
        count: of shards.
        form: of the moments.
        processes: at most so many; with more than one, a script needs the guard `if __name__ == "__main__"`.
        report: is told how far the build has come.

    Raises:
        UserError: a shard is missing or damaged, or the folder may not be written.
    """
    with building.alone(f"{place.folder}/{files.INDEX}", resumes=True) as target:
        found = files.sizes(place.shards, count)
        target.mkdir(exist_ok=True)
        jobs = {
            name: os.fspath(target / name.replace(".tar", ".idx"))
            for name, size in found.items()
            if not files.is_current(os.fspath(target / name.replace(".tar", ".idx")), size, form)
        }
        building.in_processes(
            functools.partial(_write, place.shards, form),
            list(jobs.items()),
            processes,
            lambda done: report(f"{done} of {len(jobs)} shards indexed"),
        )


def _write(folder: str, form: files.Form, job: tuple[str, str]) -> None:
    name, path = job
    files.write_index(path, f"{folder}/{name}", form)

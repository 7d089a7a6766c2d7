"""Data that the model makes itself (self-play): generated between passes, sealed, then trained on.

`Benchmark.generate(model, generation, key) -> records` is jitted here and is a pure function of
(weights, seed, generation). Its records are a dict of arrays with one leading axis; an optional bool
array "valid" [rows] tells which rows are real. A generation's folder is written beside its final name and
renamed when it is whole, so a killed run finds it complete or not at all. The data position is
(generation, step in it).
"""

from __future__ import annotations

import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from mlperf_jax.core import mesh as meshes
from mlperf_jax.core import processes
from mlperf_jax.core import state as states
from mlperf_jax.core.state import State
from mlperf_jax.errors import UserError
from mlperf_jax.results import durable


def compile_generate(assembly: states.Assembly) -> Any:
    """The compiled `(view, generation, key) -> records`."""
    benchmark = assembly.benchmark

    def generate(view: State, generation: jax.Array, key: jax.Array) -> Any:
        assert benchmark.generate is not None
        return benchmark.generate(assembly.eval_model(view), generation, key)

    jitted = jax.jit(generate, out_shardings=meshes.replicated(assembly.mesh))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return assembly.compile(jitted, assembly.abstract_view, np.int32(0), key)


class Generator:
    """The generations of one run.

    Attributes:
        number: the current generation, -1 before the first.
        first_step: the step at which its data begin to be read.
        last_step: the step at which the next generation is due.
    """

    def __init__(self, run: Any, meta: dict[str, Any] | None, program: Any) -> None:
        self._run = run
        self._program = program
        self._folder = pathlib.Path(run.folder.path) / "generated"
        saved = (meta or {}).get("generation") or {"number": -1, "first_step": 0}
        self.number: int = saved["number"]
        self.first_step: int = saved["first_step"]
        self._data: Any = None
        self.last_step = self._last_step() if self.number >= 0 else 0

    def position(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"number": self.number, "first_step": self.first_step}

    def due(self, step: int) -> bool:
        return step >= self.last_step

    def run_generation(self, state: State, step: int) -> None:
        """Makes the next generation's records from these weights, unless they are sealed already."""
        self.number, self.first_step, self._data = self.number + 1, step, None
        # one view of the folder: some would generate, which takes all devices, and others not
        if not processes.from_primary(self._sealed(self.number).is_dir):
            records = self._generate(state)
            processes.from_primary(lambda: self._seal(self.number, records))
        self.last_step = self._last_step()

    def data(self, step: int) -> tuple[Any, int]:
        """The examples of the current generation, and how many of its batches are done."""
        return self._examples(), step - self.first_step

    def _examples(self) -> Any:
        if self._data is None:
            records = [read_records(self._sealed(n)) for n in range(self.number + 1)]
            self._data = self._run.benchmark.generated_data(records)
        return self._data

    def _last_step(self) -> int:
        steps = self._examples().steps_per_epoch(self._run.benchmark.rows)
        if steps < 1:
            raise UserError(
                f"generation {self.number} has fewer records than one batch of "
                f"{self._run.benchmark.rows}: lower the batch size or generate more"
            )
        return self.first_step + steps

    def _sealed(self, number: int) -> pathlib.Path:
        return self._folder / f"{number:06d}"

    def _generate(self, state: State) -> dict[str, np.ndarray]:
        key = jax.random.fold_in(states.stream(self._run.seed, "generation"), self.number)
        view = self._run.assembly.eval_view(state)
        records = self._program(view, np.int32(self.number), key)
        records = {name: np.asarray(rows) for name, rows in jax.device_get(records).items()}
        valid = records.pop("valid", None)
        return records if valid is None else {name: rows[valid] for name, rows in records.items()}

    def _seal(self, number: int, records: dict[str, np.ndarray]) -> None:
        final = self._sealed(number)
        part = final.with_name(final.name + ".part")
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            write_records(part, records)
            part.rename(final)
        except OSError as error:
            raise durable.cannot_write(final, error) from error
        durable.sync_folder(final.parent)


def write_records(folder: pathlib.Path, records: dict[str, np.ndarray]) -> None:
    """Writes one `.npy` file per array; they are on the disk when this returns."""
    for name, rows in records.items():
        with open(folder / f"{name}.npy", "wb") as file:
            np.save(file, rows, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
    durable.sync_folder(folder)


def read_records(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """A sealed generation's arrays, memory-mapped.

    Raises:
        UserError: when the folder is missing or one of its files is damaged.
    """
    try:
        found = {
            path.stem: np.load(path, mmap_mode="r", allow_pickle=False)
            for path in sorted(folder.glob("*.npy"))
        }
    except (OSError, ValueError) as error:
        raise UserError(
            f"generated records in {folder} cannot be read ({error}): move the run away and start anew"
        ) from error
    if not found:
        raise UserError(
            f"{folder} holds no generated records: every process must see the output folder, and its "
            "generated/ must be kept until the run has ended"
        )
    return found

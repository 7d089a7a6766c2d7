"""A folder that is removed while a run writes into it ends the run soon, in one sentence, and stays away."""

import concurrent.futures
import shutil

import pytest
import toys
from toy_data import Altered

from mlperf_jax.core.benchmark import Target
from mlperf_jax.core.checkpoints import arrays, packed
from mlperf_jax.errors import UserError

HARD = (Target("accuracy", above=1.0),)  # out of reach


@pytest.mark.parametrize("gone", ["result_0.txt", "run_0/scalars.jsonl", ""])
def test_a_folder_that_vanishes_ends_the_run_soon(tmp_path, gone, monkeypatch):
    given, folder = toys.Toy.train_data, tmp_path / "set"
    path, steps = folder / gone, []

    def alter(step, batch):
        steps.append(step)
        if step == 12:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return batch

    monkeypatch.setattr(toys.Toy, "train_data", lambda *of: Altered(given(*of), alter))
    with pytest.raises(UserError, match=r"was removed while the run wrote it|cannot be written"):
        toys.run(toys.Toy(targets=HARD), folder, max_samples=32 * 500, log_every=2)
    assert max(steps) < 100, "not at its end"


def test_files_that_orbax_misses_end_the_run_in_a_sentence(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    handler = type(arrays.array_handler())

    def finalize(handler, path):
        shutil.rmtree(folder)
        raise ValueError("Save failed: 33/33 params are missing .zarray in checkpoint")

    monkeypatch.setattr(handler, "finalize", finalize)
    monkeypatch.setattr(packed, "LIMIT", 0)  # all leaves are Orbax's
    with pytest.raises(UserError, match=r"was removed while the run wrote it|No such file"):
        toys.run(toys.Toy(targets=HARD), folder, max_samples=32 * 500)


def test_a_folder_that_vanishes_while_a_checkpoint_is_written_is_told_of_and_stays_away(
    tmp_path, monkeypatch
):
    folder = tmp_path / "set"

    def start_writing(handler, path, leaves):
        shutil.rmtree(folder)
        failed = concurrent.futures.Future()
        failed.set_exception(ValueError(f'NOT_FOUND: Error reading local file "{path}/d/0b2a"'))
        return [failed]

    monkeypatch.setattr(arrays, "start_writing", start_writing)
    with pytest.raises(UserError, match="was removed while the run wrote it"):
        toys.run(toys.Toy(targets=HARD), folder, max_samples=32 * 500)
    assert not folder.exists()

"""A run that goes on with another optimizer: asked for, written down and logged, or refused."""

from typing import ClassVar

import optax
import pytest
import toys

from mlperf_jax.core.benchmark import Target
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import Interrupted, UserError
from mlperf_jax.results import log as logs, runs

BEFORE, AFTER = optax.sgd(1e-2), optax.sgd(1e-3)


class Stopped(toys.Plain):
    """Is interrupted after its twelfth step where it is told so; no field, so that it stays itself."""

    stops: ClassVar[bool] = False

    def train_data(self, data_dir):
        data = super().train_data(data_dir)
        return toys.asks_to_stop(data, 12) if self.stops else data


def test_a_changed_optimizer_is_refused_or_logged(tmp_path, monkeypatch):
    def train(optimizer, batch_size=32, **more):
        target = (Target("accuracy", above=1.0),)
        toy = Stopped(batch_size=batch_size, sample_limit=64 * 10, targets=target)
        given = dict(seed=1, resume=True) | more
        return toys.run(toy, tmp_path, optimizer=optimizer, **given)

    monkeypatch.setattr(Stopped, "stops", True)
    with pytest.raises(Interrupted):
        train(BEFORE, resume=False)
    monkeypatch.undo()
    begun = runs.RunFolder(tmp_path, 0).config()
    with pytest.raises(UserError, match=r"optimizer was '\w+' and is now '\w+'"):
        train(AFTER)
    with pytest.raises(UserError, match="batch_size was 32 and is now 64"):
        train(AFTER, new_optimizer=True, batch_size=64)
    with pytest.raises(UserError, match="has left does not fit the new one"):
        train(optax.adam(1e-3), new_optimizer=True)
    assert runs.RunFolder(tmp_path, 0).config() == begun, "what was refused has changed nothing"

    assert train(AFTER, new_optimizer=True).resumed == 1
    before = begun["config"]["optimizer"]
    config = runs.RunFolder(tmp_path, 0).config()["config"]
    assert config["optimizer_changes"] == [before] != [config["optimizer"]]
    (line,) = [x for x in logs.read(tmp_path / "result_0.txt") if x.key == "optimizer_changed"]
    assert (line.value, line.metadata["before"]) == (config["optimizer"], before)
    with pytest.raises(UserError, match="optimizer_changes"):
        train(AFTER, resume=False, seed=2)


def test_a_set_has_one_optimizer(tmp_path):
    """A run that is not alone in its set keeps its optimizer."""
    folders = runs.RunSet(tmp_path)
    config, options = {"optimizer": "a"}, {"optimizer_state": "s", "seed": 1}
    for seed in (1, 2):
        folders.create(config, {**options, "seed": seed}).release()
    with pytest.raises(UserError, match="a set has one optimizer"):
        folders.resume({"optimizer": "b"}, {**options, "new_optimizer": True})


def test_it_is_for_runs_that_are_taken_up():
    with pytest.raises(UserError, match="add --resume"):
        RunOptions(new_optimizer=True)

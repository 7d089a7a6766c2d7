"""`--evaluate-every`: a finer curve of the very same run."""

import jax
import playing_toys
import pytest
import toys

from mlperf_jax.core import preflight
from mlperf_jax.core.benchmark import Target
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import UserError
from mlperf_jax.results import log as logs
from mlperf_jax.results.runs import RunFolder

HARD = (Target("accuracy", above=1.0),)  # out of reach


def qualities(output):
    found = [line for line in logs.read(output / "result_0.txt") if line.key == "eval_accuracy"]
    return {line.metadata["samples_count"]: line.value for line in found}


@pytest.mark.parametrize("kind", [toys.Toy, toys.Beside])
def test_evaluations_that_are_asked_for_come_beside_the_own_and_change_nothing(tmp_path, kind):
    """What they find at shared steps is the same to the last bit, predictions that draw numbers included."""

    class Drawing(kind):
        def predict(self, model, batch, key):
            found = super().predict(model, batch, key)
            return jax.tree.map(lambda hit: hit & jax.random.bernoulli(key, 0.5, hit.shape), found)

    given = dict(max_samples=32 * 25, seed=3)
    alone = toys.run(Drawing(targets=HARD), tmp_path / "alone", **given)
    finer = toys.run(Drawing(targets=HARD), tmp_path / "finer", evaluate_every=4, **given)
    own, more = qualities(tmp_path / "alone"), qualities(tmp_path / "finer")
    assert sorted(more) == [32 * step for step in (4, 8, 10, 12, 16, 20, 24)]
    assert sorted(own) == [320, 640]
    assert own == {samples: more[samples] for samples in own}
    assert len({*more.values()}) > 3
    assert alone.parameters_sha256 == finer.parameters_sha256
    config = RunFolder(tmp_path / "finer", 0).config()
    assert config["config"]["evaluate_every"] == 4
    assert "evaluate_every" not in RunFolder(tmp_path / "alone", 0).config()["config"]
    with pytest.raises(UserError, match="evaluate_every was 4 and is gone"):
        toys.run(Drawing(targets=HARD), tmp_path / "finer", max_samples=960, resume=True)


def test_the_closed_division_and_generations_have_evaluations_of_their_own(tmp_path):
    class Official(toys.Toy):
        name, ruleset = "resnet", "4.0.0"

    options = RunOptions(evaluate_every=4)
    sentence = r"an evaluation that the rules do not foresee \(--evaluate-every\) is not allowed in the closed"
    with pytest.raises(UserError, match=sentence):
        preflight.resolve_division(Official(), options)
    opened = RunOptions(evaluate_every=4, division="open")
    assert preflight.resolve_division(Official(), opened) == "open"
    with pytest.raises(UserError, match="evaluated when a generation of its data ends"):
        toys.run(playing_toys.Prompted(), tmp_path / "played", evaluate_every=4)
    assert not (tmp_path / "played").exists()

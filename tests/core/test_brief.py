"""What start weights score before any training: the first test of weights and data together."""

from typing import ClassVar

import numpy as np
import pytest
import toys

from mlperf_jax.core import brief, evaluation, mesh as meshes, state as states
from mlperf_jax.errors import UserError


class Known(toys.Started):
    """It is known what its start weights score; nothing is known of its tiny sizes."""

    start_quality: ClassVar[float | None] = None


def scored(benchmark: toys.Toy) -> float:
    return brief.score_start(benchmark, toys.options("unused"), "data")["accuracy"]


def test_the_start_weights_are_scored_and_no_others(monkeypatch):
    assembly = states.assemble(Known(dtype="float32"), meshes.make_mesh("data=1"))
    random = evaluation.Evaluator(assembly, 0, "data").quality(assembly.create(0), 0)["accuracy"]
    found = scored(Known())
    assert np.isfinite(found)
    assert found != random
    monkeypatch.setattr(Known, "start_quality", found + 5e-4)
    assert scored(Known()) == found
    monkeypatch.setattr(Known, "start_quality", found + 2e-3)
    assert scored(Known().tiny()) == found
    wanted = f"score accuracy {found:.5f} and must score {found + 2e-3:.5f}: look whether they, "
    with pytest.raises(UserError, match=wanted):
        scored(Known())


def test_random_weights_are_not_scored():
    with pytest.raises(UserError, match="begins with random weights: there is nothing to score"):
        scored(toys.Toy())

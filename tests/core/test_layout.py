"""A mesh that does not suit a model is refused before a folder is made; devices that would idle are told of."""

import pytest

from mlperf_jax import benchmarks
from mlperf_jax.core import layout, mesh as meshes, preflight, state as states
from mlperf_jax.errors import UserError


def notes(name, mesh):
    benchmark = preflight.resolve_dtype(benchmarks.get(name, tiny=True))
    return layout.check_layout(states.assemble(benchmark, meshes.make_mesh(mesh)))


@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        (
            "context=3",
            r"--mesh context=3 splits dimension 1 of an array of shape \(16, 64\) 3 ways",
        ),
        ("fsdp=4,tensor=2", r"--mesh tensor=2 splits dimension 2 of .* \(16, 64, 3, 32\) 2 ways"),
    ],
)
def test_an_axis_that_divides_nothing_is_refused(mesh, words, tmp_path):
    with pytest.raises(UserError, match=words):
        benchmarks.run("llama31_8b", tiny=True, mesh=mesh, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_axis_that_splits_nothing_is_told_of():
    (told,) = notes("resnet", "tensor=8")
    assert "nothing of resnet is split over tensor, so 8 devices do the same work" in told


def test_devices_that_are_left_over_are_told_of():
    (told,) = notes("resnet", "data=4")
    assert told == "note: --mesh data=4 uses 4 of 8 devices; the others are idle"


@pytest.mark.parametrize(
    ("name", "mesh"), [("resnet", "data=8"), ("resnet", None), ("llama31_8b", "fsdp=2,context=4")]
)
def test_nothing_is_said_of_what_suits(name, mesh):
    assert notes(name, mesh) == []

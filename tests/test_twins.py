"""The twins in PyTorch, where it is installed: as many trained weights as ours, and steps that learn."""

import importlib
import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from mlperf_jax import benchmarks  # noqa: E402
from mlperf_jax.core import bench, mesh as meshes, state as states  # noqa: E402
from scripts.twins.step import TWINS, Twin  # noqa: E402 (torch may be missing)


def test_every_benchmark_has_a_twin():
    assert set(TWINS) == set(benchmarks.registry._BENCHMARKS)


@pytest.mark.parametrize("name", TWINS)
def test_full_size_weights_are_as_many_as_the_references(name):
    given = benchmarks.get(name, dtype="bfloat16")
    made = importlib.import_module(f"scripts.twins.{TWINS[name]}")
    with torch.device("meta"):
        model = made.Model(given)
    found = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found == given.parameters


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_trains(name):
    given = benchmarks.get(name, tiny=True, dtype="float32")
    torch.manual_seed(0)
    twin = Twin(given)
    assembly = states.assemble(given, meshes.make_mesh("data=1"))
    assert twin.parameters == bench.trained_parameters(assembly)
    before = [p.detach().clone() for p in twin.trained]
    first = float(twin.step())
    assert all(not torch.equal(a, b) for a, b in zip(before, twin.trained, strict=True) if b.any())
    losses = [float(twin.step()) for _ in range(15)]
    assert all(map(math.isfinite, losses))
    assert min(losses) < first, "the same batch again and again"


@pytest.mark.parametrize("name", ["llama2_70b_lora", "bert"])
def test_twins_compute_in_bfloat16_and_keep_weights_in_float32(name):
    twin = Twin(benchmarks.get(name, tiny=True, dtype="bfloat16"))
    assert math.isfinite(float(twin.step()))
    assert {p.dtype for p in twin.trained} == {torch.float32}
    base = {p.dtype for p in twin.model.parameters() if not p.requires_grad}
    assert base == ({torch.bfloat16} if name == "llama2_70b_lora" else set())


def test_a_batch_in_parts_is_the_whole_batch():
    whole = benchmarks.get("bert", tiny=True, dtype="float32", dropout=0.0)
    losses = []
    for given in (whole, whole.replace(gradient_accumulation_steps=2)):
        torch.manual_seed(0)
        twin = Twin(given)
        assert len(twin.parts) == given.gradient_accumulation_steps
        twin.step()
        losses.append([p.detach().clone() for p in twin.trained])
    for one, other in zip(*losses, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)

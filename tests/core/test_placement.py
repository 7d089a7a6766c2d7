"""Meshes and recomputation that nobody chose: what suits the devices, and what a run says and keeps of it."""

import dataclasses
from typing import Any

import pytest
import toys
from planning_toys import Decoder

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks import folders
from mlperf_jax.core import mesh as meshes, placement, preflight
from mlperf_jax.core.placement import Place
from mlperf_jax.errors import UserError

EIGHT = Place("NVIDIA H100 80GB HBM3", 8)


def full(name, **fields) -> Any:
    return benchmarks.get(name, dtype="bfloat16", **fields)


def test_a_small_state_is_kept_whole_and_a_large_one_divided(monkeypatch):
    assert placement.mesh_for(Decoder(), EIGHT) == {"data": 8}
    monkeypatch.setattr(placement, "state_size", lambda *_: EIGHT.memory)
    assert placement.mesh_for(Decoder(), EIGHT) == {"fsdp": 8}


def test_devices_without_rows_split_the_layers():
    assert placement.mesh_for(Decoder(batch_size=4), EIGHT) == {"data": 4, "tensor": 2}


def test_devices_without_rows_are_refused_where_nothing_else_can_be_split(monkeypatch):
    monkeypatch.setattr(Decoder, "rules", ())
    with pytest.raises(UserError, match="a multiple of 8 or fewer devices"):
        placement.mesh_for(Decoder(batch_size=4), EIGHT)


# What docs/plan.md's table shows to be fast and to fit, as compiled.
FOUND = [
    ("llama31_8b", 16, Place("TPU v5", 16), {"fsdp": 16}, "dots_no_batch"),
    ("llama31_8b", 32, Place("TPU v6 lite", 32), {"fsdp": 32}, "attention"),
    ("gpt3", 2048, Place("TPU v5", 1024), {"fsdp": 512, "tensor": 2}, "attention"),
    (
        "llama31_405b",
        1152,
        Place("TPU v5", 2048),
        {"fsdp": 128, "tensor": 4, "context": 4},
        "attention",
    ),
]


@pytest.mark.parametrize(("name", "rows", "place", "sizes", "remat"), FOUND)
def test_decoders_at_full_size(name, rows, place, sizes, remat):
    benchmark = full(name, batch_size=rows)
    assert placement.mesh_for(benchmark, place) == sizes
    settled: Any = placement.with_remat(benchmark, place, sizes)
    assert settled.remat == remat


def test_parts_of_an_array_are_whole_tiles():
    """1,024 ways would leave 12 of GPT3's 12,288 rows to a device."""
    layers, place = full("gpt3").layered(), Place("TPU v5", 1024)
    ways = {sizes["fsdp"] for sizes in placement._candidates(layers, place, 1024)}
    assert max(ways) == 512
    assert max(c["fsdp"] for c in placement._candidates(layers, place, 512)) == 512


def test_nodes_of_gpus_are_spanned_by_rows_and_not_by_layers():
    place = Place("NVIDIA H200", 512, slices=64)
    sizes = placement.mesh_for(full("llama31_405b", batch_size=512), place)
    assert sizes["tensor"] <= 8 and sizes["fsdp"] >= 64


def test_less_memory_recomputes_more():
    benchmark, sizes = full("llama31_8b", batch_size=16), {"fsdp": 16}
    state = placement.state_size(benchmark)
    layers = benchmark.layered()
    needed = [placement.memory(benchmark, layers, sizes, r, state) for r in placement.REMATS]
    assert needed == sorted(needed, reverse=True) and len(set(needed)) == len(needed)
    kinds = ("TPU v5", "TPU v6 lite", "TPU v5 lite")
    settled: list[Any] = [placement.with_remat(benchmark, Place(k, 16), sizes) for k in kinds]
    found = [each.remat for each in settled]
    assert found == ["dots_no_batch", "attention", "full"]


def test_what_somebody_gave_stays():
    benchmark = full("llama31_8b", batch_size=16, remat="full")
    assert placement.with_remat(benchmark, Place("TPU v5", 16), {"fsdp": 16}) is benchmark
    resnet = full("resnet")
    assert placement.with_remat(resnet, Place("TPU v5", 16), {"data": 16}) is resnet


# -- in a run --------------------------------------------------------------------------------------


def test_where_nothing_is_known_of_the_devices_layers_keep_their_input():
    assert placement.here() is None  # CPUs
    settled: Any = placement.settle(full("llama31_8b"), None)
    assert (settled[0].remat, settled[1]) == ("full", None)
    assert placement.settle(toys.Toy(), "data=2") == (toys.Toy(), "data=2")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A tiny decoder whose state is large beside the memory of its eight devices."""
    benchmark = benchmarks.get(
        "llama31_8b", tiny=True, remat="auto", dtype="float32", width=128, heads=4
    )
    state = placement.state_size(benchmark)
    monkeypatch.setattr(Place, "memory", property(lambda self: 3 * state))
    monkeypatch.setattr(placement, "here", lambda: Place(EIGHT.kind, len(meshes.available())))
    return benchmark


def test_a_run_says_what_was_found_and_is_told_apart_by_what_was_asked(tiny, tmp_path):
    given = toys.options(tmp_path, data_dir=str(tmp_path / "data"))
    planned: Any = preflight.preflight(tiny, given, folders.data_folder(tiny, given))
    place = placement.here()
    assert place is not None
    sizes = placement.mesh_for(tiny, place)
    assert "data" not in sizes
    assert {n: k for n, k in planned.assembly.mesh.shape.items() if k > 1} == sizes
    assert planned.benchmark.remat in placement.REMATS
    (note,) = [note for note in planned.notes if "found by" in note]
    assert (
        meshes.describe(planned.assembly.mesh) in note
        and f"remat {planned.benchmark.remat}" in note
    )
    assert planned.config()["remat"] == "auto"
    assert dataclasses.replace(planned, settled=()).config()["remat"] != "auto"

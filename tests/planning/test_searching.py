"""What to try, and the search: ranked, each configuration once, what is refused kept apart."""

import dataclasses

import pytest
from planning_toys import Decoder

from mlperf_jax.errors import UserError
from mlperf_jax.planning import compiling, devices as names, searching, timing
from mlperf_jax.planning.compiling import Compiled
from mlperf_jax.planning.programs import Program

V5P = names.parse("v5p:4x4x8")  # 128 chips
GIB = 2**30


def compiled(outcome, mesh, total=50 * GIB, flops=1e12, name="train"):
    work = {"instructions": [[flops, 0, 0, 1]], "collectives": []}
    program = Program(name, outcome, V5P.memory, total=total, work=work)
    return Compiled(mesh, {"parameters": GIB, "optimizer": 2 * GIB, "other": 0}, (program,))


@pytest.fixture
def asked(monkeypatch):
    """Memory and time that depend on mesh, remat and micro-batches as they do in life."""
    found = []

    def pretend(benchmark, devices, mesh, *, optimizer, say, only):
        key = (tuple(mesh.items()), benchmark.remat, benchmark.gradient_accumulation_steps)
        assert only == "train" and key not in found, "compiled twice"
        found.append(key)
        if mesh.get("tensor", 1) == 4:
            raise UserError("4 parts do not divide the heads")
        flops = 1e12 * {"full": 4, "attention": 3.5, "dots_no_batch": 3.1, None: 3}[benchmark.remat]
        total = {"full": 40, "attention": 60, "dots_no_batch": 120, None: 300}[
            benchmark.remat
        ] * GIB
        flops *= 1.1 ** (mesh.get("tensor", 1) - 1)
        total = total / benchmark.gradient_accumulation_steps
        return compiled("fits" if total < V5P.memory else "too big", mesh, total, flops)

    monkeypatch.setattr(compiling, "compiled", pretend)
    return found


def test_the_fastest_that_fits_comes_first(asked):
    benchmark = Decoder(batch_size=1024)
    said = []
    start = compiled("fits", {"fsdp": 64, "tensor": 2})
    rows = searching.search(benchmark, V5P, start, optimizer=None, say=said.append)
    assert (rows[0].mesh, rows[0].settings) == ("fsdp=128", {"remat": "attention"})
    order = ["fits", "too big", "compiler failed", "refused"]
    assert [r.outcome for r in rows] == sorted((r.outcome for r in rows), key=order.index)
    times = [r.step_seconds for r in rows if r.outcome == "fits"]
    assert times == sorted(times)
    assert rows[-1].outcome == "refused" and "heads" in rows[-1].reason
    assert len(said) == len(rows) == len(asked)
    assert any(r.outcome == "too big" and r.settings == {"remat": None} for r in rows)


def test_meshes_use_all_devices():
    for mesh in searching.meshes_to_try(Decoder(batch_size=1024), V5P):
        product = 1
        for size in mesh.values():
            product *= size
        assert product == 128
    assert {"fsdp": 128} in searching.meshes_to_try(Decoder(batch_size=1024), V5P)


def test_models_that_split_nothing_get_no_tensor_axis(monkeypatch):
    monkeypatch.setattr(Decoder, "rules", ())
    found = list(searching.meshes_to_try(Decoder(batch_size=1024), V5P))
    assert found and not any("tensor" in mesh for mesh in found)


def test_advice_names_options_that_work():
    benchmark = Decoder(batch_size=1024, remat=None)
    found = compiled("too big", {"data": 128}, 200 * GIB)
    found = dataclasses.replace(found, state={"parameters": 60 * GIB, "optimizer": 0, "other": 0})
    lines = list(searching.advice(benchmark, V5P, found))
    assert lines[0].startswith("--mesh fsdp=128:")
    assert any(line.startswith("--remat full") for line in lines)
    assert any(line.startswith("--gradient-accumulation-steps 2") for line in lines)
    assert any(line.startswith("--mesh fsdp=64,tensor=2") for line in lines)
    assert lines[-1].startswith("--on v5p:4x8x8") or lines[-1].startswith("--on v5p:")


def test_advice_keeps_the_other_axes_of_the_mesh():
    benchmark = Decoder(batch_size=1024, remat=None)
    found = compiled("too big", {"data": 4, "fsdp": 4, "expert": 8}, 200 * GIB)
    lines = list(searching.advice(benchmark, V5P, found))
    assert any(line.startswith("--mesh fsdp=8,expert=8,tensor=2") for line in lines)
    assert searching._accumulations(benchmark, {"fsdp": 16, "expert": 32}) == [2]


def test_no_advice_where_none_is_needed_or_memory_is_not_the_matter():
    assert not list(searching.advice(Decoder(), V5P, compiled("fits", {"data": 128})))
    assert not list(searching.advice(Decoder(), V5P, compiled("compiler failed", {"data": 128})))


def test_only_the_evaluation_is_too_big():
    found = compiled("too big", {"fsdp": 32, "tensor": 4}, name="evaluation")
    assert next(searching.advice(Decoder(), V5P, found)).startswith("--eval-batch-size 32")


def test_no_micro_batch_without_a_row_for_every_device():
    assert searching._accumulations(Decoder(batch_size=128), {"fsdp": 128}) == []
    assert searching._accumulations(Decoder(batch_size=512), {"fsdp": 128}) == [2, 4]


def test_time_is_of_the_train_step():
    assert timing.step_time(Decoder(), V5P, compiled("fits", {}).programs) is not None


def test_sequences_may_be_split_too():
    found = list(searching.meshes_to_try(Decoder(batch_size=32), V5P))
    assert {"fsdp": 32, "tensor": 2, "context": 2} in found
    assert {"fsdp": 8, "tensor": 4, "context": 4} in found

"""Mesh texts, and which rows of a batch a process reads."""

from types import SimpleNamespace

import jax
import pytest
from jax.sharding import PartitionSpec as P

from mlperf_jax.core import mesh as meshes
from mlperf_jax.errors import UserError


def test_mesh_texts():
    assert meshes.parse_mesh("data=4,fsdp=2") == {"data": 4, "fsdp": 2}
    assert meshes.parse_mesh(" tensor = 2 , data=1") == {"tensor": 2, "data": 1}
    mesh = meshes.make_mesh("fsdp=2,data=2")
    assert mesh.axis_names == meshes.AXES and mesh.shape["expert"] == 1
    assert meshes.describe(mesh) == "data=2,fsdp=2"
    assert meshes.describe(meshes.make_mesh("data=1")) == "data=1"
    assert meshes.make_mesh().shape["data"] == jax.device_count() == 8


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("pipeline=2", "names axis 'pipeline'; the axes are data, fsdp, tensor, expert, context"),
        ("data", "write data=N with N at least 1"),
        ("data=0", "write data=N with N at least 1"),
        ("data=-2", "write data=N"),
        ("data=2,data=4", "names axis 'data' twice"),
        ("data=2,", "names axis ''"),
        ("data=16", "needs 16 devices and this machine has 8"),
    ],
)
def test_bad_mesh_texts_are_refused(text, sentence):
    with pytest.raises(UserError, match=sentence):
        meshes.make_mesh(text)


def test_several_processes_must_use_all_devices(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="with several processes it must use all 8"):
        meshes.make_mesh("data=4")


@pytest.mark.parametrize("text", ["data=2,fsdp=2,tensor=2", "data=2,tensor=2,expert=2"])
def test_rows_are_split_over_data_fsdp_and_expert(text):
    mesh = meshes.make_mesh(text)
    assert meshes.batch_ways(mesh) == 4
    assert meshes.batch_sharding(mesh).shard_shape((32, 3)) == (8, 3)
    assert meshes.process_rows(mesh, 32) == (0, 32)
    with pytest.raises(UserError, match=f"batch size 30 is not divided by the mesh {text}"):
        meshes.process_rows(mesh, 30)


@pytest.mark.parametrize(
    ("spans", "rows"),
    [([(8, 12), (12, 16)], (8, 16)), ([(0, 16), (0, 16)], (0, 16)), ([(0, 4), (8, 12)], None)],
    ids=["a half", "the same as others", "with a gap"],
)
def test_a_process_reads_consecutive_rows(monkeypatch, spans, rows):
    parts = {number: (slice(*span),) for number, span in enumerate(spans)}
    sharding = SimpleNamespace(addressable_devices_indices_map=lambda shape: parts)
    monkeypatch.setattr(meshes, "batch_sharding", lambda mesh: sharding)
    mesh = meshes.make_mesh("data=4")
    if rows is None:
        with pytest.raises(UserError, match="rows that are not consecutive"):
            meshes.process_rows(mesh, 16)
    else:
        assert meshes.process_rows(mesh, 16) == rows


def test_the_default_rule_shards_the_largest_axis_that_divides():
    mesh = meshes.make_mesh("data=2,fsdp=4")
    assert meshes.fsdp_largest((256, 1000), mesh) == P(None, "fsdp")
    assert meshes.fsdp_largest((256, 1001), mesh) == P("fsdp", None)
    assert meshes.fsdp_largest((128, 128), mesh) == P("fsdp", None), "the first of equals"
    assert meshes.fsdp_largest((127, 129), mesh) == P()
    assert meshes.fsdp_largest((64, 64), mesh) == P(), "too small to be worth gathering"
    assert meshes.fsdp_largest((256, 1000), meshes.make_mesh("data=8")) == P()

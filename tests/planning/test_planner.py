"""One call from a name to a plan; compiled by nobody."""

import dataclasses
import json

import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.planning import compiling, plan, searching
from mlperf_jax.planning.compiling import Compiled
from mlperf_jax.planning.programs import Program
from mlperf_jax.planning.report import Candidate
from scripts import plan_table as table

GIB = 2**30


@pytest.fixture
def asked(monkeypatch):
    """What was to be compiled, all of which fits."""
    calls = []

    def pretend(benchmark, devices, mesh, *, optimizer=None, say=None, only=None):
        calls.append((benchmark, devices, mesh, optimizer))
        work = {"instructions": [[4e13, 1e9, 0, 10]], "collectives": []}
        parts = [
            Program(name, "fits", devices.memory, 12 * GIB, 4 * GIB, 7 * GIB, GIB, work=work)
            for name in ("train", "evaluation")
        ]
        state = {"parameters": GIB, "optimizer": 2 * GIB, "other": 0}
        return Compiled(mesh or {"data": devices.count}, state, tuple(parts))

    monkeypatch.setattr(compiling, "compiled", pretend)
    return calls


def test_a_plan_from_a_name(asked):
    made = plan("resnet", on="v5p:2x2x2", batch_size=3264, price_per_chip_hour=2.0)
    benchmark, devices, mesh, _ = asked[0]
    assert (benchmark.batch_size, benchmark.dtype, devices.name, mesh) == (
        3264,
        "bfloat16",
        "v5p:2x2x2",
        None,
    )
    assert made.fits and made.mesh_chosen and made.mesh_text == "data=8"
    assert made.time is not None and made.to_target is not None
    hours = made.to_target.chip_hours
    assert made.to_target.price == pytest.approx(2 * hours)
    text = str(made)
    for word in ("samples/s", "± ", "chip-hours", "a price of", "records a second", "30 minutes"):
        assert word in text
    assert json.loads(made.to_json())["to_target"]["chip_hours"] == pytest.approx(hours)


def test_other_fields_and_a_mesh(asked):
    made = plan("resnet", on="v5e:2x4", mesh="data=4,fsdp=2", batch_size=1632, dtype="float32")
    assert asked[0][2] == {"data": 4, "fsdp": 2} and asked[0][0].dtype == "float32"
    assert not made.mesh_chosen
    assert made.time is None and "no time" in " ".join(made.notes)  # no float32 peak


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(on="v5p:2x2x3"), "does not come as 2x2x3"),
        (dict(on="v5p:2x2x2", mesh="rows=8"), "names axis 'rows'"),
        (dict(on="v5p:2x2x2", batchsize=8), "did you mean 'batch_size'"),
        (dict(on="v5p:2x2x2", price_per_chip_hour=-1.0), "must be a price"),
    ],
)
def test_what_is_refused(asked, settings, words):
    with pytest.raises(UserError, match=words):
        plan("resnet", **settings)
    assert not asked


def test_a_benchmark_without_points_is_planned_all_the_same(asked):
    made = plan("resnet", on="v5p:8x8x16", batch_size=84_800)
    assert made.fits and made.time is not None and made.to_target is None
    assert any("no reference point reaches" in note for note in made.notes)


def test_what_is_too_big_has_a_time_and_no_price(asked, monkeypatch):
    fitting = compiling.compiled

    def too_big(*arguments, **settings):
        found = fitting(*arguments, **settings)
        big = dataclasses.replace(found.programs[0], outcome="too big")
        return dataclasses.replace(found, programs=(big, *found.programs[1:]))

    monkeypatch.setattr(compiling, "compiled", too_big)
    made = plan("resnet", on="v5p:2x2x2", batch_size=3264)
    assert not made.fits and made.time is not None and made.to_target is None
    assert "with room" in str(made)


def test_a_search_adds_its_rows(asked, monkeypatch):
    rows = [Candidate("data=8", {}, "fits", 5, 0.1)]
    monkeypatch.setattr(searching, "search", lambda *a, **k: rows)
    assert plan("resnet", on="v5p:2x2x2", search=True).search == tuple(rows)


# -- the table of the docs -------------------------------------------------------------------------


def test_the_table_of_the_docs(asked, monkeypatch):
    monkeypatch.setattr(table, "CASES", table.CASES[:2])
    header, line, *rows = table.rows()
    assert len(rows) == 2 and rows[0].startswith(
        "| resnet | v5p:2x2x2 | 3,264 | data=8 |  | 1.0 | 2.0 |"
    )
    assert header.count("|") == line.count("|") == rows[0].count("|")
    one = tuple(e for e in table.PUBLISHED if e.case.benchmark == "resnet")
    monkeypatch.setattr(table, "PUBLISHED", one)
    header, _, row = table.published_rows()
    assert header.count("|") == row.count("|")
    assert row.startswith("| resnet | v4:4x4x4 | 4,096 | data=64 |")
    assert (table._rate(3049.66), table._rate(0.83719)) == ("3,050", "0.837")

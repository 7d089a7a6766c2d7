"""How a plan shows itself: three verdicts, text, HTML, JSON."""

import dataclasses
import json

import pytest

from mlperf_jax.planning.programs import Program
from mlperf_jax.planning.report import Candidate, Plan, gib

GIB = 2**30
TRAIN = Program("train", "fits", 16 * GIB, 12 * GIB, 4 * GIB, 7 * GIB, GIB, seconds=3.0)
PLAN = Plan(
    benchmark="llama31_8b",
    tiny=False,
    on="v5p:2x2x4",
    devices="16 x TPU v5p",
    chips=16,
    estimated=False,
    mesh={"fsdp": 8, "tensor": 2},
    mesh_chosen=True,
    batch_size=16,
    micro_batches=2,
    remat="full",
    dtype="bfloat16",
    room=16 * GIB,
    state={"parameters": GIB, "optimizer": 2 * GIB, "other": 0},
    programs=(TRAIN,),
)


def failing(outcome, **values):
    return dataclasses.replace(
        PLAN, programs=(dataclasses.replace(TRAIN, outcome=outcome, **values),)
    )


def test_it_fits():
    text = str(PLAN)
    assert PLAN.fits and PLAN.outcome == "fits"
    assert "fits, 12.0 of 16.0 GiB a device, 25% free" in text
    assert "mesh fsdp=8,tensor=2 (chosen), batch 16, in 2 micro-batches, remat full" in text
    assert "parameters 1.0 · optimizer 2.0 GiB" in text and "other" not in text
    assert "state and batch 4.0 + temporaries 7.0 + results and code 1.0" in text


def test_it_does_not_fit():
    plan = failing("too big", total=20 * GIB, largest=((9 * GIB, "bf16[9] x"),))
    plan = dataclasses.replace(plan, advice=("--remat full: less",))
    assert not plan.fits and plan.outcome == "does not fit"
    text = str(plan)
    assert "does not fit, 4.0 GiB a device too many" in text
    assert "9.0 GiB  bf16[9] x" in text and "--remat full" in text


def test_the_compilers_own_words_where_it_counts_for_itself():
    values = dict(arguments=None, temporaries=None, outputs=None)
    plan = failing("too big", total=30 * GIB, message="Used 30.00G of 16.00G hbm.", **values)
    assert "30.0 GiB of 16.0 GiB: 14.0 GiB too many" in str(plan)
    unknown = failing("too big", total=None, message="out of memory", **values)
    assert "does not fit" in str(unknown) and "unknown" in str(unknown)


def test_the_compiler_failed():
    plan = failing("compiler failed", message="INTERNAL: overlaps", total=None)
    assert not plan.fits and plan.outcome == "compiler failed"
    assert "no verdict on memory" in str(plan) and "INTERNAL: overlaps" in str(plan)


def test_too_big_is_the_worse_news():
    both = (*failing("too big").programs, *failing("compiler failed").programs)
    assert dataclasses.replace(PLAN, programs=both).outcome == "does not fit"


def test_json_holds_it_all_but_the_raw_counts():
    plan = failing("fits", work={"instructions": [[1, 2, 0, 3]]})
    rows = (Candidate("fsdp=16", {"remat": None}, "fits", 5, 1.5),)
    found = json.loads(dataclasses.replace(plan, search=rows).to_json())
    assert found["outcome"] == "fits" and found["fits"] is True
    assert found["mesh_text"] == "fsdp=8,tensor=2"
    assert found["programs"][0]["temporaries"] == 7 * GIB
    assert "work" not in found["programs"][0]
    assert found["search"][0]["settings"] == {"remat": None}


def test_a_notebook_shows_it_and_nothing_in_it_becomes_markup():
    plan = failing("compiler failed", message="<script>alert(1)</script>")
    shown = plan._repr_html_()
    assert shown.startswith("<table><caption><b>llama31_8b on 16 x TPU v5p")
    assert "<script>" not in shown and "&lt;script&gt;" in shown


def test_gpus_are_said_to_be_coarser():
    assert "coarser estimate" in str(dataclasses.replace(PLAN, estimated=True))
    assert "coarser" not in str(PLAN)


@pytest.mark.parametrize(
    ("size", "text"),
    [(3 * GIB, "3.0"), (GIB / 8, "0.12"), (1500 * GIB, "1,500.0"), (GIB / 1000, "0.001"), (0, "0")],
)
def test_sizes(size, text):
    assert gib(size) == text


def test_a_search_is_a_table():
    rows = (
        Candidate("fsdp=16", {}, "fits", 5 * GIB, 1.5),
        Candidate("fsdp=8,tensor=2", {"remat": "dots"}, "too big", 50 * GIB),
        Candidate("tensor=16", {}, "refused", reason="16 heads"),
    )
    text = str(dataclasses.replace(PLAN, search=rows))
    assert "fsdp=16  fits  5.0 GiB  1.5 s a step" in text
    assert "remat=dots  too big  50.0 GiB" in text and "refused  16 heads" in text

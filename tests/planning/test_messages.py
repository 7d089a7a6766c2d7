"""Failures of compilers: three outcomes, never confused."""

import pytest

from mlperf_jax.planning import messages, programs

GIB = 2**30
TOO_BIG = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. \
Used 30.00G of 15.75G hbm. Exceeded hbm capacity by 14.25G.

Total hbm usage >= 30.25G:
    reserved        258.00M
    program           30.00G
    arguments            0B

  Largest program allocations in hbm:

  1. Size: 16.00G
     Operator: op_name="jit(step)/dot_general" source_file="model.py"
     Shape: bf16[65536,131072]{1,0:T(8,128)(2,1)}
     Unpadded size: 16.00G
     Allocation type: HLO temp
     ==========================

  2. Size: 512.0M
     Shape: f32[128,1024,1024]{2,1,0:T(8,128)}
     Allocation type: HLO temp
     ==========================
"""


def test_too_big_says_by_how_much_and_names_the_largest_buffers():
    program = programs.failed_program("train", TOO_BIG, 16 * GIB)
    assert program.outcome == "too big"
    assert program.total == 30 * GIB and program.room == int(15.75 * GIB)
    assert program.over == int(14.25 * GIB)
    assert program.largest[0] == (
        16 * GIB,
        "bf16[65536,131072]{1,0:T(8,128)(2,1)} jit(step)/dot_general",
    )
    assert program.largest[1][0] == 512 * 2**20


def test_the_other_wording_of_too_big():
    text = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
        "(223.59G) exceeds available HBM (95.74G)."
    )
    assert messages.out_of_memory(text) == (int(223.59 * GIB), int(95.74 * GIB))


@pytest.mark.parametrize(
    "text",
    [
        "INTERNAL: Chunk 3 overlaps with another chunk",
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20M of 16M vmem.",
        "INVALID_ARGUMENT: Mosaic failed to compile TPU kernel",
        "",
    ],
)
def test_a_failed_compiler_is_no_verdict_on_memory(text):
    program = programs.failed_program("train", text, 16 * GIB)
    assert program.outcome == "compiler failed"
    assert program.total is None and program.over == 0
    assert program.message

"""Full-size benchmarks compiled for TPU topologies on this CPU; `make test-aot`, needs libtpu.

One compiler at a time: the planner waits for its turn, and takes what it has compiled before from its
store. Three outcomes are kept apart: it fits, it does not fit, or the compiler failed, which is no
verdict on memory.
"""

import pytest

from mlperf_jax import benchmarks
from mlperf_jax.planning import plan
from scripts import plan_table as table

pytestmark = pytest.mark.aot
pytest.importorskip("libtpu")


def test_every_benchmark_has_a_case() -> None:
    assert set(benchmarks.names()) <= {case.benchmark for case in table.cases()}


@pytest.mark.parametrize("case", table.cases(), ids=lambda case: f"{case.benchmark}-{case.on}")
def test_train_and_evaluation_fit(case: table.Case) -> None:
    made = plan(case.benchmark, on=case.on, mesh=case.mesh, batch_size=case.batch_size)
    print(table.row(case, made))
    assert {program.name.split()[0] for program in made.programs} >= {"train", "evaluation"}
    assert made.fits, str(made)
    for program in made.programs:
        assert program.total is not None and 0 < program.total < made.room
    assert made.time is not None and 0 < (made.time.mfu or 0) < 1


def test_weights_split_over_fsdp_are_gathered_and_not_passed_around() -> None:
    """The compiler's other way, a product per piece, reads and writes the result once per piece."""
    made = plan("llama31_8b", on="v6e:4x8", batch_size=32, layers=2)
    moved = {"all-gather": 0.0, "collective-permute": 0.0}
    for kind, size, *_, times in made.programs[0].work["collectives"]:
        moved[kind] = moved.get(kind, 0) + size * times
    layer = 2 * 218_103_808  # bytes of a layer's matrices, in bfloat16
    assert moved["all-gather"] >= 2 * 2 * layer  # forward and backward, head and embedding besides
    assert moved["collective-permute"] < 0.05 * moved["all-gather"]


@pytest.mark.parametrize("on", ["v4:2x2x1", "v5e:1x1", "2xv6e:2x2", "tpu7x:2x2x1", "v3:2x2"])
def test_every_kind_of_topology_compiles(on: str) -> None:
    made = plan("llama31_8b", on=on, tiny=True, batch_size=64)
    assert made.fits, str(made)


def test_too_big_is_told_from_a_failed_compiler() -> None:
    made = plan("resnet", on="v5e:2x4", batch_size=67_840, bn_span=424)
    assert made.outcome == "does not fit"
    train = made.programs[0]
    assert train.outcome == "too big" and train.over > 0
    assert train.largest, "the largest buffers are named"
    assert any("gradient-accumulation" in line or "--on" in line for line in made.advice)

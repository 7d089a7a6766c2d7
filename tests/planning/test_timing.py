"""The roofline of a step, and collectives, against closed forms."""

import dataclasses

import pytest
from planning_toys import Decoder

from mlperf_jax.planning import devices as names, timing
from mlperf_jax.planning.programs import Program

V5P = names.parse("v5p:4x4x4")
V6E = names.parse("v6e:4x4")
LINK = 90e9 * timing.LINKS


def program(instructions, collectives=(), name="train"):
    work = {"instructions": list(instructions), "collectives": list(collectives)}
    return Program(name, "fits", 1, total=1, work=work)


def test_each_instruction_takes_the_longer_of_products_and_memory():
    peak, bandwidth = 459e12 * timing.PRODUCTS, 2765e9 * timing.MEMORY
    found = timing.step_time(Decoder(), V5P, [program([[peak, 0, 0, 2], [0, bandwidth, 0, 3]])])
    assert found.seconds == pytest.approx(5)
    assert (found.products, found.memory) == (pytest.approx(2), pytest.approx(3))
    assert found.binds == "memory"


def test_products_take_the_compilers_cycles_and_traffic_does_not():
    peak, bandwidth, second = 459e12 * timing.PRODUCTS, 2765e9 * timing.MEMORY, 1.75e9
    product, moved = [peak, bandwidth / 2, 3 * second, 1], [peak, 2 * bandwidth, 9 * second, 1]
    found = timing.step_time(Decoder(), V5P, [program([product, moved])])
    assert found.seconds == pytest.approx(3 + 2)
    assert (found.products, found.memory) == (pytest.approx(3 + 1), pytest.approx(2.5))


def test_what_runs_beside_is_hidden_as_far_as_there_is_work():
    peak = 459e12 * timing.PRODUCTS
    size = 6 * LINK * 64 / 63  # one second around three closed rings, both ways
    beside = ["all-gather", size, 64, 1, True, 3.0]
    alone = ["all-gather", size, 64, 1, False, 1.0]
    hidden = timing.step_time(Decoder(), V5P, [program([[peak, 0, 0, 4]], [beside])])
    assert hidden.seconds == pytest.approx(4, rel=1e-3)
    waiting = timing.step_time(Decoder(), V5P, [program([[peak, 0, 0, 2]], [beside, alone])])
    assert waiting.seconds == pytest.approx(4, rel=1e-3)
    assert waiting.exposed == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize(
    ("on", "kind", "group", "spans", "expected"),
    [
        ("v5p:4x4x4", "all-gather", 64, 1, 63 / 64 / 6),  # three closed rings
        ("v5p:4x4x4", "all-reduce", 64, 1, 2 * 63 / 64 / 6),
        ("v5p:4x4x4", "reduce-scatter", 4, 1, 3 / 4 / 2),  # one of them
        ("v5p:2x2x4", "all-gather", 16, 1, 15 / 16 / 4),  # sides of two do not close
        ("v6e:4x4", "all-gather", 16, 1, 15 / 16 / 2),  # nor do those within a pod
        ("v6e:16x16", "all-gather", 256, 1, 255 / 256 / 4),
        ("v6e:16x16", "collective-permute", 2, 1, 1 / 2),
    ],
)
def test_collectives_on_a_torus(on, kind, group, spans, expected):
    size = 1e12
    found = timing.collective_seconds(names.parse(on), kind, size, group, spans)
    assert found == pytest.approx(expected * size / LINK, rel=1e-3)


def test_between_slices_the_network_is_what_there_is():
    on = names.parse("2xv6e:16x16")
    size = 1e12
    found = timing.collective_seconds(on, "all-reduce", size, 512, 2)
    across = 2 * size / 2 / 256 / (12.5e9 * timing.LINKS)
    within = 2 * size * 255 / 256 / (4 * LINK)
    assert found == pytest.approx(across + within, rel=1e-3)


def test_a_group_of_one_costs_nothing():
    assert timing.collective_seconds(V5P, "all-reduce", 1e9, 1, 1) == 0


def test_rate_and_share_of_the_peak():
    flops = Decoder().flops_per_sample * Decoder().batch_size / V5P.count
    found = timing.step_time(Decoder(), V5P, [program([[flops, 0, 0, 1]])])
    assert found.mfu == pytest.approx(timing.PRODUCTS)
    assert found.samples_per_second == pytest.approx(Decoder().batch_size / found.seconds)
    assert "459 TFLOP/s" in found.mfu_text


def test_an_evaluation_is_as_many_batches_as_the_samples_need():
    peak = 918e12 * timing.PRODUCTS
    parts = [program([[peak, 0, 0, 1]]), program([[peak, 0, 0, 2]], name="evaluation")]
    found = timing.step_time(Decoder(eval_samples=100, batch_size=64), V6E, parts)
    assert found.evaluation == pytest.approx(2 * 2)


def test_an_evaluation_row_may_hold_several_samples(monkeypatch):
    monkeypatch.setattr(Decoder, "eval_row_samples", 10)
    peak = 918e12 * timing.PRODUCTS
    parts = [program([[peak, 0, 0, 1]]), program([[peak, 0, 0, 2]], name="evaluation")]
    found = timing.step_time(Decoder(eval_samples=1300, batch_size=64), V6E, parts)
    assert found.evaluation == pytest.approx(3 * 2)


def test_bucket_shapes_are_averaged():
    peak = 459e12 * timing.PRODUCTS
    parts = [program([[peak, 0, 0, n]], name=f"train {n}") for n in (1, 3)]
    assert timing.step_time(Decoder(), V5P, parts).seconds == pytest.approx(2)


def test_without_an_analysis_there_is_no_time():
    assert timing.step_time(Decoder(), V5P, [dataclasses.replace(program([]), work=None)]) is None


def test_gpus_go_by_the_models_own_products():
    on = names.parse("h100:8")
    found = timing.step_time(Decoder(remat="full"), on, [program([[1, 1, 1, 1]])])
    total = Decoder().flops_per_sample * Decoder().batch_size * 4 / 3
    assert found.seconds == pytest.approx(total / 8 / 989e12 / timing.GPU_PRODUCTS)
    assert found.error > timing.ERROR

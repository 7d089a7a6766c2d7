"""What is compiled is what a run compiles, and what does not fit together is refused."""

import dataclasses
import sys

import jax
import pytest
import toys
from planning_toys import Decoder

from mlperf_jax.core import mesh as meshes, placement, state as states, step as steps
from mlperf_jax.errors import UserError
from mlperf_jax.planning import devices as names, hlo, programs

H100 = names.parse("h100:8")


def lowered(benchmark, sizes, name="train"):
    assembly = programs.assemble(benchmark, H100, sizes)
    return dict(programs.lowered_programs(assembly))[name]


def test_the_train_step_is_the_runs_own():
    benchmark, sizes = Decoder(), {"fsdp": 4, "tensor": 2}
    assembly = states.assemble(benchmark, meshes.make_mesh("fsdp=4,tensor=2"))
    sharding = meshes.batch_sharding(assembly.mesh)
    batch = steps.abstract_batch(benchmark.buckets()[0], sharding)
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(assembly.mesh):
        run = steps.jit_train_step(assembly).lower(assembly.abstract, batch, key)
    assert lowered(benchmark, sizes).as_text() == run.as_text()


def test_state_bytes_are_those_of_one_device():
    whole = programs.state_bytes(programs.assemble(Decoder(), H100, {"data": 8}))
    parted = programs.state_bytes(programs.assemble(Decoder(), H100, {"fsdp": 8}))
    assert whole["optimizer"] == pytest.approx(2 * whole["parameters"], rel=1e-3)  # two moments
    # norms stay whole, all else is divided
    assert whole["parameters"] / 8 < parted["parameters"] < whole["parameters"] / 7.8
    total = sum(whole.values())
    assert placement.state_size(Decoder()) == total


def test_a_gpus_attention_holds_no_scores():
    sizes, long = {"data": 8}, Decoder(batch_size=8, eval_batch_size=8, sequence_length=640)
    scores = f"{long.heads}x1x640x640x"  # heads, group, queries, keys
    assert scores in lowered(long, sizes).as_text().replace(" ", "")
    with programs.forms_of(H100):
        text = lowered(long, sizes).as_text()
    assert "640x640x" not in text


def test_findings_of_a_compiled_program_add_up():
    with programs.forms_of(H100):
        found, text = programs.compile_program(lowered(Decoder(), {"fsdp": 8}), {})
    program = programs.read_findings("train", H100, found, text)
    assert program.fits and program.room == H100.memory
    assert program.total == program.arguments + program.temporaries + program.outputs
    assert program.largest and program.largest[0][0] >= program.largest[-1][0]
    assert programs.Program.from_dict(dataclasses.asdict(program)) == program
    names_of = {c[0] for c in program.work["collectives"]}
    assert {"all-gather", "all-reduce"} & names_of  # weights come from the other devices


def test_what_takes_more_than_there_is_does_not_fit():
    small = names.Devices("small", names.Chip("NVIDIA L4", "gpu", most=8), (8,))
    found = {"error": None, "seconds": 1.0, "cpu_seconds": 1.0}
    found["memory"] = dict(argument=5, temp=5, output=3, alias=2, generated_code=1)
    program = programs.read_findings("train", small, found, "ENTRY %main () -> f32[] {\n}")
    assert (program.total, program.outcome, program.over) == (12, "too big", 12)


def test_where_the_compiler_names_no_buffers_the_programs_largest_arrays_are_named():
    class Refused:
        def compile(self, **settings):
            raise RuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
                "temporaries (226.85G) exceeds available HBM (15.75G)."
            )

        def as_text(self):
            return "%0 : tensor<64x32xbf16> %1 : tensor<64x32xf32> %2 : tensor<f32>"

    found, text = programs.compile_program(Refused(), {})
    program = programs.read_findings("train", H100, found, text)
    assert program.outcome == "too big"
    assert program.largest[0] == (64 * 32 * 4 // 8, "f32[64,32] of all devices, if spread evenly")
    assert len(program.largest) == 2


def test_an_error_of_the_compiler_is_no_verdict_on_memory():
    found = {"error": "INTERNAL: no", "seconds": 1.0, "cpu_seconds": 1.0}
    program = programs.read_findings("train", H100, found, "")
    assert program.outcome == "compiler failed" and program.message == "INTERNAL: no"


def test_a_text_that_cannot_be_read_costs_only_the_estimate(monkeypatch):
    def fail(*arguments):
        raise KeyError("new syntax")

    monkeypatch.setattr(programs.work, "work", fail)
    assert programs._work(hlo.parse("ENTRY %main () -> f32[] {\n}"), H100) is None


@pytest.mark.parametrize(
    ("benchmark", "sizes", "words"),
    [
        (Decoder(), {"data": 4}, "4 devices and h100:8 8"),
        (Decoder(batch_size=12), {"data": 8}, "batch size 12 is not divided"),
        (Decoder(gradient_accumulation_steps=16), {"fsdp": 8}, "micro-batch of 4"),
        (Decoder(eval_batch_size=20), {"fsdp": 8}, "evaluation batch size 20"),
        (
            Decoder(heads=3),
            {"fsdp": 4, "tensor": 2},
            "tensor=2 splits dimension 2 of an array of shape .* which do not divide 3",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(benchmark, sizes, words):
    with pytest.raises(UserError, match=words):
        list(programs.lowered_programs(programs.assemble(benchmark, H100, sizes)))


def test_slices_are_spanned_by_data_or_fsdp():
    assert meshes._within_slices((4, 8, 2, 1, 1), 4) == (1, 8, 2, 1, 1)
    assert meshes._within_slices((1, 8, 2, 1, 1), 4) == (1, 2, 2, 1, 1)
    with pytest.raises(UserError, match="must divide the data or fsdp"):
        meshes._within_slices((1, 2, 8, 1, 1), 4)


def test_the_same_content_has_the_same_digest():
    one, two = (programs.content(H100, lowered(Decoder(), {"fsdp": 8}), {}) for _ in range(2))
    other = programs.content(H100, lowered(Decoder(remat=None), {"fsdp": 8}), {})
    elsewhere = programs.content(names.parse("h200:8"), lowered(Decoder(), {"fsdp": 8}), {})
    otherwise = programs.content(H100, lowered(Decoder(), {"fsdp": 8}), {"xla_option": True})
    assert one == two and len({one, other, elsewhere, otherwise}) == 4


def test_without_the_tpu_compiler_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(UserError, match=r"mlperf-jax\[plan\]"):
        programs.describe(names.parse("v5p:2x2x1"))


def test_a_benchmark_that_makes_its_data_has_a_third_program():
    sizes = {"data": 8}
    found = dict(
        programs.lowered_programs(programs.assemble(toys.SelfMade(dtype="float32"), H100, sizes))
    )
    assert set(found) == {"train", "evaluation", "generation"}
    only = programs.lowered_programs(
        programs.assemble(toys.SelfMade(dtype="float32"), H100, sizes), "train"
    )
    assert [name for name, _ in only] == ["train"]


def test_devices_are_arranged_as_the_mesh_says():
    grid = meshes.arrange((2, 2, 2, 1, 1), jax.devices())
    assert grid.shape == (2, 2, 2, 1, 1) and len(set(grid.flat)) == 8

"""Reading compiled programs: sizes, loops, fusions and products, against what is known of them."""

import jax
import jax.numpy as jnp
import pytest

from mlperf_jax.ops import hints
from mlperf_jax.planning import hlo, work

MODULE = """HloModule jit_step, is_scheduled=true

%fused_slice (param_0: f32[8,128,256], param_1: s32[], param_2: f32[128,256]) -> f32[128,256] {
  %param_0 = f32[8,128,256]{2,1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %slice = f32[1,128,256]{2,1,0:T(8,128)} dynamic-slice(%param_0, %param_1, %zero, %zero), dynamic_slice_sizes={1,128,256}
  %flat = f32[128,256]{1,0:T(8,128)} bitcast(%slice)
  %param_2 = f32[128,256]{1,0:T(8,128)} parameter(2)
  ROOT %sum = f32[128,256]{1,0:T(8,128)} add(%flat, %param_2)
}

%fused_update (param_0.1: f32[8,128,256], param_1.1: f32[1,128,256], param_2.1: s32[]) -> f32[8,128,256] {
  %param_0.1 = f32[8,128,256]{2,1,0:T(8,128)} parameter(0)
  %param_1.1 = f32[1,128,256]{2,1,0:T(8,128)} parameter(1)
  %param_2.1 = s32[]{:T(128)} parameter(2)
  %zero.1 = s32[]{:T(128)} constant(0)
  ROOT %update = f32[8,128,256]{2,1,0:T(8,128)} dynamic-update-slice(%param_0.1, %param_1.1, %param_2.1, %zero.1, %zero.1)
}

%scatter_sum (param_0.2: f32[1024,256]) -> f32[256,256] {
  %param_0.2 = f32[1024,256]{1,0:T(8,128)} parameter(0)
  %all-reduce.9 = f32[1024,256]{1,0:T(8,128)} all-reduce(%param_0.2), replica_groups=[2,4]<=[8], to_apply=%add
  %at = s32[]{:T(128)} constant(0)
  ROOT %mine = f32[256,256]{1,0:T(8,128)} dynamic-slice(%all-reduce.9, %at, %at), dynamic_slice_sizes={256,256}
}

%body (carry: (u32[], f32[128,256], f32[8,128,256], u32[])) -> (u32[], f32[128,256], f32[8,128,256], u32[]) {
  %carry = (u32[]{:T(128)}, f32[128,256]{1,0:T(8,128)}, f32[8,128,256]{2,1,0:T(8,128)}, /*index=3*/u32[]{:T(128)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%carry), index=0
  %x = f32[128,256]{1,0:T(8,128)} get-tuple-element(%carry), index=1
  %stack = f32[8,128,256]{2,1,0:T(8,128)} get-tuple-element(%carry), index=2
  %bound = u32[]{:T(128)} get-tuple-element(%carry), index=3
  %one = u32[]{:T(128)} constant(1)
  %half = u32[]{:T(128)} add(%i, %one)
  %next = u32[]{:T(128)} add(%half, %one)
  %sum.1 = f32[128,256]{1,0:T(8,128)} fusion(%stack, %i, %x), kind=kLoop, calls=%fused_slice
  ROOT %out = (u32[]{:T(128)}, f32[128,256]{1,0:T(8,128)}, f32[8,128,256]{2,1,0:T(8,128)}, u32[]{:T(128)}) tuple(%next, %sum.1, %stack, %bound)
}

%condition (carry.1: (u32[], f32[128,256], f32[8,128,256], u32[])) -> pred[] {
  %carry.1 = (u32[]{:T(128)}, f32[128,256]{1,0:T(8,128)}, f32[8,128,256]{2,1,0:T(8,128)}, /*index=3*/u32[]{:T(128)}) parameter(0)
  %i.1 = u32[]{:T(128)} get-tuple-element(%carry.1), index=0
  %bound.1 = u32[]{:T(128)} get-tuple-element(%carry.1), index=3
  ROOT %less = pred[]{:T(512)} compare(%i.1, %bound.1), direction=LT
}

ENTRY %main (x.0: f32[128,256], stack.0: f32[8,128,256], big: f32[1024,256]) -> (f32[128,256], f32[8,128,256]) {
  %x.0 = f32[128,256]{1,0:T(8,128)} parameter(0)
  %stack.0 = f32[8,128,256]{2,1,0:T(8,128)} parameter(1)
  %big = f32[1024,256]{1,0:T(8,128)} parameter(2)
  %start = u32[]{:T(128)} constant(0)
  %eight = u32[]{:T(128)} constant(8)
  %fast = bf16[512,512]{1,0:T(8,128)(2,1)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %init = (u32[]{:T(128)}, f32[128,256]{1,0:T(8,128)}, f32[8,128,256]{2,1,0:T(8,128)}, u32[]{:T(128)}) tuple(%start, %x.0, %stack.0, %eight)
  %loop = (u32[]{:T(128)}, f32[128,256]{1,0:T(8,128)}, f32[8,128,256]{2,1,0:T(8,128)}, u32[]{:T(128)}) while(%init), condition=%condition, body=%body
  %y = f32[128,256]{1,0:T(8,128)} get-tuple-element(%loop), index=1
  %one.1 = f32[1,128,256]{2,1,0:T(8,128)} bitcast(%y)
  %new = f32[8,128,256]{2,1,0:T(8,128)} fusion(%stack.0, %one.1, %start), kind=kLoop, calls=%fused_update, metadata={op_name="jit(step)/put"}
  %parted = f32[256,256]{1,0:T(8,128)} fusion(%big), kind=kCustom, calls=%scatter_sum
  %gather-start = (f32[128,256]{1,0}, f32[512,256]{1,0}) all-gather-start(%y), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %gather-done = f32[512,256]{1,0} all-gather-done(%gather-start)
  %sent = (f32[128,256]{1,0}, f32[128,256]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%y), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %named = f32[128,256]{1,0} all-reduce(%y), replica_groups=mesh['a'=2,'b'=4] {'a'}, to_apply=%add
  ROOT %result = (f32[128,256]{1,0}, f32[8,128,256]{2,1,0}) tuple(%y, %new)
}
"""
ROW = 128 * 256 * 4  # bytes of one slice


@pytest.fixture(scope="module")
def module():
    return hlo.parse(MODULE)


def test_the_counter_of_an_unrolled_loop_grows_by_two(module):
    assert (
        work.trip_count(module.computations, module.entry, module.entry.instructions["loop"]) == 4
    )


def test_fusions_read_slices_and_update_in_place(module):
    listed = work.work(module, 8)["instructions"]
    found = {(flops, size // 1024 * 1024): n for flops, size, _, n in listed}  # indices left out
    # a slice of the stack, x, and the sum: three rows a turn; the update: a row read and written
    assert found[(0.0, 3.0 * ROW)] == 4
    assert found[(0.0, 2.0 * ROW)] == 1


def test_collectives(module):
    found = {c[0]: c[1:] for c in work.work(module, 8, slices=2)["collectives"]}
    # bytes of the whole array, group, slices it spans, beside other work, times
    assert found["reduce-scatter"] == [1024 * 256 * 4.0, 4, 1, False, 1.0]
    assert found["all-gather"] == [4.0 * ROW, 4, 1, True, 1.0]
    assert found["collective-permute"] == [float(ROW), 2, 1, True, 1.0]
    assert found["all-reduce"] == [float(ROW), 2, 2, False, 1.0]


def test_largest_buffers_leave_out_small_memory_and_name_the_origin(module):
    largest = hlo.largest_buffers(module)
    assert largest[0] == (8 * ROW, "f32[8,128,256] jit(step)/put")
    assert not any("512,512" in what for _, what in largest)


def flops_of(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return sum(flops * n for flops, *_, n in work.work(hlo.parse(text), 1)["instructions"])


def test_products_in_a_loop_count_as_often_as_it_runs():
    def seven(x, y):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ y), None), x, None, length=7)[0]

    assert flops_of(seven, (512, 256), (256, 256)) == 7 * 2 * 512 * 256 * 256


def test_what_runs_rarely_is_left_out():
    def product(x, y):
        often = lambda: x @ y  # noqa: E731
        seldom = hints.rarely(lambda: jnp.tanh(x @ y) @ y)
        z = jax.lax.cond(x[0, 0] > 0, often, seldom)
        return jax.lax.fori_loop(0, (z[0, 0] > 0).astype(int), hints.rarely(lambda _, z: z @ y), z)

    assert flops_of(product, (256, 256), (256, 256)) == 2 * 256**3


def test_a_loop_of_open_length_turns_as_often_as_is_said_of_it():
    def product(x, y):
        with hints.turns(5):
            return jax.lax.fori_loop(0, (x[0, 0] > 0).astype(int), lambda _, x: x @ y, x)

    assert flops_of(product, (256, 256), (256, 256)) == 5 * 2 * 256**3


def test_a_scatter_in_a_fusion_costs_its_updates():
    text = """HloModule m

%put (p.0: f32[4096,128], p.1: s32[8,1], p.2: f32[8,128]) -> f32[4096,128] {
  %p.0 = f32[4096,128]{1,0:T(8,128)} parameter(0)
  %p.1 = s32[8,1]{1,0} parameter(1)
  %p.2 = f32[8,128]{1,0:T(8,128)} parameter(2)
  ROOT %s = f32[4096,128]{1,0:T(8,128)} scatter(%p.0, %p.1, %p.2), update_window_dims={1}, to_apply=%add
}

ENTRY %main (x: f32[4096,128], i: s32[8,1], u: f32[8,128]) -> f32[4096,128] {
  %x = f32[4096,128]{1,0:T(8,128)} parameter(0)
  %i = s32[8,1]{1,0} parameter(1)
  %u = f32[8,128]{1,0:T(8,128)} parameter(2)
  ROOT %y = f32[4096,128]{1,0:T(8,128)} fusion(%x, %i, %u), kind=kCustom, calls=%put
}
"""
    (row,) = work.work(hlo.parse(text), 1)["instructions"]
    assert row[1] == 3 * 8 * 128 * 4 + 8 * 4  # places read and written, updates and indices read


@pytest.mark.parametrize(("stride", "expected"), [(1, 14 * 14 * 9), (2, 7 * 7 * 9)])
def test_convolutions_count_what_meets_the_input(stride, expected):
    text = f"""HloModule m

ENTRY %main (x: bf16[2,14,14,8], k: bf16[3,3,8,16]) -> bf16[2,{14 // stride},{14 // stride},16] {{
  %x = bf16[2,14,14,8]{{3,2,1,0}} parameter(0)
  %k = bf16[3,3,8,16]{{3,2,1,0}} parameter(1)
  ROOT %y = bf16[2,{14 // stride},{14 // stride},16]{{3,2,1,0}} convolution(%x, %k), window={{size=3x3 stride={stride}x{stride} pad=1_1x1_1}}, dim_labels=b01f_01io->b01f
}}
"""
    found = sum(f * n for f, *_, n in work.work(hlo.parse(text), 1)["instructions"])
    assert 0.85 * expected < found / (2 * 2 * 8 * 16) < expected  # the border meets padding


def test_a_product_written_as_a_convolution_is_counted_as_a_product():
    # what the TPU compiler makes of [8192, 32 x 128] from [8192, 2 x 128] and [2 x 128, 32 x 128]
    text = """HloModule m

ENTRY %main (x: bf16[64,2,128,1], k: bf16[32,128,16,2]) -> bf16[64,32,16,1] {
  %x = bf16[64,1,128,2]{3,2,1,0} parameter(0)
  %k = bf16[32,16,2,128]{3,2,1,0} parameter(1)
  ROOT %y = bf16[64,32,16,1]{3,2,1,0} convolution(%x, %k), window={size=32x2 pad=31_31x0_0 rhs_reversal=1x0}, dim_labels=b0f1_0o1i->b0f1
}
"""
    found = sum(f * n for f, *_, n in work.work(hlo.parse(text), 1)["instructions"])
    assert found == 2 * 64 * (32 * 16) * (2 * 128)


@pytest.mark.parametrize(("kind", "products"), [("fwd", 2), ("bwd", 5)])
def test_products_inside_the_kernel_of_whole_rows(kind, products):
    text = f"""HloModule m

ENTRY %main (q: bf16[4,16,512,64], k: bf16[4,16,256,64], v: bf16[4,16,256,64]) -> bf16[4,16,512,64] {{
  %q = bf16[4,16,512,64]{{3,2,1,0}} parameter(0)
  %k = bf16[4,16,256,64]{{3,2,1,0}} parameter(1)
  %v = bf16[4,16,256,64]{{3,2,1,0}} parameter(2)
  ROOT %whole_attention_{kind}.3 = bf16[4,16,512,64]{{3,2,1,0}} custom-call(%q, %k, %v), custom_call_target="tpu_custom_call"
}}
"""
    found = sum(f * n for f, *_, n in work.work(hlo.parse(text), 1)["instructions"])
    assert found == products * 2 * 4 * 16 * 512 * 256 * 64


CHAIN = """HloModule m

%start_fusion (p.0: bf16[64,256]) -> (bf16[256,256], u32[]) {
  %p.0 = bf16[64,256]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[256,256]{1,0:T(8,128)(2,1)} all-gather(%p.0), replica_groups=[1,4]<=[4], dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %begun = (bf16[256,256]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%carried (p.1: bf16[64,256], p.2: bf16[256,256]) -> bf16[256,256] {
  %p.1 = bf16[64,256]{1,0:T(8,128)(2,1)} parameter(0)
  %p.2 = bf16[256,256]{1,0:T(8,128)(2,1)} parameter(1)
  %all-gather.2 = bf16[256,256]{1,0:T(8,128)(2,1)} all-gather(%p.1), replica_groups=[1,4]<=[4], dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %product = bf16[256,256]{1,0:T(8,128)(2,1)} dot(%p.2, %p.2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: bf16[64,256], y: bf16[256,256]) -> bf16[256,256] {
  %x = bf16[64,256]{1,0:T(8,128)(2,1)} parameter(0)
  %y = bf16[256,256]{1,0:T(8,128)(2,1)} parameter(1)
  %first = (bf16[256,256]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) fusion(%x), kind=kCustom, calls=%start_fusion
  ROOT %second = bf16[256,256]{1,0:T(8,128)(2,1)} fusion(%x, %y), kind=kOutput, calls=%carried, backend_config={"window_config":{"estimated_cycles":"4321"}}
}
"""


def test_a_collective_carried_on_by_several_fusions_is_one_beside_them():
    found = work.work(hlo.parse(CHAIN), 4)
    assert found["collectives"] == [["all-gather", 256 * 256 * 2.0, 4, 1, True, 1.0]]


def test_the_compilers_cycles_are_kept():
    found = {
        flops: cycles for flops, _, cycles, _ in work.work(hlo.parse(CHAIN), 4)["instructions"]
    }
    assert found[2.0 * 256**3] == 4321


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("nothing")

"""A base in 8 bits: what it costs, what it computes, who gets gradients, and how it is read."""

import functools
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.core import mesh as meshes, starts, state as states
from mlperf_jax.core.benchmark import Start
from mlperf_jax.errors import UserError
from mlperf_jax.models import decoder, decoder_huggingface as huggingface, lora as loras, quantised
from mlperf_jax.models.decoder import Decoder, DecoderConfig, Lora
from mlperf_jax.optimizers.tree import flatten_paths, unflatten

pytest.importorskip("qwix")

BASE = DecoderConfig(
    layers=2, width=64, heads=4, kv_heads=2, head_dim=16, hidden=96, vocab=64, remat="full"
)
WIDE = BASE.replace(lora=Lora(rank=2, alpha=4.0, dropout=0.0))
BITS = BASE.replace(lora=Lora(rank=2, alpha=4.0, dropout=0.0, base_bits=8))
TOKENS = jnp.asarray(np.random.RandomState(1).randint(0, 64, (8, 16)), jnp.int32)


def compiled(function):
    """A jitted function that compiles quickly and runs slowly."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def parts_of(config, dtype):
    """Shapes of the state's parts."""
    return jax.eval_shape(lambda: split(config, dtype)[1])


def split(config, dtype):
    return states.split(Decoder(config, dtype, rngs=nnx.Rngs(0)), decoder.FROZEN)


def graph(config, dtype):
    found = []
    jax.eval_shape(lambda: found.append(split(config, dtype)[0]))
    return found[0]


@functools.cache
def tensors():
    """A checkpoint of the base in the names of transformers."""
    draw, params = np.random.RandomState(0), parts_of(WIDE, jnp.float32)["frozen"]
    arrays = {
        path: draw.standard_normal(leaf.shape).astype(np.float32) / (8 if leaf.ndim > 2 else 2)
        for path, leaf in flatten_paths(params).items()
    }
    return huggingface.to_huggingface(unflatten(arrays), BASE)


@functools.cache
def trained():
    """Adapters that are no longer zero."""
    draw = np.random.RandomState(5)
    params = parts_of(WIDE, jnp.float32)["params"]
    return jax.tree.map(
        lambda leaf: draw.standard_normal(leaf.shape).astype(np.float32) / 4, params
    )


@functools.cache
def base(config):
    return huggingface.from_huggingface(tensors(), config)


def loss_and_gradients(config, frozen, params, dtype=jnp.float32):
    graphdef = graph(config, dtype)

    def loss(params, frozen):
        logits = states.merge(graphdef, params, frozen, {})(TOKENS)
        return (logits * jnp.sin(jnp.arange(logits.size).reshape(logits.shape))).mean(), logits

    return compiled(jax.value_and_grad(loss, has_aux=True))(params, frozen)


# -- one matrix ------------------------------------------------------------------------------------


def test_a_weight_is_off_by_half_a_step_of_its_block():
    kernel = np.random.RandomState(0).randn(2, 256, 8).astype(np.float32)
    kernel[1, 3, 5] = 100.0  # spoils its block of 128 inputs of output 5 and nothing else
    values, scale = quantised.quantise(jnp.asarray(kernel))
    assert (values.dtype, values.shape) == (jnp.int8, kernel.shape)
    assert (scale.dtype, scale.shape) == (jnp.float32, (2, 2, 8))
    blocks = kernel.reshape(2, 2, 128, 8)
    # 255 steps from the largest weight to its negative: it rounds to 127 or -128, half a step off
    np.testing.assert_allclose(scale, abs(blocks).max(2) / 127.5, rtol=1e-6)
    assert int(values.max()) == 127 and int(values.min()) == -128
    back = quantised.dequantise(values, scale, jnp.float32)
    off = abs(np.asarray(back) - kernel).reshape(2, 2, 128, 8).max(2)
    assert (off <= np.asarray(scale) * 0.51).all()


# -- the model -------------------------------------------------------------------------------------


def test_llama2_70b_takes_half_the_memory():
    def sizes(base_bits):
        config = DecoderConfig.llama2_70b().replace(lora=Lora(base_bits=base_bits))
        parts = parts_of(config, jnp.bfloat16)
        leaves = jax.tree.leaves(parts["frozen"])
        return parts, sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    (wide, wide_bytes), (narrow, narrow_bytes) = sizes(None), sizes(8)
    assert wide_bytes == 2 * 68_976_648_192
    assert narrow_bytes / wide_bytes < 0.525
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), wide["params"]) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), narrow["params"]
    )
    frozen = flatten_paths(narrow["frozen"])
    kernels = {path: leaf.dtype for path, leaf in frozen.items() if path.endswith("kernel")}
    assert kernels.pop("head/kernel") == jnp.bfloat16
    assert len(kernels) == 7 and set(kernels.values()) == {np.dtype("int8")}


def test_logits_are_close_to_those_of_the_whole_base():
    (_, wide), _ = loss_and_gradients(WIDE, base(WIDE), trained())
    (_, narrow), _ = loss_and_gradients(BITS, base(BITS), trained())
    off = float(jnp.linalg.norm(wide - narrow) / jnp.linalg.norm(wide))
    # bf16 itself, for comparison
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), base(WIDE))
    (_, bf16), _ = loss_and_gradients(WIDE, rounded, trained())
    assert 0 < off < 0.02
    assert off < 5 * float(jnp.linalg.norm(wide - bf16) / jnp.linalg.norm(wide))


def test_only_adapters_get_gradients_and_those_of_the_dequantised_base():
    _, narrow = loss_and_gradients(BITS, base(BITS), trained())
    whole = quantised.dequantised(base(BITS), jnp.float32)
    assert sorted(flatten_paths(whole)) == sorted(flatten_paths(base(WIDE)))
    _, wide = loss_and_gradients(WIDE, whole, trained())
    assert sorted(flatten_paths(narrow)) == [
        f"blocks/layers/attention/{branch}/{leaf}"
        for branch in ("out_lora", "qkv_lora")
        for leaf in ("a", "b")
    ]
    for path, leaf in flatten_paths(narrow).items():
        assert float(abs(leaf).max()) > 0
        np.testing.assert_allclose(leaf, flatten_paths(wide)[path], rtol=1e-4, atol=1e-7)


def test_the_backward_pass_keeps_no_whole_matrices():
    config = BITS.replace(layers=8, width=256, hidden=1024, remat=None)
    parts, graphdef = parts_of(config, jnp.float32), graph(config, jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)

    def loss(params, frozen, tokens):
        return states.merge(graphdef, params, frozen, {})(tokens).mean()

    program = compiled(jax.grad(loss)).lower(parts["params"], parts["frozen"], tokens).compile()
    weights = sum(leaf.size for leaf in jax.tree.leaves(parts["frozen"]["blocks"]))
    # in f32 they would be 4 bytes each; the int8 may be copied into the loop
    assert program.memory_analysis().temp_size_in_bytes < 2.5 * weights


def test_every_mesh_computes_what_one_device_does():
    with jax.enable_x64(True):
        graphdef = graph(BITS, jnp.float64)
        state = {"params": jax.tree.map(np.float64, trained()), "frozen": base(BITS)}
        state = jax.tree.map(lambda x: x if x.dtype == np.int8 else np.float64(x), state)

        def loss(params, frozen):
            return jnp.square(states.merge(graphdef, params, frozen, {})(TOKENS)).mean()

        def run(text):
            mesh = meshes.make_mesh(text)
            with jax.set_mesh(mesh):
                placed = jax.device_put(state, meshes.state_shardings(state, decoder.RULES, mesh))
                step = compiled(jax.value_and_grad(loss))
                value, gradients = step(placed["params"], placed["frozen"])
                text = step.lower(placed["params"], placed["frozen"]).compile().as_text()
            return float(value), jax.tree.map(np.asarray, gradients), text

        one, many = run("data=1"), run("fsdp=4,tensor=2")
    assert many[0] == pytest.approx(one[0], rel=1e-12)
    off = sum(((a - b) ** 2).sum() for a, b in zip(*map(jax.tree.leaves, (many[1], one[1]))))
    assert math.sqrt(off / sum((x**2).sum() for x in jax.tree.leaves(one[1]))) < 1e-12
    # weights travel in 8 bits: 64 inputs are gathered as int8
    assert re.search(r"= s8\[[\d,]*64,[\d,]*\]\S* all-gather", many[2])


# -- adapters, checkpoints -------------------------------------------------------------------------


def test_merged_adapters_compute_the_same():
    both = unflatten({**flatten_paths(base(BITS)), **flatten_paths(trained())})
    merged = loras.merge(both, BITS)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {np.dtype("float32")}
    found = []  # the merged model has no adapters and nothing frozen
    plain = functools.partial(Decoder, BASE, jnp.float32)
    jax.eval_shape(lambda: found.append(states.split(plain(rngs=nnx.Rngs(0)))[0]))
    plain = compiled(lambda p: states.merge(found[0], p, {}, {})(TOKENS))(merged)
    (_, logits), _ = loss_and_gradients(BITS, base(BITS), trained())
    np.testing.assert_allclose(plain, logits, atol=1e-4 * float(abs(logits).max()))
    assert set(huggingface.to_huggingface(merged, BASE)) == set(tensors())
    with pytest.raises(UserError, match="in 8 bits; dequantise them first"):
        huggingface.to_huggingface(base(BITS), BASE)


@pytest.mark.parametrize("text", ["fsdp=2,tensor=2", "fsdp=8"])  # 8 splits blocks of 64 and 32
def test_a_checkpoint_is_quantised_part_by_part(text):
    reads = []

    class Lazy:
        def __init__(self, name, value):
            self.name, self.value, self.shape = name, value, value.shape

        def __getitem__(self, index):
            reads.append((self.name, self.value[index].size / self.value.size))
            return self.value[index]

    mesh = meshes.make_mesh(text)
    parts = parts_of(BITS, jnp.bfloat16)
    shardings = meshes.state_shardings(parts, decoder.RULES, mesh)
    state = jax.tree.map(
        lambda leaf, sharding: jax.make_array_from_callback(
            leaf.shape, sharding, lambda index: np.zeros(leaf.shape, leaf.dtype)[index]
        ),
        parts,
        shardings,
    )
    lazy = {name: Lazy(name, value) for name, value in tensors().items()}
    start = Start(huggingface.start_weights(lazy, BITS))
    assert not reads
    found = flatten_paths(starts.begin_from({**state, "tables": {}}, start)["frozen"])
    kernel = found["blocks/layers/feed_forward/down/kernel"]
    local = kernel.addressable_shards[0].data
    assert local.dtype == jnp.int8 and local.size * len(mesh.devices.flat) == kernel.size
    for path, value in flatten_paths(base(BITS)).items():
        np.testing.assert_array_equal(found[path], np.asarray(value).astype(found[path].dtype))
    # all blocks of half the outputs, or two of the three blocks of half the outputs
    shares = [share for name, share in reads if "proj" in name]
    assert max(shares) <= (0.5 if text == "fsdp=2,tensor=2" else 1)


def test_a_start_is_the_quantised_checkpoint():
    whole = flatten_paths(base(WIDE))
    for path, value in flatten_paths(base(BITS)).items():
        if path.endswith(quantised.SCALE):
            kernel = path.removesuffix(quantised.SCALE) + "kernel"
            values, scale = quantised.quantise(jnp.asarray(whole[kernel]))
            np.testing.assert_allclose(value, scale, rtol=1e-6)
            assert abs(np.int32(flatten_paths(base(BITS))[kernel]) - np.int32(values)).max() <= 1


# -- bad input -------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused(monkeypatch):
    with pytest.raises(UserError, match="base_bits is 4; choose 8"):
        Lora(base_bits=4)
    with pytest.raises(UserError, match="a matrix of 72 inputs has no blocks"):
        parts_of(BITS.replace(hidden=72), jnp.bfloat16)
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UserError, match=r"an 8-bit base needs an extra: .*mlperf-jax\[quant"):
        parts_of(BITS, jnp.bfloat16)

"""The decoder against the fact sheets' numbers, itself on meshes, and plain NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.core import mesh as meshes, state as states
from mlperf_jax.errors import UserError
from mlperf_jax.models import decoder
from mlperf_jax.models.decoder import Decoder, DecoderConfig, Lora, RopeScaling
from mlperf_jax.ops.cross_entropy import chunked_xent
from mlperf_jax.optimizers.tree import ParamTree, flatten_paths

LLAMA = DecoderConfig(
    layers=2, width=32, heads=4, kv_heads=2, head_dim=8, hidden=48, vocab=64, remat="full"
)
GPT = LLAMA.replace(
    kv_heads=4,
    positions="learned",
    max_positions=32,
    norm="layer_offset",
    feed_forward="gelu",
    bias=True,
    tied=True,
    remat=None,
)
LORA = LLAMA.replace(lora=Lora(rank=2, alpha=4.0, dropout=0.5))


def build(config, dtype=jnp.float32, seed=0):
    return Decoder(config, dtype, rngs=nnx.Rngs(seed))


def shapes(config, dtype=jnp.bfloat16, frozen=()):
    return jax.eval_shape(lambda: states.split(build(config, dtype), frozen)[1])


def tokens(rows=2, length=16, vocab=64):
    return jnp.asarray(np.random.RandomState(1).randint(0, vocab, (rows, length)), jnp.int32)


def compiled(function):
    """A jitted function that compiles quickly and runs slowly."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def graph(config, dtype):
    found = []
    jax.eval_shape(lambda: found.append(states.split(build(config, dtype))[0]))
    return found[0]


@functools.cache
def forward(config, dtype=jnp.float32):
    """A jitted forward pass as a function of (params, tokens, segments, positions, key)."""
    graphdef = graph(config, dtype)

    def run(params, tokens, segments=None, positions=None, key=None):
        model = states.merge(graphdef, params, {}, {})
        return model(tokens, segments=segments, positions=positions, key=key)

    return compiled(run)


@functools.cache
def initial(config, dtype=jnp.float32):
    return compiled(lambda: states.split(build(config, dtype))[1]["params"])()


# -- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (DecoderConfig.llama31_8b(), 8_030_261_248),
        (DecoderConfig.llama31_405b(), 405_853_388_800),
        (DecoderConfig.llama31_405b().replace(vocab=32_000), 402_699_272_192),
        (DecoderConfig.llama31_405b().replace(vocab=32_768), 402_724_438_016),
        (DecoderConfig.llama2_70b(), 68_976_648_192),
        (DecoderConfig.gpt3_175b(), 174_615_846_912),
        (DecoderConfig.gpt3_175b().replace(vocab=50_304), 174_604_836_864),
        (DecoderConfig.gpt3_175b().replace(max_positions=16_384), 174_792_007_680),
    ],
)
def test_parameters_are_as_many_as_in_the_reference(config, count):
    params = shapes(config)["params"]
    assert ParamTree.from_params(params).count() == count
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_lora_trains_its_adapters_alone_over_a_base_in_bf16():
    config = DecoderConfig.llama2_70b().replace(lora=Lora())
    parts = shapes(config, frozen=decoder.FROZEN)
    assert ParamTree.from_params(parts["params"]).count() == 44_564_480 == config.lora_parameters
    assert ParamTree.from_params(parts["frozen"]).count() == 68_976_648_192
    assert {leaf.dtype for leaf in jax.tree.leaves(parts["params"])} == {np.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(parts["frozen"])} == {jnp.dtype("bfloat16")}
    assert sorted(flatten_paths(parts["params"])) == [
        f"blocks/layers/attention/{branch}/{leaf}"
        for branch in ("out_lora", "qkv_lora")
        for leaf in ("a", "b")
    ]


@pytest.mark.parametrize(
    ("config", "length", "causal", "flops"),
    [
        (DecoderConfig.llama31_8b(), 8192, False, 5.791e10),
        (DecoderConfig.llama31_8b(), 8192, True, 5.147e10),
        (DecoderConfig.llama31_405b(), 8192, False, 2.625e12),
        (DecoderConfig.llama31_405b().replace(vocab=32_000), 8192, True, 2.515e12),
        (DecoderConfig.gpt3_175b(), 2048, False, 1.0764e12),
        (DecoderConfig.gpt3_175b(), 2048, True, 1.0619e12),
        (DecoderConfig.llama2_70b().replace(lora=Lora()), 8192, True, 307.3e9),
    ],
)
def test_flops_are_those_of_the_fact_sheets(config, length, causal, flops):
    assert config.flops_per_token(length, causal=causal) == pytest.approx(flops, rel=4e-4)


def test_kinds_of_parameters():
    kinds = {leaf.path: leaf.kind for leaf in ParamTree.from_params(shapes(GPT)["params"]).leaves}
    assert kinds["embed/embedding"] == kinds["positions/embedding"] == "embedding"
    assert kinds["blocks/layers/attention_norm/bias"] == kinds["final_norm/scale"] == "norm"
    assert kinds["blocks/layers/attention/query/bias"] == "bias"
    assert kinds["blocks/layers/feed_forward/up/kernel"] == "matrix"
    tree = ParamTree.from_params(shapes(LORA)["params"])
    assert tree["head/kernel"].kind == "head"
    assert tree["blocks/layers/attention/qkv_lora/a"].kind == "matrix"


# -- initial distributions -------------------------------------------------------------------------


def test_matrices_start_as_the_references_do():
    sizes = {"layers": 8, "width": 64, "hidden": 128, "vocab": 512}
    llama = flatten_paths(initial(LLAMA.replace(**sizes)))
    wanted = dict.fromkeys(llama, 0.02)
    for path in ("attention/out", "feed_forward/down"):
        wanted[f"blocks/layers/{path}/kernel"] = 0.02 / 4  # sqrt(2 * 8)
    gpt = flatten_paths(initial(GPT.replace(**sizes, init_std=0.006, depth_scaled_init=False)))
    for params, std in ((llama, wanted), (gpt, dict.fromkeys(gpt, 0.006))):
        for path, value in params.items():
            if path.endswith(("kernel", "embedding")):
                assert float(value.std()) == pytest.approx(std[path], rel=0.05), path
                # untruncated: the largest of thousands lies beyond three deviations
                assert float(abs(value).max()) > 3 * std[path], path
    assert (llama["final_norm/scale"] == 1).all() and (gpt["final_norm/scale"] == 0).all()
    assert not gpt["blocks/layers/attention/query/bias"].any()


def test_first_loss_follows_from_the_initial_distribution():
    """E = ln V + sd^2 / 2 with logits of deviation 0.02 sqrt(D), as NVIDIA's log has it for 8B."""
    config = LLAMA.replace(width=256, vocab=512, init_std=0.08)
    x = tokens(4, 32, 512)
    logits = forward(config)(initial(config), x)
    label = tokens(4, 32, 511) + 1
    loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), label[..., None], -1).mean()
    assert float(loss) == pytest.approx(math.log(512) + 0.08**2 * 256 / 2, abs=0.25)


# -- the parts -------------------------------------------------------------------------------------


def test_llama31_frequencies_are_the_fact_sheets():
    scaled = decoder.rope_frequencies(128, 500_000.0, RopeScaling())
    plain = decoder.rope_frequencies(128, 500_000.0, None)
    np.testing.assert_array_equal(scaled[:29], plain[:29])
    np.testing.assert_allclose(scaled[35:], plain[35:] / 8, rtol=1e-12)
    wanted = {28: 3.2114460e-3, 29: 2.1665708e-3, 32: 5.2484616e-4, 34: 1.7850781e-4}
    for i, value in wanted.items():
        assert scaled[i] == pytest.approx(value, rel=1e-7)


def test_a_token_sees_neither_later_ones_nor_other_segments():
    params, x = initial(LLAMA), tokens()
    run = forward(LLAMA)
    changed = run(params, x.at[:, 9].set((x[:, 9] + 1) % 64))
    moved = abs(run(params, x) - changed).max((0, 2)) > 0
    assert moved[9:].all() and not moved[:9].any()

    segments = jnp.repeat(jnp.arange(2, dtype=jnp.int32), 8)[None].repeat(2, 0)
    positions = jnp.tile(jnp.arange(8), 2)[None].repeat(2, 0)
    packed = run(params, x, segments, positions)
    apart = run(params, x.reshape(4, 8))
    np.testing.assert_allclose(packed.reshape(4, 8, -1), apart, atol=1e-5)


@pytest.mark.parametrize("config", [LLAMA, GPT])
def test_compute_in_bf16_follows_f32(config):
    params = initial(config)
    wide, narrow = (forward(config, d)(params, tokens()) for d in (jnp.float32, jnp.bfloat16))
    assert narrow.dtype == jnp.float32
    assert float(abs(wide - narrow).max()) < 0.02 * float(abs(wide).max()) + 0.01
    hidden = jax.eval_shape(lambda: build(config, jnp.bfloat16).hidden(tokens()))
    assert hidden.dtype == jnp.bfloat16


def test_dropout_draws_by_key_and_layer_and_ends_in_evaluation():
    config = GPT.replace(dropout=0.3)
    run, params, x = forward(config), initial(config), tokens()
    first, again = (run(params, x, key=jax.random.key(3)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first != run(params, x, key=jax.random.key(4))).any()
    model = build(config)
    with pytest.raises(UserError, match="dropout needs a key"):
        model(x)
    quiet = nnx.view(model, deterministic=True)(x, key=jax.random.key(3))
    np.testing.assert_allclose(quiet, build(GPT)(x), atol=1e-6)


@pytest.mark.parametrize(("config", "arrays"), [(LLAMA, 3), (GPT, 2)])
def test_feed_forwards_keep_their_products_and_no_steps_between(config, arrays, capsys):
    part = decoder.FeedForward(config, jnp.float32, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(part)
    run = lambda params, x: nnx.merge(graphdef, params)(x).sum()  # noqa: E731
    jax.ad_checkpoint.print_saved_residuals(run, params, jnp.ones([2, 5, 32]))
    assert capsys.readouterr().out.count("[2,5,48]") == arrays


# -- bad input -------------------------------------------------------------------------------------


def test_sequences_beyond_the_positions_are_refused():
    with pytest.raises(UserError, match="33 tokens exceed the model's 32 positions"):
        jax.eval_shape(lambda: build(GPT)(tokens(1, 33)))


def test_a_token_beyond_the_vocabulary_is_no_number():
    logits = forward(LLAMA)(initial(LLAMA), tokens().at[0, 3].set(64))
    assert jnp.isnan(logits[0, 3:]).all() and jnp.isfinite(logits[1]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "3 query heads cannot share 2"),
        ({"layers": 0}, "layers is 0"),
        ({"head_dim": 7}, "must be even"),
        ({"positions": "learned"}, "max_positions"),
        ({"norm": "batch"}, "'batch' is unknown"),
        ({"dropout": 1.0}, r"must be in \[0, 1\)"),
    ],
)
def test_configs_that_make_no_model_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        LLAMA.replace(**changes)


# -- meshes ----------------------------------------------------------------------------------------


@functools.cache
def parts_of(config):
    """A state in f64 on the host; B of adapters is not zero, which would hide A's gradient."""
    frozen, draw = decoder.FROZEN if config.lora else (), np.random.RandomState(0)
    return jax.tree.map(
        lambda leaf: draw.standard_normal(leaf.shape) / 10 + (len(leaf.shape) < 3),
        shapes(config, jnp.float64, frozen),
    )


@functools.cache
def loss_and_gradients(config, mesh_text):
    """Loss and gradients of the trained parameters in f64, the state placed by the rules."""
    graphdef, parts, mesh = (
        graph(config, jnp.float64),
        parts_of(config),
        meshes.make_mesh(mesh_text),
    )
    x, y = tokens(8), tokens(8)[:, ::-1]

    def loss(params, state):
        model = states.merge(graphdef, params, state["frozen"], {})
        key = jax.random.key(5) if config.has_dropout else None
        total, count = chunked_xent(model.hidden(x, key=key), model.head_kernel(), y, chunk=8)
        return total / count

    with jax.set_mesh(mesh):
        state = jax.device_put(parts, meshes.state_shardings(parts, decoder.RULES, mesh))
        step = compiled(lambda state: jax.value_and_grad(loss)(state["params"], state))
        value, gradients = step(state)
    return float(value), jax.tree.map(np.asarray, gradients)


@pytest.mark.parametrize(
    ("config", "mesh"),
    [
        (LLAMA, "data=2,fsdp=2,tensor=2"),
        (LLAMA, "fsdp=2,tensor=4"),  # more tensor parts than key/value heads
        (LLAMA, "fsdp=2,tensor=2,context=2"),
        (GPT, "fsdp=4,tensor=2"),
        (GPT, "expert=2,tensor=2,context=2"),
        (LORA, "fsdp=2,tensor=2,context=2"),
    ],
)
def test_every_mesh_computes_what_one_device_does(config, mesh, x64):
    one, many = loss_and_gradients(config, "data=1"), loss_and_gradients(config, mesh)
    assert many[0] == pytest.approx(one[0], rel=1e-12)
    off = sum(((a - b) ** 2).sum() for a, b in zip(*map(jax.tree.leaves, (many[1], one[1]))))
    norm = sum((leaf**2).sum() for leaf in jax.tree.leaves(one[1]))
    assert norm > 0 and math.sqrt(off / norm) < 1e-12


def test_rules_split_every_matrix_over_fsdp_and_tensor():
    mesh = meshes.make_mesh("fsdp=4,tensor=2")
    for config in (DecoderConfig.llama31_8b(), DecoderConfig.gpt3_175b()):
        params = shapes(config)["params"]
        placed = flatten_paths(meshes.state_shardings({"params": params}, decoder.RULES, mesh))
        for path, leaf in flatten_paths(params).items():
            parts = leaf.size // math.prod(placed[f"params/{path}"].shard_shape(leaf.shape))
            wanted = 8 if path.endswith("kernel") or path == "embed/embedding" else 1
            assert parts >= wanted, path

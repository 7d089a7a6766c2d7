"""Adapters: what the branch adds, what is drawn, and adapters as values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.core import state as states
from mlperf_jax.errors import UserError
from mlperf_jax.models import lora as loras
from mlperf_jax.models.decoder import Decoder, DecoderConfig, Lora
from mlperf_jax.models.decoder_huggingface import to_huggingface

BASE = DecoderConfig(layers=2, width=32, heads=4, kv_heads=2, head_dim=8, hidden=48, vocab=64)
CONFIG = BASE.replace(lora=Lora(rank=3, alpha=6.0, dropout=0.5))
TOKENS = jnp.asarray(np.random.RandomState(1).randint(0, 64, (2, 16)), jnp.int32)


def compiled(function):
    """A jitted function that compiles quickly and runs slowly."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def params_of(config, dtype=jnp.float32):
    return compiled(lambda: states.split(Decoder(config, dtype, rngs=nnx.Rngs(0)))[1]["params"])()


def logits(config, params, *, key=None, deterministic=False):
    found = []
    jax.eval_shape(
        lambda: found.append(states.split(Decoder(config, jnp.float32, rngs=nnx.Rngs(0)))[0])
    )

    def run(params, key):
        model = states.merge(found[0], params, {}, {})
        return nnx.view(model, deterministic=deterministic)(TOKENS, key=key)

    return compiled(run)(params, key)


@pytest.fixture(scope="module")
def trained():
    """Parameters whose adapters are no longer zero."""
    params = params_of(CONFIG)
    draw = np.random.RandomState(0)
    attention = params["blocks"]["layers"]["attention"]
    for name in ("qkv_lora", "out_lora"):
        b = attention[name]["b"]
        attention[name]["b"] = jnp.asarray(draw.standard_normal(b.shape), b.dtype) / 3
    return params


def test_fresh_adapters_add_nothing_and_start_as_kaiming_has_it():
    params = params_of(CONFIG)
    base = {**params, "blocks": loras.merge(params, CONFIG)["blocks"]}
    fresh = logits(CONFIG, params, key=jax.random.key(0))
    np.testing.assert_array_equal(fresh, logits(BASE, base))
    big = params_of(CONFIG.replace(width=256, lora=Lora()))["blocks"]["layers"]["attention"]
    for branch, inputs in (("qkv_lora", 256), ("out_lora", 32)):
        a, bound = big[branch]["a"], inputs**-0.5
        assert 0.97 * bound < float(abs(a).max()) <= bound
        assert float(a.std()) == pytest.approx(bound / 3**0.5, rel=0.1)
        assert not big[branch]["b"].any()


def test_one_a_serves_query_key_and_value(trained):
    attention = trained["blocks"]["layers"]["attention"]
    assert attention["qkv_lora"]["a"].shape == (2, 32, 3)
    assert attention["qkv_lora"]["b"].shape == (2, 3, 32 + 16 + 16)
    assert attention["out_lora"]["a"].shape == (2, 32, 3)
    assert attention["out_lora"]["b"].shape == (2, 3, 32)


def test_merged_adapters_compute_the_same(trained):
    merged = loras.merge(trained, CONFIG)
    with_branch = logits(CONFIG, trained, deterministic=True)
    np.testing.assert_allclose(with_branch, logits(BASE, merged), atol=2e-5)
    assert float(abs(with_branch - logits(BASE, _base(trained))).max()) > 0.05
    # y = W x + alpha / rank * B A x, in torch's order of rows q | k | v
    attention = trained["blocks"]["layers"]["attention"]
    lora = {name: np.asarray(attention["qkv_lora"][name][1], np.float64) for name in "ab"}
    added = 6.0 / 3 * lora["a"] @ lora["b"]
    kernels = [np.asarray(merged["blocks"]["layers"]["attention"][name]["kernel"][1], np.float64)
               - np.asarray(attention[name]["kernel"][1], np.float64)
               for name in ("query", "key", "value")]  # fmt: skip
    np.testing.assert_allclose(np.concatenate(kernels, 1), added, atol=1e-6)
    assert "qkv_lora" in attention  # merge leaves its argument alone


def test_merging_keeps_the_dtype_of_the_base():
    params = params_of(CONFIG, jnp.bfloat16)
    merged = loras.merge(params, CONFIG)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}


def test_dropout_is_on_the_branch_alone(trained):
    first, again, other = (logits(CONFIG, trained, key=jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    # without adapters' weights nothing is dropped, whatever the key
    fresh = params_of(CONFIG)
    np.testing.assert_array_equal(
        logits(CONFIG, fresh, key=jax.random.key(0)), logits(CONFIG, fresh, deterministic=True)
    )
    with pytest.raises(UserError, match="needs a key"):
        logits(CONFIG, trained)


def test_branch_dropout_keeps_the_mean():
    branch = loras.LoraBranch(8, (4, 2), Lora(rank=2, dropout=0.25), jnp.float32, rngs=nnx.Rngs(0))
    branch.b[...] = jnp.ones_like(branch.b[...])
    x = jnp.ones([20_000, 1, 8])
    for noisy, plain in zip(branch(x, jax.random.key(0)), branch(x, None)):
        # within five deviations of a mean; not divided by 1 - rate it lies fifty off
        assert np.abs(noisy.mean(0) - plain[0]).max() < 5 * noisy.std(0).max() / np.sqrt(len(x))
        assert noisy.shape == plain.shape


def test_adapters_travel_as_a_dict(trained, tmp_path):
    saved = loras.adapters(trained)
    assert {path: value.shape for path, value in saved.items()} == loras.adapter_shapes(CONFIG)
    np.savez(tmp_path / "adapters.npz", **{k.replace("/", "."): v for k, v in saved.items()})
    with np.load(tmp_path / "adapters.npz") as file:
        loaded = {name.replace(".", "/"): file[name] for name in file}
    for params in (_base(trained), params_of(CONFIG)):
        restored = loras.with_adapters(params, loaded, CONFIG)
        np.testing.assert_array_equal(
            logits(CONFIG, restored, deterministic=True),
            logits(CONFIG, loras.with_adapters(params, saved, CONFIG), deterministic=True),
        )
        got = loras.adapters(restored)
        assert all((got[path] == saved[path]).all() for path in saved)


def test_faults_are_named(trained):
    saved = loras.adapters(trained)
    path = "blocks/layers/attention/qkv_lora/a"
    with pytest.raises(UserError, match=rf"{path} has shape \(2, 32, 3\), not \(2, 32, 8\)"):
        loras.with_adapters(trained, saved, BASE.replace(lora=Lora(rank=8)))
    rest = {name: value for name, value in saved.items() if name != path}
    with pytest.raises(UserError, match=f"{path} is missing; spare is unexpected"):
        loras.with_adapters(trained, {**rest, "spare": np.zeros(1)}, CONFIG)
    with pytest.raises(UserError, match="hold no adapters"):
        loras.adapters(_base(trained))
    with pytest.raises(UserError, match="lack out_lora, qkv_lora"):
        loras.merge(_base(trained), CONFIG)
    with pytest.raises(UserError, match="the config has no adapters"):
        loras.merge(trained, BASE)
    with pytest.raises(UserError, match="merge them first"):
        to_huggingface(trained, CONFIG)
    with pytest.raises(UserError, match="rank is 0"):
        Lora(rank=0)


def _base(params):
    layers = params["blocks"]["layers"]
    attention = {k: v for k, v in layers["attention"].items() if not k.endswith("_lora")}
    return {**params, "blocks": {"layers": {**layers, "attention": attention}}}

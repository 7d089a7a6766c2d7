"""GPT3's start checkpoint in paxml's form: layouts, parts, padding, and what is refused."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from flax import nnx

from mlperf_jax.errors import UserError
from mlperf_jax.models import decoder, decoder_paxml
from mlperf_jax.optimizers import tree

CONFIG = decoder.DecoderConfig.gpt3_175b().replace(
    layers=2, width=24, heads=4, kv_heads=4, head_dim=8, hidden=40, vocab=48, max_positions=16
)
STACK = "transformer.repeat.sub.x_layers_0."


def stored(folder, name):
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{folder}/{name}/"}}
    return tensorstore.open(spec).result().read().result()


def write(folder, name, value):
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{folder}/{name}/"}}
    metadata = {"dtype": "<f4", "shape": list(value.shape), "chunks": [1] * value.ndim}
    made = tensorstore.open({**spec, "metadata": metadata, "create": True, "delete_existing": True})
    made.result().write(value).result()


def params() -> dict[str, np.ndarray]:
    model = decoder.Decoder(CONFIG, jnp.float32, rngs=nnx.Rngs(0))
    flat = tree.flatten_paths(jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model))))
    generator = np.random.default_rng(0)
    return {path: generator.normal(size=a.shape).astype(np.float32) for path, a in flat.items()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paxml") / "checkpoint_00004000"
    weights = params()
    moments = {
        "mu": {path: a + 1 for path, a in weights.items()},
        "nu": {path: a**2 for path, a in weights.items()},
    }
    decoder_paxml.save(folder, weights, moments, CONFIG, 4000)
    return folder, weights, moments


def whole(reader):
    return reader((slice(None),) * len(reader.shape))


def test_weights_and_moments_come_back(checkpoint):
    folder, weights, moments = checkpoint
    found = decoder_paxml.start_weights(folder, CONFIG)
    assert set(found) == {f"params/{path}" for path in weights}
    for path, value in weights.items():
        np.testing.assert_array_equal(whole(found[f"params/{path}"]), value)
    for name, arrays in decoder_paxml.start_moments(folder, CONFIG).items():
        assert set(arrays) == set(weights)
        for path, reader in arrays.items():
            np.testing.assert_array_equal(whole(reader), moments[name][path])


def test_layouts_are_paxmls(checkpoint):
    """Names, axes and the fused projection of the public checkpoint (facts: gpt3 section 2 and 7)."""
    folder, weights, _ = checkpoint
    attention = "blocks/layers/attention/"
    qkv = stored(folder, f"mdl_vars.params.lm.{STACK}self_attention.combined_qkv.w")
    assert qkv.shape == (2, 3, 24, 4, 8)
    for part, name in enumerate(("query", "key", "value")):
        kernel = weights[f"{attention}{name}/kernel"]  # [L, D, N·H]
        np.testing.assert_array_equal(qkv[1, part, :, 2, 5], kernel[1, :, 2 * 8 + 5])
    biases = stored(folder, f"mdl_vars.params.lm.{STACK}self_attention.combined_qkv.b")
    assert biases.shape == (2, 3, 4, 8)
    post = stored(folder, f"mdl_vars.params.lm.{STACK}self_attention.post.w")
    assert post.shape == (2, 24, 4, 8)
    np.testing.assert_array_equal(
        post[1, :, 2, 5], weights[f"{attention}out/kernel"][1, 2 * 8 + 5, :]
    )
    head = stored(folder, "mdl_vars.params.lm.softmax.logits_ffn.linear.w")
    np.testing.assert_array_equal(head.T, weights["embed/embedding"])
    unstacked = stored(folder, "opt_states_0.no_prefix_2.m.params.lm.final_ln.scale")
    np.testing.assert_array_equal(unstacked, weights["final_norm/scale"] + 1)
    name = f"opt_states_0.p#2#i-1_2.v.params.lm.{STACK}ff_layer.ffn_layer1.linear.w"
    np.testing.assert_array_equal(
        stored(folder, name), weights["blocks/layers/feed_forward/up/kernel"] ** 2
    )
    assert int(stored(folder, "step")) == 4000


def test_parts_equal_the_parts_of_the_whole(checkpoint):
    folder, weights, _ = checkpoint
    found = decoder_paxml.start_weights(folder, CONFIG)
    for path, index in (
        ("embed/embedding", (slice(10, 20), slice(6, 12))),
        ("blocks/layers/attention/key/kernel", (slice(1, 2), slice(3, 9), slice(8, 24))),
        ("blocks/layers/attention/key/kernel", (slice(0, 2), slice(0, 24), slice(18, 22))),
        ("blocks/layers/attention/value/bias", (slice(0, 2), slice(16, 32))),
        ("blocks/layers/attention/out/kernel", (slice(0, 1), slice(8, 16), slice(5, 7))),
        ("blocks/layers/feed_forward/down/kernel", (slice(1, 2), slice(2, 30), slice(4, 8))),
    ):
        np.testing.assert_array_equal(found[f"params/{path}"](index), weights[path][index])


def test_a_cut_through_several_heads_is_refused(checkpoint):
    reader = decoder_paxml.start_weights(checkpoint[0], CONFIG)[
        "params/blocks/layers/attention/key/kernel"
    ]
    with pytest.raises(UserError, match="cuts heads of 8"):
        reader((slice(None), slice(None), slice(4, 12)))


def test_more_rows_than_the_file_are_zero_and_spare_positions_are_left(checkpoint):
    folder, weights, _ = checkpoint
    larger = CONFIG.replace(vocab=64, max_positions=8)
    found = decoder_paxml.start_weights(folder, larger)
    table = whole(found["params/embed/embedding"])
    np.testing.assert_array_equal(table[:48], weights["embed/embedding"])
    np.testing.assert_array_equal(table[48:], 0)
    np.testing.assert_array_equal(
        found["params/embed/embedding"]((slice(56, 64), slice(0, 24))), np.zeros((8, 24))
    )
    np.testing.assert_array_equal(
        whole(found["params/positions/embedding"]), weights["positions/embedding"][:8]
    )


def test_missing_and_misshapen_arrays_are_named(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"missing or unreadable .*logits_ffn.*checkpoint_00004000"):
        decoder_paxml.start_weights(tmp_path, CONFIG)
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint[0], folder)
    name = f"mdl_vars.params.lm.{STACK}self_attention.post.w"
    write(folder, name, np.zeros((2, 24, 8, 4), np.float32))  # heads and their dimensions exchanged
    with pytest.raises(UserError, match=r"1 have the wrong shape .*post\.w has shape"):
        decoder_paxml.start_weights(folder, CONFIG)


def test_other_models_are_refused(checkpoint):
    with pytest.raises(UserError, match="learned positions"):
        decoder_paxml.start_weights(checkpoint[0], decoder.DecoderConfig.llama31_8b())

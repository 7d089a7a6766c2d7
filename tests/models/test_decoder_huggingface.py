"""The decoder against transformers (scripts/make_decoder_reference.py), and its files."""

import functools
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.core import mesh as meshes, starts, state as states
from mlperf_jax.core.benchmark import Start
from mlperf_jax.errors import UserError
from mlperf_jax.models import decoder, decoder_huggingface as huggingface
from mlperf_jax.models.decoder import Decoder, DecoderConfig, Lora, RopeScaling
from mlperf_jax.models.huggingface import open_folder, save_folder
from mlperf_jax.optimizers.tree import flatten_paths
from scripts import make_decoder_reference as reference

KINDS = tuple(reference.HEADS)


def config(kind):
    heads, kv_heads, head_dim = reference.HEADS[kind]
    llama = DecoderConfig(
        layers=reference.LAYERS,
        width=reference.WIDTH,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=reference.HIDDEN,
        vocab=reference.VOCAB,
        rope_theta=reference.THETA.get(kind, 10_000.0),
    )
    if kind == "gpt2":
        return llama.replace(
            positions="learned",
            max_positions=reference.LENGTH,
            norm="layer",
            feed_forward="gelu",
            bias=True,
            tied=True,
        )
    if kind == "llama31":
        scaling = reference.SCALING
        return llama.replace(
            rope_scaling=RopeScaling(
                factor=scaling["factor"],
                low_factor=scaling["low"],
                high_factor=scaling["high"],
                original_positions=scaling["original"],
            )
        )
    return llama


@functools.cache
def stored():
    with np.load(reference.OUTPUT) as file:
        return dict(file)


@functools.cache
def weights(kind):
    """The state dict of transformers: its own names and shapes, the script's values."""
    shapes = json.loads(stored()[f"{kind}/shapes"].tobytes())
    return {name: reference.weight(name, tuple(shape)) for name, shape in shapes.items()}


def logits(config, params, dtype):
    def run(params, tokens):
        found = []
        jax.eval_shape(
            lambda: found.append(states.split(Decoder(config, dtype, rngs=nnx.Rngs(0)))[0])
        )
        return states.merge(found[0], params, {}, {})(tokens)

    return jax.jit(run)(params, jnp.asarray(reference.tokens(), jnp.int32))


# -- parity ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(kind):
    expected = stored()[f"{kind}/logits"]
    assert np.abs(expected).max() > 1  # logits of a size that can differ
    ours = logits(
        config(kind), huggingface.from_huggingface(weights(kind), config(kind)), "float32"
    )
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)


def test_the_frequency_scaling_counts():
    plain = config("llama31").replace(rope_scaling=None)
    params = huggingface.from_huggingface(weights("llama31"), plain)
    off = np.abs(logits(plain, params, "float32") - stored()["llama31/logits"])
    assert off.max() > 1e-2


def test_offset_gains_make_the_same_function():
    offset = config("gpt2").replace(norm="layer_offset")
    params = huggingface.from_huggingface(weights("gpt2"), offset)
    np.testing.assert_allclose(
        logits(offset, params, "float32"), stored()["gpt2/logits"], atol=1e-5, rtol=0
    )
    back = huggingface.to_huggingface(params, offset)
    np.testing.assert_array_equal(
        back["transformer.ln_f.weight"], weights("gpt2")["transformer.ln_f.weight"]
    )


# -- round trips -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_import_and_export_return_every_bit(kind, dtype):
    given = {name: value.astype(dtype) for name, value in weights(kind).items()}
    params = huggingface.from_huggingface(given, config(kind))
    model = jax.eval_shape(
        lambda: states.split(Decoder(config(kind), jnp.float32, rngs=nnx.Rngs(0)))[1]["params"]
    )
    assert {path: leaf.shape for path, leaf in flatten_paths(params).items()} == {
        path: leaf.shape for path, leaf in flatten_paths(model).items()
    }
    back = huggingface.to_huggingface(params, config(kind))
    assert set(back) == set(given)
    for name, value in given.items():
        assert back[name].dtype == dtype and back[name].tobytes() == value.tobytes(), name


def test_fused_projections_are_cut_in_the_order_query_key_value():
    given = dict(weights("llama31"))
    for layer in range(reference.LAYERS):
        stem = f"model.layers.{layer}.self_attn"
        parts = [given.pop(f"{stem}.{name}_proj.weight") for name in "qkv"]
        given[f"{stem}.qkv_proj.weight"] = np.concatenate(parts)
    fused = huggingface.from_huggingface(given, config("llama31"))
    apart = huggingface.from_huggingface(weights("llama31"), config("llama31"))
    jax.tree.map(np.testing.assert_array_equal, fused, apart)


def test_files_are_read_part_by_part_straight_onto_the_mesh(tmp_path):
    given = {name: value.astype(ml_dtypes.bfloat16) for name, value in weights("llama31").items()}
    files = save_folder(tmp_path, given, shard_bytes=20_000)
    assert len(files) > 2
    opened = open_folder(tmp_path)
    assert not any(isinstance(value, np.ndarray) for value in opened.values())

    cfg = config("llama31").replace(lora=Lora(rank=2))
    most = []
    readers = huggingface.start_weights(opened, cfg)
    start = {path: _Recorded(reader, most) for path, reader in readers.items()}
    mesh = meshes.make_mesh("fsdp=4,tensor=2")

    def make():
        parts = states.split(Decoder(cfg, jnp.bfloat16, rngs=nnx.Rngs(0)), decoder.FROZEN)[1]
        return {**parts, "tables": {}, "opt": {}}

    with jax.set_mesh(mesh):
        shardings = meshes.state_shardings(jax.eval_shape(make), decoder.RULES, mesh)
        state = starts.begin_from(jax.jit(make, out_shardings=shardings)(), Start(start))
    wanted = huggingface.from_huggingface(given, cfg)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), b), state["frozen"], wanted
    )
    assert max(most) <= reference.LAYERS * reference.WIDTH * cfg.query_width // 8


class _Recorded:
    """A reader that notes how much each call read."""

    def __init__(self, reader, sizes):
        self.shape, self.reader, self.sizes = reader.shape, reader, sizes

    def __call__(self, index):
        value = self.reader(index)
        self.sizes.append(value.size)
        return value


# -- bad input -------------------------------------------------------------------------------------


def test_names_are_listed():
    given = dict(weights("llama2"))
    del given["model.norm.weight"], given["lm_head.weight"]
    given["model.layers.3.mlp.up_proj.weight"] = np.zeros((1, 1))
    with pytest.raises(UserError) as error:
        huggingface.from_huggingface(given, config("llama2"))
    assert "2 arrays are missing (model.norm.weight, lm_head.weight)" in str(error.value)
    assert "1 are unexpected (model.layers.3.mlp.up_proj.weight)" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_heads": 4}, "k_proj.weight has 2 key/value heads of 16, not 4"),
        ({"heads": 8}, "q_proj.weight has 4 query heads of 16, not 8"),
        ({"hidden": 64}, r"gate_proj.weight has shape \(56, 32\), not \(64, 32\)"),
        ({"layers": 4}, "missing .*model.layers.3.self_attn.q_proj.weight"),
        ({"vocab": 96}, "80 vocabulary rows, not 96"),
        ({"vocab": 64}, "pass cut_vocab=True"),
        ({"bias": True}, "neither"),
    ],
)
def test_weights_of_another_model_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        huggingface.from_huggingface(weights("llama31"), config("llama31").replace(**changes))


def test_a_larger_vocabulary_is_cut_on_demand():
    small = config("llama31").replace(vocab=64)
    params = huggingface.from_huggingface(weights("llama31"), small, cut_vocab=True)
    np.testing.assert_array_equal(
        params["head"]["kernel"], weights("llama31")["lm_head.weight"][:64].T
    )


def test_buffers_and_tied_heads_of_old_files_are_passed_over():
    given = {**weights("gpt2"), "transformer.h.0.attn.bias": np.zeros((1, 1, 4, 4))}
    given["lm_head.weight"] = given["transformer.wte.weight"]
    huggingface.from_huggingface(given, config("gpt2"))
    bare = {name.removeprefix("transformer."): value for name, value in weights("gpt2").items()}
    huggingface.from_huggingface(bare, config("gpt2"))


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(UserError, match="holds no safetensors"):
        open_folder(tmp_path)
    files = save_folder(tmp_path, weights("llama2"), shard_bytes=20_000)
    content = files[1].read_bytes()
    files[1].write_bytes(content[:-10])
    with pytest.raises(UserError, match=f"{files[1].name} cannot be read"):
        open_folder(tmp_path)
    files[1].unlink()
    with pytest.raises(UserError, match=f"lacks 1 of {len(files)} shards: {files[1].name}"):
        open_folder(tmp_path)


def test_one_file_has_no_index(tmp_path):
    files = save_folder(tmp_path, weights("gpt2"))
    assert [file.name for file in files] == ["model.safetensors"]
    huggingface.readers(open_folder(tmp_path), config("gpt2"))

"""Adapters in peft's files, against what peft itself writes and computes (scripts/make_lora_reference.py)."""

import functools
import json
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from mlperf_jax.core import state as states
from mlperf_jax.errors import UserError
from mlperf_jax.models import lora as loras, lora_peft
from mlperf_jax.models.decoder import Decoder
from mlperf_jax.models.decoder_config import Lora
from mlperf_jax.models.decoder_huggingface import from_huggingface
from scripts import make_decoder_reference as base, make_lora_reference as reference

CONFIG, WEIGHTS = reference.FILES
KINDS = tuple(reference.KINDS)


@functools.cache
def stored():
    with np.load(reference.OUTPUT) as file:
        return dict(file)


@functools.cache
def base_params():
    with np.load(base.OUTPUT) as file:
        shapes = json.loads(file["llama31/shapes"].tobytes())
    tensors = {name: base.weight(name, tuple(shape)) for name, shape in shapes.items()}
    return from_huggingface(tensors, reference.config(None))


@pytest.fixture
def theirs(tmp_path):
    """What makes a folder that peft wrote, with changes: of its configuration, or of its arrays."""

    def make(kind="shared", arrays=None, **settings):
        folder = tmp_path / "theirs"
        folder.mkdir()
        content = stored()[f"{kind}/{WEIGHTS}"].tobytes()
        config = json.loads(stored()[f"{kind}/{CONFIG}"].tobytes())
        if arrays:
            content = safetensors.numpy.save(arrays(safetensors.numpy.load(content)))
        (folder / WEIGHTS).write_bytes(content)
        (folder / CONFIG).write_text(json.dumps(config | settings))
        return folder

    return make


def logits(adapter):
    """Of our model with an adapter, f32 [B, T, V]."""
    config, found = reference.config(adapter.lora), []
    jax.eval_shape(
        lambda: found.append(states.split(Decoder(config, "float32", rngs=nnx.Rngs(0)))[0])
    )
    params = loras.with_adapters(base_params(), adapter.weights, config)

    def run(params, tokens):
        return nnx.view(states.merge(found[0], params, {}, {}), deterministic=True)(tokens)

    return jax.jit(run)(params, jnp.asarray(base.tokens(), jnp.int32))


# -- in --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_peft_computes_what_it_computes_there(kind, theirs):
    adapter = lora_peft.read(theirs(kind))
    expected = stored()[f"{kind}/logits"]
    # as close as the base alone comes to transformers (test_decoder_huggingface)
    np.testing.assert_allclose(logits(adapter), expected, atol=2e-5, rtol=0)
    with np.load(base.OUTPUT) as file:
        assert abs(file["llama31/logits"] - expected).max() > 1, "the adapter matters"


def test_what_an_adapter_takes(theirs, tmp_path):
    shared = lora_peft.read(theirs())
    assert shared.lora == Lora(rank=3, alpha=6.0, dropout=0.1) and shared.base == "some/llama"
    os.rename(tmp_path / "theirs", tmp_path / "shared")
    apart = lora_peft.read(theirs("apart"))
    assert apart.lora == Lora(rank=9, alpha=18.0, dropout=0.1)
    for adapter in (shared, apart):
        config = reference.config(adapter.lora)
        shapes = {path: array.shape for path, array in adapter.weights.items()}
        assert shapes == loras.adapter_shapes(config)


def test_a_fused_projection_is_read_as_it_is(theirs, tmp_path):
    whole = lora_peft.read(theirs())
    os.rename(tmp_path / "theirs", tmp_path / "whole")

    def fuse(arrays):
        for layer in range(base.LAYERS):
            stem = f"base_model.model.model.layers.{layer}.self_attn"
            b = [arrays.pop(f"{stem}.{name}_proj.lora_B.weight") for name in "qkv"]
            (a, *_) = [arrays.pop(f"{stem}.{name}_proj.lora_A.weight") for name in "qkv"]
            arrays[f"{stem}.qkv_proj.lora_A.weight"] = a
            arrays[f"{stem}.qkv_proj.lora_B.weight"] = np.concatenate(b)
        return arrays

    fused = lora_peft.read(theirs(arrays=fuse, target_modules=["qkv_proj", "o_proj"]))
    assert fused.lora == whole.lora
    jax.tree.map(np.testing.assert_array_equal, fused.weights, whole.weights)


def test_half_precision_is_read_as_float32(theirs):
    def halved(arrays):
        return {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}

    weights = lora_peft.read(theirs(arrays=halved)).weights
    assert {array.dtype for array in weights.values()} == {np.dtype("float32")}


# -- out -------------------------------------------------------------------------------------------


def test_what_is_written_is_what_peft_writes(theirs, tmp_path):
    adapter = lora_peft.read(theirs())
    config, folder = reference.config(adapter.lora), tmp_path / "a" / "ours"
    params = loras.with_adapters(base_params(), adapter.weights, config)
    assert lora_peft.save(folder, params, config, base=reference.BASE_NAME) == folder
    assert sorted(path.name for path in folder.iterdir()) == sorted(reference.FILES)
    assert (folder / WEIGHTS).read_bytes() == stored()[f"shared/{WEIGHTS}"].tobytes()
    written = json.loads((folder / CONFIG).read_text())
    expected = json.loads(stored()[f"shared/{CONFIG}"].tobytes())
    assert list(written) == list(expected)
    for each in (written, expected):
        each["target_modules"] = sorted(each["target_modules"])  # a set in peft
    assert written == expected


def test_what_is_read_and_written_again_computes_the_same(theirs, tmp_path):
    apart = lora_peft.read(theirs("apart"))
    lora_peft.save(tmp_path / "again", apart.weights, reference.config(apart.lora))
    again = lora_peft.read(tmp_path / "again")
    assert again.lora == apart.lora and again.base is None
    jax.tree.map(np.testing.assert_array_equal, again.weights, apart.weights)


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "is not of a LoRA adapter"),
        ({"use_dora": True}, "has use_dora True, which is not read"),
        ({"use_rslora": True}, "has use_rslora True"),
        ({"rank_pattern": {"q_proj": 8}}, "has rank_pattern"),
        ({"bias": "all"}, "has bias 'all'"),
        ({"init_lora_weights": "pissa"}, "has init_lora_weights 'pissa'"),
        ({"of_a_later_version": [1]}, r"has of_a_later_version \[1\]"),
        ({"r": 4}, "rank 3 and 3 where adapter_config.json says 4"),
        ({"r": 0}, "has r 0"),
        ({"r": True}, "has r True"),
        ({"r": "3"}, "has r '3'"),
        ({"lora_alpha": None}, "lora_alpha None"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan"),
        ({"lora_dropout": 1.5}, "lora_dropout 1.5"),
    ],
)
def test_configurations_that_are_not_read(theirs, settings, message):
    with pytest.raises(UserError, match=message):
        lora_peft.read(theirs(**settings))


def without(part):
    return lambda arrays: {name: x for name, x in arrays.items() if part not in name}


def renamed(part, new):
    return lambda arrays: {name.replace(part, new): x for name, x in arrays.items()}


def changed(part, change):
    return lambda arrays: {n: change(x) if part in n else x for n, x in arrays.items()}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (without("k_proj"), r"6 arrays are missing \(\S+layers.0.self_attn.k_proj.lora_A"),
        (without("layers.1."), "8 arrays are missing"),
        (without("layers.0.self_attn.q_proj.lora_B"), "1 arrays are missing"),
        (without("base_model"), "does not fit this model"),
        (renamed("o_proj", "up_proj"), r"6 are unexpected \(\S+up_proj"),
        (renamed("layers.2.", "layers.2000000000."), "are missing"),
        (changed("layers.1.self_attn.v_proj.lora_A", np.ravel), "is no matrix"),
        (changed("v_proj.lora_A", lambda x: x[:2]), "rank 2 and 3"),
        (changed("k_proj.lora_A", lambda x: x[:, :8] + 1), "do not go together"),
        (changed("layers.1.self_attn.q_proj.lora_B", lambda x: x[:8]), "do not go together"),
    ],
)
def test_arrays_that_do_not_fit(theirs, arrays, message):
    with pytest.raises(UserError, match=message):
        lora_peft.read(theirs(arrays=arrays))


def test_files_that_are_missing_or_damaged(theirs, tmp_path):
    with pytest.raises(UserError, match=r"nowhere holds no adapter_config.json"):
        lora_peft.read(tmp_path / "nowhere")
    folder = theirs()
    config, weights = (folder / name for name in reference.FILES)
    content = weights.read_bytes()
    weights.write_bytes(content[:-10])
    with pytest.raises(UserError, match=r"adapter_model.safetensors cannot be read"):
        lora_peft.read(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"theirs lacks adapter_model.safetensors"):
        lora_peft.read(folder)
    for text in ("{", "[" * 100_000, "3", "[]"):
        config.write_text(text)
        with pytest.raises(UserError, match=r"is not a JSON file|is not of a LoRA adapter"):
            lora_peft.read(folder)


def test_what_cannot_be_written(theirs, tmp_path, monkeypatch):
    folder = theirs()
    adapter = lora_peft.read(folder)
    config = reference.config(adapter.lora)
    with pytest.raises(UserError, match="theirs is there already: give another name"):
        lora_peft.save(folder, adapter.weights, config)
    with pytest.raises(UserError, match="hold no adapters"):
        lora_peft.save(tmp_path / "new", base_params(), config)
    with pytest.raises(UserError, match=r"has shape \(3, 32, 3\), not \(3, 32, 8\)"):
        lora_peft.save(tmp_path / "new", adapter.weights, config.replace(lora=Lora(rank=8)))
    with pytest.raises(UserError, match="cannot be written"):
        lora_peft.save(folder / WEIGHTS / "new", adapter.weights, config)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(UserError, match="No space left on device"):
        lora_peft.save(tmp_path / "new", adapter.weights, config)
    assert not (tmp_path / "new").exists()

"""CLIP's weights in files: every bit there and back, part by part, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.core import mesh as meshes, starts, state as states
from mlperf_jax.core.benchmark import Start
from mlperf_jax.errors import UserError
from mlperf_jax.models import clip, clip_import
from mlperf_jax.models.clip import Clip, TextConfig, TextTower, VisionConfig
from mlperf_jax.models.huggingface import open_file
from mlperf_jax.optimizers.tree import flatten_paths

TEXT = TextConfig(layers=3, width=8, heads=2, hidden=32, features=4, vocab=22, tokens=12)
VISION = VisionConfig(layers=2, width=16, heads=2, hidden=64, features=4, side=12, patch=4)


def drawn(make):
    """Random parameters of the shapes that a model has."""
    abstract = jax.eval_shape(lambda: states.split(make(jnp.float32, rngs=nnx.Rngs(0)))[1])
    draw = np.random.RandomState(0)
    return jax.tree.map(lambda x: np.float32(draw.standard_normal(x.shape)), abstract["params"])


def parameters():
    return drawn(lambda *a, **how: Clip(TEXT, VISION, *a, **how))


def short_parameters():
    return drawn(lambda *a, **how: TextTower(TEXT.replace(whole=False), *a, **how))


@pytest.fixture
def folder(tmp_path):
    clip_import.save_folder(tmp_path, parameters(), TEXT, VISION)
    return tmp_path


def same(readers, wanted):
    wanted = flatten_paths(wanted)
    assert readers.keys() == wanted.keys()
    for path, value in wanted.items():
        assert readers[path].shape == value.shape, path
        found = readers[path]((slice(None),) * value.ndim)
        np.testing.assert_array_equal(found, value, err_msg=path)


@pytest.mark.parametrize("file", ["", clip_import.FILE])
def test_what_was_written_is_read_to_the_last_bit(folder, file):
    same(clip_import.readers(folder / file, TEXT, VISION), parameters())
    same(clip_import.text_readers(folder / file, TEXT), parameters()["text"])


def test_conditioning_needs_neither_the_last_layer_nor_the_projection(folder, tmp_path):
    short, wanted = TEXT.replace(whole=False), dict(parameters()["text"])
    del wanted["last"], wanted["projection"]
    same(clip_import.text_readers(folder, short), wanted)
    clip_import.save_folder(tmp_path / "short", short_parameters(), short)
    same(clip_import.text_readers(tmp_path / "short", short), short_parameters())
    with pytest.raises(
        UserError, match=r"13 arrays are missing \(transformer.resblocks.2.ln_1.weight"
    ):
        clip_import.text_readers(tmp_path / "short", TEXT)


def test_a_stable_diffusion_checkpoint_holds_the_text_tower(tmp_path):
    from safetensors.numpy import save_file

    given = clip_import.to_open_clip(parameters()["text"], TEXT)
    given = {f"cond_stage_model.model.{name}": x for name, x in given.items()}
    given |= {"model.diffusion_model.out.2.bias": np.zeros(4), "cond_stage_model.model.attn_mask": np.zeros(3),
              "cond_stage_model.model.logit_scale": np.zeros(())}  # fmt: skip
    save_file(
        {name: np.ascontiguousarray(x) for name, x in given.items()}, tmp_path / "512.safetensors"
    )
    same(clip_import.text_readers(tmp_path / "512.safetensors", TEXT), parameters()["text"])


def test_names_and_layouts_are_open_clip_s(folder):
    tensors, params = open_file(folder / clip_import.FILE), parameters()
    assert len(tensors) == 12 * (3 + 2) + 5 + 8 + 1
    layer = params["text"]["blocks"]["layers"]["attention"]
    stacked = [layer[name]["kernel"][1].T for name in ("query", "key", "value")]
    found = tensors["transformer.resblocks.1.attn.in_proj_weight"][:]
    np.testing.assert_array_equal(found, np.concatenate(stacked))
    found = tensors["visual.conv1.weight"][:]
    np.testing.assert_array_equal(
        found, params["vision"]["patches"]["kernel"].transpose(3, 2, 0, 1)
    )
    np.testing.assert_array_equal(
        tensors["text_projection"][:], params["text"]["projection"]["kernel"]
    )
    found = tensors["transformer.resblocks.2.mlp.c_fc.weight"][:]
    np.testing.assert_array_equal(found, params["text"]["last"]["feed_forward"]["up"]["kernel"].T)


def test_each_device_reads_its_part(folder):
    sizes = []

    class Recorded:
        def __init__(self, reader):
            self.shape, self.reader = reader.shape, reader

        def __call__(self, index):
            value = self.reader(index)
            sizes.append(value.size)
            return value

    mesh = meshes.make_mesh("fsdp=4,tensor=2")
    found = clip_import.readers(folder, TEXT, VISION)
    start = {f"params/{path}": Recorded(reader) for path, reader in found.items()}
    state = {"params": jax.tree.map(jnp.zeros_like, parameters())}
    state |= {"frozen": {}, "stats": {}, "tables": {}, "opt": {}}
    with jax.set_mesh(mesh):
        shardings = meshes.state_shardings(state, clip.RULES, mesh)
        state = starts.begin_from(jax.device_put(state, shardings), Start(start))
    jax.tree.map(np.testing.assert_array_equal, state["params"], parameters())
    assert max(sizes) <= VISION.layers * VISION.width * VISION.hidden // 8


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("text_cfg", "heads", 4, "heads 4 of the text tower, and ours has 2"),
        ("vision_cfg", "head_width", 4, "head_width 4 of the vision tower, and ours has 8"),
        (None, "quick_gelu", True, "quick_gelu true of the text tower, and ours has false"),
    ],
)
def test_another_function_of_open_clip_is_refused(folder, part, field, value, message):
    file = folder / clip_import.CONFIG
    said = json.loads(file.read_text())
    (said["model_cfg"] if part is None else said["model_cfg"][part])[field] = value
    file.write_text(json.dumps(said))
    with pytest.raises(UserError, match=message):
        clip_import.readers(folder, TEXT, VISION)


HUB = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {**HUB, "hidden_act": "quick_gelu"},
            'hidden_act "quick_gelu" of the text tower, and ours has "gelu"',
        ),
        (
            {"num_attention_heads": 2},
            'hidden_act "quick_gelu"',
        ),  # what transformers takes without a word
        ({"text_config": {**HUB, "layer_norm_eps": 1e-6}}, "layer_norm_eps 1e-06 .* 1e-05"),
        ({"hidden_act": "gelu"}, "num_attention_heads 8 .* 2"),
        (None, "config.json is missing: put the config"),
        ("{", "config.json is no JSON"),
    ],
)
def test_another_function_of_transformers_is_refused(tmp_path, said, message):
    from safetensors.numpy import save_file

    tensors = {"text_model.embeddings.token_embedding.weight": np.zeros((22, 8), np.float32)}
    save_file(tensors, tmp_path / "model.safetensors")
    if said is not None:
        (tmp_path / "config.json").write_text(said if isinstance(said, str) else json.dumps(said))
    with pytest.raises(UserError, match=message):
        clip_import.text_readers(tmp_path, TEXT)


@pytest.mark.parametrize(
    ("text", "vision", "message"),
    [
        (
            {"vocab": 24},
            {},
            r"text tower of .*token_embedding.weight has shape \(22, 8\), not \(24, 8\)",
        ),
        ({"layers": 4}, {}, "12 arrays are missing .*transformer.resblocks.3.ln_1.weight"),
        ({"layers": 2}, {}, "12 are unexpected .*transformer.resblocks.2.attn.in_proj_bias"),
        ({"layers": 2, "whole": False}, {}, "12 are unexpected"),
        ({}, {"layers": 3}, "vision tower of 3 layers.* 12 arrays are missing"),
        ({}, {"patch": 2}, r"conv1.weight has shape \(16, 3, 4, 4\), not \(16, 3, 2, 2\)"),
        ({}, {"side": 16}, r"visual.positional_embedding has shape \(10, 16\), not \(17, 16\)"),
    ],
)
def test_weights_of_another_model_are_refused_in_a_sentence(folder, text, vision, message):
    text, vision = TEXT.replace(**text), VISION.replace(**vision)

    def read():
        short = not text.whole
        clip_import.text_readers(folder, text) if short else clip_import.readers(
            folder, text, vision
        )

    with pytest.raises(UserError, match=message) as error:
        read()
    assert "these weights do not fit a CLIP" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "512-base-ema.ckpt"])
@pytest.mark.parametrize("whole_folder", [True, False])
def test_pickled_weights_are_refused_with_the_command_that_converts_them(
    tmp_path, name, whole_folder
):
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(
        UserError, match=f"{name} is no safetensors file.* torch.load\\(.*{name}.*weights_only=True"
    ):
        clip_import.text_readers(tmp_path if whole_folder else tmp_path / name, TEXT)


@pytest.mark.parametrize("name", ["", "open_clip_model.safetensors"])
def test_missing_weights_are_told_where_to_come_from(tmp_path, name):
    with pytest.raises(
        UserError, match=r"open_clip_model.safetensors is missing: fetch .*CLIP-ViT-H-14-laion2B"
    ):
        clip_import.text_readers(tmp_path / name, TEXT)


def test_a_truncated_file_is_refused(folder):
    file = folder / clip_import.FILE
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(
        UserError, match=r"open_clip_model.safetensors cannot be read .* download it again"
    ):
        clip_import.readers(folder, TEXT, VISION)

"""Folders of diffusers: every bit there and back, its names and old ones, and what is refused."""

import functools
import json

import jax
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import unflatten_dict
from safetensors.numpy import save_file

from mlperf_jax.core import mesh as meshes, state as states
from mlperf_jax.errors import UserError
from mlperf_jax.models import (
    diffusion_huggingface as huggingface,
    diffusion_unet,
    huggingface as files,
)
from mlperf_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from mlperf_jax.models.diffusion_unet import UNet, UNetConfig
from mlperf_jax.optimizers import flatten_paths

UNET = UNetConfig(
    width=8, multipliers=(1, 2), res_blocks=1, attention_levels=1, head_width=4, context_width=6, groups=2,
    transformer_groups=2,
)  # fmt: skip
VAE = AutoencoderConfig(width=4, multipliers=(1, 2), res_blocks=1, groups=2)


@functools.cache
def parameters(part):
    """Random ones of the shapes that the model has."""
    kind, config = {"unet": (UNet, UNET), "vae": (Autoencoder, VAE)}[part]
    shapes = jax.eval_shape(lambda: states.split(kind(config, "float32", rngs=nnx.Rngs(0)))[1])
    draw = np.random.RandomState(len(part))
    return jax.tree.map(lambda x: np.float32(draw.standard_normal(x.shape)), shapes["params"])


@pytest.fixture
def folder(tmp_path):
    huggingface.save_unet(tmp_path, parameters("unet"), UNET)
    huggingface.save_autoencoder(tmp_path, parameters("vae"), VAE)
    return tmp_path


def opened(part, folder):
    if part == "unet":
        return huggingface.open_unet(folder, UNET)
    return huggingface.open_autoencoder(folder, VAE)


def whole(readers):
    found = {path: reader((slice(None),) * len(reader.shape)) for path, reader in readers.items()}
    return unflatten_dict(found, sep="/")


def equal(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def said(folder, part, **changes):
    """Changes what a config file says; "gone" takes it out."""
    file = folder / part / "config.json"
    kept = {k: v for k, v in {**json.loads(file.read_text()), **changes}.items() if v != "gone"}
    file.write_text(json.dumps(kept))


# -- there and back --------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_what_was_written_is_read_to_the_last_bit(part, folder):
    equal(whole(opened(part, folder)), parameters(part))
    names = sorted(path.name for path in (folder / part).iterdir())
    assert names == ["config.json", "diffusion_pytorch_model.safetensors"]


def test_half_an_autoencoder(folder):
    for half in ("encoder", "decoder"):
        equal(whole(huggingface.open_autoencoder(folder, VAE, half)), parameters("vae")[half])


def test_layouts_are_those_of_torch():
    """OIHW, [out, in], and the values of a feed-forward part before its gates."""
    params = parameters("unet")
    tensors = huggingface.unet_to_huggingface(params, UNET)
    block = params["down"]["0"]["blocks"]["0"]
    kernel = tensors["down_blocks.0.resnets.0.conv1.weight"]
    np.testing.assert_array_equal(
        kernel, block["residual"]["conv1"]["kernel"].transpose(3, 2, 0, 1)
    )
    forward = block["transformer"]["block"]["feed_forward"]
    name = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj"
    both = [forward[part]["kernel"].T for part in ("up", "gate")]
    np.testing.assert_array_equal(tensors[f"{name}.weight"], np.concatenate(both))
    both = [forward[part]["bias"] for part in ("up", "gate")]
    np.testing.assert_array_equal(tensors[f"{name}.bias"], np.concatenate(both))


def test_parts_are_read_without_the_rest(folder):
    """Every device its own slices, as the sharding rules cut them."""
    mesh, params = meshes.make_mesh("fsdp=2,tensor=2"), parameters("unet")
    shardings = meshes.state_shardings({"params": params}, diffusion_unet.RULES, mesh)["params"]
    shardings, wanted = flatten_paths(shardings), flatten_paths(params)
    cut = 0
    for path, reader in huggingface.open_unet(folder, UNET).items():
        indices = shardings[path].devices_indices_map(reader.shape).values()
        for index in indices:
            part = reader(index)
            np.testing.assert_array_equal(part, wanted[path][index], err_msg=path)
            cut += part.size < wanted[path].size
    assert cut > 100


def test_variants_beside_the_weights_are_passed_over(folder):
    wrong = {"conv_in.weight": np.zeros((8, 4, 3, 3), np.float16)}
    for variant in ("fp16", "non_ema"):
        save_file(wrong, folder / f"unet/diffusion_pytorch_model.{variant}.safetensors")
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"")
    equal(whole(opened("unet", folder)), parameters("unet"))


def test_shards_are_read_by_their_index(folder):
    tensors = huggingface.unet_to_huggingface(parameters("unet"), UNET)
    inside = folder / "unet"
    (inside / "diffusion_pytorch_model.safetensors").unlink()
    written = files.save_folder(inside, tensors, stem="diffusion_pytorch_model", shard_bytes=20_000)
    assert len(written) > 2
    save_file({"conv_in.weight": np.zeros(1)}, inside / "diffusion_pytorch_model.fp16.safetensors")
    equal(whole(opened("unet", folder)), parameters("unet"))
    written[1].unlink()
    with pytest.raises(UserError, match=r"lacks 1 of .* shards: diffusion_pytorch_model-00002-of-"):
        opened("unet", folder)


# -- older files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("square", [False, True], ids=["dense", "1x1 convolutions"])
def test_older_autoencoders_name_their_attention_otherwise(square):
    tensors = huggingface.autoencoder_to_huggingface(parameters("vae"), VAE)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, value in tensors.items():
        for new, other in names.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{other}.")
        attends = "attentions.0." in name and value.ndim == 2
        old[name] = value[:, :, None, None] if square and attends else value
    assert old.keys() != tensors.keys()
    equal(whole(huggingface.autoencoder_readers(old, VAE)), parameters("vae"))


def test_transformers_may_begin_and_end_with_1x1_convolutions(folder):
    tensors = huggingface.unet_to_huggingface(parameters("unet"), UNET)
    old = {
        name: x[:, :, None, None] if ".proj_" in name and x.ndim == 2 else x
        for name, x in tensors.items()
    }
    files.save_folder(folder / "unet", old, stem="diffusion_pytorch_model")
    said(folder, "unet", use_linear_projection=False)
    equal(whole(opened("unet", folder)), parameters("unet"))


# -- another function ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("unet", {"norm_num_groups": 32}, "norm_num_groups is 32, not 2"),
        ("unet", {"norm_num_groups": "gone"}, "norm_num_groups is 32, not 2"),
        ("unet", {"transformer_norm_num_groups": 1}, "transformer_norm_num_groups is 1, not 2"),
        ("unet", {"attention_head_dim": 8}, r"attention_head_dim is 8, not \[2, 4\]"),
        ("unet", {"attention_head_dim": [2, 2]}, r"attention_head_dim is \[2, 2\], not \[2, 4\]"),
        ("unet", {"norm_eps": 1e-6}, "norm_eps is 1e-06, not 1e-05"),
        ("unet", {"flip_sin_to_cos": False}, "flip_sin_to_cos is False, not True"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type is timestep, not None"),
        ("unet", {"down_block_types": ["DownBlock2D"] * 2}, "down_block_types is"),
        ("unet", {"_class_name": "UNet2DModel"}, "_class_name is UNet2DModel, not UNet2DCondition"),
        ("vae", {"scaling_factor": 0.13025}, "scaling_factor is 0.13025, not 0.18215"),
        ("vae", {"act_fn": "relu", "use_quant_conv": False}, "act_fn is relu, .*; use_quant_conv"),
    ],
)
def test_a_config_of_another_function_is_refused(part, changes, message, folder):
    said(folder, part, **changes)
    with pytest.raises(UserError, match=message):
        opened(part, folder)


def test_what_files_leave_out_or_say_in_short_is_taken_as_diffusers_does(folder):
    said(
        folder,
        "unet",
        transformer_norm_num_groups="gone",
        freq_shift="gone",
        layers_per_block=[1, 1],
        sample_size=64,
        _diffusers_version="0.8.0",
    )
    equal(whole(opened("unet", folder)), parameters("unet"))


@pytest.mark.parametrize(
    ("text", "message"), [(None, "config.json is missing"), ("{", "config.json is no JSON")]
)
def test_a_config_that_cannot_be_read_is_named(text, message, folder):
    file = folder / "vae/config.json"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(UserError, match=message):
        opened("vae", folder)


# -- other weights ---------------------------------------------------------------------------------


def test_weights_of_another_model_are_refused_in_a_sentence():
    tensors = huggingface.unet_to_huggingface(parameters("unet"), UNET)
    for changes, message in (
        ({"context_width": 5}, r"attn2.to_k.weight has shape \(8, 6\), not \(8, 5\)"),
        ({"res_blocks": 2}, r"arrays are missing \(down_blocks.0.resnets.1.norm1.weight"),
        ({"multipliers": (1, 1)}, "are unexpected"),
        ({"channels": 3}, r"conv_in.weight has shape \(8, 4, 3, 3\), not \(8, 3, 3, 3\)"),
    ):
        with pytest.raises(UserError, match=message) as error:
            huggingface.unet_readers(tensors, UNET.replace(**changes))
        assert "these weights do not fit a UNet of widths 8, " in str(error.value)
    with pytest.raises(UserError, match=r"autoencoder of widths 4, 8: .*\(quant_conv.weight"):
        huggingface.autoencoder_readers({}, VAE)


def test_parameters_that_lack_an_array_are_not_written():
    params = {k: v for k, v in parameters("unet").items() if k != "head"}
    with pytest.raises(UserError, match="the parameters lack head/kernel"):
        huggingface.unet_to_huggingface(params, UNET)


def test_a_truncated_file_is_named(folder):
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"diffusion_pytorch_model.safetensors cannot be read"):
        opened("vae", folder)


# -- pickles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["file", "folder"])
def test_a_checkpoint_is_refused_with_the_command_that_converts_it(given, tmp_path):
    file = tmp_path / "512-base-ema.ckpt"
    file.write_bytes(b"\x80\x04N.")  # a pickle
    with pytest.raises(UserError, match=r"512-base-ema.ckpt is a pickle, which may run") as error:
        huggingface.open_unet(file if given == "file" else tmp_path, UNET)
    command = (
        f"python scripts/convert_original_stable_diffusion_to_diffusers.py --checkpoint_path {file} "
        "--to_safetensors --dump_path FOLDER"
    )
    assert command in str(error.value)


def test_safetensors_of_the_original_code_are_to_be_converted_too(tmp_path):
    file = tmp_path / "512-base-ema.safetensors"
    save_file({"first_stage_model.quant_conv.bias": np.zeros(8)}, file)
    with pytest.raises(UserError, match=r"is no diffusers folder: .* --from_safetensors --to_"):
        huggingface.open_autoencoder(file, VAE)


def test_a_pickled_folder_of_diffusers_is_refused_with_the_command_that_converts_it(folder):
    inside = folder / "vae"
    (inside / "diffusion_pytorch_model.safetensors").unlink()
    (inside / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(
        UserError, match=r"model.bin is a pickle, .* AutoencoderKL as M; M.from_pre"
    ):
        opened("vae", folder)


def test_a_folder_without_the_part_is_named(tmp_path):
    with pytest.raises(UserError, match=r"unet is missing: give a folder of diffusers"):
        huggingface.open_unet(tmp_path, UNET)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/config.json").write_text(json.dumps(huggingface._unet_file(UNET)))
    with pytest.raises(UserError, match=r"holds no safetensors: .* diffusion_pytorch_model.safet"):
        huggingface.open_unet(tmp_path, UNET)

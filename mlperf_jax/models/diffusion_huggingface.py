"""Weights of Stable Diffusion's UNet and autoencoder in the folders of Hugging Face `diffusers`, in and out.

A folder holds `unet/` and `vae/`, each a `config.json` and safetensors. Kernels there are [out, in] and OIHW;
one matrix holds a feed-forward part's `up` and `gate`. Older files name the autoencoder's attention otherwise and
hold dense kernels as 1x1 convolutions: both are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.models import huggingface
from mlperf_jax.models.autoencoder import SCALE, AutoencoderConfig
from mlperf_jax.models.diffusion_unet_config import BLOCK_EPSILON, UNetConfig
from mlperf_jax.models.huggingface import Leaf, Reader

Half = Literal["encoder", "decoder"]

_STEM = "diffusion_pytorch_model"
_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
_PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_TRANSFORMER_GROUPS = (
    "transformer_norm_num_groups"  # ours: diffusers knows one number for all norms
)


# -- in --------------------------------------------------------------------------------------------


def open_unet(folder: str | Path, config: UNetConfig) -> dict[str, Reader]:
    """Path in `UNet` -> reader, of the files under `unet/`; nothing is read yet.

    Raises:
      UserError: files that are missing, damaged or pickled, another network's config, or weights that do not
        fit ours.
    """
    return unet_readers(_opened(folder, "unet", _unet_file(config)), config)


def open_autoencoder(
    folder: str | Path, config: AutoencoderConfig, half: Half | None = None
) -> dict[str, Reader]:
    """Path in `Autoencoder`, or in that half of it, -> reader, of the files under `vae/`; nothing is read yet.

    Raises:
      UserError: as `open_unet`.
    """
    tensors = _opened(folder, "vae", _autoencoder_file(config))
    return autoencoder_readers(tensors, config, half)


def unet_readers(tensors: Mapping[str, Any], config: UNetConfig) -> dict[str, Reader]:
    """Path -> reader of every parameter of the UNet; checked by names and shapes, nothing is read.

    Args:
      tensors: name -> array or lazy slice, by the names of `diffusers`.
      config: of the model to fill.

    Raises:
      UserError: lists what is missing, unexpected or of the wrong shape.
    """
    wanted = f"a UNet of widths {', '.join(map(str, config.widths))}"
    return _readers(tensors, list(_unet_leaves(config)), wanted)


def autoencoder_readers(
    tensors: Mapping[str, Any], config: AutoencoderConfig, half: Half | None = None
) -> dict[str, Reader]:
    """The same of the autoencoder, or of a half by its own paths; all of it is checked."""
    wanted = f"an autoencoder of widths {', '.join(map(str, config.widths))}"
    tensors = {_new_name(name): tensor for name, tensor in tensors.items()}
    found = _readers(tensors, list(_autoencoder_leaves(config)), wanted)
    if half is None:
        return found
    start = f"{half}/"
    return {p.removeprefix(start): reader for p, reader in found.items() if p.startswith(start)}


def _readers(tensors: Mapping[str, Any], leaves: list[Leaf], wanted: str) -> dict[str, Reader]:
    ranks = {leaf.name: len(leaf.shape) for leaf in leaves}
    seen = {name: _as_ours(x, ranks.get(name)) for name, x in tensors.items()}
    huggingface.check(seen, leaves, 1, wanted)
    return {leaf.path: Reader(leaf, seen, 1) for leaf in leaves}


def _as_ours(tensor: Any, rank: int | None) -> Any:
    """An array of a file with its axes in the reverse of our order, W before H, and as many as ours has."""
    shape = huggingface.shape_of(tensor)
    if rank == 2 and shape[2:] == (1, 1):
        return _Dense(tensor)
    return huggingface.Swapped(tensor) if len(shape) == 4 else tensor


class _Dense:
    """A matrix that a file holds as a 1x1 convolution."""

    def __init__(self, tensor: Any):
        self.shape = huggingface.shape_of(tensor)[:2]
        self._tensor = tensor

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return np.asarray(self._tensor[(*index, slice(0, 1), slice(0, 1))])[:, :, 0, 0]


def _columns_first(kernel: np.ndarray) -> np.ndarray:
    return kernel.swapaxes(2, 3) if kernel.ndim == 4 else kernel


def _new_name(name: str) -> str:
    """Today's name of an array of the autoencoder."""
    start, middle, rest = name.partition(".mid_block.attentions.0.")
    part, dot, kind = rest.rpartition(".")
    return start + middle + _OLD_NAMES.get(part, part) + dot + kind


# -- out -------------------------------------------------------------------------------------------


def unet_to_huggingface(params: Mapping[str, Any], config: UNetConfig) -> dict[str, np.ndarray]:
    """The inverse of `unet_readers`: a state dict that `diffusers` loads, of a nested dict of parameters.

    Raises:
      UserError: the parameters lack an array.
    """
    return _exported(params, list(_unet_leaves(config)))


def autoencoder_to_huggingface(
    params: Mapping[str, Any], config: AutoencoderConfig
) -> dict[str, np.ndarray]:
    """The inverse of `autoencoder_readers`, of both halves."""
    return _exported(params, list(_autoencoder_leaves(config)))


def save_unet(folder: str | Path, params: Mapping[str, Any], config: UNetConfig) -> None:
    """Writes `unet/` in a folder, as `open_unet` reads it.

    Where residual blocks and transformers have different numbers of groups `diffusers` takes that of the
    blocks for all, and computes something else.
    """
    _save(folder, "unet", unet_to_huggingface(params, config), _unet_file(config))


def save_autoencoder(
    folder: str | Path, params: Mapping[str, Any], config: AutoencoderConfig
) -> None:
    """Writes `vae/` in a folder, as `open_autoencoder` and `diffusers` read it."""
    _save(folder, "vae", autoencoder_to_huggingface(params, config), _autoencoder_file(config))


def _exported(params: Mapping[str, Any], leaves: list[Leaf]) -> dict[str, np.ndarray]:
    tensors = huggingface.exported(params, leaves, 1)
    return {name: np.ascontiguousarray(_columns_first(x)) for name, x in tensors.items()}


def _save(
    folder: str | Path, part: str, tensors: dict[str, np.ndarray], said: dict[str, Any]
) -> None:
    inside = Path(folder) / part
    huggingface.save_folder(inside, tensors, stem=_STEM)
    (inside / "config.json").write_text(json.dumps(said, indent=2))


# -- the names -------------------------------------------------------------------------------------


def _conv(path: str, name: str, inputs: int, outputs: int, size: int = 3) -> Iterator[Leaf]:
    shape = (size, size, inputs, outputs)
    yield Leaf(f"{path}/kernel", f"{name}.weight", shape, transposed=True)
    yield Leaf(f"{path}/bias", f"{name}.bias", (outputs,))


def _dense(path: str, name: str, inputs: int, outputs: int, bias: bool = True) -> Iterator[Leaf]:
    yield Leaf(f"{path}/kernel", f"{name}.weight", (inputs, outputs), transposed=True)
    if bias:
        yield Leaf(f"{path}/bias", f"{name}.bias", (outputs,))


def _norm(path: str, name: str, width: int) -> Iterator[Leaf]:
    yield Leaf(f"{path}/scale", f"{name}.weight", (width,))
    yield Leaf(f"{path}/bias", f"{name}.bias", (width,))


def _res_block(
    path: str, name: str, inputs: int, outputs: int, time_width: int | None = None
) -> Iterator[Leaf]:
    yield from _norm(f"{path}/norm1", f"{name}.norm1", inputs)
    yield from _conv(f"{path}/conv1", f"{name}.conv1", inputs, outputs)
    if time_width is not None:
        yield from _dense(f"{path}/time", f"{name}.time_emb_proj", time_width, outputs)
    yield from _norm(f"{path}/norm2", f"{name}.norm2", outputs)
    yield from _conv(f"{path}/conv2", f"{name}.conv2", outputs, outputs)
    if inputs != outputs:
        yield from _conv(f"{path}/skip", f"{name}.conv_shortcut", inputs, outputs, 1)


def _attention(path: str, name: str, width: int, context: int, bias: bool) -> Iterator[Leaf]:
    yield from _dense(f"{path}/query", f"{name}.to_q", width, width, bias)
    yield from _dense(f"{path}/key", f"{name}.to_k", context, width, bias)
    yield from _dense(f"{path}/value", f"{name}.to_v", context, width, bias)
    yield from _dense(f"{path}/out", f"{name}.to_out.0", width, width)


def _transformer(path: str, name: str, width: int, context: int) -> Iterator[Leaf]:
    yield from _norm(f"{path}/norm", f"{name}.norm", width)
    yield from _dense(f"{path}/project_in", f"{name}.proj_in", width, width)
    yield from _dense(f"{path}/project_out", f"{name}.proj_out", width, width)
    path, name, inner = f"{path}/block", f"{name}.transformer_blocks.0", 4 * width
    for i, part in enumerate(("attention", "cross", "feed_forward"), start=1):
        yield from _norm(f"{path}/{part}_norm", f"{name}.norm{i}", width)
    yield from _attention(f"{path}/attention", f"{name}.attn1", width, width, False)
    yield from _attention(f"{path}/cross_attention", f"{name}.attn2", width, context, False)
    for part, start in (("up", 0), ("gate", inner)):
        ours, theirs = f"{path}/feed_forward/{part}", f"{name}.ff.net.0.proj"
        part_of: dict[str, Any] = {"start": start, "whole": 2 * inner}
        shape = (width, inner)
        yield Leaf(f"{ours}/kernel", f"{theirs}.weight", shape, transposed=True, **part_of)
        yield Leaf(f"{ours}/bias", f"{theirs}.bias", (inner,), **part_of)
    yield from _dense(f"{path}/feed_forward/down", f"{name}.ff.net.2", inner, width)


def _unet_leaves(config: UNetConfig) -> Iterator[Leaf]:
    width, deepest, time = config.width, config.widths[-1], config.time_width
    yield from _dense("time_embedding/first", "time_embedding.linear_1", width, time)
    yield from _dense("time_embedding/second", "time_embedding.linear_2", time, time)
    yield from _conv("conv_in", "conv_in", config.channels, width)
    last = config.halvings
    for way, levels, sampler, ours in (
        ("down", config.down, "downsamplers", "halve"),
        ("up", config.up, "upsamplers", "double"),
    ):
        for i, blocks in enumerate(levels):
            for j, block in enumerate(blocks):
                path, name = f"{way}/{i}/blocks/{j}", f"{way}_blocks.{i}"
                features = block.features_in, block.features_out
                yield from _res_block(f"{path}/residual", f"{name}.resnets.{j}", *features, time)
                if block.attends:
                    yield from _transformer(
                        f"{path}/transformer",
                        f"{name}.attentions.{j}",
                        block.features_out,
                        config.context_width,
                    )
            if i < last:
                same = blocks[-1].features_out
                yield from _conv(
                    f"{way}/{i}/{ours}", f"{way}_blocks.{i}.{sampler}.0.conv", same, same
                )
    for i in range(2):
        yield from _res_block(
            f"middle/{i}/residual", f"mid_block.resnets.{i}", deepest, deepest, time
        )
    yield from _transformer(
        "middle/0/transformer", "mid_block.attentions.0", deepest, config.context_width
    )
    yield from _norm("norm", "conv_norm_out", width)
    yield from _conv("head", "conv_out", width, config.channels)


def _autoencoder_leaves(config: AutoencoderConfig) -> Iterator[Leaf]:
    width, deepest, moments = config.width, config.widths[-1], 2 * config.channels
    last = len(config.multipliers) - 1
    yield from _conv("encoder/quant", "quant_conv", moments, moments, 1)
    yield from _conv("decoder/post_quant", "post_quant_conv", config.channels, config.channels, 1)
    for half, way, levels, sampler, ours, inputs, outputs in (
        ("encoder", "down", config.down, "downsamplers", "halve",
         (config.image_channels, width), (deepest, moments)),
        ("decoder", "up", config.up, "upsamplers", "double",
         (config.channels, deepest), (width, config.image_channels)),
    ):  # fmt: skip
        yield from _conv(f"{half}/conv_in", f"{half}.conv_in", *inputs)
        for i, level in enumerate(levels):
            for j in range(level.blocks):
                path, name = f"{half}/{way}/{i}/blocks/{j}", f"{half}.{way}_blocks.{i}.resnets.{j}"
                before = level.features_out if j else level.features_in
                yield from _res_block(path, name, before, level.features_out)
            if i < last:
                path, name = f"{half}/{way}/{i}/{ours}", f"{half}.{way}_blocks.{i}.{sampler}.0.conv"
                yield from _conv(path, name, level.features_out, level.features_out)
        for i, part in enumerate(("before", "after")):
            path, name = f"{half}/middle/{part}", f"{half}.mid_block.resnets.{i}"
            yield from _res_block(path, name, deepest, deepest)
        path, name = f"{half}/middle/attention", f"{half}.mid_block.attentions.0"
        yield from _norm(f"{path}/norm", f"{name}.group_norm", deepest)
        yield from _attention(path, name, deepest, deepest, True)
        yield from _norm(f"{half}/norm", f"{half}.conv_norm_out", outputs[0])
        yield from _conv(f"{half}/conv_out", f"{half}.conv_out", *outputs)


# -- the config files ------------------------------------------------------------------------------


def _unet_file(config: UNetConfig) -> dict[str, Any]:
    """What the UNet's config.json says of all that changes what is computed."""
    levels = len(config.multipliers)
    attends = [level < config.attention_levels for level in range(levels)]
    return {
        "_class_name": _CLASSES["unet"],
        "in_channels": config.channels,
        "out_channels": config.channels,
        "block_out_channels": config.widths,
        "layers_per_block": config.res_blocks,
        "cross_attention_dim": config.context_width,
        # heads, in spite of its name
        "attention_head_dim": [width // config.head_width for width in config.widths],
        "norm_num_groups": config.groups,
        _TRANSFORMER_GROUPS: config.transformer_groups,
        "norm_eps": BLOCK_EPSILON,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "downsample_padding": 1,
        "transformer_layers_per_block": 1,
        "center_input_sample": False,
        "only_cross_attention": False,
        "dual_cross_attention": False,
        "class_embed_type": None,
        "addition_embed_type": None,
        "encoder_hid_dim": None,
        "resnet_time_scale_shift": "default",
        "resnet_skip_time_act": False,
        "resnet_out_scale_factor": 1.0,
        "mid_block_scale_factor": 1,
        "time_embedding_type": "positional",
        "time_embedding_act_fn": None,
        "timestep_post_act": None,
        "attention_type": "default",
        "use_linear_projection": True,
    }


def _autoencoder_file(config: AutoencoderConfig) -> dict[str, Any]:
    levels = len(config.multipliers)
    return {
        "_class_name": _CLASSES["vae"],
        "in_channels": config.image_channels,
        "out_channels": config.image_channels,
        "latent_channels": config.channels,
        "block_out_channels": config.widths,
        "layers_per_block": config.res_blocks,
        "norm_num_groups": config.groups,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "act_fn": "silu",
        "scaling_factor": SCALE,
        "shift_factor": None,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "mid_block_add_attention": True,
    }


def _check_file(file: Path, wanted: Mapping[str, Any]) -> None:
    """Nothing, if the file tells of the function that our module computes."""
    try:
        said = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{file} is missing: put the config that the weights come with there"
        ) from None
    except ValueError as error:
        raise UserError(f"{file} is no JSON ({error}): download it again") from error
    # what is left out is by default; what else is, shapes tell
    said = {"norm_num_groups": 32, "attention_head_dim": 8, **said}
    said.setdefault(_TRANSFORMER_GROUPS, said["norm_num_groups"])
    said.pop("use_linear_projection", None)  # a 1x1 convolution computes the same
    differing = [
        f"{key} is {said[key]}, not {value}"
        for key, value in wanted.items()
        if key in said and not _same(said[key], value)
    ]
    if differing:
        raise UserError(
            f"{file} tells of another network: {'; '.join(differing)}; give weights of ours, or a config that fits "
            "these"
        )


def _same(said: Any, wanted: Any) -> bool:
    """Whether two values are equal, one number standing for as many as there are levels."""
    if isinstance(said, list) and isinstance(wanted, list):
        return said == wanted
    many, one = (said, wanted) if isinstance(said, list) else (wanted, said)
    return all(each == one for each in many) if isinstance(many, list) else many == one


# -- folders ---------------------------------------------------------------------------------------


def _opened(folder: str | Path, part: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> lazy slice over the safetensors of one part, its config checked first."""
    folder = Path(folder)
    inside = folder / part
    if not inside.is_dir():
        _refuse_checkpoint(folder)
        raise UserError(
            f"{inside} is missing: give a folder of diffusers, which holds config.json and {_STEM}.safetensors "
            f"in {part}"
        )
    pickled = sorted(path for path in inside.iterdir() if path.suffix in _PICKLES)
    if pickled and not any(inside.glob("*.safetensors")):
        raise UserError(
            f"{pickled[0]} is a pickle, which may run anything when it is read: convert it where you trust it with "
            f"python -c \"from diffusers import {_CLASSES[part]} as M; M.from_pretrained('{inside}', "
            f"use_safetensors=False).save_pretrained('{inside}')\""
        )
    _check_file(inside / "config.json", wanted)
    return huggingface.open_folder(inside, _STEM)


def _refuse_checkpoint(folder: Path) -> None:
    """Nothing, if this is no file of the original code, nor a folder of them."""
    suffixes = (*_PICKLES, ".safetensors")
    inside = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    found = [path for path in inside if path.is_file() and path.suffix in suffixes]
    if not found:
        return
    file = found[0]
    pickled = file.suffix in _PICKLES
    kind = "a pickle, which may run anything when it is read" if pickled else "no diffusers folder"
    option = "" if pickled else "--from_safetensors "
    raise UserError(
        f"{file} is {kind}: convert it with python scripts/convert_original_stable_diffusion_to_diffusers.py "
        f"--checkpoint_path {file} {option}--to_safetensors --dump_path FOLDER, a script of huggingface/diffusers, "
        "and give FOLDER"
    )

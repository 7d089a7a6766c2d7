"""Weights of `clip.Clip` and of its text tower: from files of OpenCLIP, from folders of transformers, and to the first.

What is read: `open_clip_model.safetensors` or a folder that holds it; a folder of transformers' CLIPModel,
CLIPTextModel (the `text_encoder` of a diffusers folder among them) or CLIPTextModelWithProjection; and a whole Stable
Diffusion checkpoint as safetensors, whose text encoder is OpenCLIP's. OpenCLIP stacks query, key and value in one
matrix; kernels of both are [out, in] and OIHW, but projections of OpenCLIP are [in, out].
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.models import huggingface
from mlperf_jax.models.clip_config import EPSILON, TextConfig, TowerConfig, VisionConfig
from mlperf_jax.models.huggingface import Leaf, Reader

FILE, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
_IN_CHECKPOINT = "cond_stage_model.model."  # OpenCLIP's names in a Stable Diffusion checkpoint
_BUFFERS = ("position_ids", "attn_mask")
_SCALE = "logit_scale"


class Weights(NamedTuple):
    """Arrays as they lie in files.

    Attributes:
        tensors: name -> array or lazy slice; names of CLIPModel if they are those of transformers.
        transformers: whether they are.
        config: the file that says what else the model is, where there is one.
    """

    tensors: Mapping[str, Any]
    transformers: bool
    config: Path | None = None


# -- in --------------------------------------------------------------------------------------------


def text_readers(weights: Weights | str | Path, config: TextConfig) -> dict[str, Reader]:
    """Path in `TextTower` -> reader of the array; checked by names and shapes, nothing is read.

    Args:
      weights: a file or folder, or what `open_weights` gave; other towers in it are passed over, and the last
        layer and the projection too if the tower is to end before them.
      config: of the tower to fill.

    Raises:
      UserError: what is missing, unexpected, pickled or of another shape or function.
    """
    weights = weights if isinstance(weights, Weights) else open_weights(weights)
    _check_function(weights, config, None)
    return _text_readers(weights, config, "")


def readers(
    weights: Weights | str | Path, text: TextConfig, vision: VisionConfig
) -> dict[str, Reader]:
    """The same of both towers and the scale: path in `Clip` -> reader."""
    weights = weights if isinstance(weights, Weights) else open_weights(weights)
    _check_function(weights, text, vision)
    wanted = f"a CLIP vision tower of {vision.layers} layers, width {vision.width} and {vision.tokens} tokens"
    leaves = list(_vision_leaves(vision, weights.transformers))
    given = {n: _columns_first(n, x) for n, x in weights.tensors.items() if not _of_text(n)}
    huggingface.check(given, leaves, vision.layers, wanted)
    found = {leaf.path: Reader(leaf, given, vision.layers) for leaf in leaves}
    return _text_readers(weights, text, "text/") | found


def open_weights(path: str | Path) -> Weights:
    """The arrays of a file or folder, none of which is read yet.

    Raises:
      UserError: nothing is there, or it is damaged or pickled.
    """
    path = Path(path).expanduser()
    file = path / FILE if (path / FILE).exists() else path
    if file.is_dir():
        if not any(file.glob("*.safetensors")):
            pickled = [p for p in sorted(file.glob("*")) if p.suffix in (".bin", ".pt", ".ckpt")]
            raise UserError(_converted(pickled[0]) if pickled else _missing(file / FILE))
        return _named(huggingface.open_folder(file), file / "config.json")
    if not file.exists():
        raise UserError(_missing(file))
    if file.suffix != ".safetensors":
        raise UserError(_converted(file))
    return _named(huggingface.open_file(file), file.with_name("config.json"))


def _named(tensors: Mapping[str, Any], config: Path) -> Weights:
    """Arrays by OpenCLIP's names or by those of transformers' CLIPModel, without buffers."""
    kept = {name: x for name, x in tensors.items() if name.rpartition(".")[2] not in _BUFFERS}
    if any(name.startswith(_IN_CHECKPOINT) for name in kept):
        start = len(_IN_CHECKPOINT)
        kept = {n[start:]: x for n, x in kept.items() if n.startswith(_IN_CHECKPOINT)}
        return Weights(kept, transformers=False)
    if "embeddings.token_embedding.weight" in kept:  # CLIPTextModel as transformers 5 writes it
        kept = {n if n.startswith("text_") else f"text_model.{n}": x for n, x in kept.items()}
    if "text_model.embeddings.token_embedding.weight" in kept:
        if not config.exists():
            raise UserError(
                f"{config} is missing: put the config of the CLIP model there that the weights are of"
            )
        return Weights(kept, transformers=True, config=config)
    beside = config.with_name(CONFIG)
    return Weights(kept, transformers=False, config=beside if beside.exists() else None)


def _text_readers(weights: Weights, config: TextConfig, prefix: str) -> dict[str, Reader]:
    leaves = list(_text_leaves(config, weights.transformers, prefix))
    given = {name: x for name, x in weights.tensors.items() if _of_text(name)}
    if not config.whole:
        layer = _layer_names(weights.transformers, "text").format(layer=config.layers - 1)
        beyond = (f"{layer}.", "text_projection")
        given = {name: x for name, x in given.items() if not name.startswith(beyond)}
    wanted = f"a CLIP text tower of {config.layers} layers, width {config.width} and {config.vocab} words"
    huggingface.check(given, leaves, config.layers - 1, wanted)
    return {leaf.path: Reader(leaf, given, config.layers - 1) for leaf in leaves}


def _of_text(name: str) -> bool:
    return not name.startswith(("visual", "vision_model.", _SCALE))


# -- out -------------------------------------------------------------------------------------------


def to_open_clip(
    params: Mapping[str, Any], text: TextConfig, vision: VisionConfig | None = None
) -> dict[str, np.ndarray]:
    """The inverse of `readers`, or without a vision tower of `text_readers`: a state dict that OpenCLIP loads.

    Raises:
      UserError: the parameters lack an array.
    """
    if vision is None:
        return huggingface.exported(params, list(_text_leaves(text, False, "")), text.layers - 1)
    leaves = list(_text_leaves(text, False, "text/"))
    tensors = huggingface.exported(params, leaves, text.layers - 1)
    tensors |= huggingface.exported(params, list(_vision_leaves(vision, False)), vision.layers)
    return {name: np.array(_columns_first(name, x)[...], order="C") for name, x in tensors.items()}


def save_folder(
    folder: str | Path,
    params: Mapping[str, Any],
    text: TextConfig,
    vision: VisionConfig | None = None,
) -> None:
    """Writes the parameters, a nested dict, as a folder that `readers` or `text_readers` and OpenCLIP read."""
    from safetensors.numpy import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(to_open_clip(params, text, vision), folder / FILE, metadata={"format": "pt"})
    model: dict[str, Any] = {
        "embed_dim": text.features,
        "text_cfg": {
            "context_length": text.tokens,
            "vocab_size": text.vocab,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
            "mlp_ratio": text.hidden / text.width,
        },
    }
    if vision is not None:
        model["vision_cfg"] = {
            "image_size": vision.side,
            "layers": vision.layers,
            "width": vision.width,
            "head_width": vision.width // vision.heads,
            "patch_size": vision.patch,
            "mlp_ratio": vision.hidden / vision.width,
        }
    (folder / CONFIG).write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}, indent=2))


# -- the names -------------------------------------------------------------------------------------


def _text_leaves(config: TextConfig, transformers: bool, prefix: str) -> Iterator[Leaf]:
    width = config.width
    embeddings = "text_model.embeddings." if transformers else ""
    words, positions = (
        ("token_embedding.weight", "position_embedding.weight")
        if transformers
        else ("token_embedding.weight", "positional_embedding")
    )
    yield Leaf(f"{prefix}words/embedding", embeddings + words, (config.vocab, width), axis=0)
    yield Leaf(f"{prefix}positions/embedding", embeddings + positions, (config.tokens, width))
    layer = _layer_names(transformers, "text")
    yield from _layer_leaves(config, transformers, f"{prefix}blocks/layers", layer)
    if config.whole:
        last = layer.format(layer=config.layers - 1)
        yield from _layer_leaves(config, transformers, f"{prefix}last", last)
        yield _projection(config, f"{prefix}projection", "text_projection", transformers)
    norm = "text_model.final_layer_norm" if transformers else "ln_final"
    yield from _pair(f"{prefix}final_norm/scale", norm, (width,))


def _vision_leaves(config: VisionConfig, transformers: bool) -> Iterator[Leaf]:
    width, patch = config.width, config.patch
    names = (
        ("embeddings.patch_embedding", "embeddings.class_embedding",
         "embeddings.position_embedding.weight", "pre_layrnorm", "post_layernorm")
        if transformers
        else ("conv1", "class_embedding", "positional_embedding", "ln_pre", "ln_post")
    )  # fmt: skip
    tower = "vision_model" if transformers else "visual"
    patches, first, positions, before, after = (f"{tower}.{name}" for name in names)
    shape = (patch, patch, 3, width)
    yield Leaf("vision/patches/kernel", f"{patches}.weight", shape, transposed=True)
    yield Leaf("vision/class_embedding", first, (width,))
    yield Leaf("vision/positions/embedding", positions, (config.tokens, width), axis=0)
    yield from _pair("vision/first_norm/scale", before, (width,))
    yield from _layer_leaves(
        config, transformers, "vision/blocks/layers", _layer_names(transformers, "vision")
    )
    yield from _pair("vision/final_norm/scale", after, (width,))
    name = "visual_projection" if transformers else "visual.proj"
    yield _projection(config, "vision/projection", name, transformers)
    yield Leaf(_SCALE, _SCALE, ())


def _layer_names(transformers: bool, tower: str) -> str:
    if transformers:
        return f"{tower}_model.encoder.layers.{{layer}}"
    return f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{{layer}}"


def _layer_leaves(config: TowerConfig, transformers: bool, ours: str, layer: str) -> Iterator[Leaf]:
    width, hidden = config.width, config.hidden
    square, names = (width, width), ("query", "key", "value")
    norms, products = (
        (("layer_norm1", "layer_norm2"), ("self_attn.out_proj", "mlp.fc1", "mlp.fc2"))
        if transformers
        else (("ln_1", "ln_2"), ("attn.out_proj", "mlp.c_fc", "mlp.c_proj"))
    )
    for path, name in zip(("attention_norm", "feed_forward_norm"), norms):
        yield from _pair(f"{ours}/{path}/scale", f"{layer}.{name}", (width,))
    for index, path in enumerate(names):
        path = f"{ours}/attention/{path}"
        if transformers:
            yield from _pair(f"{path}/kernel", f"{layer}.self_attn.{names[index][0]}_proj", square)
            continue
        part: dict[str, Any] = {"start": index * width, "whole": 3 * width}
        name = f"{layer}.attn.in_proj"
        yield Leaf(f"{path}/kernel", f"{name}_weight", square, transposed=True, **part)
        yield Leaf(f"{path}/bias", f"{name}_bias", (width,), **part)
    shapes = (square, (width, hidden), (hidden, width))
    paths = ("attention/out", "feed_forward/up", "feed_forward/down")
    for path, name, shape in zip(paths, products, shapes):
        yield from _pair(f"{ours}/{path}/kernel", f"{layer}.{name}", shape)


def _pair(path: str, name: str, shape: tuple[int, ...]) -> Iterator[Leaf]:
    """A kernel or a gain, `name`.weight, and the bias beside it."""
    yield Leaf(path, f"{name}.weight", shape, transposed=len(shape) > 1)
    yield Leaf(f"{path.rpartition('/')[0]}/bias", f"{name}.bias", shape[-1:])


def _projection(config: TowerConfig, path: str, name: str, transformers: bool) -> Leaf:
    name = f"{name}.weight" if transformers else name
    shape = (config.width, config.features)
    return Leaf(f"{path}/kernel", name, shape, transposed=transformers)


# -- arrays that lie otherwise ---------------------------------------------------------------------


def _columns_first(name: str, tensor: Any) -> Any:
    """The kernel of the patches with W before H, so that its axes are ours reversed; others as they are."""
    return (
        huggingface.Swapped(tensor)
        if name.endswith(("conv1.weight", "patch_embedding.weight"))
        else tensor
    )


# -- checks ----------------------------------------------------------------------------------------


def _check_function(weights: Weights, text: TextConfig, vision: VisionConfig | None) -> None:
    """Nothing, unless the config beside the weights tells of another function than ours."""
    if weights.config is None:
        return
    try:
        said = json.loads(weights.config.read_text())
    except ValueError as error:
        raise UserError(f"{weights.config} is no JSON ({error}): write it again") from error
    towers: list[tuple[str, TowerConfig, int]] = [("text", text, 8)]  # heads where none are said
    if vision is not None:
        towers.append(("vision", vision, 12))
    differs = functools.partial(_differs, weights.config)
    for tower, config, heads in towers:
        if weights.transformers:
            part = said.get(f"{tower}_config", said if tower == "text" else {})
            differs(tower, "hidden_act", part.get("hidden_act", "quick_gelu"), "gelu")
            differs(tower, "layer_norm_eps", part.get("layer_norm_eps", EPSILON), EPSILON)
            found = part.get("num_attention_heads", heads)
            differs(tower, "num_attention_heads", found, config.heads)
            continue
        model = said.get("model_cfg", said)
        part = model.get(f"{tower}_cfg", {})
        differs(tower, "quick_gelu", model.get("quick_gelu", False), False)
        if tower == "text":
            differs(tower, "heads", part.get("heads", heads), config.heads)
        else:
            width = part.get("head_width", 64)
            differs(tower, "head_width", width, config.width // config.heads)


def _differs(file: Path, tower: str, field: str, found: Any, ours: Any) -> None:
    if found != ours:
        raise UserError(
            f"{file} says {field} {json.dumps(found)} of the {tower} tower, and ours has {json.dumps(ours)}: give "
            "that model's weights, or a config that fits them"
        )


def _missing(file: Path) -> str:
    return (
        f"{file} is missing: fetch {FILE} of laion/CLIP-ViT-H-14-laion2B-s32B-b79K from the Hugging Face Hub and put "
        "it there"
    )


def _converted(file: Path) -> str:
    """What is said of a file that torch pickled."""
    return (
        f"{file} is no safetensors file and pickled weights are not opened: convert it where torch is installed, "
        'python -c "import torch, safetensors.torch as s; '
        f"x = torch.load('{file}', map_location='cpu', weights_only=True); x = x.get('state_dict', x); "
        "s.save_file({k: v.clone().contiguous() for k, v in x.items() if hasattr(v, 'clone')}, "
        f"'{file.with_suffix('.safetensors')}')\""
    )

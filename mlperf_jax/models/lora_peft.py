"""Adapters in the files of Hugging Face `peft`: a folder with `adapter_config.json` and `adapter_model.safetensors`.

Theirs have an A for each of q_proj, k_proj and v_proj, ours one for all three. Written, it stands three times. Read,
three equal ones become one again; three that differ become one of three times the rank, whose B has zeros where
a projection does not use it, which computes the same. So does the fused `qkv_proj` of the reference.

D width · R rank · Q, K outputs of query and of key/value · L layers
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from mlperf_jax.errors import UserError
from mlperf_jax.models import huggingface, importing, lora as loras
from mlperf_jax.models.decoder_config import DecoderConfig, Lora
from mlperf_jax.paths import check_new, check_path

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(
    r"base_model\.model\.model\.layers\.(\d+)\.self_attn\.(\w+)\.lora_([AB])\.weight"
)
_APART, _FUSED = ("q_proj", "k_proj", "v_proj"), "qkv_proj"
_OURS = "blocks/layers/attention"

# what `peft` 0.21.2 writes of an adapter on these projections, in its order; None stands for what each has its own
_WRITTEN: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "kasa_config": None,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": None,
    "lora_bias": False,
    "lora_dropout": None,
    "lora_ga_config": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "monteclora_config": None,
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "r": None,
    "rank_pattern": {},
    "revision": None,
    "target_modules": [*_APART, "o_proj"],
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
    "velora_config": None,
}
# what may differ and changes nothing of what a trained adapter computes
_FREE = frozenset(
    "auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config exclude_modules "
    "inference_mode layers_pattern lora_alpha lora_dropout lora_ga_config megatron_config megatron_core "
    "peft_type peft_version qalora_group_size r revision target_modules task_type".split()
)


@dataclass(frozen=True)
class Adapter:
    """An adapter that was read.

    Attributes:
        lora: of a model that it fits; the rank is three times the file's where query, key and value have an A each.
        weights: by our paths, in float32, as `lora.with_adapters` takes them.
        base: what its configuration says it was trained on; None if it does not.
    """

    lora: Lora
    weights: dict[str, np.ndarray]
    base: str | None


# -- out -------------------------------------------------------------------------------------------


def save(
    folder: str | os.PathLike,
    params: Mapping[str, Any],
    config: DecoderConfig,
    *,
    base: str | None = None,
) -> Path:
    """Writes the adapters of a model as `peft` does, for `PeftModel.from_pretrained(model, folder)`.

    Args:
        folder: made by this.
        params: the trained parameters, or all of the model's.
        config: with its `lora`.
        base: name or path of the model that `transformers` loads below it, noted for the reader.

    Returns:
        The folder.

    Raises:
        UserError: the folder is there already or cannot be written, or there are no adapters of this size.
    """
    path = check_new(folder, "the adapter's folder")
    found = loras.adapters(params)
    if faults := importing.misfits(found, loras.adapter_shapes(config)):
        raise UserError(
            f"these adapters are not of this config: {'; '.join(faults)}; give the model's own"
        )
    assert config.lora is not None
    written = {
        **_WRITTEN,
        "base_model_name_or_path": base,
        "lora_alpha": _whole(config.lora.alpha),
        "lora_dropout": config.lora.dropout,
        "r": config.lora.rank,
    }
    content = safetensors.numpy.save(_theirs(found, config), metadata={"format": "pt"})
    try:
        path.mkdir(parents=True)
        (path / WEIGHTS).write_bytes(content)
        text = json.dumps(written, indent=2, sort_keys=True)
        (path / CONFIG).write_text(text, encoding="utf-8")
    except OSError as error:
        shutil.rmtree(path, ignore_errors=True)  # nothing was there before
        raise UserError(f"{path} cannot be written ({error.strerror or error})") from error
    return path


def _whole(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


def _theirs(found: Mapping[str, np.ndarray], config: DecoderConfig) -> dict[str, np.ndarray]:
    """Arrays [R, inputs] and [outputs, R] of each layer and projection, by their names."""
    sizes = (config.query_width, config.kv_width, config.kv_width)
    parts = np.split(found[f"{_OURS}/qkv_lora/b"], np.cumsum(sizes)[:-1], axis=-1)
    pairs = {name: (found[f"{_OURS}/qkv_lora/a"], b) for name, b in zip(_APART, parts)}
    pairs["o_proj"] = found[f"{_OURS}/out_lora/a"], found[f"{_OURS}/out_lora/b"]
    return {
        _name(layer, name, which): np.ascontiguousarray(array[layer].T)
        for layer in range(config.layers)
        for name, pair in pairs.items()
        for which, array in zip("AB", pair)
    }


def _name(layer: int, projection: str, which: str) -> str:
    return f"base_model.model.model.layers.{layer}.self_attn.{projection}.lora_{which}.weight"


# -- in --------------------------------------------------------------------------------------------


def read(folder: str | os.PathLike) -> Adapter:
    """The adapter in a folder that `peft` or `save` wrote.

    Args:
        folder: of an adapter on q_proj, k_proj and v_proj (or the fused qkv_proj) and on o_proj, of every layer.

    Raises:
        UserError: a file is missing or damaged, it is another kind of adapter than plain LoRA, or a layer or a
            projection is missing.
    """
    path = check_path(folder, "the adapter's folder").expanduser()
    config = _configuration(path / CONFIG)
    if not (path / WEIGHTS).is_file():
        raise UserError(f"{path} lacks {WEIGHTS}: copy all that the adapter was saved with")
    tensors = huggingface.open_file(path / WEIGHTS)
    layers, fused = _check_names(path / WEIGHTS, tensors)
    rank = config["r"]

    def stack(projection: str, which: str) -> np.ndarray:
        """[L, inputs, R] or [L, R, outputs]."""
        names = [_name(layer, projection, which) for layer in range(layers)]
        each = [np.asarray(tensors[name][...]).astype(np.float32) for name in names]
        if odd := [name for name, array in zip(names, each) if array.ndim != 2]:
            raise ValueError(f"{odd[0]} is no matrix")
        return np.stack([array.T for array in each])

    try:
        out = stack("o_proj", "A"), stack("o_proj", "B")
        apart = (_FUSED,) if fused else _APART
        qkv = [(stack(name, "A"), stack(name, "B")) for name in apart]
        for a, b in (out, *qkv):
            if a.shape[-1] != rank or b.shape[1] != rank:
                raise ValueError(f"rank {a.shape[-1]} and {b.shape[1]} where {CONFIG} says {rank}")
        a, b = _joined(qkv)
    except ValueError as error:
        raise UserError(
            f"{path / WEIGHTS} has arrays that do not go together ({error}): save the adapter again"
        ) from error
    total = a.shape[-1]
    lora = Lora(rank=total, alpha=config["lora_alpha"] * total / rank, dropout=config["dropout"])
    more = total - rank  # of o_proj's, which add nothing
    weights = {
        f"{_OURS}/qkv_lora/a": a,
        f"{_OURS}/qkv_lora/b": b,
        f"{_OURS}/out_lora/a": np.pad(out[0], ((0, 0), (0, 0), (0, more))),
        f"{_OURS}/out_lora/b": np.pad(out[1], ((0, 0), (0, more), (0, 0))),
    }
    return Adapter(lora, weights, config["base"])


def start_weights(folder: str, config: DecoderConfig) -> dict[str, np.ndarray]:
    """The arrays of an adapter by their paths in the state, for a `Start`.

    Raises:
        UserError: it cannot be read, or is of another base, rank or scale.
    """
    found = read(folder)
    assert config.lora is not None
    mine, theirs = config.lora, found.lora
    if (mine.rank, mine.scale) != (theirs.rank, theirs.scale):
        raise UserError(
            f"{folder} has an adapter that takes rank {theirs.rank} and alpha {theirs.alpha:g} here, not "
            f"{mine.rank} and {mine.alpha:g}: give --lora-rank {theirs.rank} --lora-alpha {theirs.alpha:g}"
        )
    if faults := importing.misfits(found.weights, loras.adapter_shapes(config)):
        raise UserError(
            f"{folder} has an adapter of another base: {'; '.join(faults)}; give one that was trained on this model"
        )
    return {f"params/{path}": array for path, array in found.weights.items()}


def _joined(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """One A [L, D, R] and one B [L, R, Q + 2 K] of those of query, key and value."""
    every_a, every_b = zip(*pairs)
    if all(np.array_equal(every_a[0], a) for a in every_a):
        return every_a[0], np.concatenate(every_b, axis=-1)
    widths, rows, begin = [b.shape[-1] for b in every_b], [], 0
    for b, width in zip(every_b, widths):
        rows.append(np.pad(b, ((0, 0), (0, 0), (begin, sum(widths) - begin - width))))
        begin += width
    return np.concatenate(every_a, axis=-1), np.concatenate(rows, axis=1)


def _check_names(path: Path, tensors: Mapping[str, Any]) -> tuple[int, bool]:
    """How many layers the arrays are of, and whether query, key and value are fused."""
    found = {name: match for name in tensors if (match := _NAME.fullmatch(name))}
    projections = {match[2] for match in found.values()}
    layers = 1 + max((int(match[1]) for match in found.values()), default=0)
    fused = _FUSED in projections
    expected = {
        _name(layer, projection, which)
        for layer in range(min(layers, len(tensors) + 1))  # however large a number is
        for projection in ((_FUSED,) if fused else _APART) + ("o_proj",)
        for which in "AB"
    }
    faults = []
    if missing := sorted(expected - tensors.keys()):
        faults.append(f"{len(missing)} arrays are missing ({importing.some(missing, 4)})")
    if unexpected := sorted(tensors.keys() - expected):
        faults.append(f"{len(unexpected)} are unexpected ({importing.some(unexpected, 4)})")
    if faults:
        raise UserError(
            f"{path} does not fit this model, whose adapters are on q_proj, k_proj, v_proj and o_proj of every "
            f"layer and on nothing else: {'; '.join(faults)}; give one with these target_modules"
        )
    return layers, fused


def _configuration(path: Path) -> dict[str, Any]:
    """What an adapter_config.json says that matters: r, lora_alpha, dropout, base."""
    if not path.is_file():
        raise UserError(
            f"{path.parent} holds no {path.name}: give the folder of an adapter that peft saved"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file ({error}): save the adapter again") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError(f"{path} is not of a LoRA adapter, which is the only kind that is read")
    for name, value in config.items():
        plain = not value or value == _WRITTEN.get(name)
        if name == "init_lora_weights":
            plain = value in (True, False, "gaussian")  # others have changed the base
        if name not in _FREE and not plain:
            raise UserError(
                f"{path} has {name} {value!r}, which is not read: give a plain LoRA adapter"
            )
    rank, alpha, dropout = (config.get(name) for name in ("r", "lora_alpha", "lora_dropout"))
    numbers = [x for x in (alpha, dropout) if isinstance(x, int | float) and math.isfinite(x)]
    if type(rank) is not int or rank < 1 or len(numbers) < 2 or not 0 <= numbers[1] < 1:
        raise UserError(
            f"{path} has r {rank!r}, lora_alpha {alpha!r} and lora_dropout {dropout!r}, which no adapter has: save "
            "it again"
        )
    base = config.get("base_model_name_or_path")
    return {"r": rank, "lora_alpha": alpha, "dropout": dropout, "base": base}

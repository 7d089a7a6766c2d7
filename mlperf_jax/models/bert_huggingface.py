"""Weights of `bert.Bert` in the names and layouts of Hugging Face `transformers`' BertForPreTraining.

A folder holds `config.json` and safetensors. Kernels there are [out, in]; our stack carries a layer axis in
front. The matrix of the masked-token head is the table of words, which files may hold a second time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.models import huggingface
from mlperf_jax.models.bert_config import EPSILON, BertConfig
from mlperf_jax.models.huggingface import Leaf, Reader

# the tied matrix and bias under their second names, and a buffer of old files
_IGNORED = (
    "cls.predictions.decoder.weight",
    "cls.predictions.decoder.bias",
    "bert.embeddings.position_ids",
)
_WORDS = "bert.embeddings.word_embeddings.weight"


def start_weights(folder: str | Path, config: BertConfig) -> dict[str, Reader]:
    """What `core.benchmark.Start(weights=...)` takes: each device reads its own part.

    Raises:
      UserError: files that are missing or damaged, another activation or epsilon, or weights that do not
        fit the config.
    """
    folder = Path(folder)
    _check_function(folder / "config.json")
    found = readers(huggingface.open_folder(folder), config)
    return {f"params/{path}": reader for path, reader in found.items()}


def readers(tensors: Mapping[str, Any], config: BertConfig) -> dict[str, Reader]:
    """Path -> reader of every parameter; checked by names and shapes, nothing is read.

    Args:
      tensors: name -> array or lazy slice, see `huggingface.open_folder`.
      config: of the model to fill.

    Raises:
      UserError: lists what is missing, unexpected or of the wrong shape.
    """
    leaves = list(_leaves(config))
    given = {name: x for name, x in tensors.items() if name not in _IGNORED}
    wanted = f"a BERT of {config.layers} layers, width {config.width} and {config.vocab} words"
    huggingface.check(given, leaves, config.layers, wanted, _shape_fault)
    return {leaf.path: Reader(leaf, tensors, config.layers) for leaf in leaves}


def to_huggingface(params: Mapping[str, Any], config: BertConfig) -> dict[str, np.ndarray]:
    """The inverse of `readers`: a state dict that `transformers` loads, tied weights once.

    Raises:
      UserError: the parameters lack an array.
    """
    return huggingface.exported(params, list(_leaves(config)), config.layers)


def save_folder(folder: str | Path, params: Mapping[str, Any], config: BertConfig) -> None:
    """Writes the parameters, a nested dict, as `start_weights` and `transformers` read them."""
    huggingface.save_folder(folder, to_huggingface(params, config))
    (Path(folder) / "config.json").write_text(json.dumps(_config_file(config), indent=2))


def _config_file(config: BertConfig) -> dict[str, Any]:
    return {
        "architectures": ["BertForPreTraining"],
        "model_type": "bert",
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "intermediate_size": config.hidden,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.types,
        "hidden_act": "gelu_new",
        "layer_norm_eps": EPSILON,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "initializer_range": config.init_std,
    }


# -- the names -------------------------------------------------------------------------------------


def _leaves(config: BertConfig) -> Iterator[Leaf]:
    width, hidden = config.width, config.hidden
    for path, name, rows in (
        ("words", "word", config.vocab),
        ("positions", "position", config.max_positions),
        ("types", "token_type", config.types),
    ):
        name = f"bert.embeddings.{name}_embeddings.weight"
        yield Leaf(f"{path}/embedding", name, (rows, width), axis=0)
    ours, layer = "blocks/layers", "bert.encoder.layer.{layer}"
    for path, name, inputs, outputs in (
        (f"{ours}/attention/query", f"{layer}.attention.self.query", width, width),
        (f"{ours}/attention/key", f"{layer}.attention.self.key", width, width),
        (f"{ours}/attention/value", f"{layer}.attention.self.value", width, width),
        (f"{ours}/attention/out", f"{layer}.attention.output.dense", width, width),
        (f"{ours}/feed_forward/up", f"{layer}.intermediate.dense", width, hidden),
        (f"{ours}/feed_forward/down", f"{layer}.output.dense", hidden, width),
        ("masked/transform", "cls.predictions.transform.dense", width, width),
        ("next/pooler", "bert.pooler.dense", width, width),
        ("next/classifier", "cls.seq_relationship", width, 2),
    ):
        yield Leaf(f"{path}/kernel", f"{name}.weight", (inputs, outputs), transposed=True)
        yield Leaf(f"{path}/bias", f"{name}.bias", (outputs,))
    for path, name in (
        ("embed_norm", "bert.embeddings"),
        (f"{ours}/attention_norm", f"{layer}.attention.output"),
        (f"{ours}/feed_forward_norm", f"{layer}.output"),
        ("masked/norm", "cls.predictions.transform"),
    ):
        yield Leaf(f"{path}/scale", f"{name}.LayerNorm.weight", (width,))
        yield Leaf(f"{path}/bias", f"{name}.LayerNorm.bias", (width,))
    yield Leaf("masked/bias", "cls.predictions.bias", (config.vocab,))


# -- checks ----------------------------------------------------------------------------------------


def _shape_fault(name: str, leaf: Leaf, shape: tuple[int, ...]) -> str | None:
    wanted = leaf.file_shape
    if name == _WORDS and shape != wanted and shape[1:] == wanted[1:]:
        return f"{name} has {shape[0]} vocabulary rows, not {wanted[0]}"
    return huggingface.other_shape(name, leaf, shape)


def _check_function(file: Path) -> None:
    """Nothing, if the file tells of the function that `bert.Bert` computes."""
    try:
        said = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{file} is missing: put the config of the BertForPreTraining there that the weights are of"
        ) from None
    except ValueError as error:
        raise UserError(f"{file} is no JSON ({error}): write it again") from error
    activation, epsilon = said.get("hidden_act", "gelu"), said.get("layer_norm_eps", EPSILON)
    if activation != "gelu_new":
        raise UserError(
            f'{file} says hidden_act "{activation}": the benchmark\'s network has the tanh approximation of '
            'GELU and "gelu" is the exact one, whose logits differ; if the weights come from the official '
            'checkpoint, set "gelu_new" there'
        )
    if epsilon != EPSILON:
        raise UserError(
            f"{file} says layer_norm_eps {epsilon}, the benchmark's network has {EPSILON}: give that model's weights"
        )

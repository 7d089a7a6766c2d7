"""BERT's weights in files of transformers: every bit there and back, part by part, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import unflatten_dict

from mlperf_jax.core import mesh as meshes, starts, state as states
from mlperf_jax.core.benchmark import Start
from mlperf_jax.errors import UserError
from mlperf_jax.models import bert, bert_huggingface as huggingface
from mlperf_jax.models.bert import Bert, BertConfig
from mlperf_jax.models.huggingface import open_folder
from mlperf_jax.optimizers.tree import flatten_paths

CONFIG = BertConfig(layers=3, width=8, heads=2, hidden=16, vocab=22, max_positions=12)


def parameters():
    """Random ones of the shapes that the model has."""
    abstract = jax.eval_shape(lambda: states.split(Bert(CONFIG, "float32", rngs=nnx.Rngs(0)))[1])
    draw = np.random.RandomState(0)
    return jax.tree.map(lambda x: np.float32(draw.standard_normal(x.shape)), abstract["params"])


@pytest.fixture
def folder(tmp_path):
    huggingface.save_folder(tmp_path, parameters(), CONFIG)
    return tmp_path


def whole(readers):
    return {path: reader((slice(None),) * len(reader.shape)) for path, reader in readers.items()}


def test_what_was_written_is_read_to_the_last_bit(folder):
    found = whole(huggingface.start_weights(folder, CONFIG))
    wanted = {f"params/{path}": x for path, x in flatten_paths(parameters()).items()}
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


def test_names_and_layouts_are_transformers(folder):
    """Its own names and shapes for this config; kernels [out, in], one array a layer."""
    tensors, params = open_folder(folder), parameters()
    assert len(tensors) == 5 + 3 * 16 + 2 + 5 + 2
    up = tensors["bert.encoder.layer.1.intermediate.dense.weight"][:]
    np.testing.assert_array_equal(
        up, params["blocks"]["layers"]["feed_forward"]["up"]["kernel"][1].T
    )
    np.testing.assert_array_equal(
        tensors["cls.seq_relationship.weight"][:], params["next"]["classifier"]["kernel"].T
    )
    assert json.loads((folder / "config.json").read_text())["hidden_act"] == "gelu_new"


def test_a_run_begins_from_them_each_device_reading_its_part(folder):
    sizes = []

    class Recorded:
        def __init__(self, reader):
            self.shape, self.reader = reader.shape, reader

        def __call__(self, index):
            value = self.reader(index)
            sizes.append(value.size)
            return value

    mesh = meshes.make_mesh("fsdp=4,tensor=2")
    start = {path: Recorded(r) for path, r in huggingface.start_weights(folder, CONFIG).items()}
    zeros = jax.tree.map(jnp.zeros_like, parameters())
    state = {"params": zeros, "frozen": {}, "stats": {}, "tables": {}, "opt": {}}
    with jax.set_mesh(mesh):
        shardings = meshes.state_shardings(state, bert.RULES, mesh)
        state = starts.begin_from(jax.device_put(state, shardings), Start(start))
    jax.tree.map(np.testing.assert_array_equal, state["params"], parameters())
    assert max(sizes) <= CONFIG.layers * CONFIG.width * CONFIG.hidden // 8


def test_a_second_copy_of_the_tied_weights_is_passed_over():
    tensors = huggingface.to_huggingface(parameters(), CONFIG)
    more = {
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
        "bert.embeddings.position_ids": np.arange(12)[None],
    }
    found = whole(huggingface.readers({**tensors, **more}, CONFIG))
    jax.tree.map(np.testing.assert_array_equal, unflatten_dict(found, sep="/"), parameters())


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            '{"hidden_act": "gelu"}',
            'hidden_act "gelu": .* the tanh approximation .* set "gelu_new"',
        ),
        ("{}", 'hidden_act "gelu"'),  # what transformers takes without a word
        ('{"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}', "layer_norm_eps 1e-05, .* 1e-12"),
        ("{", "is no JSON"),
        (None, "config.json is missing"),
    ],
)
def test_another_function_is_refused(folder, said, message):
    file = folder / "config.json"
    file.unlink() if said is None else file.write_text(said)
    with pytest.raises(UserError, match=message):
        huggingface.start_weights(folder, CONFIG)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab": 24}, "word_embeddings.weight has 22 vocabulary rows, not 24"),
        (
            {"layers": 4},
            r"16 arrays are missing \(bert.encoder.layer.3.attention.self.query.weight",
        ),
        (
            {"layers": 2},
            r"16 are unexpected \(bert.encoder.layer.2.attention.output.LayerNorm.bias",
        ),
        ({"hidden": 32}, r"intermediate.dense.weight has shape \(16, 8\), not \(32, 8\)"),
    ],
)
def test_weights_of_another_model_are_refused_in_a_sentence(changes, message):
    tensors = huggingface.to_huggingface(parameters(), CONFIG)
    with pytest.raises(UserError, match=message) as error:
        huggingface.readers(tensors, CONFIG.replace(**changes))
    assert "these weights do not fit a BERT of" in str(error.value) and "\n" not in str(error.value)

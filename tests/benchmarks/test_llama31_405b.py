"""Llama 3.1 405B: recipes, rates, evaluation, log and start weights against rules and fact sheet."""

import numpy as np
import pytest

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks.llama31_405b import Llama31_405B
from mlperf_jax.core import mesh as meshes, preflight, starts, state
from mlperf_jax.errors import UserError
from mlperf_jax.models import huggingface
from mlperf_jax.optimizers import tree


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("data"))
    benchmarks.build_data(benchmarks.get("llama31_405b", tiny=True), folder)
    return folder


def test_the_whole_run_is_on_the_ramp() -> None:
    for size in (896, 1152, 2304):
        recipe = Llama31_405B(batch_size=size)
        warm = -(-8000 * 1152 // size)
        assert (
            recipe.optimizer_log()["opt_learning_rate_decay_steps"]
            == -(-1_200_000 * 1152 // size) - warm
        )
        for t in (0, 100, 300):
            np.testing.assert_allclose(
                recipe.learning_rate()(t), 8e-5 * size / 1152 * (t + 1) / (warm + 1), rtol=1e-5
            )
        np.testing.assert_allclose(
            recipe.learning_rate()(recipe.cosine().total_steps), 8e-7, rtol=1e-3
        )


def test_training_alternates_between_the_files(data_dir) -> None:
    tiny = benchmarks.get("llama31_405b", tiny=True)
    source = tiny.data().train(data_dir).source.for_seed(7).windows
    assert len(source.sources) == 2
    for index in range(6):
        np.testing.assert_array_equal(source[index], source.sources[index % 2][index // 2])


def test_starts_from_the_first_vocabulary_rows(data_dir) -> None:
    """On 8 devices as on one; rows beyond the new tokenizer's are cut off."""
    tiny = preflight.resolve_dtype(benchmarks.get("llama31_405b", tiny=True))
    tensors = huggingface.open_folder(f"{data_dir}/{tiny.weights}")
    assert tensors["model.embed_tokens.weight"].get_shape() == [576, 96]
    for mesh in ("data=1", "data=2,fsdp=4"):
        assembly = state.assemble(tiny, meshes.make_mesh(mesh))
        begun = starts.begin_from(assembly.create(0), tiny.start(data_dir))
        flat = tree.flatten_paths(begun["params"])
        np.testing.assert_array_equal(
            flat["embed/embedding"], tensors["model.embed_tokens.weight"][:512]
        )
        np.testing.assert_array_equal(
            flat["blocks/layers/feed_forward/down/kernel"][1],
            tensors["model.layers.1.mlp.down_proj.weight"][:].T,
        )
        np.testing.assert_array_equal(flat["head/kernel"], tensors["lm_head.weight"][:512].T)


def test_bad_start_weights_are_named(data_dir, tmp_path) -> None:
    tiny = benchmarks.get("llama31_405b", tiny=True)
    with pytest.raises(UserError, match=r"no-such holds no safetensors: download"):
        tiny.replace(weights="no-such").start(data_dir)
    with pytest.raises(UserError, match="1 key/value heads of 32, not 3"):
        tiny.replace(kv_heads=3).start(data_dir)
    with pytest.raises(UserError, match=r"layers\.2\."):
        tiny.replace(layers=3).start(data_dir)

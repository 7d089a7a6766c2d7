"""Llama 3.1 405B: recipes, rates, evaluation, log and start weights against rules and fact sheet."""

import numpy as np
import pytest

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks.llama31_405b import Llama31_405B
from mlperf_jax.core import mesh as meshes
from mlperf_jax.core import preflight, state
from mlperf_jax.core.benchmark import Target
from mlperf_jax.errors import UserError
from mlperf_jax.models import decoder_huggingface
from mlperf_jax.optimizers import tree
from tests.benchmarks.language_models import assert_adamw, first_steps, points


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("data"))
    benchmarks.build_data(benchmarks.get("llama31_405b", tiny=True), folder)
    return folder


def test_recipes_equal_the_reference_convergence_points() -> None:
    official = points("llama31_405b", "6.0.0")
    assert set(Llama31_405B.recipes()) == set(official)
    for size, recipe in Llama31_405B.recipes().items():
        wanted = official[size].hyperparameters
        assert recipe.base_lr == wanted["opt_base_learning_rate"]
        assert recipe.warmup_steps == wanted["opt_learning_rate_warmup_steps"]
    assert Llama31_405B() == Llama31_405B.recipes()[1152]


def test_the_whole_run_is_on_the_ramp() -> None:
    for size in (896, 1152, 2304):
        recipe = Llama31_405B(batch_size=size)
        warm = -(-8000 * 1152 // size)
        assert recipe.warmup_steps == warm
        assert recipe.log()["opt_learning_rate_decay_steps"] == -(-1_200_000 * 1152 // size) - warm
        for t in (0, 100, 300):
            np.testing.assert_allclose(
                recipe.learning_rate()(t), 8e-5 * size / 1152 * (t + 1) / (warm + 1), rtol=1e-5
            )
        np.testing.assert_allclose(recipe.learning_rate()(recipe.schedule_steps), 8e-7, rtol=1e-3)


def test_adamw_decays_matrices_embedding_and_head_only() -> None:
    benchmark = Llama31_405B(warmup_samples=0)
    assert (benchmark.epsilon, benchmark.weight_decay, benchmark.clip_norm) == (1e-5, 0.1, 1.0)
    assert_adamw(benchmark, decayed={"kernel", "embedding"})


def test_first_evaluations_are_left_out() -> None:
    """FLOOR(0.0026 GBS + 12) of them (facts: llama31 section 7)."""
    assert first_steps(Llama31_405B(), 2) == [240, 256]  # 276,480 samples, as NVIDIA logs
    assert first_steps(Llama31_405B(batch_size=896), 1)[0] * 896 == 282_240
    assert first_steps(Llama31_405B(batch_size=2304), 1)[0] == 8 * (17 + 1)
    assert first_steps(Llama31_405B(batch_size=5000), 1)[0] == 4 * (25 + 1)


def test_logged_keys_and_values() -> None:
    logged = preflight.full_log(Llama31_405B.recipes()[2304])
    assert logged == {
        "global_batch_size": 2304,
        "gradient_accumulation_steps": 1,
        "train_samples": 1_574_207_408,
        "eval_samples": 5760,
        "max_sequence_length": 8192,
        "init_checkpoint_step": 0,
        "opt_name": "adamw",
        "opt_base_learning_rate": 1.6e-4,
        "opt_end_learning_rate": 8e-7,
        "opt_learning_rate_warmup_steps": 4000,
        "opt_learning_rate_decay_steps": 596_000,
        "opt_learning_rate_decay_schedule": "cosine with linear warmup",
        "opt_adamw_beta_1": 0.9,
        "opt_adamw_beta_2": 0.95,
        "opt_adamw_epsilon": 1e-5,
        "opt_adamw_weight_decay": 0.1,
        "opt_gradient_clip_norm": 1.0,
    }


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"reference_lr": 1e-4}, "base_learning_rate"),
        ({"end_lr": 0.0}, "end_learning_rate"),
        ({"warmup_samples": 1152}, "warmup_steps"),
        ({"schedule_samples": 115_200}, "decay_steps"),
        ({"sequence_length": 4096}, "max_sequence_length"),
        ({"eval_samples": 1024}, "eval_samples"),
        ({"eval_every": 46_080}, "evaluat"),
        ({"skip_base": 0}, "evaluat"),
        ({"vocab": 128_256}, "vocab"),
        ({"hidden": 16_384}, "hidden"),
        ({"targets": (Target("log_perplexity", at_most=5.7),)}, "5.6"),
    ],
)
def test_closed_refuses_what_the_rules_do_not_allow(changes, word) -> None:
    with pytest.raises(UserError, match=word):
        preflight.resolve_division(
            Llama31_405B(**changes), benchmarks.RunOptions(division="closed")
        )


def test_flops() -> None:
    """20,599 TF a sequence with 32,000 vocabulary rows and half of attention."""
    assert Llama31_405B().flops_per_sample == pytest.approx(20_599e12, rel=1e-4)


def test_training_alternates_between_the_files(data_dir) -> None:
    tiny = benchmarks.get("llama31_405b", tiny=True)
    source = tiny.data().train(data_dir).source.for_seed(7).windows
    assert len(source.sources) == 2
    for index in range(6):
        np.testing.assert_array_equal(source[index], source.sources[index % 2][index // 2])


def test_starts_from_the_first_vocabulary_rows(data_dir) -> None:
    """On 8 devices as on one; rows beyond the new tokenizer's are cut off."""
    tiny = preflight.resolve_dtype(benchmarks.get("llama31_405b", tiny=True))
    tensors = decoder_huggingface.open_folder(f"{data_dir}/{tiny.weights}")
    assert tensors["model.embed_tokens.weight"].get_shape() == [576, 96]
    for mesh in ("data=1", "data=2,fsdp=4"):
        assembly = state.assemble(tiny, meshes.make_mesh(mesh))
        begun = state.begin_from(assembly.create(0), tiny.start(data_dir))
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


def test_without_a_source_the_sentence_says_what_to_fetch(tmp_path) -> None:
    with pytest.raises(UserError, match=r"--source.*Mixtral.*c4-train\.en_6.*c4-train\.en_7"):
        Llama31_405B().data().build(str(tmp_path))

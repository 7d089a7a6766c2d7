"""Llama 2 70B LoRA: recipes, rates, optimizer, evaluation, log and base against rules and fact sheet."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks.llama2_70b_lora import Llama2Lora
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
    benchmarks.build_data(benchmarks.get("llama2_70b_lora", tiny=True), folder)
    return folder


def test_recipes_equal_the_reference_convergence_points() -> None:
    official = points("llama2_70b_lora", "6.1.0")
    assert set(Llama2Lora.recipes()) == set(official)
    for size, recipe in Llama2Lora.recipes().items():
        wanted = official[size].hyperparameters
        assert recipe.base_lr == wanted["opt_base_learning_rate"]
        assert recipe.clip_norm == wanted["opt_max_grad_norm"]
        assert recipe.training_steps == wanted["max_steps"]
        assert recipe.warmup_steps == wanted["opt_learning_rate_warmup_epochs"] == 0
        assert recipe.lora_rank == wanted["lora_r"]
        assert recipe.lora_alpha == wanted["lora_alpha"]
    assert Llama2Lora() == Llama2Lora.recipes()[8]


def test_learning_rate() -> None:
    """The first update has the full rate; the cosine ends at 0 after 1,024 steps at any batch size."""
    for size in (8, 64):
        rate = Llama2Lora(batch_size=size).learning_rate()
        for k in (0, 1, 512, 1023):
            np.testing.assert_allclose(
                rate(k), 4e-4 * 0.5 * (1 + np.cos(np.pi * k / 1024)), rtol=1e-4, atol=1e-12
            )
    warm = Llama2Lora(warmup_ratio=0.125).learning_rate()
    np.testing.assert_allclose(warm(64), 2e-4, rtol=1e-6)
    np.testing.assert_allclose(warm(128 + 448), 2e-4, rtol=1e-5)


def test_adamw_decays_all_adapters() -> None:
    benchmark = Llama2Lora()
    assert (benchmark.beta_1, benchmark.beta_2, benchmark.epsilon) == (0.9, 0.999, 1e-8)
    assert benchmark.weight_decay == 1e-4
    assert_adamw(benchmark, decayed={"kernel", "embedding", "scale", "bias"})


def test_first_evaluations_are_left_out() -> None:
    """FLOOR(0.125 GBS + 2) of them, every 384 samples (facts: llama2_lora section 7)."""
    assert [step * 8 for step in first_steps(Llama2Lora())] == [1536, 1920, 2304]
    assert first_steps(Llama2Lora(batch_size=64), 1)[0] * 64 == 4224
    assert first_steps(Llama2Lora(batch_size=9), 1)[0] == 43 * 4


def test_logged_keys_and_values() -> None:
    assert preflight.full_log(Llama2Lora()) == {
        "global_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "train_samples": 3901,
        "eval_samples": 173,
        "lora_rank": 16,
        "lora_alpha": 32,
        "opt_name": "adamw",
        "opt_base_learning_rate": 4e-4,
        "opt_learning_rate_training_steps": 1024,
        "opt_learning_rate_warmup_factor": 0.0,
        "opt_gradient_clip_norm": 0.3,
        "opt_adamw_weight_decay": 1e-4,
    }


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"lora_rank": 8}, "lora_rank"),
        ({"lora_alpha": 16}, "lora_alpha"),
        ({"lora_dropout": 0.0}, "lora_dropout"),
        ({"base_bits": 8}, "base_bits"),
        ({"clip_norm": 1.0}, "clip_norm"),
        ({"weight_decay": 0.0}, "weight_decay"),
        ({"beta_2": 0.95}, "beta_2"),
        ({"sequence_length": 4096}, "sequence_length"),
        ({"eval_every": 192}, "evaluat"),
        ({"train_samples": 4000}, "train_samples"),
        ({"width": 4096}, "width"),
        ({"targets": (Target("eval_loss", at_most=0.93),)}, "0.925"),
    ],
)
def test_closed_refuses_what_the_rules_do_not_allow(changes, word) -> None:
    with pytest.raises(UserError, match=word):
        preflight.resolve_division(Llama2Lora(**changes), benchmarks.RunOptions(division="closed"))


def test_flops() -> None:
    """The base has no weight gradients: 2,518 TF a sequence with half of attention."""
    assert Llama2Lora().flops_per_sample == pytest.approx(2518e12, rel=1e-3)


def test_only_adapters_are_trained_and_begin_without_effect(data_dir) -> None:
    """The base is read into `frozen` on one device and eight; B is zero, A uniform by its fan-in."""
    tiny = preflight.resolve_dtype(benchmarks.get("llama2_70b_lora", tiny=True))
    tensors = decoder_huggingface.open_folder(f"{data_dir}/{tiny.weights}")
    for mesh in ("data=1", "data=2,fsdp=4"):
        assembly = state.assemble(tiny, meshes.make_mesh(mesh))
        begun = state.begin_from(assembly.create(0), tiny.start(data_dir))
        trained = tree.flatten_paths(begun["params"])
        assert all("_lora/" in path for path in trained)
        for path, leaf in trained.items():
            if path.endswith("/b"):
                assert not np.asarray(leaf).any()
            else:
                bound = 1 / np.sqrt(leaf.shape[1])
                assert 0.9 * bound < float(abs(leaf).max()) <= bound
        query = tree.flatten_paths(begun["frozen"])["blocks/layers/attention/query/kernel"]
        np.testing.assert_array_equal(
            query[1], tensors["model.layers.1.self_attn.q_proj.weight"][:].T
        )
        moments = jax.tree.leaves(begun["opt"])
        assert sum(leaf.size for leaf in moments if leaf.ndim) == 2 * assembly.tree.count()


def test_rows_of_another_length_are_refused(tmp_path) -> None:
    full = Llama2Lora(vocab=512, sequence_length=256)
    for split, rows in (("train", 3), ("validation", 2)):
        for what in ("inputs", "labels"):
            np.save(tmp_path / f"govreport_{split}_{what}.npy", np.zeros((rows, 256), np.int32))
    assert full.data().counts(str(tmp_path)) == {"train": 3, "validation": 2}
    with pytest.raises(UserError, match="rows of 256 tokens, not 128"):
        full.replace(sequence_length=128).data().counts(str(tmp_path))


def test_missing_rows_and_base_are_named(data_dir, tmp_path) -> None:
    tiny = benchmarks.get("llama2_70b_lora", tiny=True)
    with pytest.raises(UserError, match="data build llama2_70b_lora"):
        tiny.data().counts(str(tmp_path))
    with pytest.raises(UserError, match="holds no safetensors: download"):
        tiny.replace(weights="elsewhere").start(data_dir)
    with pytest.raises(UserError, match="query heads"):
        tiny.replace(heads=6).start(data_dir)


def test_data_are_checked_id_by_id(data_dir) -> None:
    data = benchmarks.get("llama2_70b_lora", tiny=True).data()
    assert data.check(data_dir) == [
        "train: 448 rows of 256 tokens",
        "validation: 28 rows of 256 tokens",
    ]
    rows = f"{data_dir}/tiny_reports_512_256/tiny_reports"
    found = dataclasses.replace(data, tiny=False, vocabulary=300)
    for split in ("train", "validation"):
        for what in ("inputs", "labels"):
            shutil.copy(f"{rows}_{split}_{what}.npy", f"{data_dir}/govreport_{split}_{what}.npy")
    assert any(
        line.startswith("problem:") and "outside the vocabulary of 300" in line
        for line in found.check(data_dir)
    )


def test_without_a_source_the_sentence_says_what_to_fetch(tmp_path) -> None:
    with pytest.raises(UserError, match=r"--source.*parquet.*licence"):
        Llama2Lora().data().build(str(tmp_path))

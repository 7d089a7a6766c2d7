"""Llama 2 70B LoRA: recipes, rates, optimizer, evaluation, log and base against rules and fact sheet."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks.llama2_70b_lora import Llama2Lora
from mlperf_jax.core import mesh as meshes, preflight, starts, state
from mlperf_jax.errors import UserError
from mlperf_jax.models import huggingface
from mlperf_jax.optimizers import tree


@pytest.fixture
def data_dir(tiny_data) -> str:
    return tiny_data("llama2_70b_lora")


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


def test_only_adapters_are_trained_and_begin_without_effect(data_dir) -> None:
    """The base is read into `frozen` on one device and eight; B is zero, A uniform by its fan-in."""
    tiny = preflight.resolve_dtype(benchmarks.get("llama2_70b_lora", tiny=True))
    tensors = huggingface.open_folder(f"{data_dir}/{tiny.weights}")
    for mesh in ("data=1", "data=2,fsdp=4"):
        assembly = state.assemble(tiny, meshes.make_mesh(mesh))
        begun = starts.begin_from(assembly.create(0), tiny.start(data_dir))
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


def test_data_are_checked_id_by_id(data_dir, tmp_path) -> None:
    data = benchmarks.get("llama2_70b_lora", tiny=True).data()
    assert data.check(data_dir) == [
        "train: 448 rows of 256 tokens",
        "validation: 28 rows of 256 tokens",
    ]
    rows = f"{data_dir}/tiny_reports_512_256/tiny_reports"
    found = dataclasses.replace(data, tiny=False, vocabulary=300)
    for split in ("train", "validation"):
        for what in ("inputs", "labels"):
            shutil.copy(f"{rows}_{split}_{what}.npy", f"{tmp_path}/govreport_{split}_{what}.npy")
    assert any(
        line.startswith("problem:") and "outside the vocabulary of 300" in line
        for line in found.check(str(tmp_path))
    )
